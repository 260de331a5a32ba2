"""A language model around a recurrent cell: words in, scores of the next word out, one table of word vectors for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import Self

from advnas_ext import DartsRecurrentCell, OnePathRecurrentCell, Path

EMBEDDING_RANGE = 0.1  # as in AWD-LSTM (Merity, Keskar & Socher, ICLR 2018)
CHUNK = 256  # rows of scores that are there at a time: 10,000 words of each fit the last cache


class LanguageModel(nn.Module):
    """Word vectors, a recurrent cell, and the same vectors as the weights of the scores (Press & Wolf, EACL 2017).

    Args:
        num_words: of the vocabulary.
        units: of a word vector and of the cell.
        cell: a module ``(x [length, batch, units], path, hidden, x_mask, h_mask) -> (outputs, last hidden)``.
    """

    def __init__(self, num_words: int, units: int, cell: nn.Module) -> None:
        super().__init__()
        self.path: Path | None = None
        self.embedding = nn.Embedding(num_words, units)
        self.embedding.weight.data.uniform_(-EMBEDDING_RANGE, EMBEDDING_RANGE)
        self.cell = cell
        self.bias = nn.Parameter(torch.zeros(num_words))

    def forward(self, inputs: Tensor, path: Path | None = None, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores of the next words.

        Args:
            inputs: int64 [length, batch].
            path: of the cell; None: the one of :meth:`fix`.
            hidden: of the cell, [batch, size]; None: zeros.

        Returns:
            [length, batch, num_words], before the softmax, and the last hidden state.

        Raises:
            ValueError: there is no path, or it does not fit the cell.
        """
        outputs, hidden = self.encode(inputs, path, hidden, {})
        return functional.linear(outputs, self.embedding.weight, self.bias), hidden

    def loss(
        self,
        inputs: Tensor,
        targets: Tensor,
        path: Path | None = None,
        hidden: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean cross entropy of the next words, in nats, and the last hidden state; arguments as of :meth:`forward`.

        The scores of a whole window would be by far the largest tensor; they are made and used up in chunks. Where ``path`` asks
        for gradients of its gates, those of the word vectors as weights of the scores are left out: an architecture step has no
        use for them.

        Args:
            masks: of dropout, as :func:`draw_masks` makes them.
        """
        masks = masks or {}
        outputs, hidden = self.encode(inputs, path, hidden, masks)
        if "output" in masks:
            outputs = outputs * masks["output"]
        weight, bias = self.embedding.weight, self.bias
        if path is not None and path.gates.requires_grad:
            weight, bias = weight.detach(), bias.detach()  # type: ignore[assignment]
        return cross_entropy(outputs.flatten(0, 1), weight, bias, targets.flatten()), hidden

    def encode(
        self, inputs: Tensor, path: Path | None, hidden: Tensor | None, masks: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The outputs of the cell, [length, batch, units], and its last hidden state."""
        path = self.path if path is None else path
        if path is None:
            raise ValueError(
                "LanguageModel: path is missing; give one, or fix the network to an architecture with .fix(ops)"
            )
        x = self.embedding(inputs)
        return self.cell(x, path, hidden, masks.get("input"), masks.get("hidden"))

    def fix(self, ops: Tensor) -> Self:
        """Make it the network of one architecture.

        Args:
            ops: int64 [num_edges], places among the candidates.
        """
        self.path = Path.from_ops(ops, requires_grad=False)
        return self


def draw_masks(
    generator: torch.Generator, batch: int, units: int, dropout: float, dropout_hidden: float
) -> dict[str, Tensor]:
    """Masks of variational dropout (Gal & Ghahramani, NeurIPS 2016), the same in all steps of a window.

    Args:
        dropout: share of the units of the cell's input and output that are 0; the others grow as much.
        dropout_hidden: likewise of the hidden state.

    Returns:
        float32 [batch, units] each, on the host; those without dropout are left out.
    """
    rates = {"input": dropout, "output": dropout, "hidden": dropout_hidden}
    return {
        name: torch.empty(batch, units).bernoulli_(1 - rate, generator=generator).div_(1 - rate)
        for name, rate in rates.items()
        if rate > 0
    }


def cross_entropy(x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of ``x @ weight.T + bias``, in chunks where torch can (2.13)."""
    if not hasattr(nn, "LinearCrossEntropyOptions"):
        return functional.cross_entropy(functional.linear(x, weight, bias), targets)
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK, chunking_method=None)
    return functional.linear_cross_entropy(x, weight, targets, linear_bias=bias, options=options)


def one_path(num_words: int, units: int, num_nodes: int, ops: Sequence[str]) -> LanguageModel:
    """With the cell of AdvantageNAS (:class:`advnas_ext.OnePathRecurrentCell`)."""
    return LanguageModel(num_words, units, OnePathRecurrentCell(units, num_nodes, ops))


def darts(num_words: int, units: int, num_nodes: int, ops: Sequence[str]) -> LanguageModel:
    """With the cell of DARTS (:class:`advnas_ext.DartsRecurrentCell`)."""
    return LanguageModel(num_words, units, DartsRecurrentCell(units, num_nodes, ops))

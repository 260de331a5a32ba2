"""Windows of a text: it lies in parallel columns, and a batch is the next few rows of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advnas.device import Placement

Masks = Mapping[str, Tensor]


@dataclass(frozen=True)
class TextBatch:
    """A window.

    Attributes:
        inputs, targets: int64 [length, batch]; the targets are the inputs of one step later.
        hidden: [batch, size], the state that the window before ended with; None at the start of a text.
        masks: of dropout, by name, the same for every network that sees the batch; empty: none is wanted.
    """

    inputs: Tensor
    targets: Tensor
    hidden: Tensor | None
    masks: Masks
    _windows: Windows

    def carry(self, hidden: Tensor) -> None:
        """``hidden`` is what the next window begins with."""
        self._windows.hidden = hidden.detach()


class Windows:
    """A pass over a text, as backpropagation through time takes it. The hidden state, and the masks' randomness, are part of it.

    The state (position, hidden state, random generator) can be saved in the middle of a pass; an iteration that begins afterwards
    goes on from there, bit for bit. A pass begins without a hidden state.

    Args:
        tokens: int64 [count], on the host. What does not fill a row of all columns is left out at the end.
        batch_size: columns.
        length: of a window; the last one of a pass may be shorter.
        placement: where the whole text is put.
        masks: draws a batch's masks from a generator on the host; None: there are none.
        generator: of the masks.
        start: the row that the first pass begins at; the others begin at the top.

    Raises:
        ValueError: the text is shorter than a window.
    """

    def __init__(
        self,
        tokens: Tensor,
        batch_size: int,
        length: int,
        placement: Placement,
        masks: Callable[[torch.Generator], Masks] | None = None,
        generator: torch.Generator | None = None,
        start: float = 0.0,
    ) -> None:
        rows = len(tokens) // batch_size
        if rows < length + 1:
            raise ValueError(
                f"Windows: a text in {batch_size} columns must have at least {batch_size} * (bptt + 1) = "
                f"{batch_size * (length + 1)} tokens, got {len(tokens)}; use a longer text, a smaller --bptt or, where it "
                "trains, a smaller --batch-size"
            )
        self._text = placement.put(tokens[: rows * batch_size].view(batch_size, rows).t().contiguous())
        self._length = length
        self._placement = placement
        self._draw = masks
        self._generator = generator if generator is not None else torch.Generator()
        self._row = round(start * len(self)) * length
        self.hidden: Tensor | None = None

    def __len__(self) -> int:
        return -(-(len(self._text) - 1) // self._length)

    def __iter__(self) -> Iterator[TextBatch]:
        last = len(self._text) - 1  # a row that has no target
        if self._row >= last:
            self._row, self.hidden = 0, None
        while self._row < last:
            first, end = self._row, min(self._row + self._length, last)
            masks = {} if self._draw is None else self._draw(self._generator)
            placed = {name: self._placement.put(mask) for name, mask in masks.items()}
            self._row = end  # before the batch is out: a state that is saved then has it behind it
            yield TextBatch(self._text[first:end], self._text[first + 1 : end + 1], self.hidden, placed, self)

    def state_dict(self) -> dict[str, Any]:
        hidden = None if self.hidden is None else self.hidden.cpu()
        return {
            "rows": len(self._text),
            "row": self._row,
            "hidden": hidden,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: it is of another text.
        """
        if state["rows"] != len(self._text):
            raise ValueError(
                f"Windows: the state must be of a text of {len(self._text)} rows, got {state['rows']}; give the same data"
            )
        self._row = state["row"]
        self.hidden = None if state["hidden"] is None else self._placement.put(state["hidden"])
        self._generator.set_state(state["generator"])

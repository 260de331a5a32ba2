"""whittle's GPT: the same outputs as its own sub-networks, advantages against finite differences, runs of the strategy."""

import copy
import itertools

import pytest
import torch
from torch import nn

pytest.importorskip("whittle", reason='pip install "advnas-ext[whittle]"')
from examples import run_example
from litgpt import Config
from syne_tune.config_space import choice, randint, uniform
from whittle.models.gpt import GPT
from whittle.sampling.random_sampler import RandomSampler
from whittle.search.search_spaces import MediumSearchSpace, SimpleSearchSpace
from whittle.training_strategies import RandomStrategy

from advnas.adapters.whittle import AdvantageStrategy, Supernet
from advnas_ext import DartsEstimator, RandomEstimator, Search

TOKENS = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(0))
SPACE = {
    "sub_network_n_embd": choice([16, 32]),
    "sub_network_intermediate_size": choice([24, 48]),
    "sub_network_num_heads": choice([2, 4]),
    "sub_network_n_layers": randint(1, 3),
}


def gpt(**settings):
    torch.manual_seed(0)
    shape = {"n_layer": 3, "n_embd": 32, "n_head": 4, "intermediate_size": 48, "block_size": 16, "bias": True}
    model = GPT(Config(vocab_size=50, padded_vocab_size=50, **{**shape, **settings})).double()
    for name, weight in model.named_parameters():
        if "norm" not in name and "ln_f" not in name:
            nn.init.normal_(weight, std=0.3)
    return model


LLAMA = {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "bias": False, "n_query_groups": 4}
MODELS = {"neox": {}, "llama": LLAMA, "sequential": {"parallel_residual": False}}


def every_path(search):
    sizes = [range(len(places[0])) for places in search.choices.values()]
    return [dict(zip(search.choices, places, strict=True)) for places in itertools.product(*sizes)]


def config_on(search, path):
    picked = zip(search.choices.items(), path.ops[:, 0].tolist(), strict=True)
    return {name: places[0].values[op] for (name, places), op in picked}


@pytest.mark.parametrize("kind", MODELS)
def test_outputs_and_gradients_of_weights_are_those_of_whittle(kind):
    model = gpt(**MODELS[kind])
    theirs = copy.deepcopy(model)
    search = Search(Supernet(model, SPACE), RandomEstimator, dtype=torch.float64)
    for places in every_path(search):
        theirs.set_sub_network(**config_on(search, search.follow(places)))
        outputs = []
        for network, of in ((search.model, model), (theirs, theirs)):
            of.zero_grad()
            outputs.append(network(TOKENS))
            outputs[-1].square().sum().backward()
        assert torch.equal(*outputs), places
        for (name, mine), other in zip(model.named_parameters(), theirs.named_parameters(), strict=True):
            assert (mine.grad is None) == (other[1].grad is None), name
            assert mine.grad is None or torch.equal(mine.grad, other[1].grad), name


WIDTH = [
    ("lm_head.weight", (..., slice(16, None))),
    ("transformer.wte.weight", (..., slice(16, None))),
    ("transformer.ln_f.weight", (slice(16, None),)),
    ("transformer.ln_f.bias", (slice(16, None),)),
]
BLOCK_WIDTH = [
    *((f"{norm}.{weight}", (slice(16, None),)) for norm in ("norm_1", "norm_2") for weight in ("weight", "bias")),
    *((f"{layer}.weight", (..., slice(16, None))) for layer in ("attn.qkv", "mlp.fc")),
    *(
        (f"{layer}.{weight}", (slice(16, None),))
        for layer in ("attn.proj", "mlp.proj")
        for weight in ("weight", "bias")
    ),
]
HEADS = [row for start in (0, 32, 64) for row in range(start + 16, start + 32)]  # of q, k and v
ADDED = {  # entries of the weights of a block, by what adds them
    "sub_network_n_embd": BLOCK_WIDTH,
    "sub_network_intermediate_size": [
        ("mlp.fc.weight", (slice(24, None),)),
        ("mlp.fc.bias", (slice(24, None),)),
        ("mlp.proj.weight", (..., slice(24, None))),
    ],
    "sub_network_num_heads": [
        ("attn.qkv.weight", (HEADS,)),
        ("attn.qkv.bias", (HEADS,)),
        ("attn.proj.weight", (..., slice(16, None))),
    ],
}


def loss_with(model, config, name, g):
    """The loss where a decision's gate is g, by scaling what the gate takes."""
    model = copy.deepcopy(model)
    model.set_sub_network(**config)
    if name == "sub_network_n_layers":
        for block in model.transformer.h[1:]:
            block.register_forward_hook(lambda block, arguments, y: g * y + (1 - g) * arguments[0])
    else:
        with torch.no_grad():
            for weight, entries in WIDTH if name == "sub_network_n_embd" else []:
                model.get_parameter(weight)[entries] *= g
            for block in model.transformer.h:
                for weight, entries in ADDED[name]:
                    block.get_parameter(weight)[entries] *= g
    return model(TOKENS).square().mean().item()


def test_advantages_against_finite_differences():
    model = gpt()
    theirs = copy.deepcopy(model)
    search = Search(Supernet(model, SPACE), RandomEstimator, dtype=torch.float64)
    seen = set()
    for seed in range(14):
        path = search.sample(torch.Generator().manual_seed(seed))
        search.backward(search.model(TOKENS).square().mean())
        config = config_on(search, path)
        for edge, name in enumerate(search.choices):
            low, high = (loss_with(theirs, config, name, 1 + step) for step in (-1e-5, 1e-5))
            advantage = path.gates.grad[edge, 0].item()
            assert advantage == pytest.approx((high - low) / 2e-5, rel=1e-5, abs=1e-8), (name, config)
            assert (advantage == 0) == (path.ops[edge, 0] == 0)
            seen.add((name, path.ops[edge, 0].item()))
    assert len(seen) == 9


def test_tied_weights_and_spaces_of_layers():
    model = gpt(n_embd=64)
    model.transformer.wte.weight = model.lm_head.weight
    space = MediumSearchSpace(model.config)
    space.config_space = {
        name: choice([32, 64]) if name == "n_embd" else randint(1, 3) if name == "n_layers" else choice([2, 4])
        for name in space.config_space
    }
    search = Search(Supernet(model, space), dtype=torch.float64)
    for seed in range(4):
        search.sample(torch.Generator().manual_seed(seed))
        loss = search.model(TOKENS).square().mean()
        search.backward(loss)
        search.assign_grad(loss, accumulate=True)
    assert search.logits.grad.any(1).sum() > 4
    model.set_sub_network(**search.model.arguments(search))
    assert model(TOKENS).isfinite().all()


def criterion(y, tokens):
    return nn.functional.cross_entropy(y[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.parametrize("valid", [True, False])
def test_a_run_of_the_strategy(valid):
    model = gpt()
    before = copy.deepcopy(model.state_dict())
    batches = []
    strategy = AdvantageStrategy(
        sampler=RandomSampler(SPACE),
        loss_function=criterion,
        device="cpu",
        learning_rate=0.1,
        validation=(lambda: batches.append(0) or (TOKENS, TOKENS)) if valid else None,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        losses.append(strategy(model, TOKENS, TOKENS))
        optimizer.step()
    assert len(batches) == (4 if valid else 0)
    assert strategy.search.logits.abs().max() > 0.05
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.sub_network_n_embd == 32  # as every strategy of whittle leaves it


def test_gradients_of_weights_are_those_of_whittles_strategy():
    """On the same sub-network, the whole one."""
    one = {"sub_network_n_embd": choice([32]), "sub_network_n_layers": choice([3, 3])}
    model = gpt()
    theirs = copy.deepcopy(model)
    keywords = {"sampler": RandomSampler(one), "loss_function": criterion, "device": "cpu"}
    assert AdvantageStrategy(**keywords)(model, TOKENS, TOKENS, scale_loss=0.5) == pytest.approx(
        RandomStrategy(**keywords)(theirs, TOKENS, TOKENS, scale_loss=0.5)
    )
    for mine, other in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_finds_the_width_that_helps():
    """The second half of the embedding is noise that a trained model would not have."""
    model = gpt()
    with torch.no_grad():
        model.lm_head.weight[:, 16:] *= 8
    space = {"sub_network_n_embd": choice([16, 32])}
    search = Search(Supernet(model, space), dtype=torch.float64)
    optimizer = torch.optim.Adam([search.logits], lr=0.1)
    for _ in range(20):
        search.sample()
        loss = search.model(TOKENS).square().mean()
        search.backward(loss)
        search.assign_grad(loss)
        optimizer.step()
    assert search.model.arguments(search) == {"sub_network_n_embd": 16}


def test_says_what_was_expected():
    with pytest.raises(TypeError, match="Supernet: model must be a GPT of whittle, got Linear"):
        Supernet(nn.Linear(2, 2), SPACE)
    with pytest.raises(
        ValueError, match=r"'sub_network_n_embd' must have at most 1000 values, got .*; give a choice of a few"
    ):
        Supernet(gpt(), {"sub_network_n_embd": uniform(1, 2)})
    with pytest.raises(ValueError, match="must have at most 1000 values"):
        Supernet(gpt(), SimpleSearchSpace({"sub_network_n_embd": randint(1, 2000)}))
    strategy = AdvantageStrategy(
        estimator=DartsEstimator, sampler=RandomSampler(SPACE), loss_function=criterion, device="cpu"
    )
    with pytest.raises(ValueError, match="DartsEstimator runs 3 candidates of a decision at a time"):
        strategy(gpt(), TOKENS, TOKENS)


def test_the_example():
    names = run_example("docs/adapters.md", "whittle")
    assert names["strategy"].search.logits.any()
    assert names["found"].keys() == names["space"].keys()

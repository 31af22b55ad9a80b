"""Dropout by example: right shares, and the same draws however the examples are computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binom
from support.tiny import weights_of
from support.trainings import HARD, Always, both, half_mask, run
from torch import Tensor, nn

from deftx.config import Execution
from deftx.kernels.attention import attention, drop_by_example
from deftx.kernels.dropout import CounterRNG, ExampleDropout

CPU = torch.device("cpu")


def rng(seed: int = 5, step: int = 0, examples: int = 4, sites: int = 3) -> CounterRNG:
    made = CounterRNG(seed)
    for _ in range(sites):
        made.site()
    made.begin(step, examples, CPU)
    return made


@pytest.mark.parametrize("share", [0.1, 0.5, 0.01])
def test_the_share_dropped_is_within_binomial_bounds(share: float) -> None:
    dropped = rng(examples=8).dropped(0, torch.Size((8, 501, 77)), share)
    low, high = binom.ppf([5e-7, 1 - 5e-7], dropped.numel(), share)
    assert low <= int(dropped.sum()) <= high
    for example in dropped:
        low, high = binom.ppf([5e-7, 1 - 5e-7], example.numel(), share)
        assert low <= int(example.sum()) <= high


def test_draws_of_examples_sites_steps_seeds_and_neighbours_are_independent() -> None:
    size, share = torch.Size((4, 60_000)), 0.3
    base = rng().dropped(0, size, share)
    others = [
        base.roll(1, 0), rng().dropped(1, size, share), rng(step=1).dropped(0, size, share),
        rng(seed=6).dropped(0, size, share), *(base.roll(shift, 1) for shift in (1, 2, 64, 256, 768)),
    ]  # fmt: skip
    for other in others:
        both_dropped = int((base & other).sum())
        low, high = binom.ppf([5e-7, 1 - 5e-7], base.numel(), share**2)
        assert low <= both_dropped <= high


def test_an_examples_draws_do_not_depend_on_what_is_computed_with_it() -> None:
    shape = torch.Size((4, 6, 5))
    whole = rng().dropped(2, shape, 0.4)
    split = rng()
    for first, count in ((0, 1), (1, 3)):
        split.at(first)
        part = split.dropped(2, torch.Size((count, 6, 5)), 0.4)
        assert torch.equal(part, whole[first : first + count])
    assert torch.equal(rng(examples=9).dropped(2, shape, 0.4), whole)


@pytest.mark.parametrize("masked", [True, False])
def test_attention_and_its_gradients_are_those_of_the_formula(masked: bool) -> None:
    torch.manual_seed(0)
    made = CounterRNG(1)
    module: Any = nn.Module()
    module.dropout = ExampleDropout(0.3, made)
    made.begin(0, 5, CPU)
    made.at(2)
    # as a model gives them: views of (examples, tokens, heads, width)
    q, k, v = (torch.randn(3, 6, 2, 4, dtype=torch.float64).transpose(1, 2).requires_grad_() for _ in range(3))
    mask = torch.rand(3, 1, 6, 6) > 0.4 if masked else None
    if mask is not None:
        mask[..., 0] = True
    found, none = attention(module, q, k, v, mask, dropout=0.3, scaling=0.5)
    weights = torch.randn_like(found)
    ours = torch.autograd.grad((found * weights).sum(), (q, k, v))
    scores = q @ k.mT * 0.5
    p = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)
    kept = p.masked_fill(made.dropped(0, p.shape, 0.3), 0.0) / 0.7
    plain = (kept @ v).transpose(1, 2)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-12)
    for one, other in zip(ours, torch.autograd.grad((plain * weights).sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert none is None


def test_every_dropout_of_a_model_is_replaced_and_off_in_evaluation(backbone: Path) -> None:
    model, objective = both("classification", backbone, dropout=0.2)
    made = CounterRNG(0)
    drop_by_example(model, made)
    found = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert found and all(type(module) is ExampleDropout and module.p == 0.2 for module in found)
    assert len({module.site for module in found if isinstance(module, ExampleDropout)}) == len(found)
    plain, _ = both("classification", backbone, dropout=0.2)
    batch = objective.batch(torch.arange(6).numpy(), None)  # type: ignore[arg-type]
    assert torch.equal(objective.loss(model.eval(), batch), objective.loss(plain.eval(), batch))


@pytest.mark.parametrize("kind", ["mlm", "classification"])
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
def test_micro_batches_and_gradient_checkpointing_change_nothing_with_dropout_on(
    backbone: Path, kind: str, sparse: bool
) -> None:
    ways = [
        Execution(), Execution(micro_batch=1), Execution(micro_batch=3), Execution(gradient_checkpointing=True),
        Execution(micro_batch=2, gradient_checkpointing=True),
    ]  # fmt: skip
    settings = HARD.model_copy(update={"max_steps": 5, "batch_size": 8, "l1": 0.0})
    found: list[dict[str, Tensor]] = []
    for execution in ways:
        model, objective = both(kind, backbone, dropout=0.3)
        model.double()
        run(model, Always(objective), settings, half_mask(model) if sparse else None, execution=execution)
        found.append(weights_of(model))
        assert model.config.use_cache == both(kind, backbone)[0].config.use_cache  # as it was
    for other in found[1:]:
        for name, weight in found[0].items():
            torch.testing.assert_close(weight, other[name], rtol=0, atol=1e-6)
    assert all(
        torch.equal(weight, found[3][name]) for name, weight in found[0].items()
    )  # drawn again the same, to the bit

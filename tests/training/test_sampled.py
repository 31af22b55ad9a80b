"""Linear layers of which chosen entries train, against the whole gradient in float64 and torch's own layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deftx.kernels import sampled_linear as sampled
from deftx.kernels.sampled_linear import SampledGradientLinear

BOTH = pytest.mark.parametrize("few", [1.0, 0.0], ids=["entries alone", "whole product"])


@pytest.fixture(autouse=True)
def small_matrices_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampled, "_LARGE", 1)


def chosen(layer: nn.Linear, index: list[int]) -> tuple[Tensor, nn.Parameter]:
    entries = torch.tensor(index, dtype=torch.int64)
    return entries, nn.Parameter(layer.weight.detach().view(-1)[entries].clone())


def gradients(x: Tensor, layer: nn.Linear, index: list[int], above: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of the input, of the chosen entries and of the bias."""
    entries, values = chosen(layer, index)
    x = x.clone().requires_grad_()
    SampledGradientLinear(layer, entries, values)
    layer(x).backward(above)
    assert x.grad is not None and values.grad is not None and layer.weight.grad is None
    return x.grad, values.grad, None if layer.bias is None else layer.bias.grad


@given(st.data())
def test_the_gradient_of_the_chosen_entries_is_theirs_of_the_whole(data: st.DataObject) -> None:
    examples, tokens, into, out = (data.draw(st.integers(1, 7)) for _ in range(4))
    index = sorted(data.draw(st.sets(st.integers(0, into * out - 1), min_size=1)))
    few = data.draw(st.sampled_from([0.0, 1.0]))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    layer, x = nn.Linear(into, out, bias=data.draw(st.booleans())), torch.randn(examples, tokens, into)
    above = torch.randn(examples, tokens, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampled, "_FEW", few)
        patch.setattr(sampled, "_TOKENS", 4)
        of_x, of_values, of_bias = gradients(x, layer, index, above)
    wide, weight = above.double().numpy(), layer.weight.detach().double().numpy()
    whole = np.einsum("eto,eti->oi", wide, x.double().numpy())
    np.testing.assert_allclose(of_values, whole.reshape(-1)[index], rtol=0, atol=2e-5)
    np.testing.assert_allclose(of_x, wide @ weight, rtol=0, atol=2e-5)
    if of_bias is not None:
        np.testing.assert_allclose(of_bias, wide.sum((0, 1)), rtol=0, atol=2e-5)


def test_more_tokens_than_are_taken_at_once_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampled, "_FEW", 1.0)
    torch.manual_seed(0)
    layer, x, above = nn.Linear(30, 20).double(), torch.randn(3, 400, 30).double(), torch.randn(3, 400, 20).double()
    index = list(range(0, 600, 7))
    _, found, _ = gradients(x, layer, index, above)
    whole = above.flatten(0, 1).T @ x.flatten(0, 1)
    torch.testing.assert_close(found, whole.view(-1)[index], rtol=1e-12, atol=1e-12)


@BOTH
def test_gradients_add_up_over_micro_batches_and_the_forward_pass_is_torchs(
    monkeypatch: pytest.MonkeyPatch, few: float
) -> None:
    monkeypatch.setattr(sampled, "_FEW", few)
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 6), torch.randn(4, 8)
    plain, (entries, values) = layer(x), chosen(layer, [0, 9, 47])
    there = SampledGradientLinear(layer, entries, values)
    assert torch.equal(layer(x), plain)
    for half in x.split(2):
        layer(half).square().sum().backward()
    once = values.grad
    values.grad = None
    layer(x).square().sum().backward()
    assert once is not None and values.grad is not None
    torch.testing.assert_close(once, values.grad)
    there.close()
    assert "forward" not in vars(layer) and torch.equal(layer(x), plain)


@BOTH
def test_under_autocast_the_products_are_narrow_and_the_gradients_wide(
    monkeypatch: pytest.MonkeyPatch, few: float
) -> None:
    monkeypatch.setattr(sampled, "_FEW", few)
    torch.manual_seed(0)
    layer, x, index = nn.Linear(16, 12), torch.randn(5, 16), [0, 30, 100]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = layer(x)
    above = torch.randn(5, 12)
    expected.float().backward(above)
    assert layer.weight.grad is not None and layer.bias.grad is not None
    whole, of_bias = layer.weight.grad.view(-1)[index], layer.bias.grad
    layer.zero_grad()
    entries, values = chosen(layer, index)
    SampledGradientLinear(layer, entries, values)
    inputs = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(inputs)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)
    found.float().backward(above)
    assert values.grad is not None and inputs.grad is not None and layer.bias.grad is not None
    assert values.grad.dtype == inputs.grad.dtype == torch.float32
    torch.testing.assert_close(values.grad, whole, rtol=0.01, atol=0.01)
    torch.testing.assert_close(layer.bias.grad, of_bias, rtol=0.01, atol=0.05)


@pytest.mark.parametrize(("entries", "pays"), [(102, True), (103, False)], ids=["few", "many"])
def test_where_it_pays(monkeypatch: pytest.MonkeyPatch, entries: int, pays: bool) -> None:
    layer = nn.Linear(32, 16)  # 512 entries, of which a fifth is 102.4
    assert (SampledGradientLinear(layer, *chosen(layer, list(range(entries))))._places is not None) is pays
    monkeypatch.setattr(sampled, "_LARGE", 513)
    assert SampledGradientLinear(layer, *chosen(layer, [1]))._places is None


def test_a_number_that_is_none_is_not_hidden() -> None:
    """The values are no part of the sparse product, and a bad one is never hidden."""
    layer, x = nn.Linear(8, 6), torch.ones(2, 8)
    entries, values = chosen(layer, [0, 3])
    values.data[0] = torch.nan
    SampledGradientLinear(layer, entries, values)
    layer(x).sum().backward()
    assert values.grad is not None and values.grad.tolist() == [2.0, 2.0]
    x[0, 0] = torch.inf
    values.grad = None
    layer(x).sum().backward()
    assert not values.grad.isfinite().all()  # type: ignore[attr-defined]

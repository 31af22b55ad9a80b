"""L + S against numpy's float64 SVD, entry by entry."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from deftx.config import Denoise
from deftx.errors import DataError
from deftx.masks import denoise as module
from deftx.masks.denoise import denoise, factorise, is_matrix, low_rank
from deftx.rank import Rank

Array = NDArray[np.float64]
SHAPES = [(40, 9), (9, 40), (12, 12), (2, 30), (33, 2)]


def make_matrix(shape: tuple[int, int], seed: int = 0) -> Tensor:
    """Random, with a spectrum that falls as that of a weight change does."""
    generator = np.random.default_rng(seed)
    left, values, right = np.linalg.svd(generator.normal(size=shape), full_matrices=False)
    return torch.from_numpy((left * values * 0.6 ** np.arange(values.size)) @ right).float()


def truncated(matrix: Tensor, rank: int) -> Array:
    left, values, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    product: Array = (left[:, :rank] * values[:rank]) @ right[:rank]
    return product


def rounding(matrix: Tensor) -> float:
    """What the float32 products of L may lose: processors add up in another order, some by the number of rows too."""
    return 4e-7 * float(matrix.abs().max())


def rank_by_variance(singular: Array, percent: str) -> int:
    """The definition: the smallest r whose squares sum to at least the share of the total."""
    energy = np.square(singular)
    share = float(Decimal(percent) / 100)
    return next(r for r in range(1, energy.size + 1) if r == energy.size or energy[:r].sum() >= share * energy.sum())


def plain_denoise(matrix: Tensor, rank: int, number: int) -> Array:
    """L + S, S by sorting |W - L| in float64; where it is kept L + (W - L) is W."""
    w = matrix.double().numpy()
    values = truncated(matrix, rank)
    kept = np.argsort(-np.abs(w - values), axis=None, kind="stable")[:number]
    values.flat[kept] = w.flat[kept]
    return values


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_are_numpys(shape: tuple[int, int]) -> None:
    matrix = make_matrix(shape)
    exact = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    found = factorise(matrix).singular_values.numpy()
    # the Gram matrix squares the condition number: small values are good to the square root of float64
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-7 * exact[0])
    np.testing.assert_allclose(found[:3], exact[:3], rtol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("percent", ["0.1", "50", "75", "90", "95", "99", "99.9", "100"])
def test_rank_by_variance_is_that_of_a_float64_svd(shape: tuple[int, int], percent: str) -> None:
    for seed in range(5):
        matrix = make_matrix(shape, seed)
        exact = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
        assert Rank.parse(f"{percent}%").of(factorise(matrix).singular_values) == rank_by_variance(exact, percent)


def test_equal_singular_values_share_the_variance_exactly() -> None:
    values = factorise(torch.diag(torch.full((4,), 3.0))).singular_values
    ranks = map(Rank.parse, ("25%", "26%", "50%", "75%", "75.1%", "99%"))
    assert [rank.of(values) for rank in ranks] == [1, 2, 2, 3, 4, 4]


@pytest.mark.parametrize("rank", ["1", "90%", "100%", "9"])
@pytest.mark.parametrize("retention", [0.0, 0.05, 1.0])
def test_a_zero_matrix_stays_zero(rank: str, retention: float) -> None:
    result = denoise(torch.zeros(6, 4), Denoise(rank=rank, retention=retention))
    assert not result.values.any()
    assert 1 <= result.rank <= 4
    assert (result.nonzero_retention, result.energy_retention) == (1.0, 1.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 2, 5, 100])
def test_low_rank_is_the_truncated_svd(shape: tuple[int, int], rank: int) -> None:
    matrix = make_matrix(shape)
    found = low_rank(matrix, factorise(matrix), min(rank, *shape))
    assert found.dtype == torch.float32
    assert found.shape == matrix.shape
    np.testing.assert_allclose(found.numpy(), truncated(matrix, rank), rtol=0, atol=rounding(matrix))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("retention", [0.0, 0.05, 0.29, 1.0])
@pytest.mark.parametrize("retention_of", ["numel", "nonzero"])
@pytest.mark.parametrize("rank", ["1", "90%", "100%"])
def test_l_plus_s_entry_by_entry(shape: tuple[int, int], retention: float, retention_of: str, rank: str) -> None:
    matrix = make_matrix(shape, seed=3)
    setting = Denoise(rank=rank, retention=retention, retention_of=retention_of)  # type: ignore[arg-type]
    result = denoise(matrix, setting)
    number = int(Decimal(str(retention)) * matrix.numel())  # all residual entries of a random matrix differ from zero
    expected = plain_denoise(matrix, result.rank, number)
    np.testing.assert_allclose(result.values.numpy(), expected, rtol=0, atol=rounding(matrix))
    kept = int((result.values == matrix).sum())
    assert kept >= number
    if result.rank < min(shape):
        assert kept <= number + 1  # an entry of L may equal W by chance
        assert result.nonzero_retention == number / matrix.numel()
        residual = np.sort(np.square(matrix.double().numpy() - truncated(matrix, result.rank)), axis=None)[::-1]
        assert result.energy_retention == pytest.approx(residual[:number].sum() / residual.sum(), rel=1e-4)


def rows_of_seen_words() -> Tensor:
    """The delta of an embedding: only rows of words in the training data differ from zero."""
    matrix = torch.zeros(50, 8)
    matrix[::5] = make_matrix((10, 8), seed=4)
    return matrix


@pytest.mark.parametrize("retention_of", ["numel", "nonzero"])
def test_rows_of_unseen_words_stay_exactly_zero(retention_of: str) -> None:
    matrix = rows_of_seen_words()
    values = denoise(matrix, Denoise(rank=2, retention=0.05, retention_of=retention_of)).values  # type: ignore[arg-type]
    unseen = torch.arange(50) % 5 != 0
    assert not values[unseen].any()
    assert bool(values[~unseen].all())


def test_retention_of_all_entries_and_of_non_zero_residual_entries_differ() -> None:
    matrix = rows_of_seen_words()  # 400 entries, 80 of them non-zero
    low = low_rank(matrix, factorise(matrix), 2)
    kept = {}
    for retention_of in ("numel", "nonzero"):
        setting = Denoise(rank=2, retention=0.1, retention_of=retention_of)  # type: ignore[arg-type]
        result = denoise(matrix, setting)
        kept[retention_of] = (int((result.values != low).sum()), result.nonzero_retention)
    assert kept == {"numel": (40, 40 / 80), "nonzero": (8, 8 / 80)}
    assert denoise(matrix, Denoise(rank=2, retention=0.5)).nonzero_retention == 1.0  # never more than there are


@given(
    st.integers(2, 12),
    st.integers(2, 12),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.integers(0, 99),
)
@settings(max_examples=40)
def test_denoising_brings_no_entry_further_from_the_delta_than_l_is(
    m: int, n: int, rank: int, retention: float, seed: int
) -> None:
    matrix = make_matrix((m, n), seed)
    result = denoise(matrix, Denoise(rank=rank, retention=retention))
    low = low_rank(matrix, factorise(matrix), result.rank)
    assert bool(((result.values == low) | (result.values == matrix)).all())
    assert 0.0 <= result.energy_retention <= 1.0 + 1e-12
    if retention == 1.0 or rank >= min(m, n):
        assert torch.equal(result.values, matrix)


def test_a_factorisation_serves_every_setting_and_blocks_of_rows_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matrix = make_matrix((40, 9))
    once = factorise(matrix)
    for setting in (Denoise(rank=3), Denoise(rank="90%", retention=0.2)):
        assert torch.equal(denoise(matrix, setting, once).values, denoise(matrix, setting).values)
    whole = denoise(matrix, Denoise(rank=3)).values
    monkeypatch.setattr(module, "_ROWS", 7)
    torch.testing.assert_close(denoise(matrix, Denoise(rank=3)).values, whole, rtol=0, atol=rounding(matrix))


def test_the_delta_itself_is_left_as_it_is() -> None:
    for rank in (2, "100%"):
        matrix = make_matrix((9, 40))
        before = matrix.clone()
        denoise(matrix, Denoise(rank=rank, retention=0.5)).values.zero_()
        assert torch.equal(matrix, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_an_error(bad: float) -> None:
    matrix = make_matrix((5, 4))
    matrix[2, 1] = bad
    with pytest.raises(DataError, match="NaN or infinite"):
        denoise(matrix, Denoise(rank=2))


def test_biases_and_single_rows_are_not_denoised() -> None:
    assert [is_matrix(torch.ones(shape)) for shape in ((3,), (1, 8), (8, 1), (2, 2), (2, 2, 2))] == [
        False, False, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(300, 96), (96, 300), (120, 120)])
def test_the_error_of_l_is_below_a_millionth_of_l(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randn(shape, generator=generator) * 1e-4
    factor = factorise(matrix)
    assert (factor.vectors.dtype, factor.vectors.shape) == (torch.float32, (96, 96) if 300 in shape else shape)
    for rank in (1, 10, 50, 95):
        exact = truncated(matrix, rank)
        assert np.linalg.norm(low_rank(matrix, factor, rank).numpy() - exact) < 1e-6 * np.linalg.norm(exact)


@pytest.mark.parametrize("seen", [1, 5, 8, 9, 30, 49])
@pytest.mark.parametrize("retention_of", ["numel", "nonzero"])
def test_leaving_out_rows_of_zeros_changes_nothing(seen: int, retention_of: str) -> None:
    """Fewer rows than columns, as many and more; against L + S of all rows by hand."""
    matrix = torch.zeros(50, 8)
    matrix[torch.randperm(50, generator=torch.Generator().manual_seed(seen))[:seen]] = make_matrix((seen, 8), seed=7)
    setting = Denoise(rank=3, retention=0.05, retention_of=retention_of)  # type: ignore[arg-type]
    result = denoise(matrix, setting)
    if seen <= 3:  # W is of rank 3 at most: the residual is rounding
        torch.testing.assert_close(result.values, matrix, rtol=0, atol=1e-6 * float(matrix.abs().max()))
        return
    number = int(0.05 * (400 if retention_of == "numel" else 8 * seen))
    expected = plain_denoise(matrix, 3, number)
    np.testing.assert_allclose(result.values.numpy(), expected, rtol=0, atol=rounding(matrix))
    assert result.nonzero_retention == number / (8 * seen)
    assert not result.values[~matrix.any(dim=1)].any()


def test_a_change_whose_squares_vanish_in_float32_is_denoised_all_the_same() -> None:
    matrix = make_matrix((40, 9))
    tiny = matrix * 1e-25
    found, plain = (denoise(m, Denoise(rank=2, retention=0.05)) for m in (tiny, matrix))
    assert (found.rank, found.nonzero_retention) == (plain.rank, plain.nonzero_retention)
    np.testing.assert_allclose(found.values.numpy() * 1e25, plain.values.numpy(), rtol=0, atol=1e-5)


def test_an_entry_that_is_no_number_is_named() -> None:
    matrix = make_matrix((40, 9))
    matrix[39, 8] = float("nan")
    with pytest.raises(DataError, match=r"encoder\.w of shape \(40, 9\) holds NaN"):
        factorise(matrix, "encoder.w")

"""From a change to a mask: factorised once, by the dense phase, and everything named that is no number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from deftx.config import Denoise
from deftx.errors import ConfigError, DataError
from deftx.masks import denoise as denoising
from deftx.masks import mask as masks
from deftx.masks.denoise import Factorisation, denoise
from deftx.masks.mask import choose, denoise_all, mask_size, save_svd_factors
from deftx.masks.select import jaccard, select
from deftx.stages.files import SINGULAR_VALUES, SINGULAR_VECTORS
from deftx.stages.settings import SparseSettings

SETTINGS = [Denoise(rank=rank, retention=kept) for rank in ("2", "90%") for kept in (0.05, 0.2)]


def make_delta() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"words": (60, 8), "wide": (8, 20), "bias": (8,), "types": (1, 8)}
    delta = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    delta["words"][::3] = 0
    return delta


def published(folder: Path) -> dict[str, Factorisation]:
    singular_values, singular_vectors = load_file(folder / SINGULAR_VALUES), load_file(folder / SINGULAR_VECTORS)
    return {name: Factorisation(singular_values[name], singular_vectors[name]) for name in singular_values}


def test_what_the_dense_phase_publishes_is_all_that_denoising_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta = make_delta()
    expected = [{n: denoise(t, s).values for n, t in delta.items() if n in ("words", "wide")} for s in SETTINGS]
    save_svd_factors(delta, tmp_path)

    def never(*_: object) -> Factorisation:
        raise AssertionError("factorised again")

    monkeypatch.setattr(denoising, "factorise", never)
    monkeypatch.setattr(masks, "factorise", never)
    svd_factors = published(tmp_path)
    assert {name: tuple(f.vectors.shape) for name, f in svd_factors.items()} == {"words": (8, 8), "wide": (8, 8)}
    assert all(f.vectors.dtype == torch.float32 for f in svd_factors.values())
    for setting, by_hand in zip(SETTINGS, expected, strict=True):
        values, facts = denoise_all(delta, setting, svd_factors.__getitem__)
        assert values["bias"] is delta["bias"]
        assert values["types"] is delta["types"]
        assert all(torch.equal(values[name], by_hand[name]) for name in by_hand)
        assert [one["name"] for one in facts] == ["words", "wide"]


@pytest.mark.parametrize("name", ["words", "wide", "bias", "types"])
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_a_change_that_is_no_number_is_named_and_nothing_is_written(tmp_path: Path, name: str, bad: float) -> None:
    delta = make_delta()
    delta[name].view(-1)[-1] = bad
    with pytest.raises(DataError, match=rf"the weight change of {name} .*holds NaN or infinite"):
        save_svd_factors(delta, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_overlap_is_that_with_the_mask_of_the_change_itself(tmp_path: Path) -> None:
    delta = make_delta()
    save_svd_factors(delta, tmp_path)
    values, _ = denoise_all(delta, SETTINGS[0], published(tmp_path).__getitem__)
    mask, shared = choose(delta, values, SparseSettings(denoise=SETTINGS[0], k=100))
    assert (mask_size(mask), shared) == (100, jaccard(mask, select(delta, 100)))
    assert shared is not None and 0 < shared < 1
    assert choose(delta, delta, SparseSettings(denoise=None, k=100))[1] == 1.0
    assert choose(delta, delta, SparseSettings(denoise=None, k=None))[1] is None, "there is nothing to compare with"


def test_more_entries_than_there_are_and_more_than_changed_are_errors() -> None:
    delta = make_delta()
    total = sum(tensor.numel() for tensor in delta.values())
    changed = sum(int(tensor.count_nonzero()) for tensor in delta.values())
    with pytest.raises(ConfigError, match=f"between 1 and the {total}"):
        choose(delta, delta, SparseSettings(denoise=None, k=total + 1))
    with pytest.raises(DataError, match=f"only {changed} entries"):
        choose(delta, delta, SparseSettings(denoise=None, k=changed + 1))
    assert mask_size(choose(delta, delta, SparseSettings(denoise=None, k=changed))[0]) == changed

"""What is doubtful about one published stage, in words: read from its manifest, shown on the screen and in the report.

What is doubtful about a whole sweep (few-label selection, say) is the report's to tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deftx.store import Manifest, Store

if TYPE_CHECKING:
    from deftx.data.check import TextCheck

ALIKE = 0.95
"""From this Jaccard overlap on a denoised mask is nearly LT-SFT's: denoising chose hardly anything."""
_FEW_VALIDATIONS = 3


def cautions(store: Store, manifest: Manifest) -> list[str]:
    """What to be careful about with a published stage: one line each, which does not name the stage (its label does).

    Args:
        store: where the stage is published; only a `check` stage's findings are read from it.
        manifest: of the stage.
    """
    found = text_check(store, manifest)
    by_manifest = (_clamped(manifest), _alike(manifest), _never_improved(manifest))
    return [*(found.warnings if found else ()), *(words for words in by_manifest if words)]


def text_check(store: Store, manifest: Manifest) -> TextCheck | None:
    """What a `check` stage found; none for a stage of another kind."""
    if manifest.kind != "check":
        return None
    # torch takes seconds to import, and most who ask have no check at hand
    from deftx.context import CHECK
    from deftx.data.check import TextCheck

    return TextCheck.model_validate_json(store.fetch(manifest.address, CHECK).read_bytes())


def _clamped(manifest: Manifest) -> str:
    """A uniform rank beyond min(m, n): such matrices are left as they are."""
    asked = (manifest.identity["settings"].get("denoise") or {}).get("rank", "%")
    matrices = manifest.details.get("matrices", [])
    if asked.endswith("%"):
        return ""
    clamped = [matrix["rank"] for matrix in matrices if matrix["rank"] < int(asked)]
    if not clamped:
        return ""
    number = "every matrix" if len(clamped) == len(matrices) else f"{len(clamped)} of {len(matrices)} matrices"
    return f"rank {asked} is more than {number} can have (the smallest {min(clamped)}): clamped, so not denoised there"


def _alike(manifest: Manifest) -> str:
    overlap = manifest.metrics.get("jaccard_lt_sft", 0.0)
    if overlap < ALIKE or not manifest.identity["settings"].get("denoise"):
        return ""
    return f"its mask is nearly LT-SFT's (Jaccard overlap {overlap:.2f}): denoising changed little"


def _never_improved(manifest: Manifest) -> str:
    """The best checkpoint is the first one that was validated."""
    steps = [point["step"] for point in manifest.curve]
    if len(steps) < _FEW_VALIDATIONS or manifest.metrics.get("best_step") != steps[0]:
        return ""
    return f"validation never improved after step {steps[0]:,.0f} of {steps[-1]:,.0f}, the first time it was measured"

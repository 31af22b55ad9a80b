"""What is doubtful about one published stage, in words: read from its manifest, shown on the screen and in the report.

What is doubtful about a whole sweep (few-label selection, say) is the report's to tell.
"""

from __future__ import annotations

from deftx.stages.store import Manifest

ALIKE = 0.95
"""From this Jaccard overlap on a denoised mask is nearly LT-SFT's: denoising chose hardly anything."""
_FEW_VALIDATIONS = 3


def cautions(manifest: Manifest) -> list[str]:
    """What to be careful about with a published stage: one line each, which does not name the stage (its label does).

    The lines of a `check` stage are those of its text, and name the language themselves.
    """
    of_text = manifest.details.get("warnings", []) if manifest.kind == "check" else []
    by_manifest = (_clamped(manifest), _alike(manifest), _never_improved(manifest))
    return [*of_text, *(words for words in by_manifest if words)]


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

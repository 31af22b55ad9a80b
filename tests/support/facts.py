"""What stages made by hand have measured: numbers that are whole and mean nothing."""

from __future__ import annotations

from deftx.stages.stage import Stage

_BLOCKS = {"lines": 90.0, "train_blocks": 80.0, "valid_blocks": 4.0}
_CHECK = {
    "repeated_lines": 0.0, "shared_lines": 0.0, "tokens_per_word": 1.5, "unknown_share": 0.0, "good_for_steps": 400.0,
    "planned_steps": 10.0, "warnings": 0.0,
}  # fmt: skip


def metrics_of(stage: Stage, **given: float) -> dict[str, float]:
    """Metrics as a manifest of such a stage has them, but for those given."""
    measured = {"valid_score" if stage.subject == "task" else "valid_loss": 0.5}
    trained = {"best_step": 10.0, "steps": 10.0, **measured}
    made_up: dict[str, dict[str, float]] = {
        "backbone": trained,
        "check": {**_BLOCKS, **_CHECK},
        "text": {**_BLOCKS, "train_tokens": 4000.0},
        "dense": {**trained, "changed_entries": 1000.0},
        "sparse": {**trained, "k": 100.0},
        "grade": {"valid_macro_f1": 0.5, "valid_accuracy": 0.5},
    }
    return made_up[stage.kind] | given

"""Both phases against plain loops around torch's own AdamW, and what a run leaves behind."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import LABELS, make_classification, same_bits, weights_of
from support.trainings import HARD, SEED, Always, batch_at, both, half_mask, run
from torch import Tensor, nn

from deftx.config import Execution, Training
from deftx.errors import DataError, TrainingError
from deftx.masks.select import Indices
from deftx.models.load import load_classifier
from deftx.models.parameters import base_of, head_of, maskable
from deftx.train import leave
from deftx.train.loop import Run, TrainResult, schedule, train
from deftx.train.objectives import Batch, Objective
from deftx.train.trainable import body_of, phase

PLAIN = HARD.model_copy(update={"l1": 0.0, "max_steps": 50})


def plain_training(model: Any, objective: Objective, settings: Training, mask: Indices | None, steps: int) -> None:
    """The reference: torch.optim.AdamW over whole tensors, gradient times mask, weights off the mask put back.

    Clipping is of the masked gradient, the rate falls linearly after the warm-up, and the L1 term is in the loss.
    """
    names = body_of(model, settings)
    trained = {**(names if mask is None else {name: names[name] for name in mask}), **head_of(model)}
    start = {name: parameter.detach().clone() for name, parameter in trained.items()}
    on = {name: dense_mask(parameter, mask, name) for name, parameter in trained.items()}
    size = sum(parameter.numel() for parameter in model.parameters())
    rising = int(settings.max_steps * settings.warmup)
    optimizer = torch.optim.AdamW(
        trained.values(), lr=0.0, betas=settings.betas, weight_decay=settings.weight_decay, foreach=False, fused=False
    )
    model.train()
    for step in range(steps):
        batch = batch_at(objective, step, settings.batch_size)
        loss = objective.loss(model, batch) / int((batch["labels"] != -100).sum())
        l1 = sum(((parameter - start[name]).abs() * on[name]).sum() for name, parameter in trained.items())
        (loss + settings.effective_l1 * l1 / size).backward()
        for name, parameter in trained.items():
            parameter.grad = None if parameter.grad is None else parameter.grad * on[name]
        norm = float(sum(p.grad.double().square().sum() for p in trained.values() if p.grad is not None)) ** 0.5
        for parameter in trained.values():
            if parameter.grad is not None:
                parameter.grad.mul_(min(1.0, settings.clip / (norm + 1e-6)))  # as torch defines it
        up = (step + 1) / rising if step < rising else (settings.max_steps - step) / (settings.max_steps - rising)
        optimizer.param_groups[0]["lr"] = settings.learning_rate * up
        optimizer.step()
        model.zero_grad()
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(torch.where(on[name].bool(), parameter, start[name]))


def dense_mask(parameter: nn.Parameter, mask: Indices | None, name: str) -> Tensor:
    if mask is None or name not in mask:
        return torch.ones_like(parameter)
    flat = torch.zeros(parameter.numel())
    flat[mask[name]] = 1.0
    return flat.view_as(parameter)


def in_float64(model: Any, objective: Objective) -> tuple[Any, Objective]:
    """Adam blows the rounding of a gradient that is zero in truth (of a key's bias) up to a whole step in float32."""
    return model.double(), objective


@pytest.mark.parametrize("kind", ["mlm", "classification"])
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize(
    "settings",
    [
        HARD,
        PLAIN,
        PLAIN.model_copy(update={"weight_decay": 0.0, "warmup": 0.0, "clip": 1.0}),
    ],
    ids=["hard", "no-l1", "paper"],
)
def test_a_phase_equals_torchs_adamw_over_40_to_50_steps(
    backbone: Path, kind: str, sparse: bool, settings: Training
) -> None:
    ours, objective = in_float64(*both(kind, backbone))
    plain, _ = in_float64(*both(kind, backbone))
    mask = half_mask(ours) if sparse else None
    start = weights_of(ours)
    run(ours, Always(objective), settings, mask)
    plain_training(plain, objective, settings, mask, settings.max_steps)
    expected = weights_of(plain)
    moved = 0.0
    for name, weight in weights_of(ours).items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)
        moved = max(moved, float((weight - start[name]).abs().max()))
    assert moved > 0.02  # far more than the tolerance


def off_mask(model: nn.Module, mask: Indices) -> dict[str, Tensor]:
    """The base model's entries off the mask, flat."""
    found = {}
    for name, parameter in base_of(model).named_parameters():
        keep = torch.ones(parameter.numel(), dtype=torch.bool)
        if name in mask:
            keep[mask[name]] = False
        found[name] = parameter.detach().reshape(-1)[keep].clone()
    return found


@pytest.mark.parametrize("execution", [Execution(), Execution(micro_batch=1)], ids=["whole", "accumulated"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_weights_off_the_mask_stay_bit_identical_with_everything_on(
    backbone: Path, precision: str, execution: Execution
) -> None:
    model, objective = both("mlm", backbone, dropout=0.1)
    mask = half_mask(model)
    before, decoder = off_mask(model, mask), model.lm_head.decoder.weight.detach().clone()
    on = {name: maskable(model)[name].detach().view(-1)[index].clone() for name, index in mask.items()}
    run(model, objective, HARD.model_copy(update={"max_steps": 15, "precision": precision}), mask, execution=execution)
    assert same_bits(off_mask(model, mask), before)
    assert torch.equal(model.lm_head.decoder.weight, decoder)
    assert any(bool((maskable(model)[name].view(-1)[index] != on[name]).any()) for name, index in mask.items())


def test_a_model_trains_again_with_another_mask(backbone: Path) -> None:
    model, objective = both("mlm", backbone, dropout=0.1)
    names = [name for name in maskable(model) if name.endswith("query.weight")]
    settings = PLAIN.model_copy(update={"max_steps": 2, "weight_decay": 0.0})
    for name in names:
        before = weights_of(model)
        run(model, Always(objective), settings, {name: torch.arange(5)})
        moved = {n for n, weight in weights_of(model).items() if not torch.equal(weight, before[n])}
        assert moved == {f"roberta.{name}"} | set(head_of(model))


def test_gradients_are_computed_for_what_trains_only(backbone: Path) -> None:
    model, objective = both("mlm", backbone)
    mask = half_mask(model)
    run(model, objective, HARD.model_copy(update={"max_steps": 1}), mask)
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert wanted == {f"roberta.{name}" for name in mask} | set(head_of(model))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_moments_exist_for_the_chosen_entries_and_the_head_only(backbone: Path) -> None:
    model, objective = both("mlm", backbone)
    mask = half_mask(model)
    with closing(Run(model, objective, HARD, SEED, phase(model, HARD, mask), Execution())) as stepped:
        state = stepped._step.state()
    head = sum(parameter.numel() for parameter in head_of(model).values())
    entries = head + sum(index.numel() for index in mask.values())
    assert {name: tensor.numel() for name, tensor in state.items()} == {
        "values": entries, "mean": entries, "square": entries, "steps": 1, "losses": 1,
    }  # fmt: skip


def test_what_the_dense_phase_trains(backbone: Path) -> None:
    model, objective = both("mlm", backbone)
    before = weights_of(model)
    run(model, Always(objective), HARD.model_copy(update={"max_steps": 3}))
    moved = {name for name, weight in weights_of(model).items() if not torch.equal(weight, before[name])}
    expected = {f"roberta.{name}" for name in maskable(model)} | set(head_of(model))
    assert moved == expected
    assert "roberta.embeddings.word_embeddings.weight" in moved
    assert not [name for name in moved if "LayerNorm" in name or "decoder" in name]
    assert torch.equal(model.lm_head.decoder.weight, before["roberta.embeddings.word_embeddings.weight"])


def test_embeddings_and_lm_head_stay_where_a_setting_freezes_them(backbone: Path) -> None:
    model, objective = both("mlm", backbone)
    before = weights_of(model)
    run(
        model,
        Always(objective),
        HARD.model_copy(update={"max_steps": 3, "freeze_embeddings": True, "freeze_lm_head": True}),
    )
    moved = {name for name, weight in weights_of(model).items() if not torch.equal(weight, before[name])}
    assert moved == {f"roberta.{name}" for name in maskable(model) if "embeddings" not in name}


@pytest.mark.parametrize("kind", ["mlm", "classification"])
@pytest.mark.parametrize("micro_batch", [1, 3, 4, 100])
def test_accumulated_micro_batches_equal_the_whole_batch(backbone: Path, kind: str, micro_batch: int) -> None:
    settings = HARD.model_copy(update={"max_steps": 5, "batch_size": 8})
    found = []
    for execution in (Execution(), Execution(micro_batch=micro_batch)):
        model, objective = in_float64(*both(kind, backbone))
        result = run(model, objective, settings, execution=execution)
        found.append((weights_of(model), [point["train_loss"] for point in result.curve]))
    for name, weight in found[0][0].items():
        torch.testing.assert_close(weight, found[1][0][name], rtol=0, atol=1e-6)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


@pytest.mark.parametrize("higher", [True, False])
def test_the_model_is_left_at_the_first_best_checkpoint(backbone: Path, higher: bool) -> None:
    scores = [0.3, 0.7, 0.9, 0.9, 0.2]
    settings = HARD.model_copy(update={"max_steps": 25})

    def best_of(limit: int) -> tuple[TrainResult, dict[str, Tensor]]:
        model, objective = both("mlm", backbone)
        chosen = Always(objective, lambda call: (1 if higher else -1) * (scores[call - 1] if call <= limit else 0.0))
        chosen.higher_is_better = higher
        result = run(model, chosen, settings)
        assert not model.training
        return result, weights_of(model)

    result, weights = best_of(5)
    assert (result.best_step, result.steps, abs(result.best["valid_loss"])) == (15, 25, 0.9)
    assert [point["step"] for point in result.curve] == [5, 10, 15, 20, 25]
    assert same_bits(weights, best_of(3)[1])  # what comes after the best leaves no trace
    assert not same_bits(weights, best_of(2)[1])


def test_the_last_step_is_validated_wherever_it_falls(backbone: Path) -> None:
    model, objective = both("mlm", backbone)
    result = run(model, objective, HARD.model_copy(update={"max_steps": 7}))
    assert [point["step"] for point in result.curve] == [5, 7]


class Interruption(Exception):
    """Power cut."""


class Kept:
    """Checkpoints in memory; the power goes after the n-th."""

    def __init__(self, most: int | None = None) -> None:
        self.content: bytes | None = None
        self.left = most

    def save(self, file: Path) -> None:
        self.content = file.read_bytes()
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise Interruption

    def load(self, folder: Path) -> Path | None:
        if self.content is None:
            return None
        (folder / "downloaded").write_bytes(self.content)
        return folder / "downloaded"


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("after", [1, 4, 12])
@pytest.mark.parametrize("l1", [0.0, 50.0])
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    backbone: Path, sparse: bool, after: int, l1: float
) -> None:
    settings = HARD.model_copy(update={"max_steps": 14, "validate_every": 4, "l1": l1})
    often = Execution(checkpoint_seconds=1e-9)
    whole, objective = both("mlm", backbone, dropout=0.2)
    mask = half_mask(whole) if sparse else None
    result = run(whole, objective, settings, mask)
    kept = Kept(after)
    first, _ = both("mlm", backbone, dropout=0.2)
    with pytest.raises(Interruption):
        run(first, objective, settings, mask, execution=often, checkpoints=kept)
    torch.manual_seed(after)  # another process has another random state
    resumed, _ = both("mlm", backbone, dropout=0.2)
    assert run(resumed, objective, settings, mask, execution=often, checkpoints=kept) == result
    assert same_bits(weights_of(resumed), weights_of(whole))


def test_a_run_that_is_asked_to_leave_keeps_its_last_step_and_goes_on_bit_for_bit(backbone: Path) -> None:
    settings = HARD.model_copy(update={"max_steps": 9, "validate_every": 4})
    whole, objective = both("mlm", backbone, dropout=0.2)
    leave.ask()  # before it began: of the process's past
    result = run(whole, objective, settings, checkpoints=Kept(9))
    kept, points = Kept(2), []

    def report(point: dict[str, float]) -> None:
        points.append(point)
        if point["step"] == 4.0:
            assert leave.ask()

    left, _ = both("mlm", backbone, dropout=0.2)
    with pytest.raises(leave.Left, match="left after step 4 of 9"):
        run(left, objective, settings, checkpoints=kept, report=report)
    assert not leave.ask()  # nothing is trained now
    resumed, _ = both("mlm", backbone, dropout=0.2)
    assert run(resumed, objective, settings, checkpoints=kept, report=points.append) == result
    assert points[2] == {"step": 4.0, "steps": 9.0}
    assert same_bits(weights_of(resumed), weights_of(whole))


def test_dropout_is_on_in_training_and_its_draws_depend_on_the_seed_alone(backbone: Path) -> None:
    found = []
    for dropout, noise in ((0.3, 0), (0.3, 1), (0.0, 0)):
        torch.manual_seed(noise)
        model, objective = both("mlm", backbone, dropout)
        run(model, objective, HARD.model_copy(update={"max_steps": 4}))
        found.append(weights_of(model))
    assert same_bits(found[0], found[1])
    assert not same_bits(found[0], found[2])


class Spoilt(Always):
    """Its loss stops being a number at a step."""

    def __init__(self, inner: Objective, step: int, value: float) -> None:
        super().__init__(inner)
        self.step, self.value, self.losses = step, value, 0
        del self.loss

    def loss(self, model: Any, batch: Batch) -> Tensor:
        self.losses += 1
        loss = self.inner.loss(model, batch)
        return loss * self.value if self.losses == self.step else loss


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [1, 7])
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(backbone: Path, step: int, value: float) -> None:
    model, objective = both("mlm", backbone)
    with pytest.raises(TrainingError, match=rf"the loss became (nan|inf) at step {step};"):
        run(model, Spoilt(objective, step, value), HARD)


def test_a_validation_metric_that_is_no_number_is_never_the_best(backbone: Path) -> None:
    model, objective = both("mlm", backbone)
    with pytest.raises(TrainingError, match=r"the valid_loss became nan at step 5;"):
        run(model, Always(objective, lambda call: float("nan")), HARD)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["head/classifier.out_proj.bias", "encoder.layer.1.output.dense.weight"])
def test_a_gradient_that_is_no_number_is_named_and_nothing_is_stepped(backbone: Path, name: str, bad: float) -> None:
    model, objective = both("classification", backbone)
    before = weights_of(model)

    trainable = phase(model, HARD)
    trainable.parameters[name].register_hook(lambda gradient: gradient * bad)
    told = rf"norm of the gradient became (nan|inf) at step 1; the first .* gradient of {name};"
    with pytest.raises(TrainingError, match=told):
        train(model, Always(objective), HARD.model_copy(update={"max_steps": 1}), seed=SEED, trainable=trainable)
    assert same_bits(weights_of(model), before)


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
def test_a_model_trains_again_after_a_failure(backbone: Path, sparse: bool) -> None:
    (failed, objective), (fresh, _) = both("mlm", backbone), both("mlm", backbone)
    mask = half_mask(failed) if sparse else None
    with pytest.raises(TrainingError):
        run(failed, Spoilt(objective, 1, float("nan")), PLAIN, mask)
    outcomes = [run(model, Always(objective), PLAIN, mask) for model in (failed, fresh)]
    assert outcomes[0] == outcomes[1]
    assert same_bits(weights_of(failed), weights_of(fresh))


def test_nothing_to_train_on_is_an_error(backbone: Path) -> None:
    model = load_classifier(backbone, LABELS, 1)
    with pytest.raises(DataError, match="no training examples"):
        run(model, make_classification(train=0), Training(epochs=1))


def test_the_term_as_coded_upstream_has_no_effect_and_the_real_one_pulls_to_the_start(backbone: Path) -> None:
    found = {}
    for name, l1, gradient in (("none", 0.0, True), ("coded", 300.0, False), ("real", 300.0, True)):
        model, objective = both("mlm", backbone)
        start = weights_of(model)
        run(model, Always(objective), HARD.model_copy(update={"l1": l1, "l1_gradient": gradient, "weight_decay": 0.0}))
        weights = weights_of(model)
        found[name] = sum(float((weights[n] - start[n]).abs().sum()) for n in weights)
    assert found["none"] == found["coded"]
    assert found["real"] < 0.8 * found["none"]


def test_each_point_is_reported_as_the_run_goes(backbone: Path) -> None:
    points: list[dict[str, float]] = []
    model, objective = both("classification", backbone)
    result = run(model, objective, HARD.model_copy(update={"max_steps": 6}), report=points.append)
    assert points == [{"step": 0.0, "steps": 6.0}, *result.curve]
    assert set(points[1]) == {"step", "train_loss", "valid_score"}


def test_the_train_loss_of_a_point_is_the_mean_since_the_last_one(backbone: Path) -> None:
    by_step, by_three = [], []
    for every, into in ((1, by_step), (3, by_three)):
        model, objective = both("mlm", backbone)
        settings = HARD.model_copy(update={"max_steps": 6, "validate_every": every})
        into.extend(point["train_loss"] for point in run(model, objective, settings).curve)
    assert by_three == pytest.approx([sum(by_step[:3]) / 3, sum(by_step[3:]) / 3], rel=1e-6)


def test_the_schedule_by_hand() -> None:
    assert [schedule(step, 4, 0.0) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert [schedule(step, 10, 0.2) for step in (0, 1, 2, 6, 9)] == [0.5, 1.0, 1.0, 0.5, 0.125]


def test_every_example_is_seen_once_an_epoch(backbone: Path) -> None:
    seen: list[int] = []
    model, objective = both("mlm", backbone)
    plain = objective.batch
    objective.batch = lambda numbers, generator: seen.extend(numbers.tolist()) or plain(numbers, generator)  # type: ignore[method-assign, func-returns-value]
    run(model, objective, Training(epochs=2, batch_size=8, validate_every=100))
    assert len(seen) == 40
    assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20))
    assert seen[:20] != seen[20:]

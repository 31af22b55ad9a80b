"""The benchmarks run, at tiny shapes; rows say what they must and speed.md holds every part."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from support.nusax_files import write_files

from benchmarks import deltas, denoise, evaluate, full_shape, growth, memory, reference, results, select, train, vectors
from benchmarks.gpu import __main__ as on_gpu
from benchmarks.gpu import rows as gpu_rows
from benchmarks.gpu import steps, together
from benchmarks.gpu import tests as gpu_tests
from benchmarks.gpu.rows import Record, Row, limit_of
from benchmarks.measure import Options, Peak, Rates, fresh, interleaved
from benchmarks.models import TINY, distinct
from benchmarks.results import BenchmarkRow, above, at_least, at_most, below, markdown, publish, run, table
from deftx.masks.select import select as choose

SMALL = Options(small=True, threads=1)


def test_a_row_is_met_when_it_reaches_what_it_must() -> None:
    row = BenchmarkRow("step", "seconds", 2.0, reference=5.0)
    assert [at_least(row, factor).met for factor in (2.5, 2.6)] == [True, False]
    assert [at_most(row, factor).met for factor in (0.4, 0.39)] == [True, False]
    assert [below(row, limit).met for limit in (2, 1.9)] == [True, False]
    assert [above(row, limit).met for limit in (2, 2.1)] == [True, False]


def test_a_row_as_a_line_of_the_table() -> None:
    line = table([at_least(BenchmarkRow("step", "seconds", 2.0, 5.0, floor=1.6), 3)]).splitlines()[-1]
    assert line == "| step | seconds | 2 | 5 | 2.5x | 1.6 | 1.25x | reference at least 3x | **no** |  |"


def test_times_are_taken_in_turns() -> None:
    calls: list[str] = []
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: (calls.append("b"), time.sleep(0.01))}, 3, 1)
    assert calls == ["a", "b"] * 4
    assert len(times["a"]) == len(times["b"]) == 3
    assert min(times["b"]) >= 0.01


def test_peak_memory_is_beyond_what_was_there() -> None:
    there = torch.ones(1 << 24)
    with Peak() as peak:
        torch.ones(1 << 25)
    assert there.nbytes <= peak.bytes - (1 << 26) + (1 << 23)
    assert peak.bytes == pytest.approx(1 << 27, rel=0.1)


def test_a_fresh_process_answers() -> None:
    assert fresh("benchmarks.select:peak", SMALL, reference=False) > 0


def test_a_part_replaces_its_own_rows_and_keeps_the_others(tmp_path: Path) -> None:
    options = Options(small=True, out=tmp_path)
    publish("select", [BenchmarkRow("first", "seconds", 1.0)], options)
    publish("train", [BenchmarkRow("other", "seconds", 3.0)], options)
    publish("select", [BenchmarkRow("second", "seconds", 2.0)], options)
    text = (tmp_path / "speed.md").read_text()
    assert "| first |" not in text
    assert text.index("## train") < text.index("| other |") < text.index("## select") < text.index("| second |")
    parts = json.loads((tmp_path / "speed.json").read_text())
    assert markdown(parts) == text
    assert "python -m benchmarks.gpu --device cuda" in text
    assert "benchmarks.gpu" not in markdown({**parts, "train on cuda": parts["train"]})
    assert parts["train"]["versions"]["torch"] == torch.__version__


def test_the_small_parts_run_and_require_nothing(tmp_path: Path) -> None:
    parts = {"select": select.rows, "denoise": denoise.rows, "vectors": vectors.rows, "evaluate": evaluate.rows}
    assert run(parts, Options(small=True, threads=1, out=tmp_path))
    found = json.loads((tmp_path / "speed.json").read_text())
    assert list(found) == list(parts)
    rows = {row["work"] + " " + row["measure"]: row for part in found.values() for row in part["rows"]}
    assert all(row["met"] is None and row["ours"] >= 0 for row in rows.values())
    assert rows["L against a float64 SVD relative error"]["ours"] < 1e-6
    assert rows["ranks by variance as of a float64 SVD share"]["ours"] == 1
    assert next(row for name, row in rows.items() if name.endswith("exactly k, twice the same"))["ours"] == 1
    assert next(row for name, row in rows.items() if name.endswith("weights as before"))["ours"] == 1
    assert "100.00% predicted alike" in rows["evaluate 5 x 20 sentences seconds"]["note"]


@pytest.mark.parametrize(
    ("number", "bf16"), [(0, 2.1e9), (0, 1.9e9), (1, 2.1e9), (1, 1.9e9), (2, 2.1e9)],
    ids=["dense", "dense without bf16 hardware", "sparse", "sparse without bf16 hardware", "task"],
)  # fmt: skip
def test_every_step_has_its_rows(monkeypatch: pytest.MonkeyPatch, number: int, bf16: float) -> None:
    """Where bf16 is not twice as fast as float32 there is no hardware for it, and nothing is required of it."""
    monkeypatch.setattr(train, "rates", lambda *_: Rates(float32=1e9, bf16=bf16, float64=1e9, copy=1e9))
    work, rows = train.WORKS[number], train._times(SMALL, number)
    must = {"float32": [f"reference at least {work.speed:g}x", "at most 2.2 times the floor", ""]}
    if not work.task:
        must["bf16"] = ["reference at least 5x", "at most 3.3 times the floor", ""] if bf16 > 2e9 else [""] * 3
    measures = ("seconds", "times the floor", "model FLOP utilisation")
    assert [(row.work, row.measure, row.must) for row in rows] == [
        (f"{work.name}, reference", "times its own floor", "at most 6 times its own floor"),
        *((f"{work.name}, {how}", *what) for how in must for what in zip(measures, must[how], strict=True)),
    ]
    assert all(row.ours > 0 and (row.met is None) == (not row.must) for row in rows)
    assert all(row.reference and row.floor for row in rows if row.measure == "seconds")


@pytest.mark.parametrize(("task", "name"), [(False, "MLM"), (True, "classification")])
def test_a_small_model_has_a_row(task: bool, name: str) -> None:
    row = train._small(SMALL, task)
    assert (row.work, row.measure) == (f"{name} step of two layers, hidden 64, 16 x 16, float32", "milliseconds")
    assert row.must == "reference at least 0.95x" and row.ours > 0 and row.reference


def test_a_known_gpu_is_measured_by_its_datasheet(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(device="cuda")
    monkeypatch.setattr(train, "rates", lambda *_: Rates(float32=1e9, bf16=2e9, float64=1e9, copy=1e9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-80GB")
    assert (train.most_flop(options, "bf16"), train.most_flop(options, "float32")) == (312e12, 1e9)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "another")
    assert train.most_flop(options, "bf16") == 2e9


def test_what_runs_on_a_cpu_is_published_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "machine", lambda options: {"device": options.device})
    for part in ("select", "train"):
        publish(part, [BenchmarkRow("work", "seconds", 1.0)], Options(small=True, out=tmp_path, device="cuda"))
    parts = json.loads((tmp_path / "speed.json").read_text())
    assert {name: part["machine"]["device"] for name, part in parts.items()} == {
        "select": "cpu", "train on cuda": "cuda",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"), [("--device gpu", "gpu"), ("--device cuda", "no GPU here"), ("--data-root nowhere", "nowhere")]
)
def test_a_mistake_in_the_command_is_a_message(
    words: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate", "--small", *words.split()])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        results.command({"evaluate": evaluate.rows})
    told = capsys.readouterr().err
    assert ended.value.code == 2 and said in told and "Traceback" not in told


def test_memory_is_told_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "fresh", lambda *_, **__: 2**31)
    rows = {f"{row.work} {row.measure}": row for row in memory.rows(SMALL)}
    for shape in memory.SHAPES:
        for phase in ("dense", "sparse"):
            work = f"{shape}, {phase}, bf16 on a GPU"
            found = {part: rows[f"{work}: {part} GiB computed"].ours for part in (*memory.STAYS, *memory.PASSES)}
            most = max(found["gradients"], found["activations"] + found["logits"])
            most += sum(found[part] for part in memory.STAYS)
            assert rows[f"{work}: most at once GiB computed"].ours == pytest.approx(most)
            assert rows[f"{shape}, {phase}, float32 on a CPU: most at once GiB computed"].ours > most
    assert sum(row.measure == "GiB measured" and row.ours == 2 for row in rows.values()) == 2  # dense and sparse


def test_the_table_of_a_shape_replaces_its_own_and_keeps_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_shape, "machine", lambda options: {"device": "a machine", "load": "another"})
    for shape, stage in (("large", "first"), ("base", "second"), ("large", "third")):
        row = full_shape.Measured(stage, 61.4, 99.5, 3 << 30, 2 << 30, 1 << 30, 5 << 29, 1 << 20)
        assert full_shape.publish(shape, [row], 2, tmp_path).endswith(
            f"| {stage} | 61 | 100 | 3.0 | 2.0 | 1.0 to 2.5 | 1 |"
        )
    text = (tmp_path / "full-shape.md").read_text()
    assert "| first |" not in text
    assert (
        text.index("## XLM-R base") < text.index("| second |") < text.index("## XLM-R large") < text.index("| third ")
    )
    assert "a machine; a load of" in text and "another" not in text


def test_every_stage_of_a_shape_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process and on a tiny model; in one of its own in the test below."""

    def here(function: Callable[..., object], *words: object, **named: object) -> tuple[int, float]:
        function(*words, **named)
        return 7, 9.0

    monkeypatch.setattr(full_shape, "SETTINGS", (*full_shape.SETTINGS, "language.k=2000", "task.k=1000"))
    monkeypatch.setattr(full_shape, "alone", here)
    found = list(full_shape.measured(TINY, tmp_path, write_files(tmp_path / "data"), 1))
    assert all((row.held, row.processor) == (7, 9) and row.seconds > 0 and row.published > 0 for row in found)
    computed = {row.stage.partition(" · rank")[0]: (row.least, row.most) for row in found}
    dense, sparse = (memory.parts(TINY, k) for k in (None, 2000))
    task_dense, task_sparse = (memory.parts(TINY, k, examples=16, length=128, task=True) for k in (None, 1000))
    trained = {
        "task · dense": task_dense, "task · sparse": task_sparse, "ace · dense": dense, "ace · sparse": sparse,
    }  # fmt: skip
    grade = "ace · grade · task rank 90% retention 5 % + ace rank 100 retention 5 %"
    assert computed == {
        **dict.fromkeys(["ace · check", "ace · text", grade], (0, 0)),
        **{name: (parts.total + (1 << 28), parts.kept + (1 << 28)) for name, parts in trained.items()},
    }


def test_what_a_process_of_its_own_holds_and_that_it_failed() -> None:
    held, seconds = full_shape.alone(hold, 1 << 28)
    assert 1 << 28 <= held < 1 << 30 and 0.3 < seconds < 60
    with pytest.raises(ChildProcessError, match="hold: ended with 1"):
        full_shape.alone(hold, -1)


def hold(size: int) -> None:
    """Hold some bytes for 0.3 seconds of work, long enough to be seen."""
    there, began = b"1" * size if size > 0 else sys.exit(1), time.process_time()
    while time.process_time() < began + 0.3:
        pass
    del there


def test_the_plain_masks_are_ours() -> None:
    """The two sides of the denoising benchmark do the same work: all but a few entries at the threshold."""
    delta, k = deltas.delta_of(TINY), 2000
    ours = denoise.our_masks(delta, denoise.SETTINGS, k)
    starts = dict(zip(delta, torch.tensor([0] + [t.numel() for t in delta.values()]).cumsum(0).tolist(), strict=False))
    for mask, plain in zip(ours, reference.plain_masks(delta, denoise.SETTINGS, k), strict=True):
        flat = {int(i) + starts[name] for name, index in mask.items() for i in index}
        assert len(flat & set(plain.tolist())) >= 0.995 * k
    flat = {int(i) + starts[name] for name, index in choose(delta, k).items() for i in index}
    assert flat == set(reference.plain_select(delta, k).tolist())


def test_words_not_seen_are_rows_of_zeros() -> None:
    embedding = deltas.delta_of(TINY, words=100)["embeddings.word_embeddings.weight"]
    assert int(embedding.any(dim=1).sum()) == 100
    assert bool(deltas.delta_of(TINY)["embeddings.word_embeddings.weight"].any(dim=1).all())


def test_the_exponent_is_the_slope_of_the_logarithms() -> None:
    assert growth.exponent([1.0, 10.0, 100.0], [2.0, 20.0, 200.0]) == pytest.approx(1)
    assert growth.exponent([1.0, 4.0, 16.0], [3.0, 24.0, 192.0]) == pytest.approx(1.5)


@pytest.mark.slow
def test_growth_runs_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "SMALL", growth.SMALL[:2])
    rows = growth.rows(Options(small=True, threads=1, out=tmp_path))
    assert {row.measure for row in rows} == {"seconds", "exponent"}
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_distinct_numbers_are_distinct_ascending_and_below() -> None:
    generator = np.random.default_rng(0)
    assert distinct(generator, 5, 5).tolist() == [0, 1, 2, 3, 4]
    drawn = distinct(generator, 1000, 300)
    assert len(drawn) == 300 and (np.diff(drawn) > 0).all() and drawn[0] >= 0 and drawn[-1] < 1000


# -- on a GPU, as far as a CPU can tell -------------------------------------------------------------------------------


def written(folder: Path, part: str = "steps") -> dict[str, object]:
    entry: dict[str, object] = json.loads((folder / "results-gpu.json").read_text())[part]
    return entry


def test_every_part_has_its_pieces_and_its_place_in_the_table() -> None:
    assert gpu_rows.PARTS == tuple(on_gpu._PIECES) == get_args(on_gpu.Part)


def test_a_card_has_its_own_limits_and_an_unknown_one_has_none() -> None:
    h200, h100 = (limit_of("dense", f"NVIDIA {card}") for card in ("H200", "H100 80GB HBM3"))
    assert (h200.must, h200.aim, h100.must, h100.aim) == (15, 9.5, 16.5, 11)
    assert limit_of("sparse", "NVIDIA H100 80GB HBM3") == limit_of("sparse", "NVIDIA H200") != gpu_rows.Limit()
    assert limit_of("dense", "NVIDIA A100-SXM4-80GB") == gpu_rows.Limit()


def test_rows_are_judged_written_one_by_one_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece that fails is a row, and the next one is measured; an unfinished part says so."""
    monkeypatch.setattr(gpu_rows, "card_of", lambda options: "NVIDIA H100 80GB HBM3")
    states = []

    def good(options: Options) -> Iterator[Row]:
        yield Row("dense step", "ms a step", 16.5, 62, "dense", "run: graph")
        states.append((written(tmp_path)["state"], len(written(tmp_path)["rows"])))  # type: ignore[arg-type]
        yield Row("dense step", "utilisation", 0.29, limit="utilisation")

    def bad(options: Options) -> Iterator[Row]:
        yield Row("a row", "s", 1.0)
        raise ValueError("no such | graph")

    record = Record("steps", Options(out=tmp_path), "abc")
    assert not record.run([("bad", bad), ("good", good)])
    assert states == [("cut short", 3)]
    assert written(tmp_path)["state"] == "done"
    rows = written(tmp_path)["rows"]
    assert [(row["met"], row["reached"]) for row in rows] == [  # type: ignore[attr-defined]
        (None, None), (None, None), (True, False), (False, False),
    ]  # fmt: skip
    text = (tmp_path / "results-gpu.md").read_text()
    assert (
        "| dense step | ms a step | 16.5 | 62 | 3.76x | at most 16.5 | yes | at most 11 | **no** | run: graph |" in text
    )
    assert "| bad |  |  |  |  |  |  |  |  | failed: ValueError: no such / graph |" in text
    assert "commit abc" in text and f"torch {torch.__version__}" in text and text.count("Not run.") == 5
    # what is missed makes the whole fail, what is only aimed at does not; a part begins anew
    assert not Record("steps", Options(out=tmp_path)).run([("good", good)])
    assert Record("steps", Options(out=tmp_path)).run(
        [("one", lambda options: iter([Row("dense", "ms", 12, limit="dense")]))]
    )
    assert len(written(tmp_path)["rows"]) == 1  # type: ignore[arg-type]


def test_at_tiny_shapes_nothing_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_rows, "card_of", lambda options: "NVIDIA H200")
    for small, held in ((False, False), (True, True)):
        options = Options(small=small, out=None)
        assert Record("steps", options).run([("one", lambda _: iter([Row("a", "ms", 99, limit="dense")]))]) == held


def test_after_its_time_no_piece_begins_and_a_part_that_stays_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_rows, "card_of", lambda options: "a card")
    options = Options(device="cuda", out=tmp_path)
    record = Record("steps", options, most=-1)
    assert not record.run([("late", lambda _: pytest.fail("it began"))])
    assert record.entry["rows"][0]["note"] == "not measured: the part's -1 s were over"
    assert not on_gpu.separately("steps", options, 0.01, None)
    assert written(tmp_path)["state"] == "cut short after 0 s"
    assert "**Cut short after 0 s.**" in (tmp_path / "results-gpu.md").read_text()


def test_what_pytest_said_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(said: str) -> list[tuple[float | None, str]]:
        done = subprocess.CompletedProcess([], 1, stdout=said)
        monkeypatch.setattr(gpu_tests.subprocess, "run", lambda *_, **__: done)
        return [(row.value, row.note) for row in gpu_tests.rows(SMALL)]

    told = "FAILED one\n2 failed, 3 passed, 1 skipped, 1 error in 4.5s\n"
    assert rows(told) == [(3, told.splitlines()[1]), (3, told), (1, "")]
    assert rows("7 passed in 1s") == [(7, "7 passed in 1s"), (0, ""), (0, "")]
    assert rows("Killed") == [(None, "Killed"), (None, "Killed"), (None, "")]
    assert any(name.endswith("test_step.py") for name in gpu_tests._files())


def test_time_in_which_two_kernels_run_counts_once() -> None:
    assert steps._covered([(4, 6), (0, 3), (1, 2), (2, 5), (10, 11)]) == 7
    assert steps._covered([]) == 0


EXPECTED = {
    "steps": {"ms a step": 7, "ms a replay": 4, "step over replay": 4, "GiB of the process": 2},
    "kernels": {"operations a step": 3, "busy share of a replay": 3},
    "stages": {"seconds": 3, "seconds in steps and validations": 2, "seconds outside of them": 2},
    "together": {"seconds at once": 2, "in turn over at once": 1},
    "compile": {"ms a step": 3},
}


@pytest.mark.slow
@pytest.mark.parametrize("part", EXPECTED)
def test_the_gpu_benchmark_runs_at_tiny_shapes(part: str, tmp_path: Path) -> None:
    """Every row has a figure, or the reason why not."""
    assert on_gpu.run(part, replace(SMALL, out=tmp_path))
    rows: list[dict[str, object]] = written(tmp_path, part)["rows"]  # type: ignore[assignment]
    measures = [row["measure"] for row in rows]
    assert {measure: measures.count(measure) for measure in EXPECTED[part]} == EXPECTED[part]
    without = {row["note"] for row in rows if row["value"] is None}
    assert without <= {"no datasheet is known", "not measured on a CPU", f"not measured: no {together._MPS} here"}


def test_without_a_gpu_the_gpu_benchmark_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(on_gpu.typer.BadParameter, match="there is no GPU here"):
        on_gpu.main()

"""What a plan costs: how often planning opens a file, and the estimate of small stages by hand."""

from __future__ import annotations

import builtins
import io
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
from support.nusax_files import write_files
from support.plans import FILE, make_planner, make_space

from deftx.config import Precision, TextSettings, Training
from deftx.data.catalogue import benchmark
from deftx.data.corpora import corpus_source
from deftx.errors import DataError
from deftx.sources import files
from deftx.sources.files import FileSource, file_source
from deftx.sources.published import HubFolder, LocalFolder, resolve_folder
from deftx.stages.backbones import size_of_backbone
from deftx.stages.settings import DenseSettings, TextStageSettings
from deftx.stages.stage import Stage
from deftx.stages.store import Store
from orchestrator.plan.cost import SUSTAINED_TFLOPS, Cost, estimate
from orchestrator.record.sweep import SweepFolder
from orchestrator.run.preview import Preview
from orchestrator.run.session import prepare
from orchestrator.space.load import load_space

XLM_R = HubFolder(repo="xlm-roberta-base", commit="0" * 40)
BODY, EMBEDDINGS = 85_017_600, (250_002 + 514 + 1) * 768


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each path is opened, by whatever way of Python's."""
    counts: Counter[str] = Counter()
    real = builtins.open

    def counting(file: Any, *arguments: Any, **options: Any) -> Any:
        counts[str(file)] += 1
        return real(file, *arguments, **options)

    monkeypatch.setattr(builtins, "open", counting)
    monkeypatch.setattr(io, "open", counting)
    return counts


@pytest.mark.parametrize(("name", "languages"), [("nusax-small", 7), ("nusax", 6)])
def test_a_plan_opens_no_corpus_twice(tmp_path: Path, opened: Counter[str], name: str, languages: int) -> None:
    """nusax-small pre-trains its backbone on id and en, and shows its tokenizer the corpora of the targets."""
    root = write_files(tmp_path / "data")
    opened.clear()
    title, space = load_space(name, [f"backbone_revision='{'0' * 40}'"] if name == "nusax" else [])
    folder = SweepFolder(Store(str(tmp_path / "results")), title)
    preview = Preview.of(prepare(title, space, folder, str(root), lenient=True))
    costs = [estimate(stages) for stages in (preview.search, preview.baselines)]
    assert all(cost is not None and cost.bytes > 0 and cost.gpu_hours > 0 for cost in costs)
    corpora = {path: count for path, count in opened.items() if path.startswith(str(root / "corpora"))}
    assert list(corpora.values()) == [1] * languages
    opened.clear()
    assert [estimate(stages) for stages in (preview.search, preview.baselines)] == costs
    assert not opened


def test_a_corpus_is_resolved_with_its_size_and_its_encoding_looked_at(tmp_path: Path, opened: Counter[str]) -> None:
    path = tmp_path / "corpora" / "ace.txt"
    path.parent.mkdir()
    path.write_bytes("\ufeffcafé\n".encode())
    opened.clear()
    source = corpus_source(benchmark("nusax"), "ace", str(tmp_path))
    assert isinstance(source, FileSource)
    assert (source.size, opened[str(path)]) == (9, 1)
    path.write_bytes(b"w1\n\xff\n")
    with pytest.raises(DataError, match=r"ace\.txt, line 2: not UTF-8 \(byte 0xff\), at byte 3 of the file"):
        corpus_source(benchmark("nusax"), "ace", str(tmp_path))
    assert file_source(str(path)).size == 5, "a table may be in another encoding, which its reader tells"


def test_the_size_of_a_file_counts_in_no_address_and_is_in_no_manifest() -> None:
    sized = FILE.model_copy(update={"size": 12})
    assert sized.model_dump() == FILE.model_dump() == {"kind": "file", "sha256": "0" * 64}
    assert language_stage(sized).address == language_stage(FILE).address


def language_stage(source: FileSource, backbone: HubFolder | LocalFolder = XLM_R, **training: Any) -> Stage:
    text = TextStageSettings(language="ace", source=source, text=TextSettings(block=64), backbone=backbone, seed=0)
    settings = DenseSettings(
        language="ace", task=None, backbone=backbone, seed=0, training=Training(**{"batch_size": 8, **training})
    )
    return Stage("dense", settings, (("text", Stage("text", text)),))


def flops(steps: int) -> float:
    return 6.0 * (BODY + 0.15 * 250_002 * 768) * 8 * 64 * steps


def test_the_steps_of_a_language_follow_from_the_bytes_of_its_text() -> None:
    """A token is taken for 4 bytes: 1,000,000 bytes are 3,906 blocks of 64, which 489 batches of 8 read once."""
    trained = {"epochs": 3, "min_steps": 0, "max_steps": 100_000}
    stage = language_stage(FILE.model_copy(update={"size": 1_000_000}), **trained)
    change, factors, head = BODY + EMBEDDINGS, (6 * 12 + 2) * 768**2, 768**2 + 250_002
    assert estimate([stage]) == Cost(4 * (change + factors + head), {"float32": flops(3 * 489), "tf32": 0, "bf16": 0})
    unknown = estimate([language_stage(FILE, **trained)])
    assert unknown is not None
    assert unknown.flops["float32"] == flops(100_000), "of a file that cannot be had, max_steps are assumed"


def test_an_hour_is_of_the_a100_that_docs_performance_estimates() -> None:
    """A dense step of 8 x 256 in bf16 takes it 28 ms; what is still to be decided has no rate."""
    step = 6.0 * (BODY + 0.15 * 250_002 * 768) * 8 * 256
    assert Cost(0, {"bf16": step}).gpu_hours * 3600 == pytest.approx(0.028, rel=0.01)
    assert set(SUSTAINED_TFLOPS) == set(get_args(Precision)) == {"float32", "tf32", "bf16"}


def test_a_file_whose_size_was_not_noted_is_asked_for_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An online file whose content an earlier start pinned: kept on this machine, else its server tells."""
    url = "https://localhost:9/text.txt"
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path))
    files.keep(b"x" * 640, files._place(url))
    monkeypatch.setattr(files, "read_bytes", None)
    cost = estimate([language_stage(FileSource(sha256="0" * 64, url=url), epochs=10, min_steps=0)])
    assert cost is not None
    assert cost.flops["float32"] == flops(10)
    files._place(url).unlink()
    assert files.file_size(FileSource(sha256="0" * 64, url=url)) == 640
    assert files.file_size(FileSource(sha256="0" * 64, url=str(tmp_path / "nowhere"))) is None


def test_a_backbone_that_is_no_model_has_no_estimate(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "xlm-roberta", "num_hidden_layers": 1000000000}')
    backbone = resolve_folder(str(tmp_path))
    assert size_of_backbone(backbone) is None
    assert estimate([language_stage(FILE, backbone)]) is None
    assert estimate(make_planner(make_space()).combination(0, make_space().cells()[0]).stages) is None

"""What README and docs/ tell a reader to type does run.

By the language of a fenced block: `bash` is run, block after block of a page in one folder, and `python` after it; what
takes long or a network is `sh`, or has no language: its commands and their options exist. `yaml` is a space that loads;
its title is the name of the file that the commands read.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import world
from support.patience import PATIENCE
from support.tiny import make_sft

import deftx
from deftx.data.archipelago import Sizes, write_family
from deftx.models.load import load_classifier
from deftx.models.parameters import head_of
from orchestrator.space.load import load_space
from orchestrator.space.schema import Space

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r'^```(\w*)(?: title="(.*?)")?\n(.*?)^```$', flags=re.DOTALL | re.MULTILINE)


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """(title, text) of the fenced blocks in these languages, in order."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [(title, text) for language, title, text in found if language in languages]


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of every command of ours shown, run or not: the module (or `deftx`) and its arguments."""
    for page in PAGES:
        for _, text in blocks(page, "bash", "sh", ""):
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True) if re.search("python -m|^deftx ", line) else []
                inner = next((word for word in words if word.startswith("python -m")), None)  # of `ray exec '...'`
                words = shlex.split(inner) if inner else words
                if words[:2] == ["python", "-m"]:
                    yield page.name, words[2:]
                elif words[:1] == ["deftx"]:
                    yield page.name, words


@pytest.mark.parametrize(("page", "words"), [pytest.param(*c, id=f"{c[0]}: {' '.join(c[1])[:60]}") for c in commands()])
def test_every_command_and_its_options_are_known(page: str, words: list[str]) -> None:
    known = options(words[0], subcommand(words[0], words[1:]))
    named = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert named <= known, f"{page}: {' '.join(words)}: no {named - known}"


@functools.cache
def options(module: str, subcommand: str | None) -> set[str]:
    """The options that a command's help names."""
    help_text = run([sys.executable, "-m", module, *filter(None, [subcommand]), "--help"], ROOT)
    return set(re.findall(r"--[a-z][a-z-]*", help_text))


def subcommand(module: str, arguments: list[str]) -> str | None:
    """The first argument, where it is the name of one of the module's commands; else `run`, which may be left out."""
    found = importlib.import_module(module)
    app = getattr(importlib.import_module(f"{module}.__main__") if hasattr(found, "__path__") else found, "app", None)
    callbacks = [(one.name, one.callback) for one in getattr(app, "registered_commands", [])]
    names = {name or getattr(callback, "__name__", None) for name, callback in callbacks}
    if len(names) < 2:
        return None
    return arguments[0] if arguments[0] in names else "run"


def run(command: list[str], folder: Path) -> str:
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb",
    }  # fmt: skip
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_space_shown_loads(page: Path, tmp_path: Path) -> None:
    for title, text in blocks(page, "yaml"):
        path = tmp_path / (title or "space.yaml")
        path.write_text(text, encoding="utf-8")
        assert load_space(str(path))[1].cells()


@pytest.mark.slow
def test_the_how_to_leads_from_two_files_to_a_classifier(backbone: Path, tmp_path: Path) -> None:
    """On the demo's family in the place of Indonesian and Gayo, and a tiny XLM-R where the hub's would be."""
    page = ROOT / "docs" / "own-language.md"
    write_family(str(tmp_path / "family"), 0, Sizes(pretraining=1, corpus=600, train=90, valid=24, test=36))
    family = tmp_path / "family"
    files = {
        "corpora/gay.txt": "corpora/ila.txt",
        **{f"reviews/id/{split}.csv": f"archipelago/sor/{split}.csv" for split in ("train", "valid")},
        **{f"reviews/gay/{split}.csv": f"archipelago/ila/{split}.csv" for split in ("valid", "test")},
    }
    layout = "\n".join(text for _, text in blocks(page, ""))
    for name, source in files.items():
        assert name in layout, "these files and no other, the page says"
        target = tmp_path / "data" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(family / source, target)
    assert layout.count("labelled,") + layout.count("plain text") == len(files)
    shutil.copytree(backbone, tmp_path / "FacebookAI" / "xlm-roberta-base")
    for title, text in blocks(page, "yaml"):
        (tmp_path / title).write_text(text, encoding="utf-8")
    said = "".join(run(["bash", "-e", "-c", text], tmp_path) for _, text in blocks(page, "bash"))
    assert "chosen: DEFT-X" in said
    (code,) = (text for _, text in blocks(page, "python"))
    answer = run([sys.executable, "-c", code], tmp_path)
    assert re.fullmatch(r"\[\{'label': '(negative|neutral|positive)', 'score': 0\.\d+\}\]\s*", answer)


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "notebook.md"], ids=lambda page: page.name)
def test_the_notebook_code_runs(
    page: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, but on files of a few lines, trainings of a few steps, and folders where it names the hub."""
    code = "\n".join(text for _, text in blocks(page, "python"))
    monkeypatch.chdir(tmp_path)
    world.write_files(tmp_path / "data")
    lay_out_tables(tmp_path)
    write_task_vector(backbone, tmp_path / "task")
    tiny = {"epochs": None, "max_steps": 2, "batch_size": 4, "validate_every": 1, "k": "10%"}
    of_text, of_task = {"block": 16, "valid_fraction": 0.2}, {"max_length": 16}
    learn_language, learn_task = deftx.learn_language, deftx.learn_task
    doors = {
        "learn_language": lambda text, **given: learn_language(text, **{**given, **tiny, **of_text}),
        "learn_task": lambda *of, **given: learn_task(
            *of, **{**given, **tiny, **of_task, **({} if "train" in given else {"data_root": "data"})}
        ),
    }
    for name, door in doors.items():
        monkeypatch.setattr(deftx, name, door)
    for name, folder in (("FacebookAI/xlm-roberta-base", backbone), ("cambridgeltl/xlmr-task-sft-nusax_senti", "task")):
        code = code.replace(name, str(folder))
    exec(compile(code, page.name, "exec"), {})
    answer, score, *_ = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\[\{'label': '(negative|neutral|positive)', 'score': 0\.\d+\}\]", answer)
    assert re.fullmatch(r"\d+\.\d \[\d+\.\d, \d+\.\d\]", score)


def lay_out_tables(folder: Path) -> None:
    """The files that the code names, of those of a data root."""
    for name in ("ace", "id"):
        shutil.copy(folder / "data" / "corpora" / f"{name}.txt", folder)
    shutil.copy(folder / "data" / "nusax" / "acehnese" / "test.csv", folder / "ace-test.csv")
    (folder / "reviews" / "id").mkdir(parents=True)
    for name in ("train", "valid"):
        shutil.copy(folder / "data" / "nusax" / "indonesian" / "valid.csv", folder / "reviews" / "id" / f"{name}.csv")


def write_task_vector(backbone: Path, folder: Path) -> None:
    """A random task vector with a classifier that does not name its labels, as a published one."""
    model = load_classifier(backbone, ("negative", "neutral", "positive"), seed=1)
    sft = make_sft(model)
    sft.head.update({name: parameter.detach() for name, parameter in head_of(model).items()})
    sft.save_pretrained(folder)


@pytest.mark.parametrize("page", ["reliability.md", "security.md"])
def test_every_test_that_holds_a_promise_is_there(page: str) -> None:
    named = re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert named
    files = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    assert [(file, name) for file, name in named if f"def {name}(" * bool(name) not in files.get(file, "")] == []
    assert {file for file, _ in named} <= files.keys()


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= 1200


def test_every_setting_of_a_space_is_described() -> None:
    schema = Space.model_json_schema()
    groups = {"Space": schema, **schema["$defs"]}
    lacking = [
        f"{group}.{key}"
        for group, content in groups.items()
        for key, field in content.get("properties", {}).items()
        if not field.get("description")
    ]
    assert not lacking


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    said = run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")], ROOT)
    assert "WARNING" not in said
    spaces = (tmp_path / "site" / "spaces" / "index.html").read_text(encoding="utf-8")
    for key in Space.model_fields:
        assert f"<code>{key}</code>" in spaces
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r'(?:src|<link[^>]*href)="(https?://[^"]+)"', page.read_text(encoding="utf-8"))
        assert not fetched, f"{page.name} fetches {fetched}"

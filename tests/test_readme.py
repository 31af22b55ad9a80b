"""What the README tells a reader to type does run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny import WORDS, make_sft

from deftx.backbones import head_of, load_classifier
from orchestrator.sweep import run_sweep

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_notebook_code_runs(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [" ".join(f"w{(3 * line + word) % WORDS}" for word in range(30)) for line in range(300)]
    (tmp_path / "ace.txt").write_text("\n".join(lines), encoding="utf-8")
    model = load_classifier(backbone, ("negative", "neutral", "positive"), seed=1)
    sft = make_sft(model)
    sft.head.update({name: parameter.detach() for name, parameter in head_of(model).items()})
    sft.save_pretrained(tmp_path / "task")
    smaller = {
        '"FacebookAI/xlm-roberta-base"': repr(str(backbone)), '"cambridgeltl/xlmr-task-sft-nusax_senti"': "'task'",
        "30_000": "3", "7_667_712": "300", "TextSettings()": "TextSettings(block=16)",
    }  # fmt: skip
    code = "\n".join(blocks("python"))
    for large, small in smaller.items():
        assert large in code
        code = code.replace(large, small)
    exec(compile(code, "README.md", "exec"), {})
    assert re.search(r"tensor\(\[\[0\.\d+, 0\.\d+, 0\.\d+\]\]", capsys.readouterr().out)


def test_every_option_the_readme_names_exists() -> None:
    known = {name.rstrip("_").replace("_", "-") for name in run_sweep.__annotations__}
    commands = [line for block in blocks("") for line in block.splitlines() if "orchestrator.sweep" in line]
    named = {option for line in commands for option in re.findall(r"--([a-z-]+)", line)}
    assert named
    assert named <= known, named - known

"""A text of any shape takes less than ten times its size in memory, to be checked and to be cut into blocks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.patience import PATIENCE
from tokenizers import Tokenizer, pre_tokenizers, processors, trainers
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

SIZE = 20_000_000
SENTENCE = "Rumoh makan nyan mangat that, teuma yum jih meuhai. "
SHAPES = {
    "a word": "qwertyuiopasdfghjklzxcvbnm",
    "a line with a character of four bytes": SENTENCE * 1000 + "\U0001f600 ",
    "a word a line": SENTENCE.replace(" ", "\n"),
    "empty lines": SENTENCE * 20 + "\n" * 10_000,
}
SCRIPT = """
import sys
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from transformers import PreTrainedTokenizerFast
from deftx.config import TextSettings, Training
from deftx.data.blocks import token_blocks
from deftx.data.corpora import every_line, read_lines
from deftx.data.text_check import check_text
from deftx.sources.files import file_source

def read(file, what):
    source = file_source(str(file), text=True)
    if what == "check":
        check_text("ace", every_line(source), tokenizer, TextSettings(), Training(), evaluation=[sentence] * 9)
    else:
        token_blocks(read_lines(source), tokenizer, TextSettings(), seed=0)

tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[1])
sentence = "a sentence that stands nowhere in any of the texts"
read(Path(sys.argv[3]), sys.argv[4])
before = getrusage(RUSAGE_SELF).ru_maxrss
read(Path(sys.argv[2]), sys.argv[4])
print((getrusage(RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Tokenizer(Unigram())
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(["".join(shape[:5000] for shape in SHAPES.values())], trainer)
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("what", ["check", "blocks"])
@pytest.mark.parametrize(
    "shape", [pytest.param(name, marks=pytest.mark.faults if name == "a word a line" else ()) for name in SHAPES]
)
def test_memory_stays_under_ten_times_the_file(tmp_path: Path, tokenizer: Path, shape: str, what: str) -> None:
    text, small = tmp_path / "text.txt", tmp_path / "small.txt"
    unit = SHAPES[shape].encode()
    text.write_bytes(unit * (SIZE // len(unit)))
    small.write_bytes(f"{SENTENCE}\n".encode() * 1000)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tokenizer, text, small, what], capture_output=True, text=True, timeout=PATIENCE,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 10 * text.stat().st_size

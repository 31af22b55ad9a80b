"""Kinds A and B of what users of such tools reported: what is refused before work begins, and the forms that load."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from support.composable_files import encode, write
from support.encoders import CONFIGS, write_encoder
from support.islands import sweep, write_data, write_space
from support.tiny import VOCABULARY, make_config, make_sft, make_tokenizer, same_bits, write_backbone, write_pickled
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForPreTraining,
    XLMRobertaForMaskedLM,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

from deftx.errors import DataError, Problems
from deftx.method.look import look
from deftx.models.load import load_classifier, load_masked_lm, load_tokenizer
from deftx.models.parameters import encoder_of
from deftx.sources.published import resolve_folder
from deftx.stages.backbones import resolve_lm_head

SAFE = "model.safetensors"
Change = Callable[[Path], object]


def problems_of(
    backbone: Path, *, lm_head: str | None = "own", sft: Path | None = None, max_length: int = 38, block: int = 38
) -> list[str]:
    """What the look tells of a backbone, without the folder in which the test's files lie."""
    problems = Problems()
    vectors = {"source.sft": resolve_folder(str(sft))} if sft else {}
    head = resolve_lm_head(lm_head) if lm_head else None
    lengths = {"task.max_length": max_length, "language.text.block": block}
    look(problems, resolve_folder(str(backbone)), lengths, head, vectors)
    return [line.replace(f"{backbone.parent}/", "") for line in problems.lines]


def copied(backbone: Path, folder: Path) -> Path:
    return Path(shutil.copytree(backbone, folder / "xlmr"))


def edit(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def add_tokens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["goqes", "ducil", "rumed"])
    tokenizer.save_pretrained(folder)


def rewrite_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / SAFE)), folder / SAFE, {"format": "pt"})


GONE = "roberta.encoder.layer.1.output.dense."
LEFT_BY_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"

REFUSED: dict[str, tuple[Change, str]] = {
    "A1": (
        add_tokens,
        "backbone: xlmr: the tokenizer has 'goqes' as token 50 (and 2 more beyond it), but the word embedding has 50 "
        "rows; call resize_token_embeddings(53) and save the model, or give the tokenizer it came with",
    ),
    "A3": (
        lambda f: edit(f / "tokenizer_config.json", mask_token=None),
        "backbone: xlmr: the tokenizer has no mask token, which a language vector is learnt with; name one as "
        '"mask_token" in tokenizer_config.json',
    ),
    "no padding token": (
        lambda f: edit(f / "tokenizer_config.json", pad_token=None),
        'backbone: xlmr: the tokenizer has no padding token; name one as "pad_token" in tokenizer_config.json',
    ),
    "A4": (
        lambda f: edit(f / "config.json", pad_token_id=None),
        "backbone: xlmr/config.json: pad_token_id: null, but positions are counted by it; write 1, the tokenizer's",
    ),
    "nothing marks the first token": (
        lambda f: edit(f / "tokenizer.json", post_processor=None),
        "backbone: xlmr: the tokenizer has no special tokens to put around a text: the classifier reads the "
        "first token, which none marks; give it a post-processor",
    ),
    "reads one side alone": (
        lambda f: edit(f / "config.json", is_decoder=True),
        "backbone: xlmr/config.json: is_decoder: an encoder reads both sides of a token; set it to false if "
        "this is one",
    ),
    "quantised by its config": (
        lambda f: edit(f / "config.json", quantization_config={"quant_method": "awq"}),
        "backbone: xlmr/config.json: quantization_config: quantised weights cannot be trained; give the weights as "
        "floating-point numbers",
    ),
    "fewer layers than the weights": (
        lambda f: edit(f / "config.json", num_hidden_layers=1),
        "backbone: xlmr: config.json means a model without roberta.encoder.layer.1.attention.output.LayerNorm.bias "
        "(and 15 more), which the weights have",
    ),
    "A10": (
        lambda f: XLMRobertaModel.from_pretrained(f).save_pretrained(f),
        "lm_head: own, but xlmr has no LM head (no dense.weight, dense.bias, norm.weight, norm.bias, bias); set "
        "lm_head to a donor such as FacebookAI/xlm-roberta-base, or to random",
    ),
    "no config": (
        lambda f: (f / "config.json").unlink(),
        "backbone: xlmr: no model there, no config.json",
    ),
    "no JSON": (
        lambda f: (f / "config.json").write_text("{"),
        "backbone: xlmr/config.json: not JSON: Expecting property name enclosed in double quotes: line 1 column 2 "
        "(char 1)",
    ),
    "a decoder": (
        lambda f: edit(f / "config.json", model_type="gpt2"),
        "backbone: xlmr/config.json: model_type: 'gpt2' is no encoder that vectors are learnt for; valid: xlm-roberta, "
        "roberta, camembert, bert, deberta-v2, modernbert",
    ),
    "no such shape": (
        lambda f: edit(f / "config.json", num_attention_heads=3),
        "backbone: xlmr/config.json: no model can be built from it: The hidden size (16) is not a multiple of the "
        "number of attention heads (3)",
    ),
    "a number beyond reason": (
        lambda f: edit(f / "config.json", num_hidden_layers=10**9),
        "backbone: xlmr/config.json: num_hidden_layers: 1000000000: no encoder is that large",
    ),
    "a list": (
        lambda f: (f / "config.json").write_text("[]"),
        "backbone: xlmr/config.json: not a JSON object",
    ),
    "weights lack": (
        lambda f: rewrite_weights(f, lambda w: {k: v for k, v in w.items() if not k.startswith(GONE)}),
        f"backbone: xlmr: the weights lack {GONE}weight (and 1 more); give a whole checkpoint",
    ),
    "weights of another shape": (
        lambda f: edit(f / "config.json", intermediate_size=32),
        "backbone: xlmr: roberta.encoder.layer.0.intermediate.dense.weight has shape (24, 16), but config.json means "
        "(32, 16)",
    ),
    "quantised": (
        lambda f: rewrite_weights(f, lambda w: {k: v.to(torch.int8) if "query" in k else v for k, v in w.items()}),
        "backbone: xlmr: roberta.encoder.layer.0.attention.self.query.weight is quantised; give its weights as "
        "floating-point numbers",
    ),
    "torn": (
        lambda f: (f / SAFE).write_bytes((f / SAFE).read_bytes()[:5000]),
        "backbone: xlmr/model.safetensors: torn, or no file of weights: Error while deserializing header: incomplete "
        "metadata, file not fully covered",
    ),
    "no weights": (
        lambda f: (f / SAFE).unlink(),
        "backbone: xlmr: no weights there: none of model.safetensors, model.safetensors.index.json, "
        "pytorch_model.bin, pytorch_model.bin.index.json; found: config.json, tokenizer.json, tokenizer_config.json",
    ),
    "left by Git LFS": (
        lambda f: (f / SAFE).write_bytes(LEFT_BY_LFS),
        "backbone: xlmr: model.safetensors: left by Git LFS, not fetched; run `git lfs pull`",
    ),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        "backbone: xlmr: no tokenizer there: none of tokenizer.json, *.model, vocab.*",
    ),
    "torn tokenizer": (
        lambda f: (f / "tokenizer.json").rename(f / "spm.model").write_bytes(b"torn"),
        "backbone: xlmr/spm.model: torn, or no SentencePiece model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_and_in_which_words(backbone: Path, tmp_path: Path, name: str) -> None:
    change, line = REFUSED[name]
    folder = copied(backbone, tmp_path)
    change(folder)
    assert problems_of(folder) == [line]


def test_everything_is_told_at_once_by_its_setting(backbone: Path, tmp_path: Path) -> None:
    folder, donor, lora = copied(backbone, tmp_path), tmp_path / "empty", tmp_path / "lora"
    for name in ("A1", "A3", "A4", "weights lack"):
        REFUSED[name][0](folder)
    donor.mkdir()
    (donor / "notes.txt").write_text("no model")
    write_lora(lora)
    told = problems_of(folder, lm_head=str(donor), sft=lora, max_length=600, block=39)
    assert told == [
        REFUSED["weights lack"][1], REFUSED["A4"][1], REFUSED["A3"][1], REFUSED["A1"][1],
        "task.max_length: 600 tokens, but xlmr reads 39 at most",
        "lm_head: empty: no model there, no config.json",
        "source.sft: lora: holds neither sft.safetensors nor pytorch_diff.bin, so it is not an SFT: it is a LoRA or "
        "another adapter (adapter_config.json)",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_lengths_beyond_the_positions_that_can_be_used(tmp_path: Path, kind: str) -> None:
    folder = write_encoder(tmp_path / "model", kind)
    reads = {"bert": 40, "modernbert": 40, "deberta-v2": math.inf, "deberta-v3": math.inf}.get(kind, 38)
    assert problems_of(folder, max_length=int(min(reads, 10**6)), block=8) == []
    if reads < math.inf:
        assert problems_of(folder, max_length=reads + 1, block=600) == [
            f"task.max_length: {reads + 1} tokens, but model reads {reads} at most",
            f"language.text.block: 600 tokens, but model reads {reads} at most",
        ]


def write_lora(folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def test_what_is_no_vector_or_one_for_another_backbone(backbone: Path, tmp_path: Path) -> None:
    def told(sft: Path) -> list[str]:
        return problems_of(backbone, sft=sft)

    large = write_backbone(tmp_path / "large", hidden_size=24)
    make_sft(load_masked_lm(backbone)).save_pretrained(tmp_path / "fits")
    make_sft(load_masked_lm(large)).save_pretrained(tmp_path / "other")
    assert told(tmp_path / "fits") == []
    (line,) = told(tmp_path / "other")
    assert line.startswith(
        f"source.sft: {tmp_path}/other: the vector's embeddings.word_embeddings.weight has shape (50, 24), this"
    )
    assert "it is a model (config.json)" in told(large)[0]
    (tmp_path / "torn").mkdir()
    for name in ("sft.json", "sft.safetensors"):
        content = (tmp_path / "fits" / name).read_bytes()
        (tmp_path / "torn" / name).write_bytes(content[:3000] if name.endswith("safetensors") else content)
    assert "torn/sft.safetensors: torn, or no file of weights" in told(tmp_path / "torn")[0]


@pytest.mark.parametrize(
    ("diffs", "line"),
    [
        ({"roberta.encoder.layer.0.output.dense.weight": (16, 24)}, None),
        ({"roberta.encoder.layer.0.output.dense.weight": (24, 16)}, "layer.0.output.dense.weight has shape (24, 16)"),
        ({"roberta.encoder.layer.7.output.dense.weight": (16, 24)}, "changes encoder.layer.7.output.dense.weight"),
    ],
)
def test_a_composable_vector_by_names_and_shapes(
    backbone: Path, tmp_path: Path, diffs: dict[str, tuple[int, int]], line: str | None
) -> None:
    write(tmp_path, {name: encode(torch.ones(shape)) for name, shape in diffs.items()})
    told = problems_of(backbone, sft=tmp_path)
    assert told == [] if line is None else line in told[0]


def test_a_vector_may_change_a_pooler_that_the_checkpoint_has(tmp_path: Path) -> None:
    write(tmp_path, {"bert.pooler.dense.weight": encode(torch.ones(16, 16))})
    for model, fits in ((BertForPreTraining, True), (AutoModelForMaskedLM, False)):
        folder = tmp_path / model.__name__
        (model(CONFIGS["bert"]()) if fits else model.from_config(CONFIGS["bert"]())).save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        assert (
            problems_of(folder, sft=tmp_path) == []
            if fits
            else "changes pooler.dense" in problems_of(folder, sft=tmp_path)[0]
        )


def test_a_donor_has_a_head_and_one_that_fits(backbone: Path, headless: Path, tmp_path: Path) -> None:
    small = write_backbone(tmp_path / "small", hidden_size=8)
    assert problems_of(headless, lm_head=str(backbone)) == problems_of(headless, lm_head="random") == []
    assert problems_of(headless, lm_head=None) == []
    (none,) = problems_of(backbone, lm_head=str(headless))
    assert none.startswith(f"lm_head: {headless}: has no LM head to give (no dense.weight, dense.bias, norm.weight")
    assert problems_of(headless, lm_head=str(small)) == [
        f"lm_head: {small}: its LM head does not fit: dense.weight is (8, 8), not (16, 16)"
    ]
    REFUSED["weights lack"][0](small)
    assert problems_of(headless, lm_head=str(small))[0].startswith(f"lm_head: {small}: the weights lack {GONE}weight")


def sentencepiece_alone(folder: Path) -> None:
    """A backbone whose tokenizer is a `sentencepiece.bpe.model` and nothing else."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    text = folder.parent / "text.txt"
    text.write_text("tum rumed goqes ducil\nbam rumed ha tum ne\ngoqes ne ducil bam\n" * 20, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "sentencepiece.bpe"), vocab_size=40, hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    (folder / "sentencepiece.bpe.vocab").unlink()


def test_a_sentencepiece_model_alone_is_a_tokenizer(backbone: Path, tmp_path: Path) -> None:
    folder = copied(backbone, tmp_path)
    sentencepiece_alone(folder)
    tokenizer = load_tokenizer(folder)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    assert len(tokenizer) == len(pieces) + 2
    # fairseq's numbers: <s>, <pad>, </s> and <unk> first, every other piece one further, <mask> last
    ids = [{0: 3}.get(piece, piece + 1) for piece in pieces.encode("ducil tum xyz")]
    assert tokenizer("ducil tum xyz")["input_ids"] == [0, *ids, 2]
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id) == (1, 3, len(tokenizer) - 1)


def as_dtype(dtype: torch.dtype) -> Change:
    return lambda f: rewrite_weights(f, lambda w: {name: weight.to(dtype) for name, weight in w.items()})


def pickled(shards: int) -> Change:
    def change(folder: Path) -> None:
        write_pickled(folder, folder.parent / "pickled", shards)
        shutil.rmtree(folder)
        (folder.parent / "pickled").rename(folder)

    return change


def old_names(folder: Path) -> None:
    """As checkpoints that came from TensorFlow name their norms, without the prefix of the base model."""
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def renamed(name: str) -> str:
        ending = ".".join(name.split(".")[-2:])
        return name.removeprefix("roberta.").removesuffix(ending) + old.get(ending, ending)

    rewrite_weights(folder, lambda w: {renamed(name): weight for name, weight in w.items()})


def untied(folder: Path) -> None:
    model = XLMRobertaForMaskedLM(make_config(tie_word_embeddings=False))
    model.lm_head.decoder.weight.data.normal_()
    model.save_pretrained(folder)


def truncating(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    tokenizer.save_pretrained(folder)


def vocabulary_of_bert(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(45))]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')


def vocabulary_and_merges(folder: Path) -> None:
    """A RoBERTa with the files that GPT-2's tokenizer is saved in."""
    write_encoder(folder, "roberta")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    entries = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "ab", "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(entries)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")


FINE: dict[str, Change] = {
    "as it is": lambda f: None,
    "A9, a classifier": lambda f: XLMRobertaForSequenceClassification(make_config(num_labels=5)).save_pretrained(f),
    "B1": sentencepiece_alone,
    "B4, more rows": lambda f: write_backbone(f, vocab_size=80),
    "B5, fp16": as_dtype(torch.float16),
    "B5, bf16": as_dtype(torch.bfloat16),
    "B5, sharded": lambda f: AutoModelForMaskedLM.from_pretrained(f).save_pretrained(f, max_shard_size="4KB"),
    "B5, pytorch_model.bin": pickled(1),
    "B5, shards of it": pickled(3),
    "B5, truncating": truncating,
    "B5, BERT's vocab.txt": vocabulary_of_bert,
    "B5, vocab.json and merges.txt": vocabulary_and_merges,
    "B6, untied": untied,
    "names of old": old_names,
}  # fmt: skip


@pytest.mark.parametrize("name", FINE)
def test_the_forms_that_people_have_pass_and_load(backbone: Path, tmp_path: Path, name: str) -> None:
    folder = copied(backbone, tmp_path)
    FINE[name](folder)
    without_head = name.startswith("A9")
    assert problems_of(folder, lm_head="random" if without_head else "own") == []
    assert load_tokenizer(folder).mask_token_id is not None
    load_classifier(folder, ("no", "yes"), seed=0)
    model = load_masked_lm(folder, lm_head="random" if without_head else "own")
    same = same_bits(*({n: p.detach() for n, p in encoder_of(m).items()} for m in (model, load_masked_lm(backbone))))
    others = "A9, a classifier", "B4, more rows", "B5, fp16", "B5, bf16", "B5, vocab.json and merges.txt", "B6, untied"
    assert same == (name not in others)


@pytest.mark.parametrize("lm_head", [True, False])
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_architecture_is_seen_as_it_loads(tmp_path: Path, kind: str, lm_head: bool) -> None:
    folder = write_encoder(tmp_path / "model", kind, lm_head=lm_head)
    told = problems_of(folder)
    assert [line.partition(" (no ")[0] for line in told] == (
        [] if lm_head else ["lm_head: own, but model has no LM head"]
    )
    assert problems_of(folder, lm_head="random") == []
    load_masked_lm(folder, lm_head="own" if lm_head else "random")


@pytest.mark.parametrize("gone", ["lm_head.bias", "lm_head.decoder.bias"])
def test_an_untied_decoders_bias_may_have_one_name(backbone: Path, tmp_path: Path, gone: str) -> None:
    folder = copied(backbone, tmp_path)
    untied(folder)
    bias = torch.rand(VOCABULARY)
    biases = dict.fromkeys({"lm_head.bias", "lm_head.decoder.bias"} - {gone}, bias)
    rewrite_weights(folder, lambda w: {name: weight for name, weight in w.items() if name != gone} | biases)
    assert problems_of(folder) == []
    model = load_masked_lm(folder)
    assert torch.equal(model.lm_head.decoder.bias, bias)
    assert torch.equal(model.lm_head.decoder.weight, load_file(folder / SAFE)["lm_head.decoder.weight"])


def test_v3_of_deberta_is_known_by_the_names_of_its_weights(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "model", "deberta-v3")
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("legacy") is False
    (folder / "config.json").write_text(json.dumps(config))
    assert problems_of(folder) == []


def test_a_bert_as_it_was_pretrained_passes(tmp_path: Path) -> None:
    BertForPreTraining(CONFIGS["bert"]()).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    assert problems_of(tmp_path / "model") == []


def test_weights_that_are_no_numbers_are_named_when_they_are_loaded(backbone: Path, tmp_path: Path) -> None:
    def spoilt(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["roberta.encoder.layer.0.output.dense.weight"][0, 0] = math.inf
        return weights

    folder = copied(backbone, tmp_path)
    rewrite_weights(folder, spoilt)
    assert problems_of(folder) == []
    with pytest.raises(
        DataError, match=r"weights of roberta.encoder.layer.0.output.dense.weight are NaN or inf"
    ) as told:
        load_masked_lm(folder)
    assert "learning rate" not in str(told.value)


def test_a_plan_tells_all_of_it_with_exit_code_2(backbone: Path, tmp_path: Path) -> None:
    folder, lora, data = copied(backbone, tmp_path), write_lora(tmp_path / "lora"), write_data(tmp_path / "data")
    for name in ("A1", "A3"):
        REFUSED[name][0](folder)
    space = write_space(tmp_path / "own.yaml", backbone=str(folder), source={"sft": str(lora)})
    asked = [space, "--data-root", data, "--storage", tmp_path / "storage", "--set", "task.max_length=514"]
    expected = [
        f"error: backbone: {folder}: the tokenizer has no mask token, ",
        f"backbone: {folder}: the tokenizer has 'goqes' as token 50 (and 2 more",
        f"task.max_length: 514 tokens, but {folder} reads 38 at most", f"source.sft: {lora}: holds neither",
    ]  # fmt: skip
    for options in (["--plan"], ["--serial"]):
        result = sweep(*asked, *options)
        assert result.exit_code == 2
        assert all(line.startswith(start) for line, start in zip(result.output.splitlines(), expected, strict=True))
    assert not (tmp_path / "storage").exists(), "nothing was begun"

"""The model card of an exported composition: what it is made of, how it scored, how to use it, and what it is not."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCardData

from deftx.config import METRIC_NAMES, SPLIT_NAMES
from deftx.literal import literal
from deftx.sft.composition import Composition, Part, SplitScore, Stored
from deftx.sft.vector import SparseFineTuning
from deftx.sources.published import HubFolder


def model_card(composition: Composition, task: SparseFineTuning, language: SparseFineTuning | None) -> str:
    """The text of README.md, with the metadata that the hub reads on top; no licence is asserted."""
    target = composition.target or (language.metadata.language if language else None)
    base = composition.backbone.repo if isinstance(composition.backbone, HubFolder) else None
    data = ModelCardData(
        language=target, base_model=base, library_name="transformers",
        pipeline_tag="text-classification", tags=["deft-x", "sparse-fine-tuning"],
    )  # fmt: skip
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {composition.benchmark or 'Text'} classifier{f' for {target}' if target else ''}",
        "The sum of pretrained weights and sparse difference vectors, learnt by DEFT-X "
        "([arXiv 2505.15090](https://arxiv.org/abs/2505.15090)) and written by `deftx export`. "
        f"Labels: {', '.join(map(literal, composition.labels))}.{' ' * bool(composition.origin)}{composition.origin}",
        _parts(composition, task, language),
        *_scores(composition.scores),
        _use(composition),
        _LIMITS,
    ]
    return "\n\n".join(sections) + "\n"


def _parts(composition: Composition, task: SparseFineTuning, language: SparseFineTuning | None) -> str:
    backbone = composition.backbone
    name = _name(backbone)
    commit = f" at {backbone.commit}" if isinstance(backbone, HubFolder) else ""
    lines = ["| part | of | weight | rank | retention | entries |", "|---|---|---|---|---|---|"]
    lines.append(f"| backbone | {name}{commit} | 1 | | | |")
    for role, sft, weight in zip(("task", "language"), (task, language), composition.weights, strict=True):
        if sft is not None:
            metadata = sft.metadata
            retention = "" if metadata.retention is None else f"{metadata.retention * 100:g} %"
            of = literal(" in ".join(filter(None, (metadata.task, metadata.language))) or metadata.backbone)
            lines.append(f"| {role} vector | {of} | {weight:g} | {metadata.rank or ''} | {retention} | {len(sft):,} |")
    return "\n".join(lines)


def _name(backbone: Part) -> str:
    if isinstance(backbone, Stored):
        return "pre-trained in the sweep"
    # where a folder lies on this machine is nobody else's business
    return backbone.repo if isinstance(backbone, HubFolder) else Path(backbone.path).name


def _scores(scores: tuple[SplitScore, ...]) -> list[str]:
    if not scores:
        return ["It was not graded, or no score came with it."]
    lines = ["| split | metric | percentage points [95 % interval] | items |", "|---|---|---|---|"]
    for score in scores:
        value, low, high = (f"{100 * number:.1f}" for number in (score.value, score.low, score.high))
        beside = "" if score.occurring is None else f" ({100 * score.occurring:.1f} over the classes that occur)"
        points = f"{value} [{low}, {high}]{beside}"
        lines.append(f"| {SPLIT_NAMES[score.split]} | {METRIC_NAMES[score.metric]} | {points} | {score.items} |")
    return ["\n".join(lines), "One run: the intervals say what other items would change, not what another seed would."]


def _use(composition: Composition) -> str:
    text = '{"text": "...", "text_pair": "..."}' if composition.kind == "nli" else '"..."'
    return (
        "```python\nfrom transformers import pipeline\n\n"
        'classify = pipeline("text-classification", "FOLDER", truncation=True)\n'
        f"classify({text})\n```\n\n"
        f"Texts are cut at {composition.max_length} tokens, as they were when it was graded."
    )


_LIMITS = """## Limits

- Licences are not asserted: whoever passes this on has to look up those of the backbone and of all text and labels
  that it was trained on.
- Scores hold for the domain of the test set. Other domains, dialects and what it does to people were not examined."""

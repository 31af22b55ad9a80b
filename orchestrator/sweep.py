"""The command: `python -m orchestrator.sweep SPACE`, and `status`, `failed` and `gc`, which need no Ray.

Arguments, messages and exit codes; and in which order a call prepares, runs, chooses, reports and mirrors.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from humanize import naturalsize
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from deftx.cli.command import ENDED, GO_ON, HELP, REFUSED, Command, console, example
from deftx.passwords import to_type, without_password
from deftx.stages.files import SFT
from deftx.stages.kinds import KINDS
from deftx.stages.reach import reachable
from deftx.stages.store import Store
from orchestrator.plan.cost import SUSTAINED_TFLOPS, estimate
from orchestrator.record.sweep import SweepFolder, known_sweep
from orchestrator.run import session
from orchestrator.run.ray_session import AUTO, in_ray_job
from orchestrator.space.load import load_space
from orchestrator.space.schema import Space
from orchestrator.terminal.progress import Progress
from orchestrator.terminal.screen import Screen
from orchestrator.wording import format_precision, format_score

if TYPE_CHECKING:
    from deftx.stages.stage import Stage
    from orchestrator.run.machine import Machine


class _RunByDefault(TyperGroup):
    """`sweep SPACE` means `sweep run SPACE`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            args = ["run", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_RunByDefault, no_args_is_help=True, add_completion=False, rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,  # a tracking URI may hold a password
    context_settings=HELP,
    help="Search the denoising ranks and retention of DEFT-X: learn sparse language and task vectors, compose them, "
    "and grade every combination. [bold]sweep SPACE[/bold] is short for [bold]sweep run SPACE[/bold].",
    epilog=example("python -m orchestrator.sweep demo", "python -m orchestrator.sweep run --help"),
)  # fmt: skip
out, err = console(), console(stderr=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of a sweep: its space's, unless --name gave another.")]
Storage = Annotated[str, typer.Option(help="Where results go: a folder, s3://..., gs://...", envvar="DEFTX_STORAGE")]


@app.command(
    "run", cls=Command, epilog=example(
        "python -m orchestrator.sweep demo",
        "python -m orchestrator.sweep nusax --plan",
        "python -m orchestrator.sweep my-space.yaml --data-root data --set 'rank_l=[100,90%]'",
    ),
)  # fmt: skip
def run_sweep(
    space: Annotated[str, typer.Argument(metavar="SPACE", help="A name in search_spaces/, or a YAML file.")],
    plan: Annotated[bool, typer.Option("--plan", help="Print what would run, and run nothing.")] = False,
    combinations: Annotated[int | None, typer.Option(help="How many combinations to grade.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything.")] = None,
    backbone: Annotated[str | None, typer.Option(metavar="NAME_OR_PATH", help="Hub id or model folder.")] = None,
    data_root: Annotated[str | None, typer.Option(metavar="DIR", help="The original data files; else the hub.")] = None,
    storage: Storage = "results",
    tracking_uri: Annotated[
        str | None,
        typer.Option(metavar="URI", help="MLflow; else a file in the storage.", envvar="MLFLOW_TRACKING_URI"),
    ] = None,
    tracking_seconds: Annotated[
        float, typer.Option(min=0, help="How long MLflow is waited for at most when all else is done.")
    ] = 60,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="RAY_ADDRESS", help="A running Ray cluster, or auto; in a Ray job its own.", envvar="DEFTX_ADDRESS"
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the sweep; else the space's.")] = None,
    serial: Annotated[bool, typer.Option("--serial", help="One process, no Ray: for debugging.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed stages again.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only failures, and at the end the outcome.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")] = None,
) -> None:
    """Run the search of a space; run again, it goes on where it was.

    A setting's key is dotted: --set language.training.max_steps=100 --set 'rank_l=[100,90%]'
    """
    address = None if serial else address or (AUTO if in_ray_job() else None)
    options = {"combinations": combinations, "seed": seed, "backbone": backbone}
    title, loaded = load_space(space, set_ or [], **options)
    store = Store(_absolute(storage))
    folder = SweepFolder(store, name or title)
    uri = "" if plan else _tracking(store, tracking_uri)
    reachable(store, writes=not plan)
    root = _absolute(data_root) if data_root else None
    if plan:
        _print_plan(session.prepare(title, loaded, folder, root, lenient=True), on_cluster=address is not None)
        return
    prepared = session.prepare(title, loaded, folder, root)
    code = _run(
        prepared, uri, address, tracking_seconds, serial=serial, retry_failed=retry_failed, quiet=quiet
    )  # fmt: skip
    raise typer.Exit(code)


@app.command(cls=Command, epilog=example("python -m orchestrator.sweep status nusax"))
def status(name: Name, storage: Storage = "results") -> None:
    """How far a sweep is."""
    folder, info = known_sweep(_store(storage), name)
    state = folder.state()
    out.print(f"sweep {name}: {info.benchmark} on {info.backbone}, seed {info.seed}; {session.summary(state)}")
    table = Table("kind", "done", "reused", "failed", "waiting")
    for kind in dict.fromkeys([*KINDS, *(entry.kind for entry in state.stages.values())]):
        statuses = [entry.status for entry in state.stages.values() if entry.kind == kind]
        if statuses:
            table.add_row(kind, *(str(statuses.count(s)) for s in ("done", "reused", "failed", "waiting")))
    out.print(table)
    for row in state.combinations:
        selection = str(info.space["selection"])
        score = row.reason or "waiting" if row.score is None else format_score(row.score, selection)
        chosen = "  (chosen)" if row.number == state.chosen else ""
        out.print(escape(f"  {row.title}: {score}{chosen}"), soft_wrap=True)


@app.command(cls=Command, epilog=example("python -m orchestrator.sweep failed nusax"))
def failed(name: Name, storage: Storage = "results") -> None:
    """Which stages of a sweep failed permanently, why, and where their logs lie."""
    folder, _ = known_sweep(_store(storage), name)
    failures = folder.final_failures()
    for failure in failures.values():
        out.print(escape(f"{failure.label}: {failure.reason}\n  log: {failure.log}"), soft_wrap=True)
    out.print(f"{len(failures)} failed; try again with --retry-failed" if failures else "nothing failed")


@app.command(
    cls=Command,
    epilog=example("python -m orchestrator.sweep gc", "python -m orchestrator.sweep gc --storage results --yes"),
)
def gc(
    storage: Storage = "results",
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it, only say what would be.")] = False,
) -> None:
    """Remove dense deltas of ended sweeps, losing attempts, and stages that no sweep has."""
    from orchestrator.record.gc import collect

    removed = collect(_store(storage, writes=yes), remove=yes)
    word = "removed" if yes else "would remove (with --yes)"
    out.print(f"{word}: {removed.stages} stages, {removed.attempts} attempts, {removed.deltas} deltas, "
              f"{naturalsize(removed.bytes, binary=True)}")  # fmt: skip


def _run(
    prepared: session.Prepared, uri: str, address: str | None, tracking_seconds: float,
    *, serial: bool, retry_failed: bool, quiet: bool,
) -> int:  # fmt: skip
    from orchestrator.report.chosen import forget_choice, write_choice
    from orchestrator.report.markdown import write_report
    from orchestrator.run.driver import Driver
    from orchestrator.run.logs import DRIVER, logging_to
    from orchestrator.run.machine import Machine, Workplace
    from orchestrator.tracking.content import sweep_status
    from orchestrator.tracking.mirror import Mirror

    folder = prepared.folder
    machine = None if address else Machine.here()
    workplace = Workplace.of(prepared.space, folder, machine)
    driver = Driver(prepared.space, prepared.planner, workplace, folder, retry_failed=retry_failed)
    _warn_of_precision(prepared)
    if machine:  # what is refused leaves the sweep's records as they are
        _look_over(machine, prepared.space, driver.schedule.missing())
    with session.held(prepared) as info:
        if retry_failed:
            session.forget_failures(folder)
        mirror, screen = (
            Mirror(folder.store, folder, info, uri, driver.rows_of),
            Screen(console(file=sys.stdout), quiet),
        )
        driver.callbacks += [mirror, screen]
        if driver.finished() and not driver.schedule.failures and not quiet:
            place = without_password(folder.store.url)
            _say(out, f"nothing is left to do: every stage of sweep {folder.name!r} is in {place}")
        capacity = machine.slots(workplace.resources) if machine else prepared.space.parallel
        slots = 1 if serial else min(prepared.space.parallel, capacity)
        with logging_to(folder, DRIVER):
            driver.write_state()  # the search goes on: before anything else reads how far it is
            mirror.start()
            screen.start(Progress(driver, prepared.planner, slots))
            try:
                forget_choice(folder)
                code = session.run(driver, lambda d: _work(d, machine, address, serial=serial))
                if code in (0, 3):
                    write_choice(folder, prepared.space, prepared.resolved.backbone, driver.schedule.chosen)
                with driver.refusals():
                    write_report(folder.store, folder)
            finally:
                screen.stop()
                mirror.finish(sweep_status(folder.state()), tracking_seconds, lambda words: _say(err, words))
    if driver.refused:
        code = REFUSED
    for note in mirror.notes:
        err.print(f"note: {escape(note)}", soft_wrap=True)
    if mirror.warning:
        err.print(f"[yellow]warning:[/yellow] {escape(mirror.warning)}", soft_wrap=True)
    _print_end(folder, prepared.space, uri, code, driver.refused, quiet=quiet)
    return code


def _work(driver: Any, machine: Any, address: str | None, *, serial: bool) -> None:
    if driver.finished():
        return
    if serial:
        from orchestrator.run.serial import run_serial

        run_serial(driver)
    else:
        from orchestrator.run.ray_session import use_own_token

        if machine:
            use_own_token()
        from orchestrator.run.tune import run_tune

        run_tune(driver, machine, address)


def _print_end(folder: SweepFolder, space: Space, uri: str, code: int, refused: str | None, *, quiet: bool) -> None:
    state = folder.state()
    if code > 128:
        out.print(f"{ENDED[code - 128]}: {session.summary(state)}; the same command goes on from here", soft_wrap=True)
    if code == REFUSED:
        err.print(f"[red]error:[/red] {escape(str(refused))} ({session.summary(state)}); {GO_ON}", soft_wrap=True)
    if code not in (0, 3):
        return
    if (row := state.chosen_row) is not None and row.score is not None:
        out.print(f"chosen: {row.title}, {format_score(row.score, space.selection)}", soft_wrap=True)
    if row is not None and not quiet:
        from orchestrator.report.chosen import export_command

        for name, address in {"task": row.task_sft, **row.language_sfts}.items():
            if folder.store.manifest(str(address)) is None:  # it was lost, and could not be made again
                continue
            _say(out, f"  vector of {name}: {folder.store.url_of(str(address), SFT)}")
        _say(out, f"export: {export_command(folder, space)}")
    if code == 3:
        command = ["python", "-m", "orchestrator.sweep", "failed", folder.name, "--storage", folder.store.url]
        see = escape(to_type(shlex.join(command)))
        out.print(f"[red]{session.summary(state)}[/red]; see: {see}", soft_wrap=True)
    _say(out, f"report: {shlex.quote(folder.url('report.md'))}")
    if not quiet:
        place = uri if uri.startswith("http") else shlex.join(["mlflow", "ui", "--backend-store-uri", uri])
        _say(out, f"browse: {to_type(place)}")


def _say(console: Console, words: str) -> None:
    """Print a line as it is: brackets in it are no markup."""
    console.print(words, soft_wrap=True, markup=False)


def _warn_of_precision(prepared: session.Prepared) -> None:
    """Say that an earlier start of the sweep trained in another precision, which counts in addresses."""
    info = prepared.folder.info()
    before = format_precision(info.space) if info else None
    if before not in (None, format_precision(prepared.space.model_dump(mode="json"))):
        again = "what trains in another precision now is trained again, under other addresses"
        err.print(f"[yellow]warning:[/yellow] this sweep had precision {before}: {again}", soft_wrap=True)


def _look_over(machine: Machine, space: Space, stages: Sequence[Stage]) -> None:
    """Say what this machine lacks for stages that are to be made on it; on a cluster only its workers know."""
    if kinds := machine.lacks_gpu_for(space, stages):
        asked = f"the space asks for a GPU for {', '.join(kinds)}; there is none here, so they run on the CPU"
        err.print(f"[yellow]warning:[/yellow] {asked}", soft_wrap=True)
    machine.check_precision(space, stages)


def _print_plan(prepared: session.Prepared, *, on_cluster: bool) -> None:
    from orchestrator.run.machine import Machine
    from orchestrator.run.preview import Preview

    preview = Preview.of(prepared)
    table = Table("stage", "to make", "in the store", title=f"plan of {prepared.folder.name}", title_justify="left")
    for kind in KINDS:
        if sum(preview.counts(kind)):
            table.add_row(kind, *map(str, preview.counts(kind)))
    out.print(table)
    out.print(preview.sentence(), soft_wrap=True)
    for title, stages in (("these combinations", preview.search), ("baselines", preview.baselines)):
        cost = estimate(stages)
        words = "size of the backbone unknown" if cost is None else (
            f"about {naturalsize(cost.bytes, binary=True)} in the store and {cost.gpu_hours:.2f} GPU hours of training"
        )  # fmt: skip
        out.print(f"{title}: {words}", soft_wrap=True)
    out.print(f"precision: {format_precision(prepared.space.model_dump(mode='json'))}", soft_wrap=True)
    rates = ", ".join(f"{rate:g} TFLOP/s {name}" for name, rate in SUSTAINED_TFLOPS.items())
    out.print(f"[dim]GPU hours are of one A100 at an assumed {rates}[/dim]", soft_wrap=True)
    _warn_of_precision(prepared)
    for name in preview.unresolved:
        out.print(f"[yellow]not resolved without a network:[/yellow] {escape(name)}", soft_wrap=True)
    if not on_cluster:
        _look_over(Machine.planned_on(), prepared.space, [*preview.search, *preview.baselines])


def _tracking(store: Store, uri: str | None) -> str:
    from orchestrator.tracking.client import check_tracking_uri, default_tracking_uri

    return check_tracking_uri(uri) if uri else default_tracking_uri(store)


def _store(url: str, *, writes: bool = False) -> Store:
    return reachable(Store(_absolute(url)), writes=writes)


def _absolute(url: str) -> str:
    """A folder as an absolute path (trials run in folders of their own); a URL as it is."""
    return url if "://" in url else str(Path(url).expanduser().resolve())


if __name__ == "__main__":
    app()

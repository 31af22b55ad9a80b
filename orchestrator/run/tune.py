"""The schedule as a Ray Tune Searcher, and the one Tune experiment that runs it. Nothing else of a sweep imports ray.

Every run is a fresh experiment in a throw-away folder: the store says what is done, not Tune. The driver decides
everything; here its jobs become trials with the resources of their stage kind.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "600")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # it is seen to in `signals`
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
import yaml
from ray import tune
from ray._common.usage.usage_constants import KUBERAY_ENV
from ray._private import node, services, worker
from ray.exceptions import AuthenticationError, NodeDiedError, RayError, TaskUnschedulableError
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deftx.errors import ConfigError
from orchestrator.run.driver import NO_MESSAGE, Driver
from orchestrator.run.machine import Machine, Workplace, check_fit
from orchestrator.run.node import lacks_gpus, lacks_storage, other_code
from orchestrator.run.ray_session import forget_other_clusters, session_folder
from orchestrator.run.signals import interruptible
from orchestrator.run.trial import carry_out
from orchestrator.search.schedule import Job

_RESOLVE = "resolve_ip_for_localhost"
ANSWER_SECONDS = 10
"""How long a cluster is given to answer at all."""
_HOST = "NodeManagerHostname"
_BOOTSTRAP = "~/ray_bootstrap_config.yaml"
"""The cluster file, as `ray up` leaves it on the head; Ray itself keeps no record of what may be started."""
NODE_SECONDS = 600
"""How long a node has to say what it is, at the start of a sweep; importing torch on it for the first time is in it."""


class _Unsaved:
    """Pickles as nothing: Tune snapshots what it is given, and the state of a sweep is in the store alone."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class ScheduleSearcher(_Unsaved, Searcher):
    """Suggests the next ready job; tells the driver when a trial has ended."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self._driver = driver
        self.jobs: dict[str, Job] = {}
        """By the id of the trial that has it."""

    def suggest(self, trial_id: str) -> Any:
        """A job as a trial's configuration, None while nothing is ready, FINISHED at the end."""
        job = self._driver.next_job()
        if job is None:
            return str(Searcher.FINISHED) if self._driver.finished() or self._driver.refused else None
        self.jobs[trial_id] = job
        return {"job": job}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Settle the trial's job; what it made is in the store. Of an error Tune calls `on_trial_error` next."""
        if not error:
            self._driver.settle(self.jobs.pop(trial_id))

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """True: Tune's own limit (`max_concurrent_trials`) holds, so no limiter is wrapped around this searcher."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the state of a sweep is in the store."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: every run is a fresh experiment."""


class _ProgressCallback(_Unsaved, TrialProgressCallback):
    """Passes reported points on to the driver; Tune, seeing a progress callback, prints none of its own."""

    def __init__(self, driver: Driver, searcher: ScheduleSearcher) -> None:
        self._driver, self._searcher = driver, searcher

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        """Pass a point of a stage's curve on to the driver."""
        if "address" in result:
            self._driver.progress(result["address"], result["point"])

    def on_step_end(self, iteration: int, trials: list[Trial], **_: Any) -> None:
        """Let the driver write the state that it put off; called ten times a second where nothing else happens."""
        self._driver.keep_state()

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Note why a trial is tried again, where its worker died and could not."""
        if _short_of_memory(trial):
            self._driver.short_of_memory(self._searcher.jobs[trial.trial_id])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Settle the job of a trial that Tune gave up; why a stage failed is recorded, unless its worker died."""
        job = self._searcher.jobs.pop(trial.trial_id)
        # Tune tries nothing again that failed before it began, as on a worker that died between two trials
        if self._driver.hand_back(job):
            return
        if _short_of_memory(trial):
            self._driver.short_of_memory(job)
        self._driver.settle(job, _last_line(trial))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Do nothing: the searcher settles the job."""


def run_tune(driver: Driver, machine: Machine | None, address: str | None) -> None:
    """Run all jobs as trials of one Tune experiment.

    Args:
        machine: where Ray is started when there is no address.
        address: of a running Ray cluster (`auto` on its head).

    Raises:
        ConfigError: when there is no cluster at the address, or its nodes cannot make the sweep's stages.
    """
    with ExitStack() as stack:
        _connect(machine, address, stack)
        if machine is None:
            _check_cluster(driver)
        with tempfile.TemporaryDirectory(prefix="deftx-tune-") as scratch:
            searcher = ScheduleSearcher(driver)
            limit = driver.space.parallel
            tuner = tune.Tuner(
                tune.with_resources(_trainable(driver.workplace), _placement(driver.workplace)),
                tune_config=tune.TuneConfig(
                    search_alg=searcher, num_samples=-1, max_concurrent_trials=limit, reuse_actors=True,
                    trial_dirname_creator=lambda trial: str(trial.trial_id),
                ),
                run_config=tune.RunConfig(
                    storage_path=scratch, name="sweep", verbose=0, callbacks=[_ProgressCallback(driver, searcher)],
                    failure_config=tune.FailureConfig(max_failures=driver.space.max_failures),
                ),
            )  # fmt: skip
            with interruptible(driver):
                try:
                    tuner.fit()
                except KeyboardInterrupt:
                    driver.let_leave()
                    raise


def _trainable(workplace: Workplace) -> Any:
    def trial(config: dict[str, Any]) -> None:
        job = config["job"]
        status = carry_out(job, workplace, lambda address, point: tune.report({"address": address, "point": point}))
        tune.report({"status": status})

    return trial


def _placement(workplace: Workplace) -> Callable[[dict[str, Any]], tune.PlacementGroupFactory]:
    def of(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        need = workplace.resources[config["job"].kind]
        return tune.PlacementGroupFactory([{"CPU": need.cpu, "GPU": need.gpu} if need.gpu else {"CPU": need.cpu}])

    return of


def _short_of_memory(trial: Trial) -> bool:
    """Whether Ray itself killed the trial's worker, before the kernel would: the node's memory was nearly full."""
    return "low on memory" in str(trial.get_error() or "")


def _last_line(trial: Trial) -> str:
    """The last line of a failed trial's error."""
    error = trial.get_error()
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    return lines[-1] if lines else NO_MESSAGE


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Within the block Ray listens on 127.0.0.1: else it takes the machine's own address, for nodes that join."""
    resolves = [module for module in (services, node, worker) if hasattr(module, _RESOLVE)]
    resolved = [getattr(module, _RESOLVE) for module in resolves]
    for module in resolves:
        setattr(module, _RESOLVE, lambda host: host)
    try:
        yield
    finally:
        for module, resolve in zip(resolves, resolved, strict=True):
            setattr(module, _RESOLVE, resolve)


def _connect(machine: Machine | None, address: str | None, stack: ExitStack) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if machine is not None:
        capacity: dict[str, Any] = {"num_cpus": machine.cpus, "num_gpus": machine.gpus, "_node_ip_address": "127.0.0.1"}
        folder = stack.enter_context(session_folder())
        stack.enter_context(_on_loopback())
        stack.callback(ray.shutdown)
        ray.init(address="local", include_dashboard=False, _temp_dir=folder, **capacity, **quiet)
        return
    stack.callback(ray.shutdown)
    forget_other_clusters()
    try:
        host, _, port = str(address).rpartition("://")[2].rpartition(":")
        if port.isdigit():  # Ray itself takes minutes to find that nobody answers
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
        ray.init(address=address, **quiet)
    except AuthenticationError as error:
        words = f"~/.ray/auth_token is not the cluster's, or not there ({str(error).splitlines()[0]})"
        raise ConfigError(f"--address {address}: {words}") from None
    except (OSError, ValueError, RuntimeError, RayError) as error:
        raise ConfigError(f"--address {address}: no Ray cluster there ({str(error).splitlines()[0]})") from None


def _check_cluster(driver: Driver) -> None:
    """Check the nodes of a cluster before anything is trained: code, GPUs, storage, and whether a trial fits any.

    Raises:
        ConfigError: with everything that is wrong, a line each.
    """
    alive = [each for each in ray.nodes() if each["Alive"]]  # type: ignore[no-untyped-call]
    missing, workplace = driver.schedule.missing(), driver.workplace
    check_fit(workplace, missing, [each["Resources"] for each in alive], _to_come())
    want_gpus = any(workplace.resources[stage.kind].gpu for stage in missing)
    asked = dict[Any, str]()
    shared = workplace.code, workplace.storage, workplace.sweep
    for each in alive:
        here = NodeAffinitySchedulingStrategy(each["NodeID"], soft=False)
        gpus = int(each["Resources"].get("GPU", 0)) if want_gpus else 0
        asked[_look_over.options(scheduling_strategy=here).remote(gpus, *shared)] = each[_HOST]
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_SECONDS)
    problems = [f"node {asked[told]} did not answer within {NODE_SECONDS} s" for told in silent]
    for told in answered:
        try:
            problems += ray.get(told)
        except (NodeDiedError, TaskUnschedulableError):  # it went meanwhile, as spot machines do
            continue
        except (RayError, ImportError) as error:
            last = str(error).strip().splitlines()[-1]
            problems.append(f"node {asked[told]} cannot run the project ({last}): install the same on every node")
    if problems:
        raise ConfigError("\n".join(sorted(problems)))


@ray.remote(num_cpus=0, max_retries=0)
def _look_over(gpus: Any, code: Any, storage: Any, sweep: Any) -> list[str]:
    """What is wrong with the node that this runs on, a line each."""
    problems = other_code(code), lacks_gpus(gpus) if gpus else None, lacks_storage(storage, sweep)
    return [words for words in problems if words]


def _to_come() -> list[dict[str, float]]:
    """What each kind of node has that the autoscaler may start; nothing in it where only the node itself knows."""
    file = Path(_BOOTSTRAP).expanduser()
    if file.is_file():
        kinds = yaml.safe_load(file.read_text(encoding="utf-8"))["available_node_types"].values()
        return [kind.get("resources") or {} for kind in kinds if kind.get("max_workers")]
    return [{}] if KUBERAY_ENV in os.environ else []

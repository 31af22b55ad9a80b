"""What trials run on: a machine's CPUs and GPUs, and what each stage kind takes of them. Plain values, no Ray."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deftx import hardware
from deftx.config import Execution
from deftx.errors import ConfigError
from deftx.stages.kinds import KINDS
from deftx.stages.stage import Stage
from orchestrator.record.sweep import SweepFolder
from orchestrator.run import node
from orchestrator.space.schema import Resources, Space


@dataclass(frozen=True)
class Workplace:
    """What a trial needs beyond its job. Plain values, so that it travels to workers."""

    storage: str
    sweep: str
    resources: dict[str, Resources]
    code: str | None = None
    """Of the driver, where trials run on other machines, which must have the same."""

    @classmethod
    def of(cls, space: Space, folder: SweepFolder, machine: Machine | None = None) -> Workplace:
        """The workplace of a space's trials; on one machine no kind takes more than the machine has."""
        needs = {kind: space.resources_of(kind) for kind in KINDS}
        if machine is None:
            return cls(folder.store.url, folder.name, needs, node.code())
        return cls(folder.store.url, folder.name, {kind: machine.fit(need) for kind, need in needs.items()})

    def unfit(self, kind: str) -> str | None:
        """Why no stage of this kind can be made on the node that this is called on, in words; None where it can."""
        if self.code is None:
            return None
        return node.other_code(self.code) or (node.lacks_gpu() if self.resources[kind].gpu else None)

    @property
    def maker(self) -> str:
        """Who makes its stages, in words: of their claims."""
        return f"sweep {self.sweep!r}"

    def execution(self, kind: str) -> Execution:
        """How a stage of this kind is carried out."""
        need = self.resources[kind]
        return Execution(
            device="cuda" if need.gpu else "cpu", threads=need.cpu, micro_batch=need.micro_batch,
            gradient_checkpointing=need.gradient_checkpointing,
        )  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """The CPUs and GPUs of one machine, where trials run without a cluster."""

    cpus: int
    gpus: int

    @classmethod
    def here(cls) -> Machine:
        """The machine that this process runs on."""
        import torch

        return cls(_cpus(), torch.cuda.device_count())

    @classmethod
    def planned_on(cls) -> Machine:
        """The machine that this process runs on as a plan sees it, which does without torch."""
        return cls(_cpus(), hardware.gpus())

    def fit(self, need: Resources) -> Resources:
        """Resources cut to what the machine has, so that the space of a cluster runs on a laptop without a GPU too."""
        return need.model_copy(update={"cpu": min(need.cpu, self.cpus), "gpu": min(need.gpu, float(self.gpus))})

    def lacks_gpu_for(self, space: Space, stages: Iterable[Stage]) -> list[str]:
        """The kinds of stages to be made here for which the space asks for a GPU, where there is none."""
        kinds = {stage.kind for stage in stages}
        return [kind for kind in KINDS if kind in kinds and space.resources_of(kind).gpu and not self.gpus]

    def check_precision(self, space: Space, stages: Iterable[Stage]) -> None:
        """Check that no training in bf16 is left to a CPU that cannot multiply in it.

        Args:
            stages: those to be made here.

        Raises:
            ConfigError: naming the stages' kinds, and the settings to change.
        """
        in_bf16 = [stage for stage in stages if stage.precision == "bf16"]
        slow = [stage for stage in in_bf16 if not self.fit(space.resources_of(stage.kind)).gpu]
        if not slow or hardware.multiplies_bf16():
            return
        kinds = ", ".join(kind for kind in KINDS if any(stage.kind == kind for stage in slow))
        # a stage trains by the settings of its language, else of what it is about: the backbone or the task
        groups = {"language" if stage.subject == stage.language else stage.subject for stage in slow}
        settings = " and ".join(f"{group}.training.precision=float32" for group in sorted(groups))
        asks = any(space.resources_of(stage.kind).gpu for stage in slow)
        elsewhere = (
            "run where there is a GPU (for a cluster, plan and run with --address)" if asks else "run this elsewhere"
        )
        raise ConfigError(
            f"precision: bf16 for {kinds}, which would run on the CPU here; it has {hardware.WITHOUT_BF16}: "
            f"set {settings}, or {elsewhere}"
        )

    def slots(self, resources: Mapping[str, Resources]) -> int:
        """How many trials run here at once, each with the most that any stage kind takes."""
        cpu, gpu = (max(getattr(need, name) for need in resources.values()) for name in ("cpu", "gpu"))
        return max(int(min(self.cpus // cpu, self.gpus / gpu if gpu else self.cpus)), 1)


def check_fit(
    workplace: Workplace,
    stages: Iterable[Stage],
    nodes: Iterable[Mapping[str, float]],
    to_come: Iterable[Mapping[str, float]] = (),
) -> None:
    """Check that each stage fits a node of a cluster, since Ray waits for ever for one that does.

    Args:
        stages: those to be made.
        nodes: what each node has, by Ray's names.
        to_come: the same of nodes that may be started; of one that is empty nothing is known, and one with GPUs is
            started for stages that ask for one alone.

    Raises:
        ConfigError: naming what does not fit, and what would, a line for each kind of stage.
    """
    there, may_come, kinds = list(nodes), list(to_come), {stage.kind for stage in stages}
    problems = []
    for kind, need in ((kind, workplace.resources[kind]) for kind in KINDS if kind in kinds):
        nodes = there + [node for node in may_come if need.gpu or not node.get("GPU")]
        if not any(not n or (n.get("CPU", 0) >= need.cpu and n.get("GPU", 0) >= need.gpu) for n in nodes):
            asked = f"{need.cpu} CPUs and {need.gpu:g} GPUs"
            have = " or ".join(sorted({f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in nodes}))
            problems.append(
                f"a stage {kind!r} asks for {asked}, and a node of the cluster has {have}: set resources.{kind} in the "
                "space, or add a worker type to the cluster file"
            )
    if problems:
        raise ConfigError("\n".join(problems))


def _cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

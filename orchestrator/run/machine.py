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
from orchestrator.space.schema import Resources, Space


@dataclass(frozen=True)
class Workplace:
    """What a trial needs beyond its job. Plain values, so that it travels to workers."""

    storage: str
    sweep: str
    resources: dict[str, Resources]

    @classmethod
    def of(cls, space: Space, folder: SweepFolder, machine: Machine | None = None) -> Workplace:
        """The workplace of a space's trials; on one machine no kind takes more than the machine has."""
        needs = {kind: space.resources_of(kind) for kind in KINDS}
        return cls(folder.store.url, folder.name, {kind: machine.fit(n) if machine else n for kind, n in needs.items()})

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


def _cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

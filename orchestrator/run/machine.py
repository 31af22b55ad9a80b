"""What trials run on: a machine's CPUs and GPUs, and what each stage kind takes of them. Plain values, no Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from deftx.config import Execution
from deftx.stages.kinds import KINDS
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

        return cls(len(os.sched_getaffinity(0)), torch.cuda.device_count())

    def fit(self, need: Resources) -> Resources:
        """Resources cut to what the machine has, so that the space of a cluster runs on a laptop without a GPU too."""
        return need.model_copy(update={"cpu": min(need.cpu, self.cpus), "gpu": min(need.gpu, float(self.gpus))})

    def lacks_gpu_for(self, space: Space) -> list[str]:
        """The stage kinds for which the space asks for a GPU, where there is none."""
        return [] if self.gpus else [kind for kind in KINDS if space.resources_of(kind).gpu]

    def slots(self, resources: Mapping[str, Resources]) -> int:
        """How many trials run here at once, each with the most that any stage kind takes."""
        cpu, gpu = (max(getattr(need, name) for need in resources.values()) for name in ("cpu", "gpu"))
        return max(int(min(self.cpus // cpu, self.gpus / gpu if gpu else self.cpus)), 1)

"""What a plan is made for: this machine, the nodes of a cluster file, devices known by their data sheets alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from configs.cluster import ClusterConfig
from configs.errors import ConfigError
from distill_core.training import Precision
from launcher import devices
from launcher.launch import ranks as ranks_here

SHARE_OF_SHEET = 0.8
"""What a large matrix product reaches of the FLOP/s on a GPU's data sheet: 788 of 989 TFLOP/s on an H200."""
SHEETS = {
    "v100": (32.0, 125.0, 15.7),
    "rtx4090": (24.0, 165.0, 82.6),
    "a100-40gb": (40.0, 312.0, 19.5),
    "a100": (80.0, 312.0, 19.5),
    "l40s": (48.0, 362.0, 91.6),
    "h100": (80.0, 989.0, 66.9),
    "h200": (141.0, 989.0, 66.9),
}
"""GB of memory, dense 16-bit TFLOP/s, fp32 TFLOP/s (SXM forms), by NVIDIA's data sheets."""


@dataclass(frozen=True)
class Device:
    """What one rank may fill and how fast it multiplies.

    ``memory``: bytes; ``sheet``: FLOP/s of a large matrix product by precision, {} where they have to be measured.
    """

    memory: float
    name: str
    gpu: bool = False
    sheet: Mapping[str, float] = field(default_factory=dict)

    @property
    def precision(self) -> Precision | None:
        """What ``precision: auto`` is on it; None: this machine's."""
        if not self.sheet:
            return None
        return "fp16" if self.name == "V100" else "bf16"


@dataclass(frozen=True)
class Place:
    """Where a run is planned to be. ``ranks``: of all nodes; ``here``: that is this machine alone."""

    ranks: int
    nodes: int
    device: Device
    here: bool

    @property
    def words(self) -> str:
        ranks = f"{self.ranks} rank{'s' if self.ranks > 1 else ''}"
        return ranks if self.nodes == 1 else f"{ranks} ({self.nodes} nodes x {self.ranks // self.nodes})"

    @property
    def notes(self) -> list[str]:
        """What has to be said of the figures."""
        if self.here or self.device.sheet:
            return []
        return [
            "memory and speed of the cluster's nodes cannot be seen from here, so that this machine's stand in; name "
            f"theirs with --device ({', '.join(SHEETS)}, or GB:TFLOPS)"
        ]


def place_of(processes: int | None, cluster: ClusterConfig | None, device: str | None) -> Place:
    """Where a run would be.

    Args:
        processes: the run file's ``launch.processes``.
        device: as in :func:`named`; None: this machine's.

    Raises:
        ConfigError: there is no such device, or no such backend.
    """
    if cluster is None or cluster.kind == "local":
        wanted = processes if cluster is None else cluster.processes or processes
        known = None if device is None else named(device)
        ranks = ranks_here(wanted) if known is None else wanted or 1
        return Place(ranks, 1, this_machine(ranks, devices.gpus()) if known is None else known, known is None)
    from launcher.backends import BACKENDS

    backend = BACKENDS[cluster.kind](cluster)
    nodes = len(backend.nodes())
    each = backend.ranks(processes)
    return Place(nodes * each, nodes, this_machine(each, devices.gpus()) if device is None else named(device), False)


def named(text: str) -> Device:
    """A GPU by its name, or by its memory and the speed of its matrix products: ``GB:TFLOPS``.

    Raises:
        ConfigError: it is neither.
    """
    if text.lower() in SHEETS:
        memory, half, single = SHEETS[text.lower()]
        speeds = {"bf16": half, "fp16": half, "fp32": single}
        return Device(
            1e9 * memory, text.upper(), True, {name: 1e12 * SHARE_OF_SHEET * each for name, each in speeds.items()}
        )
    try:
        memory, speed = (float(word) for word in text.split(":"))
    except ValueError:
        memory = speed = 0.0
    if not (0 < memory < 1e6 and 0 < speed < 1e6):
        raise ConfigError(
            f"--device {text}: give one of {', '.join(SHEETS)}, or memory in GB and speed of a matrix product in "
            "TFLOP/s, as in 80:600."
        )
    return Device(
        1e9 * memory, f"{memory:g} GB, {speed:g} TFLOP/s", True, dict.fromkeys(("bf16", "fp16", "fp32"), 1e12 * speed)
    )


def this_machine(ranks: int, gpus: int) -> Device:
    """One GPU for each rank, or a rank's part of the memory that is free now."""
    if gpus:
        import torch

        if torch.cuda.is_available():
            found = torch.cuda.get_device_properties(0)
            return Device(float(found.total_memory), found.name, True)
    return Device(devices.free_bytes() / ranks, f"{devices.cores()} CPU cores, memory free now / {ranks}")

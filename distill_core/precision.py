"""``precision: auto``: what the devices of a run compute in, found out once and kept in its config.yaml.

The machine that starts a run need not be one that trains it, so the ranks decide: the fastest precision that all of
their devices have units for. From then on config.yaml names it, and a resume, be it on other machines, keeps it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, get_args

import torch
import yaml

from configs.errors import output_error
from configs.loader import to_yaml, validate
from distill_core.config import RunConfig, trained
from distill_core.engine import Rank
from distill_core.training import Precision

FP16_CAPABILITY = (7, 0)
"""Of the first GPUs with matrix units for fp16 (Volta); DeepSpeed refuses fp16 on older ones."""
CPU_UNITS = r"^(?:flags|Features)\s*:.*\b(?:avx512_bf16|amx_bf16|bf16)\b"
"""In /proc/cpuinfo: x86 with products of bf16 vectors or tiles, Arm with BFMMLA."""
BY_SPEED: tuple[Precision, ...] = ("bf16", "fp16", "fp32")


def of_device(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> Precision:
    """bf16 where the device has units for it; else fp16 on a GPU that has those; else fp32."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
        return "fp16" if torch.cuda.get_device_capability(device) >= FP16_CAPABILITY else "fp32"
    try:
        known = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "fp32"
    return "bf16" if re.search(CPU_UNITS, known, re.MULTILINE) else "fp32"


def here() -> Precision:
    """What ``auto`` would be on this machine alone."""
    return of_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def of_all(rank: Rank) -> Precision:
    """The fastest that every rank's device has. Collective."""
    mine = BY_SPEED.index(of_device(rank.device))
    able = torch.tensor([float(place >= mine) for place in range(len(BY_SPEED))]).to(rank.device)
    counts = rank.sum(able).tolist()
    return next(precision for precision, count in zip(BY_SPEED, counts, strict=True) if count == rank.world_size)


def undecided(config: RunConfig) -> list[str]:
    """The stages whose precision is ``auto``."""
    return [stage.name for stage in trained(config.stages) if stage.training.precision == "auto"]


def decided(config: RunConfig, by_stage: dict[str, Precision]) -> RunConfig:
    """With the precision of these stages, where it was ``auto``.

    Raises:
        ConfigError: a stage does not work in its precision.
    """
    names = [name for name in undecided(config) if name in by_stage]
    if not names:
        return config
    tree = config.model_dump(mode="json")
    for stage in tree["stages"]:
        if stage["name"] in names:
            stage["training"]["precision"] = by_stage[stage["name"]]
    return validate(tree, RunConfig, source="precision: auto")


def decided_by(config: RunConfig, precision: Precision) -> RunConfig:
    """With ``precision`` wherever it was ``auto``."""
    return decided(config, dict.fromkeys(undecided(config), precision))


def as_recorded(config: RunConfig) -> RunConfig:
    """With what ``auto`` became when the run was started before: as its folder's config.yaml says."""
    if not undecided(config):
        return config
    try:
        tree: Any = yaml.safe_load((config.folder / "config.yaml").read_text(encoding="utf-8"))
        said = {stage["name"]: stage["training"]["precision"] for stage in tree["stages"] if "training" in stage}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):  # not started yet, or not by this version
        return config
    return decided(config, {name: value for name, value in said.items() if value in get_args(Precision)})


def settle(config: RunConfig, folder: Path, rank: Rank) -> RunConfig:
    """Decide what ``auto`` is, if that is still open, and write it into ``folder``/config.yaml. Collective.

    Raises:
        ConfigError: a stage does not work in its precision.
        OutputError: the run folder cannot be written.
    """
    names = undecided(config)
    if not names:
        return config
    found = of_all(rank)
    config = decided_by(config, found)
    if rank.is_first:
        path, aside = folder / "config.yaml", folder / ".config.yaml.precision"
        try:
            aside.write_text(to_yaml(config), encoding="utf-8")
            os.replace(aside, path)
        except OSError as error:
            raise output_error(path, error) from error
        where = f"on the devices of this run ({', '.join(names)})"
        print(f"precision: auto is {found} {where}; {path} keeps it", flush=True)
    return config

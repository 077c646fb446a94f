"""Teachers and recipes carried out through the command, each in a folder of its own; what is finished is kept."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from benchmarks.recipes.small import Scale, shrunken, small_shape
from configs.errors import ConfigError
from configs.loader import PACKAGED, read_tree
from distill_core.config import RunConfig
from distill_core.models.config import presets
from launcher.runfile import open_run
from launcher.sweep import configs, finished, open_sweep

RECIPES = sorted(path.stem for path in (PACKAGED / "recipes").glob("*.yaml"))
PRESETS = {"wordpiece": "roberta-wwm-ext", "bpe": "roberta-base"}
"""Kind of tokenizer -> the published shape that a teacher is made after; larger ones become as small."""


@dataclass(frozen=True)
class Material:
    """What the runs are made from, and where they lie."""

    out: Path
    texts: Sequence[str]
    megabytes: float | None
    """Of all texts together, from the beginning of each; None: all of them."""
    rows: Mapping[str, Path]
    """The files ``train`` and ``dev`` of a classification task."""
    scale: Scale
    teacher_steps: int

    @property
    def sources(self) -> list[dict[str, Any]]:
        share = {} if self.megabytes is None else {"max_megabytes": self.megabytes / len(self.texts)}
        return [{"path": text} | share for text in self.texts]


class FailedRun(RuntimeError):
    """A run ended with another status than 0."""


def first_rows(path: Path, count: int, to: Path) -> Path:
    """The first ``count`` lines of a file of JSON lines (``.gz`` too), as a file of their own."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        kept = list(islice((line.rstrip(b"\n") for line in lines if line.strip()), count))
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(b"".join(line + b"\n" for line in kept))
    return to


def kind_of(recipe: str) -> str:
    """Of a recipe's tokenizer."""
    return str(read_tree(f"recipes/{recipe}")[0]["data"]["tokenizer"]["kind"])


# ---------------------------------------------------------------- teachers


def given_teacher(folder: Path, kind: str, scale: Scale) -> Path:
    """``folder``, if its model has the shape that the scale gives a teacher.

    Raises:
        ConfigError: it has another.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"There is no model in {folder}: config.json is missing.")
    found = json.loads(path.read_text(encoding="utf-8"))
    wanted = {k: v for k, v in small_shape(PRESETS[kind], scale).items() if k != "family"}
    wrong = [f"{key} {found.get(key)} instead of {value}" for key, value in wanted.items() if found.get(key) != value]
    if wrong:
        raise ConfigError(f"The teacher in {folder} has {', '.join(wrong)}. Leave it out to have one made.")
    return folder.resolve()


def made_teacher(kind: str, material: Material) -> Path:
    """A masked LM trained on the texts, with a vocabulary trained on them; made if it is not there.

    Raises:
        FailedRun: its run failed.
    """
    scale, name = material.scale, f"teacher-{kind}"
    data = {
        "sources": material.sources,
        "tokenizer": {"kind": kind, "vocab_size": scale.vocabulary},
        "sequences": {"max_length": scale.length},
        "masks": {"mode": "dynamic"},
        "held_out": scale.held_out,
        "workers": 1,
    }
    training = {
        "steps": material.teacher_steps,
        "global_batch_size": 2 * scale.batch,
        "micro_batch_tokens": 4096,
        "precision": "fp32",
        "optimizer": {"learning_rate": 1.0e-3},
        "checkpoint_every": material.teacher_steps,
        "evaluate_every": material.teacher_steps,
        "evaluate_sequences": scale.held_out_sequences,
    }
    stage = {"name": "teacher", "kind": "pretrain", "model": small_shape(PRESETS[kind], scale), "training": training}
    tree = {"name": name, "data": data, "stages": [stage], "evaluation": {"latency_repeats": 1}}
    carry_out(tree, name, material.out / "teachers")
    return (material.out / "teachers" / name / "stages" / "01-teacher" / "model").resolve()


# ---------------------------------------------------------------- recipes


def recipe_tree(recipe: str, material: Material, teacher: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """A sweep over the seeds of the shrunken recipe in its mode ``fixed``, on a corpus that like recipes share."""
    tree = shrunken(
        f"recipes/{recipe}", None, material.scale, lambda _: teacher, teacher, material.sources, material.rows
    )
    data = tree["data"] | {"workers": 1}
    if "sources" in data:
        code = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]
        data["folder"] = str(material.out / "corpora" / code)
    asked = [*earlier_seeds(recipe, material.out), *seeds]
    return tree | {"name": recipe, "data": data, "sweep": {"grid": {"seed": list(dict.fromkeys(asked))}}}


def earlier_seeds(recipe: str, out: Path) -> list[int]:
    """Those asked for before: a sweep's folders are numbered, so that new seeds come after them."""
    path = out / "runs" / f"{recipe}.yaml"
    if not path.is_file():
        return []
    return list(yaml.safe_load(path.read_text(encoding="utf-8"))["sweep"]["grid"]["seed"])


def carry_out(tree: dict[str, Any], name: str, output: Path) -> bool:
    """``distill run`` of the tree in ``output``/``name``; False if all of it was finished before.

    Raises:
        FailedRun: with the end of what the run said; the whole stands in ``name``.log.
    """
    output.mkdir(parents=True, exist_ok=True)
    path, log = output / f"{name}.yaml", output / f"{name}.log"
    whole = tree | {"output": str(output), "launch": {"processes": 1}}
    path.write_text(yaml.safe_dump(whole, sort_keys=False, allow_unicode=True), encoding="utf-8")
    sweep = open_sweep(str(path))
    runs = [open_run(str(path))] if sweep is None else configs(sweep)
    if all(finished(run) for run in runs):
        return False
    began = time.monotonic()
    with log.open("ab") as said:
        command = [sys.executable, "-m", "launcher.cli", "run", str(path)]
        status = subprocess.run(command, stdout=said, stderr=said, check=False).returncode
    if status:
        end = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise FailedRun(f"{name} failed with status {status} ({log}):\n{end}")
    print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    return True


def finished_runs(recipe: str, out: Path) -> list[RunConfig]:
    """The runs of a recipe that were carried out to their end, by seed."""
    paths = (out / "runs" / recipe).glob("*/config.yaml")
    found = [config for path in paths if finished(config := open_run(str(path.parent)))]
    return sorted(found, key=lambda config: config.seed)


def published_shapes(recipe: str) -> str:
    """``12 x 768 -> 6 x 256``: depth and width of the recipe's models as published."""
    tree, _ = read_tree(f"recipes/{recipe}")
    names = []
    for stage in tree["stages"]:
        teacher, model = stage.get("teacher"), stage.get("student", stage).get("model")
        names += [teacher["shape"]["preset"]] if isinstance(teacher, dict) else []
        names += [model["preset"]] if isinstance(model, dict) else []
    shapes = [presets()[name] for name in names]
    return " -> ".join(dict.fromkeys(f"{s['num_hidden_layers']} x {s['hidden_size']}" for s in shapes))

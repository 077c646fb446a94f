"""A recipe on a small scale: its stages, losses, kinds of layer map, families and mode, on narrow models and few steps.

:data:`SMALL` is for curves that mean something on one core (``python -m benchmarks.recipes``), :data:`TINY` for tests
that carry out everything in seconds. What a scale changes stands in :class:`Scale`, and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.loader import read_tree
from distill_core.models.config import presets

DISTILBERT_LAYERS = [0, 2, 4, 7, 9, 11]
"""What ``layers: distilbert`` stands for at 12 -> 6 layers."""
KEPT = ("order", "select", "sampled_rows", "optimizer")
"""What stays of a recipe's ``training``. The rest is about how long and in which portions it runs, which the scale
says; early stopping too, as curves can be laid over each other only where all runs take the same steps."""


@dataclass(frozen=True)
class Scale:
    """What a small run is made of."""

    length: int
    """Tokens of a sequence of the corpus."""
    task_length: int
    positions: int
    """That a model has, where the family begins at the first row."""
    widths: Mapping[int, int]
    """Published width -> this one."""
    heads: int | None
    """Of attention; None: as many as published."""
    layers: Mapping[int, int] | None
    """Published depth -> this one; None: as published. Layer lists are thinned by what becomes of 12 layers."""
    bottleneck: int
    """Inner width of MobileBERT's layers, and that of its embeddings."""
    feed_forwards: int
    relation_heads: int
    """MiniLMv2's."""
    vocabulary: int
    """Tokens of the teachers' vocabularies, where they are made here."""
    teacher_steps: int
    """Of masked-LM training, of twice the batch."""
    steps: int
    """Of each stage."""
    steps_per_layer: int
    """Of a progressive stage, before the others."""
    batch: int
    """Sequences of the corpus in an optimiser step."""
    task_batch: int
    """Rows of a task in a step."""
    learning_rate: float
    """On the corpus."""
    task_learning_rate: float
    log_every: int
    evaluations: int
    """In a stage."""
    held_out: float
    held_out_sequences: int
    copies: int
    """Of an augmented row."""
    perplexity_sequences: int
    """Where a recipe measures pseudo-perplexity."""
    check_heads: bool
    """Whether a teacher's masked-LM head must beat token frequencies, as in a real run."""

    @property
    def factor(self) -> int:
        """One layer in so many stays."""
        return 1 if self.layers is None else 12 // self.layers[12]

    def depth(self, published: int) -> int:
        return published if self.layers is None else self.layers[published]

    def fewer(self, layers: list[int]) -> list[int]:
        """A list of teacher layers (0-based) for fewer students of a shallower teacher."""
        return [layer // self.factor for layer in layers[:: self.factor]]


TINY = Scale(
    length=48,
    task_length=32,
    positions=48,
    widths={1024: 32, 768: 24, 512: 16, 384: 12, 312: 12, 288: 16, 256: 16},  # divisible by their heads
    heads=None,
    layers=None,
    bottleneck=8,
    feed_forwards=2,
    relation_heads=4,
    vocabulary=500,
    teacher_steps=14,
    steps=14,
    steps_per_layer=1,
    batch=12,
    task_batch=12,
    learning_rate=5e-3,
    task_learning_rate=5e-3,
    log_every=1,
    evaluations=2,
    held_out=0.05,
    held_out_sequences=20,
    copies=2,
    perplexity_sequences=4,
    check_heads=False,  # its teachers are random
)
SMALL = Scale(
    length=64,
    task_length=64,
    positions=128,
    widths={1024: 128, 768: 128, 512: 128, 384: 64, 312: 64, 288: 72, 256: 64},
    heads=4,
    layers={24: 6, 12: 6, 6: 3, 4: 2, 3: 2},
    bottleneck=64,
    feed_forwards=4,
    relation_heads=16,
    vocabulary=6000,
    teacher_steps=1200,
    steps=60,
    steps_per_layer=5,
    batch=16,
    task_batch=32,
    learning_rate=2e-3,
    task_learning_rate=1e-3,
    log_every=5,
    evaluations=1,
    held_out=0.01,
    held_out_sequences=200,
    copies=1,
    perplexity_sequences=20,
    check_heads=True,
)


def small_shape(preset: str, scale: Scale) -> dict[str, Any]:
    """Fields of ``model:`` for a preset: of its family, with its proportions and flags."""
    full = presets()[preset]
    family, width = full.get("family", "bert"), scale.widths[full["hidden_size"]]
    first = 2 if family == "roberta" else 0
    sizes: dict[str, Any] = {
        "family": family,
        "hidden_size": width,
        "num_hidden_layers": scale.depth(full["num_hidden_layers"]),
        "num_attention_heads": scale.heads or full["num_attention_heads"],
        "intermediate_size": full["intermediate_size"] * width // full["hidden_size"],
        "max_position_embeddings": scale.positions + first,
    }
    if "hidden_dropout_prob" in full:
        sizes["hidden_dropout_prob"] = full["hidden_dropout_prob"]
    if family == "mobilebert":
        inner = {"intra_size": scale.bottleneck, "feed_forwards": scale.feed_forwards}
        sizes |= {"embedding_size": scale.bottleneck, "bottleneck": inner}
    return sizes


def shrunken(
    recipe: str,
    mode: str | None,
    scale: Scale,
    teacher: Callable[[str], Path],
    vocabulary: Path,
    sources: list[dict[str, Any]],
    rows: Mapping[str, Path],
) -> dict[str, Any]:
    """The recipe's tree, shrunken.

    Args:
        recipe: its name in ``configs``, such as ``recipes/pkd``.
        teacher: preset -> the folder of a small model in the place of a published one of that preset.
        vocabulary: the folder of the tokenizer that all of them share.
        sources: ``data.sources``.
        rows: the files ``train`` and ``dev`` of a task.
    """
    tree, _ = read_tree(recipe, [] if mode is None else [f"mode={mode}"])
    teachers = {source: str(teacher(preset)) for source, preset in published(tree).items()}
    data = tree["data"]
    data["tokenizer"]["vocab"] = str(vocabulary)
    if "sources" in data:  # pkd has none
        data["sources"] = sources
        data["sequences"]["max_length"] = scale.length
        data["held_out"] = scale.held_out
        if "views" in data.get("masks", {}):  # no text is read twice
            data["masks"]["views"] = 1
    for task in tree.get("tasks", {}).values():
        task |= {"train": str(rows["train"]), "dev": str(rows["dev"]), "max_length": scale.task_length}
    for stage in tree["stages"]:
        _shrink_stage(stage, teachers, scale)
    asked = {"pseudo_perplexity": {"sequences": scale.perplexity_sequences}}
    kept = {name: value for name, value in asked.items() if name in tree.get("evaluation", {})}
    tree["evaluation"] = kept | {"latency_repeats": 1, "latency_lengths": [16], "latency_batch_sizes": [2]}
    return tree


def published(tree: dict[str, Any]) -> dict[str, str]:
    """Hub name -> preset of every model from outside."""
    names = {stage["name"] for stage in tree["stages"]}
    found: dict[str, str] = {}
    for stage in tree["stages"]:
        teacher = stage.get("teacher")
        if isinstance(teacher, dict):
            found[teacher["source"]] = teacher["shape"]["preset"]
    for stage in tree["stages"]:
        init = stage.get("student", stage).get("init", {})
        for model in (stage.get("model"), init.get("source")):
            if isinstance(model, str) and model not in names | found.keys():
                found[model] = model.rsplit("/", 1)[-1].removeprefix("chinese-")
    return found


def _shrink_stage(stage: dict[str, Any], teachers: Mapping[str, str], scale: Scale) -> None:
    if isinstance(stage.get("model"), str):
        stage["model"] = teachers.get(stage["model"], stage["model"])
    if isinstance(stage.get("teacher"), dict):
        check = {} if scale.check_heads else {"head_check": "off"}
        stage["teacher"] = {"source": teachers[stage["teacher"]["source"]]} | check
    owner = stage.get("student", stage)
    if isinstance(owner.get("model"), dict):
        said = {name: value for name, value in owner["model"].items() if name != "preset"}
        owner["model"] = small_shape(owner["model"]["preset"], scale) | said
    _shrink_init(owner.get("init", {}), teachers, scale)
    for loss in stage.get("objective", []):
        if "relation_heads" in loss:
            loss["relation_heads"] = scale.relation_heads
        if isinstance(loss.get("layers"), list):
            pairs = [pair for pair in loss["layers"] if not any(layer % scale.factor for layer in pair)]
            loss["layers"] = [[layer // scale.factor for layer in pair] for pair in pairs]
    if "augment" in stage:
        stage["augment"]["copies"] = scale.copies
    if "training" in stage:
        _shrink_training(stage, owner.get("model"), scale)


def _shrink_init(init: dict[str, Any], teachers: Mapping[str, str], scale: Scale) -> None:
    if "source" in init:
        init["source"] = teachers.get(init["source"], init["source"])
    if init.get("layers") == "distilbert" and scale.factor > 1:
        init["layers"] = DISTILBERT_LAYERS
    if isinstance(init.get("layers"), list):
        init["layers"] = scale.fewer(init["layers"])


def _shrink_training(stage: dict[str, Any], model: Any, scale: Scale) -> None:
    steps = scale.steps
    if "progressive" in stage:  # layer by layer, then all together
        stage["progressive"]["steps_per_layer"] = scale.steps_per_layer
        steps += scale.steps_per_layer * int(model["num_hidden_layers"])
    given = {name: value for name, value in stage["training"].items() if name in KEPT}
    rate, batch = scale.learning_rate, scale.batch
    if "task" in stage:
        rate, batch = scale.task_learning_rate, scale.task_batch
    stage["training"] = given | {
        "steps": steps,
        "global_batch_size": batch,
        "micro_batch_tokens": 4096,
        "precision": "fp32",
        "optimizer": given.get("optimizer", {}) | {"learning_rate": rate},
        "checkpoint_every": max(steps // 2, 1),
        "evaluate_every": math.ceil(steps / scale.evaluations),
        "evaluate_sequences": scale.held_out_sequences,
        "log_every": scale.log_every,
    }

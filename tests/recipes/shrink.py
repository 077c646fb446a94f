"""A recipe made tiny: the same stages, losses, layer maps, heads and families, on narrow models and few steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from configs.loader import read_tree
from data_prep.corpus import Corpus
from distill_core.models import pretrained
from distill_core.models.config import EncoderConfig, presets
from distill_core.models.encoder import Encoder

LENGTH = 48
WIDTHS = {1024: 32, 768: 24, 512: 16, 384: 12, 312: 12, 288: 16, 256: 16}
"""Tiny width for a published one, divisible by its heads."""
TRAINING = {
    "epochs": None,
    "steps": 14,
    "global_batch_size": 12,
    "micro_batch_tokens": 1024,
    "precision": "fp32",
    "checkpoint_every": 7,
    "evaluate_every": 7,
    "evaluate_sequences": 20,
    "log_every": 1,
}
LEARNING_RATE = 5e-3


def tiny_shape(preset: str) -> dict[str, Any]:
    """Fields of ``model:`` for a preset: its family, depth, heads and its flags, with little width."""
    full = presets()[preset]
    width = WIDTHS[full["hidden_size"]]
    kept = {name: full[name] for name in ("family", "num_hidden_layers", "num_attention_heads") if name in full}
    first = 2 if full.get("family") == "roberta" else 0
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "max_position_embeddings": LENGTH + first}
    if full.get("family") == "mobilebert":
        sizes |= {"embedding_size": 8, "bottleneck": {"intra_size": 8, "feed_forwards": 2}, "intermediate_size": 16}
    return kept | sizes


def save_teacher(preset: str, corpus: Corpus, folder: Path) -> Path:
    """A random model of the preset's kind with the corpus's tokenizer, as a Hugging Face folder."""
    fields = tiny_shape(preset) | {"vocab_size": corpus.vocab_size, "pad_token_id": corpus.special_ids["pad"]}
    if fields.get("family") == "roberta":
        fields |= {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
    torch.manual_seed(7)
    shape = EncoderConfig.model_validate(fields)
    encoder = Encoder(shape)
    with torch.no_grad():  # tokens stay apart through all layers, and attention is not uniform
        for name, parameter in encoder.named_parameters():
            if parameter.dim() > 1:
                sharp = "embeddings" in name or "query" in name or "key" in name
                parameter.normal_(std=0.5 if sharp else 0.05)
    pretrained.save(encoder.state_dict(), shape, corpus.tokenizer_folder, folder)
    return folder


def shrunken(
    recipe: str, mode: str | None, corpus: Path, text: Path, rows: dict[str, Path], folder: Path
) -> dict[str, Any]:
    """The recipe's tree, shrunken; its teachers are written under ``folder``.

    Args:
        corpus: a prepared corpus whose tokenizer the recipe takes.
        text: the raw text to distil from.
        rows: the files ``train`` and ``dev`` of a task.
    """
    tree, _ = read_tree(recipe, [] if mode is None else [f"mode={mode}"])
    prepared = Corpus.open(corpus)
    teachers = published(tree)
    for number, (source, preset) in enumerate(teachers.items()):
        teachers[source] = str(save_teacher(preset, prepared, folder / f"teacher-{number}"))
    data = tree["data"]
    data["tokenizer"]["vocab"] = str(prepared.tokenizer_folder)
    if "sources" in data:  # pkd has none
        data["sources"] = [{"path": str(text)}]
        data["sequences"]["max_length"] = LENGTH
        data["held_out"] = 0.05
    for task in tree.get("tasks", {}).values():
        task |= {"train": str(rows["train"]), "dev": str(rows["dev"]), "max_length": 32}
    for stage in tree["stages"]:
        shrink_stage(stage, teachers)
    tree["evaluation"] = {"latency_repeats": 1, "latency_lengths": [16], "latency_batch_sizes": [2]}
    return tree


def published(tree: dict[str, Any]) -> dict[str, str]:
    """hub name -> preset of every model from outside."""
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


def shrink_stage(stage: dict[str, Any], teachers: dict[str, str]) -> None:
    if isinstance(stage.get("model"), str):
        stage["model"] = teachers.get(stage["model"], stage["model"])
    if isinstance(stage.get("teacher"), dict):
        stage["teacher"] = {"source": teachers[stage["teacher"]["source"]], "head_check": "off"}  # it is random
    owner = stage.get("student", stage)
    model, init = owner.get("model"), owner.get("init", {})
    if isinstance(model, dict):
        said = {name: value for name, value in model.items() if name != "preset"}
        owner["model"] = tiny_shape(model["preset"]) | said
    if "source" in init:
        init["source"] = teachers.get(init["source"], init["source"])
    if "augment" in stage:
        stage["augment"]["copies"] = 2
    for loss in stage.get("objective", []):
        if "relation_heads" in loss:
            loss["relation_heads"] = math.gcd(stage["student"]["model"]["hidden_size"], 24)
    if "progressive" in stage:
        stage["progressive"]["steps_per_layer"] = 1
    if "training" in stage:
        optimizer = stage["training"].get("optimizer", {}) | {"learning_rate": LEARNING_RATE}
        stage["training"] = stage["training"] | TRAINING | {"optimizer": optimizer}
        if "progressive" in stage:  # a step a layer, then all together
            stage["training"]["steps"] += presets()[model["preset"]]["num_hidden_layers"]

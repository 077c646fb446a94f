"""A run folder as two finished stages leave it, without the training."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.loader import to_yaml, validate
from data_prep.corpus import Corpus
from distill_core.config import RunConfig
from distill_core.models import pretrained
from distill_core.models.encoder import Encoder

SENTENCES = ["今天天气很[MASK]，我们去公园散步。", "他在北京的一所大学[MASK]书。"]
SHAPE = {"num_attention_heads": 2, "max_position_embeddings": 64}
TRAINING = {"steps": 20, "global_batch_size": 8, "micro_batch_tokens": 512, "precision": "fp32"}


@dataclass(frozen=True)
class Finished:
    config: RunConfig
    folder: Path
    corpus: Corpus


def run_config(corpus: Corpus, output: Path) -> RunConfig:
    stages = [
        {
            "name": "teacher",
            "kind": "pretrain",
            "model": {**SHAPE, "hidden_size": 32, "num_hidden_layers": 3},
            "training": TRAINING,
        },
        {
            "name": "student",
            "kind": "distill",
            "teacher": "teacher",
            "student": {"model": {**SHAPE, "hidden_size": 16, "num_hidden_layers": 2}},
            "objective": [{"kind": "kd_ce"}, {"kind": "hidden_mse", "layers": [[0, 0], [3, 2]]}],
            "training": TRAINING,
        },
    ]
    tree: dict[str, Any] = {
        "name": "trial",
        "output": str(output),
        "data": {**corpus.manifest["identity"], "folder": str(corpus.folder)},
        "stages": stages,
        "evaluation": {
            "latency_lengths": [8, 512],
            "latency_batch_sizes": [2],
            "latency_repeats": 2,
            "sentences": SENTENCES,
        },
    }
    return validate(tree, RunConfig)


def make_finished(corpus: Corpus, output: Path) -> Finished:
    config = run_config(corpus, output)
    folder = config.folder
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    for index in range(len(config.stages)):
        make_stage(config, index, corpus)
    return Finished(config, folder, corpus)


def copy_finished(original: Finished, output: Path) -> Finished:
    config = run_config(original.corpus, output)
    shutil.copytree(original.folder, config.folder)
    (config.folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    return Finished(config, config.folder, original.corpus)


def make_stage(config: RunConfig, index: int, corpus: Corpus) -> None:
    """model/, metrics.jsonl and DONE.json of a stage."""
    stage, here = config.stages[index], config.stage_folder(index)
    encoder = random_encoder(config, index, corpus.vocab_size)
    pretrained.save(encoder.state_dict(), encoder.config, corpus.tokenizer_folder, here / "model")
    rows = [metrics_row(step, with_teacher=index > 0) for step in range(5, 21, 5)]
    (here / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    quality = {"loss": 5.5 - index, "accuracy": 0.1 + 0.1 * index}
    done = {
        "name": stage.name,
        "kind": stage.kind,
        "steps": 20,
        "sequences": 160,
        "tokens": 4321,
        "seconds": 12.5,
        "tokens_per_second": 345.6,
        "parameters": encoder.config.parameters(),
        "epochs": None,
        "selected_step": 20,
        "labels": [],
        "pooler": False,
        "pairs": [[], [[0, 0], [3, 2]]] if index else [[]],
        "teacher": "teacher" if index else None,
        "teacher_parameters": 999 if index else None,
        "corpus_hash": corpus.hash,
        "identity": {"seed": config.seed},
        "evaluation": {
            "student": quality,
            "teacher": {"loss": 5.5, "accuracy": 0.1} if index else None,
            "agreement": 0.625 if index else None,
            "masked_tokens": 777,
        },
        "world_size": 1,
        "precision": "fp32",
        "finished": "2026-01-02T03:04:05+00:00",
    }
    (here / "DONE.json").write_text(json.dumps(done), encoding="utf-8")


def random_encoder(config: RunConfig, index: int, vocab_size: int) -> Encoder:
    """With weights large enough that no two tokens look alike."""
    stage = config.stages[index]
    model = stage.model if stage.kind == "pretrain" else stage.student.model
    torch.manual_seed(index)
    encoder = Encoder(model.resolve(vocab_size))
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    return encoder


def metrics_row(step: int, with_teacher: bool) -> dict[str, float]:
    row: dict[str, float] = {"step": step, "time": 1e9 + step, "loss/total": 7 * math.exp(-step / 20)}
    row |= {"optim/learning_rate": 1e-4, "optim/gradient_norm": 1.5, "speed/tokens_per_second": 1234.5}
    row |= {"speed/step_seconds": 0.5, "data/wait_seconds": 0.01, "memory/gigabytes": 0.75}
    terms = {"kd_ce": 5.0, "hidden_mse/0-0": 1.0, "hidden_mse/3-2": 0.5} if with_teacher else {"mlm": 6.0}
    for name, value in terms.items():
        row |= {f"loss/{name}": value / step, f"weighted/{name}": value / step}
    if step % 10 == 0:
        row |= {"eval/student_loss": 6.0 - step / 20, "eval/student_accuracy": step / 200}
        if with_teacher:
            row |= {"eval/teacher_loss": 5.5, "eval/teacher_accuracy": 0.1, "eval/agreement": 0.6}
    return row

"""TextBrewer's GeneralDistiller as MiniRBT sets it up: its matches, its adaptor, its optimiser groups."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from benchmarks.step.plain import autocast, our_names
from benchmarks.step.settings import Setting
from benchmarks.step.text import Padded
from benchmarks.step.turns import Feed, Gate, Loop

FOREVER = 10**9


def textbrewer_loop(
    setting: Setting, teacher: Any, student: Any, batches: list[Padded], bf16: bool, folder: Path
) -> Loop:
    """``GeneralDistiller.train``; the models are called with ``labels``, as its loop does with MiniRBT's batches."""
    import textbrewer

    logging.getLogger("Distillation").setLevel(logging.ERROR)
    device = batches[0].ids.device
    wide, narrow = setting.teacher.width, setting.student.width
    between = setting.teacher.layers // setting.student.layers
    projection = {"proj": ["linear", narrow, wide]} if wide != narrow else {}
    matches = [
        {"layer_T": layer * between, "layer_S": layer, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
        | projection
        for layer in range(setting.student.layers + 1)
    ]
    distiller = textbrewer.GeneralDistiller(
        train_config=textbrewer.TrainingConfig(
            ckpt_steps=FOREVER, log_dir=None, output_dir=str(folder / "textbrewer"), device=device
        ),
        distill_config=textbrewer.DistillationConfig(temperature=8, intermediate_matches=matches),
        model_T=teacher,
        model_S=student,
        adaptor_T=_adaptor,
        adaptor_S=_adaptor,
    )
    ready = [_call(batch, setting.packed) for batch in batches]

    def program(gate: Gate) -> None:
        with autocast(device, bf16), distiller:
            distiller.train(
                torch.optim.AdamW(_groups(student), lr=1e-6),
                dataloader=Feed(gate, ready),
                max_grad_norm=1.0,
                num_steps=FOREVER,
            )

    return Loop(program, trained=lambda: our_names(setting, student, [p for p in distiller.projs if p is not None]))


def _adaptor(batch: dict[str, Any], outputs: Any) -> dict[str, Any]:
    adapted = {
        "logits": outputs["logits"],
        "hidden": outputs["hidden_states"],
        "logits_mask": torch.ge(batch["labels"], -1),
    }
    return adapted | ({"inputs_mask": batch["attention_mask"]} if "attention_mask" in batch else {})


def _call(batch: Padded, packed: bool) -> dict[str, Any]:
    """MiniRBT's packed batches have no mask."""
    keys = {"input_ids": batch.ids, "labels": batch.labels}
    return keys if packed else keys | {"attention_mask": batch.attended}


def _groups(student: Any) -> list[dict[str, Any]]:
    spared = ("bias", "LayerNorm.weight")
    named = list(student.named_parameters())
    return [
        {"params": [p for n, p in named if not n.endswith(spared)], "weight_decay": 0.01},
        {"params": [p for n, p in named if n.endswith(spared)], "weight_decay": 0.0},
    ]

"""DistilBERT's own Distiller, from a checkout of its folder, on ready batches."""

from __future__ import annotations

import importlib
import logging
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.step.plain import autocast, our_names
from benchmarks.step.settings import Setting
from benchmarks.step.text import Padded
from benchmarks.step.turns import Feed, Gate, Loop

FOREVER = 10**9


def imported(checkout: Path, module: str, unused: dict[str, list[str]]) -> Any:
    """A module of a checkout, whose imports of its neighbours are by bare names.

    Args:
        unused: packages that it imports and that the step does not need, with the names it takes from them; where they
            are not installed, empty ones stand in.
    """
    sys.path.insert(0, str(checkout))
    for name, attributes in unused.items():
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = ModuleType(name)
            for attribute in attributes:
                setattr(sys.modules[name], attribute, Exception)
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(str(checkout))


def distilbert_loop(
    setting: Setting, teacher: Any, student: Any, batches: list[Padded], bf16: bool, folder: Path, checkout: Path
) -> Loop:
    """``Distiller.train`` with DistilBERT's weights of the losses; its masking is part of the step, here it is done."""
    code = imported(checkout, "distiller", {"git": []})
    logging.getLogger("utils").setLevel(logging.ERROR)
    # local_rank is read for its progress bar only, which rank 1 has not; is_master is what makes it log.
    params = Namespace(
        dump_path=str(folder / "distilbert"), multi_gpu=False, fp16=False, n_gpu=0, group_by_size=False,
        batch_size=setting.sequences, temperature=2.0, alpha_ce=5.0, alpha_mlm=2.0, alpha_clm=0.0, alpha_mse=0.0,
        alpha_cos=0.0, mlm=True, mlm_mask_prop=0.15, word_mask=0.8, word_keep=0.1, word_rand=0.1, local_rank=1,
        gradient_accumulation_steps=1, n_epoch=1, weight_decay=0.0, learning_rate=1e-6, adam_epsilon=1e-6,
        warmup_prop=0.05, is_master=True, restrict_ce_to_mask=setting.recipe == "distilbert-masked",
        max_grad_norm=5.0, log_interval=500, checkpoint_interval=FOREVER, special_tok_ids={"pad_token": 0},
    )  # fmt: skip
    distiller = code.Distiller(params, _Sized(), torch.ones(student.config.vocab_size), student, teacher)
    distiller.prepare_batch_mlm = lambda batch: batch
    ready = [(batch.ids, batch.attended.bool(), batch.labels) for batch in batches]

    def program(gate: Gate) -> None:
        distiller.dataloader = Feed(gate, ready)
        with autocast(batches[0].ids.device, bf16):
            distiller.train()

    return Loop(program, trained=lambda: our_names(setting, student, []))


class _Sized:
    """Stands for the data set, of which only the size is read."""

    def __len__(self) -> int:
        return FOREVER

    def batch_sequences(self) -> None:
        """The collate function of a loader that is made and never read: batches come ready."""

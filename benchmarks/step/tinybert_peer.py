"""TinyBERT's general_distill.main(), from a checkout of its folder, on ready batches."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.step.distilbert_peer import imported
from benchmarks.step.plain import autocast, our_names
from benchmarks.step.settings import Setting
from benchmarks.step.text import Padded
from benchmarks.step.turns import Feed, Gate, Loop

NO_DOWNLOADS = {"boto3": [], "botocore": [], "botocore.exceptions": ["ClientError"]}


def tinybert_loop(
    setting: Setting, teacher: Path, vocabulary: int, batches: list[Padded], bf16: bool, folder: Path, checkout: Path
) -> Loop:
    """``main()`` as its command line starts it; only the DataLoader is ours."""
    code = imported(checkout, "general_distill", NO_DOWNLOADS)
    logging.disable(logging.INFO)
    here = folder / f"tinybert-{setting.name}-{'bf16' if bf16 else 'fp32'}"
    arguments = _files(setting, teacher, vocabulary, here)
    ready = [
        (b.ids, b.attended, torch.zeros_like(b.ids), b.labels, torch.zeros(len(b.ids), dtype=torch.int64))
        for b in batches
    ]

    fitted = _Fitted(code.BertModel, setting.teacher.width)

    def program(gate: Gate) -> None:
        code.PregeneratedDataset = lambda **_: ready
        code.RandomSampler = lambda data: None
        code.DataLoader = lambda data, **_: Feed(gate, data)
        code.BertTokenizer = _NoTokenizer
        code.trange = code.tqdm = _Quiet
        code.TinyBertForPreTraining = fitted
        kept, sys.argv = sys.argv, ["general_distill", *arguments]
        try:
            with autocast(batches[0].ids.device, bf16):
                code.main()
        finally:
            sys.argv = kept

    def trained() -> dict[str, torch.nn.Parameter]:
        """Without the pooler, which no loss of the first phase reads."""
        student = fitted.made
        named = our_names(setting, student, [student.fit_dense])
        return {
            name: p for name, p in named.items() if not name.startswith(("student.bert.pooler", "student.fit_dense"))
        }

    return Loop(program, trained=trained)


def _files(setting: Setting, teacher: Path, vocabulary: int, here: Path) -> list[str]:
    """What its command line names: models with their weights, and how many examples an epoch has."""
    from transformers import BertForMaskedLM

    teacher_fields = setting.teacher.fields(
        setting.dropout, setting.attention_dropout
    )  # its teacher is never in eval()
    for name, fields in (("teacher", teacher_fields), ("student", setting.student_fields)):
        (here / name).mkdir(parents=True, exist_ok=True)
        config = {"vocab_size": vocabulary, "hidden_act": "gelu", "max_position_embeddings": 512}
        config |= {"type_vocab_size": 2, "initializer_range": 0.02, "pre_trained": "", **fields}
        for file in ("config.json", "bert_config.json"):
            (here / name / file).write_text(json.dumps(config), encoding="utf-8")
    weights = BertForMaskedLM.from_pretrained(teacher).state_dict()
    torch.save(weights, here / "teacher" / "pytorch_model.bin")
    (here / "epoch_0.json").write_text("", encoding="utf-8")
    (here / "epoch_0_metrics.json").write_text(json.dumps({"num_training_examples": 10**9}), encoding="utf-8")
    given = {"pregenerated_data": here, "teacher_model": here / "teacher", "student_model": here / "student"}
    given |= {"output_dir": here / "out", "num_train_epochs": 1, "eval_step": 10**9}
    given |= {"train_batch_size": setting.sequences, "max_seq_length": setting.length, "learning_rate": 1e-6}
    return [part for key, value in given.items() for part in (f"--{key}", str(value))]


class _Fitted:
    """The student's class; its map to the teacher's width is for 768 unless ``fit_size`` says otherwise."""

    def __init__(self, neighbour: Any, width: int) -> None:
        self._class, self._width = sys.modules[neighbour.__module__].TinyBertForPreTraining, width
        self.made: Any = None

    def from_scratch(self, folder: str) -> Any:
        self.made = self._class.from_scratch(folder, fit_size=self._width)
        return self.made


class _NoTokenizer:
    """Its data set would use one; the batches are ready."""

    @staticmethod
    def from_pretrained(*_: Any, **__: Any) -> None:
        return None


class _Quiet:
    """tqdm and trange without their bars."""

    def __init__(self, items: Any = None, **_: Any) -> None:
        self._items = range(items) if isinstance(items, int) else items

    def __iter__(self) -> Any:
        return iter(self._items)

    def __enter__(self) -> _Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, _: int) -> None:
        return None

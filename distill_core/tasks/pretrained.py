"""Task models as Hugging Face folders: out, and in with labels matched by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.errors import ConfigError, DataError
from distill_core.models import pretrained
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.tasks.model import HEADS, SEQUENCE_KINDS, TaskModel
from distill_core.tasks.rows import TaskKind

ENDINGS: dict[TaskKind, str] = {
    "classification": "ForSequenceClassification",
    "regression": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "span": "ForQuestionAnswering",
}


def theirs(name: str, shape: EncoderConfig, kind: TaskKind) -> str:
    """Hugging Face's name of a parameter of :class:`TaskModel`."""
    part, _, rest = name.partition(".")
    if part == "encoder":
        return shape.kin.theirs(rest)
    head = HEADS[shape.family]
    if part == "dense":
        return f"{head.dense}.{rest}"
    out = head.out if kind in SEQUENCE_KINDS else "qa_outputs" if kind == "span" else "classifier"
    return f"{out}.{rest}"


def hugging_face_class(shape: EncoderConfig, kind: TaskKind) -> Any:
    import transformers

    return getattr(transformers, shape.kin.base.removesuffix("Model") + ENDINGS[kind])


def save(
    state: dict[str, Tensor], shape: EncoderConfig, kind: TaskKind, labels: list[str], tokenizer: Path, folder: Path
) -> None:
    """Write a folder that ``AutoModelForSequenceClassification`` (or TokenClassification, QuestionAnswering) loads.

    Args:
        state: a :class:`TaskModel`'s fp32 state dict.
        labels: names in the order of the outputs; [] for regression and span.
    """
    cls = hugging_face_class(shape, kind)
    settings: dict[str, Any] = shape.kin.settings(shape)
    if kind in ("classification", "tokens"):
        settings |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
        settings |= {"problem_type": "single_label_classification"} if kind == "classification" else {}
    elif kind == "regression":
        settings |= {"num_labels": 1, "problem_type": "regression"}
    pretrained.no_progress_bars()
    model = cls(cls.config_class(**settings))
    result = model.load_state_dict({theirs(name, shape, kind): value for name, value in state.items()}, strict=False)
    lost = [key for key in result.missing_keys if not key.endswith(("position_ids", "task_type_embeddings.weight"))]
    if lost or result.unexpected_keys:
        raise DataError(f"the model does not fit Hugging Face's {cls.__name__}: {lost + result.unexpected_keys}")
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    pretrained.copy_tokenizer(tokenizer, folder)


def task_kind_of(source: str) -> str | None:
    """The ending of the class in a local folder's config.json if it is a task model's, else None."""
    path = Path(source) / "config.json"
    if not path.is_file():
        return None
    classes = json.loads(path.read_text(encoding="utf-8")).get("architectures") or [""]
    return next((ending for ending in ENDINGS.values() if classes[0].endswith(ending)), None)


def load_as_is(source: str, who: str) -> TaskModel:
    """A trained task model with the kind and the labels that its config.json names."""
    facts = json.loads((Path(source) / "config.json").read_text(encoding="utf-8"))
    kinds: list[TaskKind] = [kind for kind, ending in ENDINGS.items() if ending == task_kind_of(source)]
    regression = facts.get("problem_type") == "regression"
    kind = next(k for k in kinds if len(kinds) == 1 or (k == "regression") == regression)
    names = facts.get("id2label") or {}
    labels = [names[i] for i in sorted(names, key=int)] if kind in ("classification", "tokens") else []
    return load(source, kind, labels, who)


def load(source: str, kind: TaskKind, labels: list[str], who: str) -> TaskModel:
    """A trained task model, its outputs in the order of ``labels``.

    Raises:
        DataError: it is not of this kind, or knows other labels.
    """
    shape = pretrained.read_config(source, who)
    model, names, missing = _theirs(source, shape, kind, who)
    found = TaskModel(Encoder(shape.model_copy(update={"pooler": False})), kind, labels)
    wanted = {name: theirs(name, shape, kind) for name in found.state_dict()}
    if missing & {wanted["classifier.weight"]}:
        raise DataError(
            f"{who}: {source} has no head for a task of kind {kind} (it would be random). Fine-tune it first with a "
            "stage of kind finetune, and name that stage."
        )
    state = {ours: model[name] for ours, name in wanted.items()}
    if kind in ("classification", "tokens"):
        order = _order(names, labels, source, who)
        state |= {name: state[name][order] for name in ("classifier.weight", "classifier.bias")}
    found.load_state_dict(state)
    return found


def _theirs(
    source: str, shape: EncoderConfig, kind: TaskKind, who: str
) -> tuple[dict[str, Tensor], dict[int, str], set[str]]:
    """(state dict of transformers' class, its label names, the names that the source did not hold)."""
    cls = hugging_face_class(shape, kind)
    pretrained.no_progress_bars()
    try:
        model, info = cls.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{who}: {source} cannot be loaded as a {cls.__name__}: {error}") from None
    names = {int(i): str(name) for i, name in model.config.id2label.items()}
    return shape.kin.fold(dict(model.state_dict())), names, {str(key) for key in info["missing_keys"]}


def _order(names: dict[int, str], labels: list[str], source: str, who: str) -> list[int]:
    """The model's outputs in the order of ``labels``, matched by name and never by place."""
    places = {name: place for place, name in names.items()}
    if set(places) != set(labels):
        raise ConfigError(
            f"{who}: {source} knows the labels {', '.join(places)}, the task has {', '.join(labels)}. Labels are "
            "matched by name: give the task's data the names of the model (or `labels` in its config.json)."
        )
    return [places[label] for label in labels]

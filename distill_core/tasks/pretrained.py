"""Task models as Hugging Face folders: out, and in with labels matched by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from configs.errors import DataError
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
    weights = {theirs(name, shape, kind): value for name, value in state.items()}
    result = model.load_state_dict(weights, strict=False)
    lost = [key for key in result.missing_keys if not key.endswith(("position_ids", "task_type_embeddings.weight"))]
    if lost or result.unexpected_keys:
        raise DataError(f"the model does not fit Hugging Face's {cls.__name__}: {lost + result.unexpected_keys}")
    pretrained.write_model(model, cls.__name__, weights, folder)
    pretrained.copy_tokenizer(tokenizer, folder)


def task_kind_of(source: str) -> str | None:
    """The ending of the class in a folder's config.json if it is a task model's, else None.

    Of a hub name, the copy that was fetched before (:func:`pretrained.folder_of` fetches it).
    """
    folder = pretrained.cached(source)
    try:
        facts = None if folder is None else json.loads((folder / "config.json").read_text(encoding="utf-8"))
        classes = (facts or {}).get("architectures") or [""]
    except (OSError, ValueError, AttributeError):  # pretrained.read_config tells what is wrong with it
        return None
    return next((ending for ending in ENDINGS.values() if str(classes[0]).endswith(ending)), None)


def check_head(source: str, kind: TaskKind, labels: list[str], who: str) -> list[int]:
    """The outputs of a task model in the order of ``labels``, by its config.json; [] for regression and span.

    Raises:
        DataError: it is of another kind, or knows other labels.
    """
    facts = pretrained.their_config(pretrained.folder_of(source, who), source, who)
    if task_kind_of(source) != ENDINGS[kind]:
        raise DataError(f"{who}: {source} has no head for a task of kind {kind}. {_FINETUNE}")
    names = [str(facts.id2label[number]) for number in sorted(facts.id2label)]
    if kind == "regression" and len(names) != 1:
        raise DataError(
            f"{who}: {source} has {len(names)} outputs ({', '.join(names)}), but a regression has one. {_FINETUNE}"
        )
    if kind not in ("classification", "tokens"):
        return []
    if sorted(names) != sorted(labels):
        raise DataError(
            f"{who}: {source} knows the labels {', '.join(names)}, the task has {', '.join(labels)}. Labels are "
            "matched by name: write the model's names into the rows, or the task's into `id2label` of the model's "
            "config.json (in the order of its outputs)."
        )
    return [names.index(label) for label in labels]


_FINETUNE = "Fine-tune it first with a stage of kind finetune, and name that stage."


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
    """A trained task model, its outputs in the order of ``labels``, matched by name and never by place.

    Raises:
        DataError: it cannot be read, is not of this kind, or knows other labels.
    """
    shape = pretrained.read_config(source, who)
    order = check_head(source, kind, labels, who)
    model, missing = pretrained.read_weights(hugging_face_class(shape, kind), source, who)
    state = shape.kin.fold(model.state_dict())
    found = TaskModel(Encoder(shape.model_copy(update={"pooler": False})), kind, labels)
    wanted = {name: theirs(name, shape, kind) for name in found.state_dict()}
    lost = sorted(missing & set(wanted.values()))
    if lost:
        raise DataError(f"{who}: {source} lacks {', '.join(lost[:3])}, which would be random. {_FINETUNE}")
    state = {ours: state[name] for ours, name in wanted.items()}
    if order:
        state |= {name: state[name][order] for name in ("classifier.weight", "classifier.bias")}
    found.load_state_dict(state)
    return found

"""Task models against the classes of transformers: there, back, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from configs.errors import DataError
from distill_core.batch import Batch
from distill_core.features import FeatureRequest
from distill_core.models import pretrained
from distill_core.models.encoder import Encoder
from distill_core.tasks import pretrained as task_models
from distill_core.tasks.model import TaskModel
from tests.distill_core.tasks.tiny import shaken, shape, task_model, tokenizer_folder, wordpiece

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # transformers' MobileBERT head

FAMILIES = ["bert", "roberta", "distilbert", "electra", "ernie", "mobilebert"]
KINDS: list[Any] = ["classification", "regression", "tokens", "span"]
LABELS = ["no", "maybe", "yes"]
CLASSES = {
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
    "span": AutoModelForQuestionAnswering,
}
TASK = FeatureRequest(task=True)


def labels_of(kind: str) -> list[str]:
    return LABELS if kind in ("classification", "tokens") else []


def texts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(5, wordpiece().vocab_size, (n,), generator=draw).tolist() for n in (11, 7, 7, 3, 1)]


@torch.no_grad()
def ours(model: TaskModel) -> Tensor:
    found = model.eval()(Batch.of(texts()), TASK).task
    assert found is not None
    return found


@torch.no_grad()
def theirs(model: Any) -> Tensor:
    """One text after another, as our stream has them."""
    answers = [model.eval()(input_ids=torch.tensor([text])) for text in texts()]
    if hasattr(answers[0], "start_logits"):
        return torch.cat([torch.stack([a.start_logits[0], a.end_logits[0]], -1) for a in answers])
    return torch.cat([a.logits.flatten(0, -2) for a in answers])


def save(model: TaskModel, folder: Path) -> str:
    vocabulary = tokenizer_folder(folder / "tokenizer")
    task_models.save(model.state_dict(), model.config, model.kind, model.labels, vocabulary, folder / "model")  # type: ignore[arg-type]
    return str(folder / "model")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_saved_it_computes_the_same_in_transformers_and_loaded_again(kind: Any, family: str, tmp_path: Path) -> None:
    model = task_model(kind, labels_of(kind), family)
    expected = ours(model)
    outputs = {"regression": 1, "span": 2}.get(kind, 3)
    assert expected.shape == (5 if kind in ("classification", "regression") else 29, outputs)
    folder = save(model, tmp_path)
    reloaded = CLASSES[kind].from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(theirs(reloaded), expected, atol=1e-5, rtol=1e-5)
    if kind in ("classification", "tokens"):
        assert [reloaded.config.id2label[i] for i in range(3)] == LABELS
    for again in (task_models.load(folder, kind, labels_of(kind), "test"), task_models.load_as_is(folder, "test")):
        assert (again.kind, again.labels) == (kind, labels_of(kind))
        torch.testing.assert_close(ours(again), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_from_elsewhere_with_its_labels_in_another_order(kind: Any, family: str, tmp_path: Path) -> None:
    settings = shape(family).kin.settings(shape(family))
    mixed = ["yes", "no", "maybe"]
    if kind in ("classification", "tokens"):
        settings |= {"id2label": dict(enumerate(mixed)), "label2id": {name: i for i, name in enumerate(mixed)}}
    elif kind == "regression":
        settings |= {"num_labels": 1}
    model = shaken(CLASSES[kind].from_config(AutoConfig.for_model(family, **settings)))
    model.save_pretrained(tmp_path)
    found = task_models.load(str(tmp_path), kind, labels_of(kind), "test")
    expected = theirs(model)
    if kind in ("classification", "tokens"):
        expected = expected[:, [mixed.index(name) for name in LABELS]]
    torch.testing.assert_close(ours(found), expected, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- refused


def refused(folder: str, kind: Any, labels: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        task_models.load(folder, kind, labels, "stage 's': teacher")


def test_other_labels_are_refused(tmp_path: Path) -> None:
    folder = save(task_model("classification", LABELS), tmp_path)
    refused(folder, "classification", ["no", "yes"], r"knows the labels no, maybe, yes, the task has no, yes\. Labels")
    refused(folder, "classification", ["no", "maybe", "perhaps"], "matched by name")
    config = Path(folder) / "config.json"
    facts = json.loads(config.read_text())
    facts["id2label"] = {"0": "no", "1": "yes", "2": "yes"}  # one name twice
    config.write_text(json.dumps(facts))
    refused(folder, "classification", ["no", "yes"], "knows the labels no, yes, yes")


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_of_another_kind_is_refused(kind: Any, tmp_path: Path) -> None:
    folder = save(task_model(kind, labels_of(kind)), tmp_path)
    for other in KINDS:
        if {kind, other} == {"classification", "regression"}:
            message = "3 outputs .no, maybe, yes., but a regression has one" if other == "regression" else "the labels"
            refused(folder, other, labels_of(other), message)
        elif other != kind:
            refused(folder, other, labels_of(other), f"no head for a task of kind {other}. Fine-tune it first")


def test_a_masked_lm_has_no_head(tmp_path: Path) -> None:
    encoder = Encoder(shape())
    pretrained.save(encoder.state_dict(), encoder.config, tokenizer_folder(tmp_path / "t"), tmp_path / "model")
    assert task_models.task_kind_of(str(tmp_path / "model")) is None
    refused(str(tmp_path / "model"), "classification", LABELS, "no head for a task of kind classification")


def test_a_head_without_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save(task_model("classification", LABELS), tmp_path)
    weights = load_file(f"{folder}/model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
    refused(folder, "classification", LABELS, "lacks classifier.weight, which would be random")
    (Path(folder) / "model.safetensors").write_bytes(b"torn")
    refused(folder, "classification", LABELS, "cannot be loaded")


@pytest.mark.parametrize("source", ["nowhere/at-all", "a/b/c", "/no/such/folder", "name"])
def test_what_is_not_there_is_of_no_kind(source: str) -> None:
    assert task_models.task_kind_of(source) is None


# ---------------------------------------------------------------- made here


@pytest.mark.parametrize("family", ["bert", "roberta", "ernie", "mobilebert"])
def test_the_pooler_of_a_model_that_has_one_is_the_heads_first_layer(family: str) -> None:
    encoder = shaken(Encoder(shape(family, pooler=True)))
    pooler = encoder.bert.pooler.dense.weight.detach().clone()
    model = TaskModel(encoder, "classification", LABELS)
    assert model.dense is not None and torch.equal(model.dense.weight, pooler)
    names = [name for name, _ in model.named_parameters()]
    assert not any("pooler" in name or ".cls." in name for name in names)
    assert not model.config.pooler and "dense.weight" in names
    assert model.parameter_count() == sum(p.numel() for p in model.parameters())


def test_a_head_of_its_own_where_there_is_no_pooler() -> None:
    model = TaskModel(Encoder(shape()), "classification", LABELS)
    assert model.dense is not None and 0.01 < model.dense.weight.std() < 0.03 and not model.dense.bias.any()
    for kind in ("tokens", "span"):
        assert TaskModel(Encoder(shape(pooler=True)), kind, labels_of(kind)).dense is None  # type: ignore[arg-type]


def test_only_what_is_asked_for() -> None:
    model = task_model("classification", LABELS).eval()
    found = model(Batch.of(texts()), FeatureRequest(hidden=frozenset({1}), heads=frozenset({2})))
    assert found.task is None and set(found.hidden) == {1} and set(found.heads) == {2}
    both = model(Batch.of(texts()), FeatureRequest(hidden=frozenset({1}), task=True))
    torch.testing.assert_close(both.hidden[1], found.hidden[1])
    torch.testing.assert_close(both.task, ours(model))

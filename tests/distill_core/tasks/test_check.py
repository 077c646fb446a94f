"""What a run with tasks would fail at, said before it starts; and the augment stage on several ranks."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import ConfigError, DataError, ZhengliuError
from configs.loader import validate
from data_prep.corpus import Corpus
from distill_core.config import RunConfig
from distill_core.load import stage_models, stage_teachers
from distill_core.models import pretrained
from distill_core.models.encoder import Encoder
from distill_core.preflight import check
from distill_core.stage import stage_identity
from distill_core.tasks import pretrained as task_models
from distill_core.tasks.load import read_task
from distill_core.tasks.model import TaskModel
from distill_core.tasks.stage import run_augment
from tests.distill_core.evaluate.reference import write_lines
from tests.distill_core.tasks.test_quality import Threads
from tests.distill_core.tasks.tiny import shaken, shape, wordpiece

TRAINING = {"steps": 2, "global_batch_size": 6, "micro_batch_tokens": 64}
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SHAPE = {**SHAPE, "max_position_embeddings": 64}


class Run:
    """A run file's tree over given models and rows, to be changed by a test."""

    def __init__(self, corpus: Corpus, folder: Path) -> None:
        self.corpus, self.folder = corpus, folder
        small = shape(vocab_size=corpus.vocab_size)
        pretrained.save(shaken(Encoder(small)).state_dict(), small, corpus.tokenizer_folder, folder / "base")
        self.base = str(folder / "base")
        rows = [{"text": text, "label": label} for text, label in zip("好坏大小新旧", "abcabc", strict=True)]
        self.tasks: dict[str, Any] = {"abc": {"kind": "classification", "max_length": 24}}
        for part in ("train", "dev"):
            self.tasks["abc"][part] = str(write_lines(folder / f"{part}.jsonl", rows))
        self.stages: list[dict[str, Any]] = [
            {"name": "teacher", "kind": "finetune", "model": self.base, "task": "abc", "training": TRAINING},
            {"name": "more", "kind": "augment", "model": self.base, "task": "abc", "augment": {"copies": 3}},
            {
                "name": "student",
                "kind": "distill",
                "teacher": "teacher",
                "task": "abc",
                "rows": "more",
                "student": {"model": {**SHAPE, "hidden_size": 8}},
                "objective": [{"kind": "task_kd"}],
                "training": TRAINING,
            },
        ]

    def config(self) -> RunConfig:
        data = {"sources": [{"path": "builtin:sample"}], "sequences": {"max_length": 48}}
        data |= {"tokenizer": {"vocab": str(self.corpus.tokenizer_folder)}}
        tree = {"name": "r", "output": str(self.folder), "data": data, "tasks": self.tasks, "stages": self.stages}
        return validate(tree, RunConfig)

    def given_teacher(self, kind: Any, labels: list[str]) -> str:
        model = TaskModel(Encoder(shape(vocab_size=self.corpus.vocab_size)), kind, labels)
        tokenizer = self.corpus.tokenizer_folder
        folder = self.folder / f"given-{kind}"
        task_models.save(model.state_dict(), model.config, kind, labels, tokenizer, folder)
        return str(folder)


@pytest.fixture
def run(tiny_corpus: Corpus, tmp_path: Path) -> Run:
    return Run(tiny_corpus, tmp_path)


def refused(run: Run, kind: type[ZhengliuError], *messages: str) -> None:
    with pytest.raises(kind) as error:
        check(run.config(), 2)
    for message in messages:
        assert message in " ".join(str(error.value).split())


def test_a_fit_run_passes(run: Run) -> None:
    check(run.config(), 2)
    run.stages[2]["teacher"] = run.given_teacher("classification", ["c", "a", "b"])
    check(run.config(), 2)


# ---------------------------------------------------------------- rows


def test_rows_that_cannot_be_used(run: Run) -> None:
    dev = Path(run.tasks["abc"]["dev"])
    write_lines(dev, [{"text": "好", "label": "d"}])
    refused(run, DataError, "stage 'teacher'", "the label 'd'", "does not occur in the training data")
    write_lines(dev, [{"title": "好", "label": "a"}])
    refused(run, DataError, "holds no usable row", "no text")
    dev.unlink()
    refused(run, DataError, "stage 'teacher'", f"There is no file {dev}")
    with pytest.raises(DataError, match=r"Stage 'teacher': .*dev\.jsonl cannot be read"):
        stage_identity(run.config(), 0, run.corpus)


def test_labels_of_the_run_file(run: Run) -> None:
    run.tasks["abc"]["labels"] = ["c", "b", "a"]
    check(run.config(), 2)
    task = read_task(run.config().tasks["abc"], None, wordpiece())
    assert task.labels == ["c", "b", "a"] and task.train.targets.tolist() == [2, 1, 0, 2, 1, 0]
    run.tasks["abc"]["labels"] = ["a", "b"]
    refused(run, DataError, "train.jsonl has the label c, but the task's `labels` are a, b")
    with pytest.raises(DataError, match="has the label c"):
        read_task(run.config().tasks["abc"], None, wordpiece())


def test_one_label_teaches_nothing(run: Run) -> None:
    for part in ("train", "dev"):
        write_lines(Path(run.tasks["abc"][part]), [{"text": "好", "label": "a"}])
    refused(run, DataError, "All rows of", "have the label 'a'")


def test_tags_without_entities_need_a_metric(run: Run) -> None:
    for part in ("train", "dev"):
        write_lines(run.folder / f"pos-{part}.jsonl", [{"tokens": ["好", "书"], "tags": ["ADJ", "NOUN"]}])
    paths = {part: str(run.folder / f"pos-{part}.jsonl") for part in ("train", "dev")}
    run.tasks["pos"] = {"kind": "tokens", "max_length": 24, **paths}
    run.stages = [{**run.stages[0], "task": "pos"}]
    refused(run, DataError, "are not of the form B-X, I-X, O", "set `metric: token_accuracy`")
    run.tasks["pos"]["metric"] = "token_accuracy"
    check(run.config(), 2)


def test_skipped_rows_are_told(run: Run) -> None:
    train = Path(run.tasks["abc"]["train"])
    write_lines(train, [{"text": "好", "label": "a"}, {"text": " ", "label": "b"}, {"text": "坏", "label": "b"}])
    write_lines(Path(run.tasks["abc"]["dev"]), [{"text": "好", "label": "a"}])
    task = read_task(run.config().tasks["abc"], None, wordpiece())
    assert task.skipped == ["dropped_empty_text 1", "train.jsonl:2: empty text"]


# ---------------------------------------------------------------- teachers


def test_a_given_teacher_for_something_else(run: Run) -> None:
    run.stages[2]["teacher"] = run.given_teacher("classification", ["a", "b"])
    refused(run, DataError, "stage 'student': teacher", "knows the labels a, b, the task has a, b, c")
    run.stages[2]["teacher"] = run.given_teacher("tokens", ["a", "b", "c"])
    refused(run, DataError, "has no head for a task of kind classification")
    run.stages[2]["teacher"] = run.base
    refused(run, ConfigError, "stage 'student'", "it has no head for one. Fine-tune it first")


def test_a_teacher_of_the_run_for_another_task(run: Run) -> None:
    rows = [{"text": "好", "score": 1.5}, {"text": "坏", "score": 2}]
    path = str(write_lines(run.folder / "numbers.jsonl", rows))
    run.tasks["numbers"] = {"kind": "regression", "train": path, "dev": path, "max_length": 24}
    run.stages[0]["task"] = "numbers"
    refused(run, ConfigError, "the teacher 'teacher' is trained for another task (kind regression) than this stage's")
    run.tasks["two"] = {**run.tasks["abc"], "labels": ["a", "b", "c", "d"]}
    run.stages[0]["task"] = "two"
    refused(
        run, ConfigError, "(kind classification, labels a, b, c, d) than this stage's (kind classification, labels a"
    )


def test_a_teacher_without_a_head_serves_losses_on_its_layers(run: Run) -> None:
    run.stages[2] |= {"teacher": run.base, "objective": [{"kind": "hidden_mse", "layers": [[0, 0]]}, {"kind": "task"}]}
    check(run.config(), 2)


@pytest.mark.parametrize("kind", ["random", "teacher_layers", "svd", "model"])
def test_the_models_of_a_stage(run: Run, kind: str) -> None:
    """However the student begins, also from a teacher that has no masked-LM head any more."""
    run.stages[2] |= {"teacher": run.given_teacher("classification", ["b", "c", "a"])}
    students: dict[str, Any] = {
        "random": {"model": SHAPE},
        "teacher_layers": {"model": {**SHAPE, "num_hidden_layers": 1}, "init": {"kind": kind, "layers": [1]}},
        "svd": {"model": {**SHAPE, "hidden_size": 8, "intermediate_size": 12}, "init": {"kind": kind}},
        "model": {"init": {"kind": kind, "source": run.base}},
    }
    run.stages[2]["student"] = students[kind]
    config = run.config()
    check(config, 2)
    models = stage_models(
        config, 2, run.corpus, ["a", "b", "c"], stage_teachers(config, 2, run.corpus, ["a", "b", "c"])
    )
    student, [teacher] = models.student, models.teachers
    assert isinstance(student, TaskModel) and isinstance(teacher.model, TaskModel)
    assert student.labels == teacher.model.labels == ["a", "b", "c"] and student.classifier.weight.shape[0] == 3
    theirs = teacher.model.encoder.bert.encoder.layer[1].state_dict()
    own = student.encoder.bert.encoder.layer[0].state_dict()
    same = kind == "teacher_layers"
    assert all(value.shape == theirs[name].shape for name, value in own.items()) == (kind != "svd")
    if kind != "svd":
        assert all(torch.equal(value, theirs[name]) for name, value in own.items() if value.std() > 0) == same
    if kind in ("teacher_layers", "svd"):
        run.stages[2]["student"]["init"]["head"] = True
        refused(run, ConfigError, "copies a masked-LM head")


def test_finetune_begins_with_the_encoder_of_its_model(run: Run) -> None:
    for source in (run.base, run.given_teacher("tokens", ["O", "B-X"])):
        run.stages[0]["model"] = source
        found = stage_models(run.config(), 0, run.corpus, ["a", "b", "c"], [])
        expected = pretrained.load(source, "test").encoder.bert.encoder.state_dict()
        assert isinstance(found.student, TaskModel) and found.teachers == [] and found.student.kind == "classification"
        own = found.student.encoder.bert.encoder.state_dict()
        assert own.keys() == expected.keys() and all(torch.equal(own[name], value) for name, value in expected.items())


# ---------------------------------------------------------------- losses


def test_losses_that_have_nothing_to_look_at(run: Run) -> None:
    run.stages[2]["objective"] = [{"kind": "kd_ce"}, {"kind": "task"}]
    refused(run, ConfigError, "stage 'student'", "neither masked tokens nor sentence pairs")
    run.stages[2]["objective"] = [{"kind": "hidden_mse", "layers": [[0, 0]]}]
    check(run.config(), 2)
    run.stages[2]["training"] = {**TRAINING, "select": "best"}
    refused(run, ConfigError, "select: best chooses by the scores of the task's head, but no loss")
    run.stages[0]["objective"] = [{"kind": "task_kd"}]
    refused(run, ConfigError, "stage 'teacher'", "this stage has no teacher; take task")


def test_task_losses_without_a_task(run: Run) -> None:
    del run.stages[2]["task"], run.stages[2]["rows"]
    refused(run, ConfigError, "stage 'student'", "the stage has no `task`. Name one.")
    pretrain = {"name": "p", "kind": "pretrain", "model": SHAPE, "objective": [{"kind": "task"}], "training": TRAINING}
    run.stages = [pretrain]
    refused(run, ConfigError, "stage 'p'", "A stage of kind finetune has one.")


# ---------------------------------------------------------------- the run file


def wrong(run: Run, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        run.config()
    assert message in " ".join(str(error.value).split())


def test_what_the_run_file_says(run: Run) -> None:
    run.stages[2]["task"] = "abd"
    wrong(run, "there is no task 'abd' under `tasks`; did you mean 'abc'?")
    run.tasks["abd"] = run.tasks["abc"]
    wrong(run, "rows 'more' are of task 'abc', not of 'abd'")
    run.stages[2] |= {"task": "abc", "rows": "teacher"}
    wrong(run, "rows 'teacher' is not an earlier stage of kind augment")
    run.stages[2] |= {"rows": "more", "teacher": "more"}
    wrong(run, "'more' makes rows, not a model")
    run.stages = run.stages[1:2]
    wrong(run, "o stage makes a model (augment makes rows)")


# ---------------------------------------------------------------- augment


def test_settings_that_a_regression_has_no_use_for(run: Run) -> None:
    path = run.tasks["abc"]["train"]
    run.tasks["abc"] = {"kind": "regression", "train": path, "dev": path, "max_length": 24}
    for name, value in (("temperature", 2.0), ("temperature_squared", True), ("per_label", True)):
        run.stages[2]["objective"] = [{"kind": "task_kd", name: value}]
        wrong(run, f"regression, where task_kd is the squared difference of two numbers; {name} would do nothing")
    run.stages[2]["objective"] = [{"kind": "task_kd", "temperature": 1, "per_label": False}]
    assert run.config().tasks["abc"].kind == "regression"


def test_augment_on_ranks(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of one rank and of several are the same file; more ranks than rows do no harm."""
    one_at_a_time, load = threading.Lock(), pretrained.load

    def locked(source: str, who: str) -> pretrained.Pretrained:
        """transformers patches its classes while it loads, and leaves them patched when threads load at once."""
        with one_at_a_time:
            return load(source, who)

    monkeypatch.setattr(pretrained, "load", locked)
    texts = ["今天天气很好，我们去公园。", "他在图书馆读书。", "北京的大学很大。"]
    for part in ("train", "dev"):
        rows = [{"text": text, "label": label} for text, label in zip(texts, "aba", strict=True)]
        write_lines(Path(run.tasks["abc"][part]), rows)
    found = []
    for world_size in (1, 2, 4):
        run.folder = tmp_path / str(world_size)
        config = run.config()
        threads = [
            threading.Thread(target=run_augment, args=(config, 1, {"who": world_size}, rank))
            for rank in Threads(world_size).ranks
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        folder = config.stage_folder(1)
        done = json.loads((folder / "DONE.json").read_text())
        content = (folder / "rows.jsonl").read_text(encoding="utf-8")
        assert done["made"] == len(content.splitlines()) > done["rows"] == 3
        assert sorted(path.name for path in folder.iterdir()) == ["DONE.json", "rows.jsonl"]
        found.append(content)
    assert found[0] == found[1] == found[2]
    task = read_task(config.tasks["abc"], folder / "rows.jsonl", wordpiece())
    assert len(task.train) == done["made"] and len(task.dev) == 3


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"vectors": "/nowhere/vectors.txt"}, "stage 'more': augment: There is no file of word vectors /nowhere"),
        ({"stop_words": "/nowhere/words.txt"}, "stage 'more': augment: Cannot read the stop words /nowhere"),
        ({"segment": {"kind": "ltp", "model": "/nowhere/ltp"}}, "stage 'more': augment: "),
    ],
)
def test_what_augmentation_needs_is_looked_for_first(run: Run, augment: dict[str, Any], message: str) -> None:
    run.stages[1]["augment"] = augment
    with pytest.raises(DataError, match=message):
        check(run.config(), 2)


def test_rows_that_are_not_augmented_are_refused_first(run: Run) -> None:
    rows = [{"question": "谁？", "context": "是他。", "answers": [{"text": "他", "answer_start": 1}]}]
    files = {part: str(write_lines(run.folder / f"span-{part}.jsonl", rows)) for part in ("train", "dev")}
    run.tasks["spans"] = {"kind": "span", "max_length": 24, **files}
    run.stages[1:] = [{"name": "more", "kind": "augment", "model": run.base, "task": "spans"}]
    with pytest.raises(ConfigError, match="stage 'more': Rows of span tasks are not augmented"):
        check(run.config(), 2)

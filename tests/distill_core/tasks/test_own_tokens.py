"""A teacher whose vocabulary is not the student's: end to end, what is refused, and what it reads."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from configs.errors import ConfigError, DataError, ZhengliuError
from configs.loader import load, validate
from data_prep.config import TokenizerConfig
from data_prep.corpus import Corpus
from data_prep.pipeline import prepare
from data_prep.tokenizer import open_tokenizer, train_tokenizer
from distill_core.config import DistillStage, RunConfig
from distill_core.features import FeatureRequest
from distill_core.models import pretrained
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.objective import Teacher
from distill_core.outcome import read_outcome
from distill_core.preflight import check
from distill_core.report_facts import missing
from distill_core.stage import stage_identity
from distill_core.tasks import pretrained as task_models
from distill_core.tasks.load import read_task
from distill_core.tasks.own_tokens import kind_of, own_tokenizers, with_own_tokens
from launcher.plan_view import Wanted, show
from tests.distill_core.evaluate.reference import write_lines
from tests.distill_core.tasks.test_stages import SHAPE, TRAINING, done, losses, run, sentences

pytestmark = [pytest.mark.timeout(600)]
SAMPLE = Path(__file__).parents[3] / "data_prep" / "sample_corpus"
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "wordpiece": {},
    "bpe": {"family": "roberta", "type_vocab_size": 1, "max_position_embeddings": 50, "layer_norm_eps": 1e-5},
}
TASK_KD: dict[str, Any] = {"kind": "task_kd"}
PKD = {"kind": "pkd", "layers": [[1, 1], [2, 2]], "weight": 0.2}


@dataclass
class World:
    """``tasks``: by kind; ``teachers``: by the kind of their tokenizers, fine-tuned; ``corpus``: of the student."""

    tasks: dict[str, Any]
    teachers: dict[str, Path]
    corpus: Corpus

    def config(self, output: Path, teacher: str | Path, **stage: Any) -> RunConfig:
        """A run of one distill stage without a corpus."""
        given = {
            "name": "student",
            "kind": "distill",
            "teacher": str(self.teachers.get(str(teacher), teacher)),
            "task": "feeling",
            "student": {"model": {**SHAPE, "hidden_size": 16, **STILL}},
            "objective": [TASK_KD],
            "training": {**TRAINING, "steps": 4},
        } | stage
        return run_without_corpus(output, self.corpus.tokenizer_folder, "wordpiece", self.tasks, given)


def run_without_corpus(output: Path, vocab: Path, kind: str, tasks: dict[str, Any], stage: dict[str, Any]) -> RunConfig:
    tree = {
        "name": "run",
        "output": str(output),
        "data": {"tokenizer": {"kind": kind, "vocab": str(vocab)}},
        "tasks": tasks,
        "stages": [{name: value for name, value in stage.items() if value is not None}],
        "evaluation": {"latency_lengths": [8], "latency_batch_sizes": [1], "latency_repeats": 1},
    }
    return validate(tree, RunConfig)


def carried_out(config: RunConfig, *arguments: str, world_size: int = 1) -> Path:
    check(config, world_size)
    prepare(config.data, config.data_folder)
    return run(config, *arguments, world_size=world_size)


@pytest.fixture(scope="module")
def world(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Teachers of two other vocabularies, each fine-tuned in a run of its own."""
    folder = tmp_path_factory.mktemp("own")
    entries = (tiny_corpus.tokenizer_folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    common = "".join(e for e in entries if len(e) == 1 and "\u4e00" <= e <= "\u9fff")[:40]
    feeling: dict[str, Any] = {"kind": "classification", "max_length": 48}
    names: dict[str, Any] = {"kind": "tokens", "max_length": 48}
    for part, count, seed in (("train", 400, 1), ("dev", 61, 2)):
        rows = sentences(count, seed, common, 3)
        records = [{"text": text, "label": label} for text, label in rows]
        feeling[part] = str(write_lines(folder / f"{part}.jsonl", records))
        tagged = [{"tokens": list(text), "tags": ["B-G" if c in "好大" else "O" for c in text]} for text, _ in rows]
        names[part] = str(write_lines(folder / f"names-{part}.jsonl", tagged))
    tasks = {"feeling": feeling, "names": names}
    texts = [path.read_text(encoding="utf-8") for path in sorted(SAMPLE.glob("*.txt"))]
    teachers = {}
    for kind, fields in FAMILIES.items():
        vocab, base = folder / f"vocab-{kind}", folder / f"base-{kind}"
        settings = TokenizerConfig.model_validate({"kind": kind, "vocab_size": 900})
        tokenizer = train_tokenizer(iter(texts[::-1]), settings, vocab)
        given = {**SHAPE, "intermediate_size": 64, "vocab_size": tokenizer.vocab_size, **fields}
        shape = EncoderConfig.model_validate(given | {"pad_token_id": tokenizer.special_ids["pad"]})
        torch.manual_seed(1)
        pretrained.save(Encoder(shape).state_dict(), shape, vocab, base)
        stage = {
            "name": "teacher",
            "kind": "finetune",
            "model": str(base),
            "task": "feeling",
            "training": {**TRAINING, "steps": 110, "evaluate_every": 1000},
        }
        config = run_without_corpus(folder / kind, vocab, kind, {"feeling": feeling}, stage)
        teachers[kind] = carried_out(config) / "export" / "teacher"
    return World(tasks, teachers, tiny_corpus)


# ---------------------------------------------------------------- what works


@pytest.mark.chain
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_student_learns_from_it_and_ranks_change_nothing(world: World, tmp_path: Path, kind: str) -> None:
    objective = [TASK_KD, PKD, {"kind": "task", "weight": 0.1}]
    training = {**TRAINING, "steps": 90, "evaluate_every": 45}
    folders = []
    for world_size in (1, 2) if kind == "bpe" else (1,):
        config = world.config(tmp_path / str(world_size), kind, objective=objective, training=training)
        folders.append(carried_out(config, world_size=world_size))
    one, *others = (losses(folder, "01-student") for folder in folders)
    assert one[-1] < 0.5 * one[0]
    assert all(one == pytest.approx(two, rel=1e-4) for two in others)
    found = done(folders[0], "01-student")["evaluation"]
    assert found["teacher"]["accuracy"] > 0.9 and found["agreement"] > 0.55  # of three labels
    assert all(found["teacher"] == done(folder, "01-student")["evaluation"]["teacher"] for folder in folders)


@pytest.mark.chain
def test_killed_and_continued_it_ends_in_the_same_bits(world: World, tmp_path: Path) -> None:
    training = {**TRAINING, "steps": 12, "evaluate_every": 4, "checkpoint_every": 3, "log_every": 1}
    settings: dict[str, Any] = {"objective": [TASK_KD, PKD], "training": training}
    settings["student"] = {"model": {**SHAPE, "hidden_size": 16}}  # with dropout
    straight = carried_out(world.config(tmp_path / "straight", "bpe", **settings))
    config = world.config(tmp_path / "killed", "bpe", **settings)
    carried_out(config, "8")
    assert not (config.stage_folder(0) / "DONE.json").exists()
    continued = run(config)
    weights = [folder / "stages/01-student/model/model.safetensors" for folder in (straight, continued)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.chain
def test_a_run_without_a_corpus_says_so_everywhere(world: World) -> None:
    folder = world.teachers["bpe"].parent.parent
    assert sorted(path.name for path in (folder / "data" / "shards").iterdir()) == []
    assert not (folder / "evaluation" / "unigram.json").exists()
    report = (folder / "report.md").read_text(encoding="utf-8")
    card = (world.teachers["bpe"] / "README.md").read_text(encoding="utf-8")
    assert "No corpus: all stages read labelled rows. Vocabulary: 900 tokens (bpe, given)." in report
    assert "unigram baseline" not in report and "held-out documents" not in report
    assert "No corpus: trained on labelled rows alone." in card and "hash of the prepared data" not in card
    outcome = read_outcome(load(folder / "config.yaml", [], RunConfig), folder)
    assert outcome.unigram is None and "The unigram baseline is not measured yet." not in missing(outcome)


@pytest.mark.chain
@pytest.mark.parametrize("kind", FAMILIES)
def test_it_answers_as_transformers_does_on_the_raw_text(world: World, tmp_path: Path, kind: str) -> None:
    """Its own tokenizer and class, text by text, against the rows of a batch in the student's order."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = str(world.teachers[kind])
    config = world.config(tmp_path, kind)
    ours = open_tokenizer(world.corpus.tokenizer_folder, config.data.tokenizer)
    own = own_tokenizers(config, config.stages[0], ours)
    task = with_own_tokens(read_task(config.tasks["feeling"], None, ours), own)
    index = np.argsort(-task.dev.lengths(np.arange(len(task.dev))), kind="stable")[:20]
    batch = task.dev.batch(index, np.zeros(20, np.int64), "padded")
    model = task_models.load(source, "classification", task.labels, "teacher")
    found = Teacher(model, FeatureRequest(hidden=frozenset({1}), task=True))(batch)
    theirs = AutoModelForSequenceClassification.from_pretrained(source).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    assert found.task is not None and batch.own[0].ids.tolist() != batch.ids.tolist()
    for place, row in enumerate(index):
        encoded = tokenizer(task.dev.rows[row].text_a, return_tensors="pt")
        with torch.no_grad():
            answer = theirs(**encoded, output_hidden_states=True)
        assert encoded["input_ids"].shape[1] == found.where(batch).lengths[place]
        torch.testing.assert_close(found.task[place], answer.logits[0], atol=1e-5, rtol=1e-4)
        first = found.hidden[1][found.where(batch).starts[place]]
        torch.testing.assert_close(first, answer.hidden_states[1][0, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.chain
def test_the_same_vocabulary_is_read_once(world: World, tmp_path: Path) -> None:
    """As before: nothing is added to batches or to a stage's identity, also when the student's files come from it."""
    config = world.config(tmp_path, "wordpiece")
    data = config.data.model_copy(
        update={"tokenizer": TokenizerConfig(vocab=str(world.teachers["wordpiece"]), lowercase=True)}
    )
    same = config.model_copy(update={"data": data})
    corpus = prepare(data, tmp_path / "data")
    ours = open_tokenizer(corpus.tokenizer_folder, data.tokenizer)
    assert own_tokenizers(same, same.stages[0], ours) == {}
    assert "tokenizers" not in stage_identity(same, 0, corpus)
    identity = stage_identity(config, 0, world.corpus)
    assert list(identity["tokenizers"]) == [str(world.teachers["wordpiece"])]
    task = read_task(config.tasks["feeling"], None, ours)
    assert with_own_tokens(task, {}) is task


@pytest.mark.chain
def test_the_plan_says_who_reads_what(world: World, tmp_path: Path) -> None:
    out = Console(width=400, record=True, file=io.StringIO())
    show(world.config(tmp_path, "bpe"), Wanted(probe=False), console=out)
    text = out.export_text()
    assert "data: no corpus, all stages read labelled rows" in text
    assert f"student: the rows are tokenised a second time for {world.teachers['bpe']} (bpe, 900 entries)" in text
    refused = world.config(tmp_path, "bpe", objective=[{"kind": "hidden_mse", "layers": "last"}])
    with pytest.raises(ConfigError, match="hidden_mse compares the two token by token"):
        show(refused, Wanted(probe=False), console=out)


# ---------------------------------------------------------------- what does not


@pytest.mark.chain
@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"objective": [TASK_KD, {"kind": "hidden_mse", "layers": "last"}]}, "hidden_mse compares the two token by"),
        (
            {"objective": [{"kind": "emd"}, {"kind": "minilm", "layers": "last"}]},
            "emd, minilm compare the two token by token. With two vocabularies a student can learn in a stage with a "
            "`task` of kind classification or regression, by losses that compare whole texts: pkd, task, task_kd.",
        ),
        ({"objective": [{"kind": "kd_ce"}]}, "kd_ce compares the two token by token"),
        ({"task": "names"}, "a task of kind tokens asks for a label for each token, which the two have at different"),
        ({"references": {}}, "`references` are the teacher's vectors of the student's own tokens"),
        (
            {"student": {"model": SHAPE, "init": {"kind": "teacher_layers", "layers": [0, 1]}}},
            "its embeddings are not the student's. Set student.init.embeddings: false",
        ),
        ({"student": {"model": {**SHAPE, "hidden_size": 16}, "init": {"kind": "svd"}}}, "embeddings are not the stud"),
    ],
)
def test_what_is_refused_with_what_works(world: World, tmp_path: Path, stage: dict[str, Any], message: str) -> None:
    teacher = world.teachers["wordpiece"]
    if stage.get("task") == "names":
        teacher = named(world, tmp_path)
    refused(world.config(tmp_path, teacher, **stage), ConfigError, message)


def named(world: World, folder: Path) -> Path:
    """The WordPiece teacher with a (random) head for the task of tags."""
    from transformers import AutoModelForTokenClassification

    source = world.teachers["wordpiece"]
    labels = {0: "B-G", 1: "O"}
    model = AutoModelForTokenClassification.from_pretrained(
        source, id2label=labels, label2id={name: i for i, name in labels.items()}, ignore_mismatched_sizes=True
    )
    model.save_pretrained(folder / "named")
    pretrained.copy_tokenizer(source, folder / "named")
    return folder / "named"


def refused(config: RunConfig, kind: type[ZhengliuError], message: str) -> None:
    with pytest.raises(kind) as error:
        check(config, 1)
    assert message in str(error.value)


@pytest.mark.chain
def test_layers_may_be_copied_without_the_embeddings(world: World, tmp_path: Path) -> None:
    init = {"kind": "teacher_layers", "layers": [0, 1], "embeddings": False}
    check(world.config(tmp_path, "wordpiece", student={"model": {**SHAPE, "intermediate_size": 64}, "init": init}), 1)


@pytest.mark.chain
def test_a_corpus_stage_names_what_works(world: World, tmp_path: Path) -> None:
    """Also where the student's vocabulary is still to be trained."""
    config = world.config(tmp_path, "wordpiece")
    tree = config.model_dump(mode="json")
    tree["data"] = {"sources": [{"path": "builtin:sample"}], "sequences": {"max_length": 48}}
    tree["stages"][0] |= {"task": None, "objective": [{"kind": "kd_ce"}]}
    expected = "is not the one to be trained on the corpus), and on a corpus the two are compared"
    refused(validate(tree, RunConfig), ConfigError, expected)
    tree["stages"][0] |= {"task": "feeling", "objective": [TASK_KD]}
    check(validate(tree, RunConfig), 1)


@pytest.mark.chain
def test_a_folder_whose_tokenizer_is_not_the_model_s(world: World, tmp_path: Path) -> None:
    import shutil

    given = tmp_path / "given"
    shutil.copytree(world.teachers["wordpiece"], given)
    lines = (given / "vocab.txt").read_text(encoding="utf-8")
    (given / "vocab.txt").write_text(lines + "另一个\n", encoding="utf-8")
    refused(
        world.config(tmp_path, given), DataError, "has embeddings of 900 tokens, but the tokenizer in its folder has"
    )
    (given / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
    refused(world.config(tmp_path, given), DataError, "the tokenizer of the teacher")
    for name in pretrained.TOKENIZER_FILES:
        (given / name).unlink(missing_ok=True)
    refused(world.config(tmp_path, given), DataError, "its folder must hold its tokenizer")


@pytest.mark.chain
def test_texts_longer_than_the_teacher_are_refused(world: World, tmp_path: Path) -> None:
    config = world.config(tmp_path, "wordpiece", student={"model": {**SHAPE, "max_position_embeddings": 64}})
    tasks = {"feeling": config.tasks["feeling"].model_copy(update={"max_length": 64})}
    refused(config.model_copy(update={"tasks": tasks}), ConfigError, "48 positions, but the task's longest sequences")


def test_the_kind_is_told_by_the_files(tmp_path: Path) -> None:
    assert kind_of(tmp_path) is None
    for model, kind in (("WordPiece", "wordpiece"), ("BPE", "bpe"), ("WordLevel", None)):
        (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": model}}))
        assert kind_of(tmp_path) == kind
    (tmp_path / "tokenizer.json").write_text("{")
    assert kind_of(tmp_path) is None
    (tmp_path / "vocab.txt").touch()
    assert kind_of(tmp_path) == "wordpiece"
    (tmp_path / "spiece.model").touch()
    assert kind_of(tmp_path) == "sentencepiece"


def test_earlier_stages_share_the_tokenizer(world: World, tmp_path: Path) -> None:
    config = world.config(tmp_path, "bpe")
    stage = config.stages[0]
    assert isinstance(stage, DistillStage)
    tree = config.model_dump(mode="json")
    tuned = {"name": "tuned", "kind": "finetune", "model": stage.teacher[0].source, "task": "feeling"}
    tree["stages"] = [tuned | {"training": TRAINING | {"steps": 2}}, tree["stages"][0] | {"teacher": "tuned"}]
    chain = validate(tree, RunConfig)
    assert own_tokenizers(chain, chain.stages[1], None) == {}
    refused(chain, DataError, "Fine-tune it in a run of its own, and name that folder")

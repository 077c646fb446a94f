"""Whole runs of task stages on a given model: learned, resumed, exported, reported."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import CheckpointError, DataError
from configs.loader import to_yaml, validate
from data_prep.corpus import Corpus
from distill_core.config import RunConfig
from distill_core.engine import Rank
from distill_core.export import export_run
from distill_core.models import pretrained
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.outcome import read_outcome
from distill_core.preflight import check
from distill_core.stage import run_stages
from tests.distill_core.evaluate.reference import write_lines
from tests.ranks import start

PROGRAM = Path(__file__).with_name("task_rank.py")
pytestmark = [pytest.mark.chain, pytest.mark.timeout(600)]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 48}
GOOD, BAD = "好大", "不小"


def sentences(count: int, seed: int, common: str, marks: int) -> list[tuple[str, str]]:
    """(text, label): good has ``marks`` characters of GOOD, bad of BAD, none neither."""
    draw = random.Random(seed)
    filler = [c for c in common if c not in GOOD + BAD]
    out = []
    for _ in range(count):
        label = draw.choice(["good", "bad", "none"])
        text = [draw.choice(filler) for _ in range(draw.randint(4, 14))]
        if label != "none":
            for place in draw.sample(range(len(text)), marks):
                text[place] = draw.choice(GOOD if label == "good" else BAD)
        out.append(("".join(text), label))
    return out


@pytest.fixture(scope="module")
def files(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Data of all kinds, made of frequent characters of the corpus, and a masked LM as from elsewhere (random)."""
    folder = tmp_path_factory.mktemp("tasks")
    entries = (tiny_corpus.tokenizer_folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    common = "".join(e for e in entries if len(e) == 1 and "\u4e00" <= e <= "\u9fff")[:40]
    assert all(c in entries for c in "好大不小")
    tasks: dict[str, Any] = {}
    for part, count, seed in (("train", 400, 1), ("dev", 61, 2)):
        rows, single = (sentences(count, seed, common, marks) for marks in (3, 1))
        found: dict[str, list[Any]] = {
            "feeling": [{"text": text, "label": label} for text, label in rows],
            "amount": [
                {
                    "text_a": text,
                    "text_b": text[:3],
                    "score": float(sum(c in GOOD for c in text) - sum(c in BAD for c in text)),
                }
                for text, _ in rows
            ],
            "names": [
                {"tokens": list(text), "tags": ["B-G" if c in GOOD else "B-B" if c in BAD else "O" for c in text]}
                for text, _ in rows
            ],
            "where": [
                {"question": "哪", "context": text, "answers": [{"text": c, "answer_start": i}]}
                for text, label in single
                if label != "none"
                for i, c in enumerate(text)
                if c in GOOD + BAD
            ],
        }
        for name, records in found.items():
            path = write_lines(folder / f"{name}-{part}.jsonl", records)
            tasks.setdefault(name, {})[part] = str(path)
    kinds = {"feeling": "classification", "amount": "regression", "names": "tokens", "where": "span"}
    tasks = {name: {**paths, "kind": kinds[name], "max_length": 24} for name, paths in tasks.items()}
    return {"tasks": tasks, "model": save_model(tiny_corpus, folder / "base", 0), "vocab": tiny_corpus}


def save_model(corpus: Corpus, folder: Path, seed: int, **fields: Any) -> str:
    torch.manual_seed(seed)
    shape = EncoderConfig.model_validate({**SHAPE, "intermediate_size": 64, "vocab_size": corpus.vocab_size, **fields})
    pretrained.save(Encoder(shape).state_dict(), shape, corpus.tokenizer_folder, folder)
    return str(folder)


TRAINING: dict[str, Any] = {
    "global_batch_size": 32,
    "micro_batch_tokens": 512,
    "precision": "fp32",
    "log_every": 5,
    "optimizer": {"learning_rate": 3e-3},
}


def run_config(files: dict[str, Any], output: Path, stages: list[dict[str, Any]], **fields: Any) -> RunConfig:
    corpus: Corpus = files["vocab"]
    data = {**corpus.manifest["identity"], "folder": str(corpus.folder)}
    data["tokenizer"] = {**data["tokenizer"], "vocab": str(corpus.tokenizer_folder)}
    evaluation = {"latency_lengths": [8], "latency_batch_sizes": [1], "latency_repeats": 1}
    tree = {"name": "run", "output": str(output), "data": data, "tasks": files["tasks"], "stages": stages}
    return validate({**tree, "evaluation": evaluation, **fields}, RunConfig)


def finetune(files: dict[str, Any], task: str, name: str = "", **training: Any) -> dict[str, Any]:
    given = {"steps": 60, "evaluate_every": 1000, **training}
    return {
        "name": name or f"t-{task}",
        "kind": "finetune",
        "model": files["model"],
        "task": task,
        "training": {**TRAINING, **given},
    }


def run(config: RunConfig, *arguments: str, world_size: int = 1) -> Path:
    config.folder.mkdir(parents=True, exist_ok=True)
    (config.folder / "logs").mkdir(exist_ok=True)
    (config.folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    start(PROGRAM, world_size, str(config.folder), *arguments)
    return config.folder


def done(folder: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "stages" / stage / "DONE.json").read_text())
    return found


def losses(folder: Path, stage: str) -> list[float]:
    lines = (folder / "stages" / stage / "metrics.jsonl").read_text().splitlines()
    return [row["loss/total"] for row in map(json.loads, lines) if "loss/total" in row]


SATED = {"steps": 60, "evaluate_every": 3, "checkpoint_every": 5, "select": "best"}
SATED |= {"early_stopping": {"metric": "accuracy", "patience": 2, "min_delta": 0.02}}
"""Stops by itself before its last step: more is not to be had."""
RESUMED = {"steps": 12, "evaluate_every": 4, "checkpoint_every": 3, "select": "best", "log_every": 1}


@pytest.fixture(scope="module")
def whole(files: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """Every kind of task and TinyBERT's three steps in one run without a pretrain stage."""
    small = {"model": {**SHAPE, "hidden_size": 16}}
    student = {"kind": "distill", "teacher": "teacher", "task": "feeling"}
    stages = [
        finetune(files, "feeling", "teacher", steps=60),
        {"name": "more", "kind": "augment", "model": files["model"], "task": "feeling", "augment": {"copies": 2}},
        {
            **student,
            "name": "inner",
            "student": small,
            "objective": [
                {"kind": "hidden_mse", "layers": [[0, 0], [1, 1], [2, 2]]},
                {"kind": "attention_scores", "layers": [[1, 1], [2, 2]]},
            ],
            "training": {**TRAINING, "steps": 120},
        },
        {
            **student,
            "name": "student",
            "rows": "more",
            "student": {"init": {"kind": "model", "source": "inner"}},
            "objective": [{"kind": "task_kd"}],
            "training": {**TRAINING, "epochs": 4.5, "evaluate_every": 20, "select": "best"},
        },
        finetune(files, "feeling", "resumed", **RESUMED),
        finetune(files, "feeling", "sated", **SATED),
        *(finetune(files, task, steps=steps) for task, steps in (("amount", 40), ("names", 40), ("where", 60))),
    ]
    config = run_config(files, tmp_path_factory.mktemp("whole"), stages)
    check(config, 1)
    return config, run(config)


def test_fine_tuning_learns(whole: tuple[RunConfig, Path]) -> None:
    _, folder = whole
    assert done(folder, "01-teacher")["evaluation"]["student"]["accuracy"] > 0.9
    assert done(folder, "07-t-amount")["evaluation"]["student"]["pearson"] > 0.3
    assert done(folder, "08-t-names")["evaluation"]["student"]["f1"] > 0.8
    assert done(folder, "09-t-where")["evaluation"]["student"]["exact_match"] > 0.8
    for stage in ("01-teacher", "07-t-amount", "08-t-names", "09-t-where"):
        course = losses(folder, stage)
        assert course[-1] < 0.8 * course[0], (stage, course)


def test_task_distillation_brings_the_student_near_the_teacher(whole: tuple[RunConfig, Path]) -> None:
    _, folder = whole
    inner, student = done(folder, "03-inner"), done(folder, "04-student")
    course = losses(folder, "03-inner")
    assert course[-1] < 0.5 * course[0] and inner["evaluation"]["head_trained"] is False
    found = student["evaluation"]
    assert found["agreement"] > 0.9 and found["student"]["accuracy"] > found["teacher"]["accuracy"] - 0.1
    assert (
        student["labels"] == ["bad", "good", "none"]
        and student["parameters"] < done(folder, "01-teacher")["parameters"]
    )
    rows = (folder / "stages" / "02-more" / "rows.jsonl").read_text().splitlines()
    made = done(folder, "02-more")
    assert made["made"] == len(rows) > made["rows"] == 400
    assert student["steps"] == -(-45 * len(rows) // 320)  # 4.5 epochs of 32
    evaluated = [
        json.loads(line) for line in (folder / "stages" / "04-student" / "metrics.jsonl").read_text().splitlines()
    ]
    scores = {row["step"]: row["eval/student_accuracy"] for row in evaluated if "eval/student_accuracy" in row}
    assert student["selected_step"] == max(scores, key=lambda step: (scores[step], -step))
    assert found["student"]["accuracy"] == max(scores.values())


CLASSES = {
    "teacher": "AutoModelForSequenceClassification",
    "inner": "AutoModelForSequenceClassification",
    "student": "AutoModelForSequenceClassification",
    "resumed": "AutoModelForSequenceClassification",
    "sated": "AutoModelForSequenceClassification",
    "t-amount": "AutoModelForSequenceClassification",
    "t-names": "AutoModelForTokenClassification",
    "t-where": "AutoModelForQuestionAnswering",
}


@pytest.mark.parametrize("stage", list(CLASSES))
def test_every_kind_is_exported_with_its_card(whole: tuple[RunConfig, Path], stage: str) -> None:
    import transformers

    config, folder = whole
    exported = export_run(config, folder, stage)  # checks the outputs against ours
    model = getattr(transformers, CLASSES[stage]).from_pretrained(exported)
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert f"model = {CLASSES[stage]}.from_pretrained(folder)" in card and "masked-LM head" not in card
    assert ("The head is not trained" in card) == (stage == "inner")
    made = [line.split("`")[1] for line in card.split("## How it was made")[1].splitlines() if line.startswith("| `")]
    history = {"inner": ["teacher", "inner"], "student": ["teacher", "inner", "student"]}
    expected = history.get(stage, [stage])
    assert made[: len(expected)] == expected and ("beginning as `base`" in card or stage in ("inner", "student"))
    if stage == "student":
        assert model.config.id2label == {0: "bad", 1: "good", 2: "none"} and "its teacher `teacher`" in card


def test_the_report_has_the_scores(whole: tuple[RunConfig, Path]) -> None:
    config, folder = whole
    outcome = read_outcome(config, folder)
    assert [found.name for found in outcome.tasks] == list(CLASSES)
    assert {found.name for found in outcome.tasks if not found.scores} == {"inner"}
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert f"| student | feeling | {done(folder, '04-student')['parameters']:,} | 61 |" in report
    assert outcome.models[0].name == "base" and (folder / "export" / "t-where").is_dir()


def test_a_changed_file_refuses_to_go_on(whole: tuple[RunConfig, Path], tmp_path: Path, tiny_corpus: Corpus) -> None:
    """What the files hold counts, not where they lie."""
    config, _ = whole
    rank = Rank(0, 0, 1, torch.device("cpu"))
    for part in ("train", "dev"):
        task = config.tasks["names"]
        moved = tmp_path / f"{part}.jsonl"
        shutil.copyfile(getattr(task, part), moved)
        changed = config.model_copy(
            update={"tasks": {**config.tasks, "names": task.model_copy(update={part: str(moved)})}}
        )
        run_stages(changed, [7], tiny_corpus, rank)  # finished, and skipped
        moved.write_text(moved.read_text(encoding="utf-8") + '{"tokens": ["好"], "tags": ["B-G"]}\n', encoding="utf-8")
        with pytest.raises(CheckpointError, match=rf"task\.{part}"):
            run_stages(changed, [7], tiny_corpus, rank)
        moved.unlink()
        with pytest.raises(DataError, match="cannot be read"):
            run_stages(changed, [7], tiny_corpus, rank)


def test_killed_between_evaluation_and_checkpoint_it_ends_the_same(
    whole: tuple[RunConfig, Path], files: dict[str, Any], tmp_path: Path
) -> None:
    """To the bit, and with the best model of both halves; dropout is on."""
    straight = whole[1] / "stages" / "05-resumed"
    config = run_config(files, tmp_path, [finetune(files, "feeling", "resumed", **RESUMED)])
    killed = run(config, "8") / "stages" / "01-resumed"
    assert not (killed / "DONE.json").exists() and (killed / "best" / "best.json").is_file()
    assert sorted(path.name for path in (killed / "checkpoints").iterdir())[-1] == "step-00000006"
    run(config)
    a, b = (json.loads((folder / "DONE.json").read_text()) for folder in (straight, killed))
    for key in ("evaluation", "selected_step", "steps"):
        assert a[key] == b[key]
    models = [(folder / "model" / "model.safetensors").read_bytes() for folder in (straight, killed)]
    assert models[0] == models[1]
    assert losses(whole[1], "05-resumed")[-3:] == losses(config.folder, "01-resumed")[-3:]


def test_a_task_stage_stops_early_also_when_killed_on_the_way(
    whole: tuple[RunConfig, Path], files: dict[str, Any], tmp_path: Path
) -> None:
    """Killed behind the evaluation that ends it; what it does then is lost, and comes again to the bit."""
    straight = done(whole[1], "06-sated")
    early = straight["early_stopping"]
    assert early["stopped"] and early["at_most"] == 60 > straight["steps"] == early["best_step"] + 2 * 3
    assert f"stopped early after step {straight['steps']} of at most 60: accuracy has not risen by" in early["reason"]
    best = max(early["evaluations"], key=lambda found: (found[1], -found[0]))
    assert straight["selected_step"] == best[0] and straight["evaluation"]["student"]["accuracy"] == best[1]
    assert early["reason"] in (whole[1] / "report.md").read_text(encoding="utf-8")
    config = run_config(files, tmp_path, [finetune(files, "feeling", "sated", **SATED)])
    killed = run(config, str(straight["steps"])) / "stages" / "01-sated"
    assert not (killed / "DONE.json").exists()
    run(config)
    found = done(config.folder, "01-sated")
    for key in ("early_stopping", "evaluation", "selected_step", "steps", "sequences"):
        assert found[key] == straight[key]
    models = [folder / "model" / "model.safetensors" for folder in (whole[1] / "stages" / "06-sated", killed)]
    assert models[0].read_bytes() == models[1].read_bytes()


def test_a_given_teacher_with_its_labels_in_another_order(
    whole: tuple[RunConfig, Path], files: dict[str, Any], tmp_path: Path
) -> None:
    """Two ranks, 16 bits, and not one masked LM in the run."""
    from transformers import AutoModelForSequenceClassification

    config, folder = whole
    given = tmp_path / "given"
    shutil.copytree(config.stage_folder(0) / "model", given)
    model = AutoModelForSequenceClassification.from_pretrained(given)
    order = [2, 0, 1]
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter[order].clone())
    names = [model.config.id2label[i] for i in order]
    model.config.id2label, model.config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    model.save_pretrained(given)
    stage = {
        "name": "student",
        "kind": "distill",
        "teacher": str(given),
        "task": "feeling",
        "student": {"model": {**SHAPE, "hidden_size": 16}},
        "objective": [{"kind": "task_kd"}, {"kind": "task", "weight": 0.5}],
        "training": {**TRAINING, "steps": 3, "precision": "bf16"},
    }
    config = run_config(files, tmp_path, [stage])
    check(config, 2)
    found = done(run(config, world_size=2), "01-student")
    assert found["world_size"] == 2 and found["labels"] == ["bad", "good", "none"]
    expected = done(folder, "01-teacher")["evaluation"]["student"]["accuracy"]
    assert found["evaluation"]["teacher"]["accuracy"] == pytest.approx(expected, abs=0.05)
    assert read_outcome(config, config.folder).models == []
    assert "given" in (config.folder / "export" / "student" / "README.md").read_text(encoding="utf-8")

"""A chain with references through the command, on two ranks: a corpus stage, then a task stage that goes on from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.errors import DataError
from configs.loader import load
from data_prep.corpus import Corpus
from data_prep.tokenizer import open_tokenizer
from distill_core.config import RunConfig
from distill_core.features import FeatureRequest
from distill_core.models import pretrained
from distill_core.references.inference import ReferencedModel
from distill_core.references.source import ReferencedSource
from distill_core.references.texts import CorpusTexts
from distill_core.references.weights import read_extra
from distill_core.tasks.load import read_task
from tests.test_chain import distill, finish

pytestmark = [pytest.mark.chain, pytest.mark.timeout(900)]

RUN = """
name: refbert
data:
  sources: [{path: "builtin:sample"}]
  tokenizer: {vocab_size: 600}
  sequences: {max_length: 32}
  masks: {views: 2}
  held_out: 0.1
tasks:
  weather: {kind: classification, train: FOLDER/train.jsonl, dev: FOLDER/dev.jsonl, max_length: 16}
stages:
  - name: teacher
    kind: pretrain
    model: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, max_position_embeddings: 32}
    training: &training
      steps: 20
      global_batch_size: 16
      micro_batch_tokens: 512
      optimizer: {learning_rate: 2.0e-3}
      precision: fp32
      evaluate_every: 100
      evaluate_sequences: 20
      log_every: 2
  - name: student
    kind: distill
    teacher: teacher
    student:
      model: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 32}
    references: {max_tokens: 12, max_frequency: 0.2}
    objective: [{kind: hidden_mse, layers: [[0, 0], [2, 1]]}, {kind: attention_scores, layers: [[1, 1]]}]
    training: {<<: *training, steps: 40, precision: bf16}
  - name: expert
    kind: finetune
    model: teacher
    task: weather
    training: {<<: *training, steps: 4}
  - name: task-student
    kind: distill
    teacher: expert
    task: weather
    student: {init: {kind: model, source: student}}
    references: {max_tokens: 8, max_frequency: 0.5, store: int8}
    objective: [{kind: task_kd}]
    training: {<<: *training, steps: 6, select: best}
launch: {processes: 2}
evaluation: {latency_repeats: 1, latency_lengths: [8], latency_batch_sizes: [1]}
"""


def write_rows(path: Path, count: int, first: int) -> None:
    words = ["今天", "明天", "公园", "天气", "下雨", "晴朗", "学生", "老师", "图书", "城市", "春天", "冬天"]
    with path.open("w", encoding="utf-8") as file:
        for number in range(first, first + count):
            chosen = [words[(number * k) % len(words)] for k in (1, 5, 7)]
            row = {"text": "".join(chosen) + words[number % 11], "label": "ab"[number % 2]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refbert")
    write_rows(folder / "train.jsonl", 40, 0)
    write_rows(folder / "dev.jsonl", 12, 36)
    (folder / "run.yaml").write_text(RUN.replace("FOLDER", str(folder)), encoding="utf-8")
    status, text = finish(distill("run", str(folder / "run.yaml"), f"output={folder}"))
    assert status == 0, text
    return folder / "refbert"


def stage(run: Path, name: str) -> Path:
    return next(run.glob(f"stages/*-{name}"))


def done(run: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((stage(run, name) / "DONE.json").read_text())
    return found


def test_the_loss_falls(run: Path) -> None:
    for name in ("student", "task-student"):
        rows = [json.loads(line) for line in (stage(run, name) / "metrics.jsonl").read_text().splitlines()]
        losses = [row["loss/total"] for row in rows if "loss/total" in row]
        assert losses[-1] < losses[0], (name, losses)


def test_done_says_what_references_cost(run: Path) -> None:
    facts = done(run, "student")["references"]
    references = stage(run, "student") / "references"
    assert facts["variant"] == "A" and facts["matched"]["train"] > 0.8
    assert facts["bytes"] > facts["store_bytes"] >= (references / "store" / "vectors.bin").stat().st_size > 0
    assert all(value > 0 for value in facts["milliseconds"].values())
    assert done(run, "teacher")["references"] is None
    assert done(run, "task-student")["references"]["store_bytes"] < facts["store_bytes"]
    assert not list(references.glob("parts*")) and not list(references.glob("matching*"))


def test_the_map_learns_and_is_kept_by_the_next_stage(run: Path) -> None:
    first, second = (read_extra(stage(run, name) / "model") for name in ("student", "task-student"))
    assert first[1] == second[1] == 32
    a, b = first[2]["dense.weight"], second[2]["dense.weight"]
    torch.manual_seed(0)
    assert (a - b).abs().max() < 0.05 < a.abs().max()  # six small steps on from there, not drawn anew
    assert not torch.equal(a, b)


def test_the_export_is_plain_for_transformers_and_the_same_as_in_training(run: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    exported = run / "export" / "task-student"
    plain = AutoModelForSequenceClassification.from_pretrained(exported).eval()
    assert plain.config.hidden_size == 16
    model = ReferencedModel.load(exported)
    assert model.store.facts["dtype"] == "int8"

    # as the stage's evaluation saw its dev rows
    config = load(run / "config.yaml", [], RunConfig)
    corpus = Corpus.open(run / "data")
    tokenizer = open_tokenizer(corpus.tokenizer_folder, config.data.tokenizer)
    task = read_task(config.tasks["weather"], None, tokenizer)
    references = stage(run, "task-student") / "references"
    matches = np.fromfile(references / "matches" / "held_out.bin", "<i4")
    source = ReferencedSource(task.dev, matches, model.store)
    index = np.arange(len(task.dev))
    request = FeatureRequest(task=True)
    with torch.no_grad():
        expected = model.model(source.batch(index, index, "runs"), request).task
        sentences = [row.text_a for row in task.dev.rows]
        found = model(sentences).task
        assert expected is not None and found is not None
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        without = model(sentences, references=False).task
        theirs = plain(**model.tokenizer(sentences, return_tensors="pt", padding=True)).logits
    assert without is not None and (without - found).abs().max() > 1e-6
    torch.testing.assert_close(without, theirs, atol=1e-5, rtol=0)

    # dev rows 0 to 3 also stand in train: never their own references
    texts = model.texts(sentences)
    best, _ = model.index.search(texts)
    assert best.tolist() == matches.tolist()
    assert all(model.index.hashes[i] != own for i, own in zip(best, texts.hashes, strict=True) if i >= 0)


def test_matches_of_the_corpus_are_what_one_rank_finds(run: Path) -> None:
    corpus = Corpus.open(run / "data")
    references = stage(run, "student") / "references"
    model = ReferencedModel.load(stage(run, "student") / "model", references)
    for part in ("train", "held_out"):
        source = CorpusTexts(corpus.split(part), documents=part == "train")  # type: ignore[arg-type]
        stored = np.fromfile(references / "matches" / f"{part}.bin", "<i4")
        found, _ = model.index.search(source.texts(np.arange(len(source))))
        assert stored.tolist() == found.tolist()
    guesses = model(["今天天气很[MASK]。"]).logits["all"]
    assert guesses.shape[1] == corpus.vocab_size and guesses.isfinite().all()


def test_damaged_or_plain_folders_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a student with references"):
        ReferencedModel.load(stage(run, "teacher") / "model")
    folder = stage(run, "student") / "model"
    plain = pretrained.load(str(folder), "test").encoder
    assert plain.config.hidden_size == 16
    (tmp_path / "index").symlink_to(stage(run, "student") / "references" / "index")
    (tmp_path / "store").symlink_to(stage(run, "task-student") / "references" / "store")
    with pytest.raises(DataError, match="different texts"):
        ReferencedModel.load(folder, tmp_path)


def test_a_repeated_run_uses_what_is_there(run: Path) -> None:
    store = stage(run, "student") / "references" / "store" / "manifest.json"
    before = store.stat().st_mtime_ns
    command = ("run", str(run.parent / "run.yaml"), f"output={run.parent}", "stages.student.training.steps=42")
    status, text = finish(distill(*command, "--only", "student"))
    assert status == 0, text
    assert done(run, "student")["steps"] == 42 and store.stat().st_mtime_ns == before

"""Runs on two ranks with given teachers: a damaged one ends the run with its sequences; two teach one student."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from data_prep.config import DataConfig, SequenceConfig, SourceConfig, TokenizerConfig
from data_prep.corpus import Corpus
from data_prep.pipeline import prepare
from tests.distill_core.teachers import save_teacher
from tests.test_chain import distill, finish

pytestmark = [pytest.mark.chain, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    config = DataConfig(
        sources=[SourceConfig(path="builtin:sample")],
        tokenizer=TokenizerConfig(vocab_size=600),
        sequences=SequenceConfig(max_length=48),
        held_out=0.05,
        workers=1,
    )
    return prepare(config, tmp_path_factory.mktemp("corpus"))


def run_file(folder: Path, corpus: Corpus, teachers: list[Path], objective: list[dict[str, object]]) -> Path:
    """The teachers' vocabulary given, as with any teacher from outside."""
    vocabulary = folder / "vocab.txt"
    vocabulary.write_bytes((corpus.tokenizer_folder / "vocab.txt").read_bytes())
    tree = {
        "name": "run",
        "output": str(folder),
        "data": {
            "sources": [{"path": "builtin:sample"}],
            "tokenizer": {"vocab": str(vocabulary)},
            "sequences": {"max_length": 48},
            "held_out": 0.05,
        },
        "stages": [
            {
                "name": "student",
                "kind": "distill",
                "teacher": [{"source": str(teacher), "head_check": "off"} for teacher in teachers],
                "student": {"model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}},
                "objective": objective,
                "training": {
                    "steps": 4,
                    "global_batch_size": 8,
                    "micro_batch_tokens": 256,
                    "evaluate_sequences": 20,
                    "log_every": 2,
                    "checkpoint_every": 2,
                },
            }
        ],
        "launch": {"processes": 2},
        "evaluation": {"latency_repeats": 1},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_a_teacher_with_nan_ends_the_run(corpus: Corpus, tmp_path: Path) -> None:
    save_teacher(corpus, tmp_path / "damaged", broken=True)
    objective: list[dict[str, object]] = [{"kind": "hidden_mse", "layers": "last"}]
    began = time.monotonic()
    status, text = finish(distill("run", str(run_file(tmp_path, corpus, [tmp_path / "damaged"], objective))))
    assert time.monotonic() - began < 200
    words = " ".join(text.split())
    assert status == 70, text
    assert "Stage 'student', step 1: the teacher" in words and "damaged gives values that are not finite" in words
    assert "(hidden state 2) for the sequences" in words
    folder = tmp_path / "run" / "stages" / "01-student"
    assert not (folder / "DONE.json").exists() and not (folder / "checkpoints").exists()


def test_two_teachers_of_different_widths_with_the_same_name(corpus: Corpus, tmp_path: Path) -> None:
    teachers = [tmp_path / "a" / "model", tmp_path / "b" / "model"]
    for seed, (folder, width) in enumerate(zip(teachers, (32, 24), strict=True)):
        save_teacher(corpus, folder, seed=seed, width=width)
    objective = [{"kind": "kd_ce"}, {"kind": "hidden_mse", "layers": "last"}, {"kind": "mlm"}]
    path = run_file(tmp_path, corpus, teachers, objective)
    status, text = finish(distill("plan", str(path)))
    assert status == 0, text
    assert f"{16 * (32 + 24) + 32 + 24:,}" in text  # parameters of the two projections
    status, text = finish(distill("run", str(path)))
    assert status == 0, text
    folder = tmp_path / "run" / "stages" / "01-student"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {name.removeprefix("loss/") for name in rows[0] if name.startswith("loss/")}
    each = [f"{name}/model/{loss}" for name in "ab" for loss in ("kd_ce", "hidden_mse/2-1")]
    assert names == {*each, "mlm", "total"}
    assert rows[0]["weighted/a/model/kd_ce"] == pytest.approx(rows[0]["loss/a/model/kd_ce"] / 2, rel=1e-5)
    assert "bert.embeddings.word_embeddings.weight" in load_file(folder / "model" / "model.safetensors")


def test_a_teacher_of_the_hub_stays_the_same(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its name stands for later: the run goes on with the commit that it began with. No network."""
    place, commit, later = tmp_path / "cache" / "models--someone--bert", "1" * 40, "2" * 40
    for seed, name in enumerate((commit, later)):
        save_teacher(corpus, place / "snapshots" / name, seed=seed)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = run_file(tmp_path, corpus, [tmp_path], [{"kind": "kd_ce"}])
    path.write_text(path.read_text().replace(f"source: {tmp_path}", "source: someone/bert"))
    status, text = finish(distill("run", str(path)))
    assert status == 0, text
    assert f"As a line of the run file: source: someone/bert@{commit}" in text
    folder = tmp_path / "run" / "stages" / "01-student"
    done = (folder / "DONE.json").read_text()
    assert commit in json.dumps(json.loads(done)["identity"])
    (place / "refs" / "main").write_text(later)
    status, text = finish(distill("run", str(path)))
    assert status == 0, text
    assert (folder / "DONE.json").read_text() == done
    status, text = finish(distill("run", str(path), f"stages.student.teacher=[{{source: someone/bert@{later}}}]"))
    assert status == 65 and f"someone/bert@{later}" in text

"""The reference curves: every recipe on the small scale is a valid run, and the program carries them out, once."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.recipes import __main__ as program
from benchmarks.recipes import page
from benchmarks.recipes.curves import Curves, Figure, Stage, spread
from benchmarks.recipes.runs import RECIPES, first_rows, given_teacher, kind_of
from benchmarks.recipes.small import SMALL, TINY, Scale, shrunken, small_shape
from configs.errors import ConfigError
from data_prep.sentences import sentences
from distill_core.config import DistillStage, RunConfig, model_sources
from distill_core.models.config import ModelConfig, presets

SAMPLE = sorted((Path(__file__).resolve().parent.parent.parent / "data_prep" / "sample_corpus").glob("*.txt"))
QUICK = dataclasses.replace(TINY, layers=SMALL.layers, steps=4, teacher_steps=4, log_every=2, held_out_sequences=8)


def tree(recipe: str, scale: Scale) -> dict[str, Any]:
    rows = {"train": Path("train.jsonl"), "dev": Path("dev.jsonl")}
    teacher = Path("given")
    return shrunken(f"recipes/{recipe}", None, scale, lambda _: teacher, teacher, [{"path": "builtin:sample"}], rows)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("scale", [SMALL, TINY], ids=["small", "tiny"])
def test_every_recipe_becomes_small(recipe: str, scale: Scale) -> None:
    config = RunConfig.model_validate(tree(recipe, scale))
    for stage in config.stages:
        if isinstance(stage, DistillStage) and stage.student.model is not None:
            shape = stage.student.model.resolve(vocab_size=1000)
            assert shape.hidden_size in scale.widths.values() and shape.num_hidden_layers <= scale.depth(24)
            chosen = stage.student.init.layers
            assert not isinstance(chosen, list) or not chosen or len(chosen) == shape.num_hidden_layers
    names = {stage.name for stage in config.stages}
    outside = {source for stage in config.stages for source in model_sources(stage)} - names
    assert outside == {"given"}  # no published model is left


def test_layer_lists_are_thinned() -> None:
    pairs = tree("pkd", SMALL)["stages"][1]["objective"][2]["layers"]
    assert pairs == [[2, 1], [4, 2]]
    assert tree("pkd", TINY)["stages"][1]["objective"][2]["layers"] == [[2, 1], [4, 2], [6, 3], [8, 4], [10, 5]]
    assert tree("minirbt-h256", SMALL)["stages"][0]["student"]["init"]["layers"] == [0, 2, 4]
    assert tree("distilbert", SMALL)["stages"][0]["student"]["init"]["layers"] == [0, 2, 4]
    assert tree("distilbert", TINY)["stages"][0]["student"]["init"]["layers"] == "distilbert"


def test_training_takes_the_steps_of_the_scale_alone() -> None:
    stage = tree("robbertje-nonshuffled", SMALL)["stages"][0]
    training = stage["training"]
    assert training["steps"] == SMALL.steps and "epochs" not in training and training["order"] == "corpus"
    optimizer = {"eps": 1.0e-8, "weight_decay": 0, "warmup": 0, "learning_rate": SMALL.learning_rate}
    assert training["optimizer"] == optimizer
    assert tree("mobilebert-zh", SMALL)["stages"][0]["training"]["steps"] == SMALL.steps + 6 * SMALL.steps_per_layer


@pytest.mark.parametrize("preset", sorted(presets()))
def test_shapes_keep_family_and_proportions(preset: str) -> None:
    if presets()[preset]["hidden_size"] in SMALL.widths:
        full = ModelConfig(preset=preset).resolve()
        small = ModelConfig.model_validate(small_shape(preset, SMALL)).resolve(vocab_size=100)
        assert small.family == full.family and small.hidden_dropout_prob == full.hidden_dropout_prob
        ratio = full.intermediate_size / full.hidden_size
        assert small.intermediate_size == pytest.approx(ratio * small.hidden_size, abs=1)
        assert small.max_length == SMALL.positions


def test_figures() -> None:
    assert spread(12, 6) == [0, 2, 4, 7, 9, 11] and spread(3, 6) == [0, 1, 2] and spread(1, 6) == [0]
    assert Figure((1.0, 2.0, 6.0)).show("{:.1f}") == "3.0 (1.0–6.0)"
    assert Figure((1.001, 1.002)).show("{:.1f}") == "1.0"


def test_first_rows_of_a_compressed_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("一\n\n二\n三")
    assert first_rows(path, 2, tmp_path / "out" / "two.jsonl").read_text(encoding="utf-8") == "一\n二\n"
    assert first_rows(path, 9, tmp_path / "all.jsonl").read_text(encoding="utf-8") == "一\n二\n三\n"


def test_the_command_shows_no_folders_and_all_recipes() -> None:
    words = ["/a/text.txt", "--only", "pkd", "bort", "--seeds", "1", "2", "--train", "b/train.jsonl"]
    assert program.spoken(words) == "python -m benchmarks.recipes text.txt --seeds 1 2 --train train.jsonl"


def test_a_teacher_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no model in"):
        given_teacher(tmp_path, "wordpiece", SMALL)
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 256}), encoding="utf-8")
    with pytest.raises(ConfigError, match="hidden_size 256 instead of 128"):
        given_teacher(tmp_path, "wordpiece", SMALL)
    assert kind_of("bort") == "bpe" and kind_of("pkd") == "wordpiece"


def test_the_table_of_a_task() -> None:
    intermediate = Stage(
        name="intermediate",
        kind="distill",
        parameters=1234,
        steps=10,
        at=(5, 10),
        losses=(Figure((9.0, 11.0)), Figure((9.9, 9.9))),
        metric="accuracy",
        student=None,
        accuracy=None,
        teacher=Figure((0.7, 0.8)),
        seconds=Figure((3.0, 4.4)),
    )
    losses = (Figure((0.5, 0.7)), Figure((0.25, 0.35)))
    prediction = dataclasses.replace(intermediate, name="prediction", losses=losses, student=Figure((0.5, 0.625)))
    section = page.section(Curves("pkd", (1, 2), (intermediate, prediction), None, None, {}))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    assert rows[0] == ["stage", "parameters", "steps", "loss at 5", "loss at 10", "at the end", "teacher", "seconds"]
    teacher = "accuracy 75.0% (70.0%–80.0%)"
    assert rows[2] == ["intermediate", "1,234", "10", "10.00 (9.00–11.00)", "9.90", "–", teacher, "4 (3–4)"]
    assert rows[3][3:6] == ["0.600 (0.500–0.700)", "0.300 (0.250–0.350)", "accuracy 56.2% (50.0%–62.5%)"]
    named = page.hardly([Curves("pkd", (1, 2), (intermediate, prediction), None, None, {})])
    assert "`pkd` intermediate (1.0%)" in named and "prediction" not in named
    general = dataclasses.replace(prediction, name="general", metric="held-out loss", student=Figure((6.5,)))
    assert "baseline in their held-out loss, after so few steps: `pkd` general." in page.hardly(
        [Curves("pkd", (1,), (general,), 6.4, 100, {})]
    )
    assert "beats the unigram baseline" in page.hardly([Curves("pkd", (1,), (general,), 6.6, 100, {})])


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Arguments: the sample text, and rows that ask whether a sentence holds 的."""
    lines = [line for path in SAMPLE for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    (tmp_path / "text.txt").write_text("\n\n".join(lines[:300]), encoding="utf-8")
    found = [s for line in lines for s in sentences(line) if 8 <= len(s) <= 40]
    for name, part in (("train", found[:80]), ("dev", found[80:110])):
        rows = [json.dumps({"text_a": s, "label": "yes" if "的" in s else "no"}, ensure_ascii=False) for s in part]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    files = ["--train", str(tmp_path / "train.jsonl"), "--dev", str(tmp_path / "dev.jsonl")]
    return [str(tmp_path / "text.txt"), *files, "--out", str(tmp_path / "out"), "--only", "distilbert"]


@pytest.mark.chain
@pytest.mark.timeout(600)
def test_the_program(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main([*words, "--seeds", "1", "2"], QUICK) == 0
    text = (tmp_path / "out" / "curves.md").read_text(encoding="utf-8")
    assert "### distilbert" in text and "### bort" not in text
    assert "12 x 768 -> 6 x 768 as published; wordpiece; 2 seeds" in text
    assert "loss at 2 | loss at 4 | at the end" in text and "Teacher, wordpiece" in text
    assert str(tmp_path) not in text
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("DONE.json")}
    assert len(finished) == 1 + 2  # the teacher's stage; the student's, with both seeds
    capsys.readouterr()
    assert program.main([*words, "--seeds", "2"], QUICK) == 0
    assert capsys.readouterr().out.startswith("1 of ")  # nothing was carried out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("DONE.json")} == finished
    assert "2 seeds" in (tmp_path / "out" / "curves.md").read_text(encoding="utf-8")

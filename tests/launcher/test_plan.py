"""Costs before the run: arithmetic done by hand."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from configs.errors import ConfigError
from distill_core.batch import Count
from distill_core.config import TrainingConfig
from distill_core.features import MASKED_LOGITS
from distill_core.flops import forward_flops
from distill_core.models.config import EncoderConfig, ModelConfig
from launcher import devices, plan_time, plan_view, units
from launcher.plan import make_plan
from launcher.plan_devices import Device, Place, place_of
from launcher.plan_fit import wire_bytes
from launcher.plan_memory import Memory
from launcher.plan_probe import Probed, Taken
from launcher.plan_stopping import at_most, perplexity_steps, stopping_lines
from launcher.plan_time import Times
from launcher.plan_view import Wanted
from launcher.runfile import open_run

TINY = EncoderConfig(vocab_size=21128, hidden_size=4, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)


def training(**values: Any) -> TrainingConfig:
    return TrainingConfig(**({"steps": 1, "global_batch_size": 1, "precision": "bf16"} | values))


def test_memory_by_hand() -> None:
    found = Memory(
        1.0,
        2.0,
        3.0,
        4.0,
        activations=100.0,
        logits=50.0,
        kernels=1.0,
        heap=0.0,
        process=1000.0,
        loading=121.0,
        tokens=10,
    )
    assert (found.lasting, found.total) == (10.0, 1161.0)
    assert found.at(20).total == 1311.0
    assert found.at(2).total == 1121.0  # less than what loading takes
    assert found.most_tokens(1161.0) == 10.0
    assert found.most_tokens(1000.0) == 0.0
    loose = replace(found, heap=0.5)
    assert (loose.workspace, loose.total, loose.most_tokens(loose.total)) == (76.0, 1236.0, 10.0)


# ---------------------------------------------------------------- a whole run


def test_prepared_data_is_counted(prepared: Path) -> None:
    config = open_run(str(prepared))
    manifest = json.loads((config.data_folder / "manifest.json").read_text())
    found = make_plan(config, 2)
    train = manifest["splits"]["train"]
    assert found.data.exact
    assert found.data.sequences == train["sequences"]
    assert found.data.tokens == train["tokens"] + 2 * train["sequences"]
    assert found.data.vocab_size == manifest["tokenizer"]["vocab_size"]


def test_data_is_estimated_from_the_sizes_of_its_sources(prepared: Path) -> None:
    """Within a third of the truth, on a corpus and sequences smaller than any real one."""
    exact = make_plan(open_run(str(prepared)), 2).data
    estimate = make_plan(open_run(str(prepared), ["name=other"]), 2).data
    assert not estimate.exact
    assert exact.tokens is not None
    assert estimate.tokens == pytest.approx(exact.tokens, rel=0.34)


def test_stages_by_hand(prepared: Path) -> None:
    found = make_plan(open_run(str(prepared)), 1)
    teacher, student = found.stages
    assert (teacher.name, teacher.teacher, teacher.projections) == ("teacher", None, 0)
    assert [(loss.label, loss.pairs) for loss in teacher.losses] == [("mlm", [])]
    assert student.teacher == teacher.student
    assert student.projections == 2 * (16 * 32 + 32)
    assert {loss.label: loss.pairs for loss in student.losses} == {"kd_ce": [], "hidden_mse": [(0, 0), (2, 1)]}
    assert {loss.label: loss.parameters for loss in student.losses} == {"kd_ce": 0, "hidden_mse": student.projections}
    assert (student.steps, student.sequences) == (2, 8)
    assert student.tokens == pytest.approx(8 * found.data.mean_length)
    assert found.data.sequences is not None
    assert student.epochs == pytest.approx(8 / found.data.sequences)
    assert student.micro_steps == -(-4 * found.data.mean_length // 64)
    counts: dict[Count, float] = {"tokens": 1.0, "pairs": found.data.pairs_per_token, "masked": 0.15}
    assert student.teacher is not None
    assert student.flops_per_token == pytest.approx(
        3 * forward_flops(student.student, MASKED_LOGITS).of(counts)
        + forward_flops(student.teacher, MASKED_LOGITS).of(counts)
        + 6 * 2 * 16 * 32
    )
    trained = student.student.parameters() + student.projections
    assert student.checkpoint_bytes == 12 * trained * 3 + 4 * student.student.parameters()


def test_early_stopping_makes_steps_the_most_that_there_may_be(prepared: Path) -> None:
    words = ["stages.1.training.steps=40", "stages.1.training.evaluate_every=5"]
    early = "{metric: pseudo_perplexity, patience: 3, sequences: 7}"
    config = open_run(str(prepared), [*words, f"stages.1.training.early_stopping={early}"])
    found = make_plan(config, 1)
    teacher, student = found.stages
    assert perplexity_steps(teacher) is None and at_most(teacher) == ""
    data = student.data
    rows: dict[Count, float] = {"tokens": 1.0, "pairs": data.pairs_per_token, "masked": 1 / data.pairs_per_token}
    tokens = 7 * sum(length**2 for length in data.lengths) / len(data.lengths)
    share = tokens * forward_flops(student.student, MASKED_LOGITS).of(rows) / student.flops_per_step
    assert perplexity_steps(student) == pytest.approx(share, rel=0.05)  # the lengths that are looked at are a sample
    out = io.StringIO()
    plan_view.show(config, Wanted(probe=False), Console(file=out, width=200))
    assert "at most 40" in out.getvalue() and "as early stopping may end the stage" in out.getvalue()
    rhythm = "(patience 3, an evaluation each 5 steps)"
    assert (
        f"student: early stopping by pseudo_perplexity may end it after step 20 or later {rhythm}; an" in out.getvalue()
    )
    late = open_run(
        str(prepared), [words[0], "stages.1.training.evaluate_every=10", f"stages.1.training.early_stopping={early}"]
    )
    (line,) = stopping_lines(make_plan(late, 1))
    assert "cannot end it before its 40 steps are over (patience 3, an evaluation each 10 steps)" in line


def test_more_ranks_need_fewer_micro_steps(prepared: Path) -> None:
    config = open_run(str(prepared), ["stages.0.training.global_batch_size=64"])
    alone, four = (make_plan(config, ranks).stages[0].micro_steps for ranks in (1, 4))
    assert alone == pytest.approx(4 * four, abs=4)
    assert alone > four


def test_shards(prepared: Path) -> None:
    """The estimate of the disk against what preparation wrote, without tokenizer and manifests."""
    config = open_run(str(prepared))
    estimate = make_plan(config, 1).shard_bytes
    names = ("tokens.bin", "words.bits", "tokens.idx", "offsets.bin", "pieces.bin", "positions.bin", "ids.bin")
    train = [p for p in config.data_folder.glob("shards/*/train/**/*") if p.name in names]
    assert estimate == pytest.approx(sum(p.stat().st_size for p in train), rel=0.2)


# ---------------------------------------------------------------- teachers from elsewhere


def with_teacher(prepared: Path, *words: str) -> Any:
    config = open_run(str(prepared), ["name=elsewhere", "data.tokenizer.vocab_size=21128", *words])
    return make_plan(config, 2).stages[1]


def test_a_teacher_by_preset_needs_no_weights_and_no_network(prepared: Path) -> None:
    words = ["stages.student.teacher.source=some/hub-name", "stages.student.teacher.shape.preset=rbt3"]
    text = prepared.read_text().replace("    teacher: teacher\n", "    teacher: {source: teacher}\n")
    path = prepared.with_name("long.yaml")
    path.write_text(text)
    stage = with_teacher(path, *words)
    assert stage.teacher == ModelConfig(preset="rbt3").resolve()


def test_a_hub_name_that_is_a_preset(prepared: Path) -> None:
    stage = with_teacher(prepared, "stages.student.teacher=hfl/rbt3")
    assert stage.teacher == ModelConfig(preset="rbt3").resolve()


def test_a_local_config_without_weights(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **TINY.model_dump()}))
    stage = with_teacher(prepared, f"stages.student.teacher={tmp_path}")
    assert stage.teacher == TINY


def test_a_teacher_with_another_vocabulary(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stage 'student': kd_ce .* 300 tokens and the teacher 21128"):
        with_teacher(prepared, "stages.student.teacher=hfl/rbt3", "data.tokenizer.vocab_size=300")


def test_an_unknown_hub_name_asks_for_a_shape(prepared: Path) -> None:
    with pytest.raises(ConfigError, match=r"shape: \{preset: NAME\}\} \(one of .*roberta-wwm-ext"):
        with_teacher(prepared, "stages.student.teacher=who/knows")


def test_what_is_missing_is_said_and_the_plan_made(prepared: Path) -> None:
    words = ["name=elsewhere", "data.sources.0.path=/no/corpus", "data.tokenizer.vocab=/no/vocab.txt"]
    found = make_plan(open_run(str(prepared), words), 2)
    assert [("/no/vocab.txt" in p, "/no/corpus" in p) for p in found.data.problems] == [(True, False), (False, True)]
    assert found.data.tokens is None
    assert found.shard_bytes is None
    assert found.stages[0].epochs is None


# ---------------------------------------------------------------- shown


def shown(prepared: Path, probe: bool, *words: str, width: int = 80) -> str:
    out = io.StringIO()
    plan_view.show(open_run(str(prepared), words), Wanted(probe), Console(file=out, width=width))
    return out.getvalue()


def test_the_tables(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: 0)
    text = shown(prepared, False)
    assert "Plan of 'small' on 2 ranks" in text
    assert "(counted)" in text
    assert "->[W] teacher 2" in text
    assert "a learned projection 16 -> 32" in text
    assert "estimate " not in text
    assert max(len(line) for line in text.splitlines()) <= 80


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_precision_that_is_not_decided_is_this_machines(
    precision: str, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_view, "here", lambda: precision)
    word = "stages.student.training.precision="
    text = " ".join(shown(prepared, False, word + "auto").split())
    assert f"precision: auto is {precision} on this machine (student); the run's own devices decide" in text
    here = place_of(1, None, None)
    config, said = plan_view.planned(open_run(str(prepared), [word + "auto"]), here)
    assert config == open_run(str(prepared), [word + precision]) and len(said) == 1
    assert plan_view.planned(config, here) == (config, [])


def test_losses_are_listed_with_their_settings(prepared: Path) -> None:
    objective = "stages.student.objective=[{kind: kd_ce, temperature: 8, weight: {start: 1, end: 0.5, begin: 0.25}}, "
    objective += "{kind: mlm, weight: 0.5}, {kind: hidden_mse, layers: top, shared_projection: true}, "
    objective += "{kind: hidden_mse, layers: [[2, 1]], projection: tanh}, {kind: nst, layers: last}]"
    found = make_plan(open_run(str(prepared), [objective]), 1).stages[1]
    assert [(loss.label, loss.count, loss.pairs) for loss in found.losses] == [
        ("kd_ce", "masked", []),
        ("mlm", "masked", []),
        ("hidden_mse.2", "tokens", [(0, 0), (2, 1)]),
        ("hidden_mse.3", "tokens", [(2, 1)]),
        ("nst", "pairs", [(2, 1)]),
    ]
    assert [loss.parameters for loss in found.losses] == [0, 0, 16 * 32 + 32, 16 * 32 + 32, 0]
    lines = [" ".join(line.split()) for line in shown(prepared, False, objective, width=140).splitlines()]
    assert "student kd_ce 1 to 0.5 (25% to 100%) masked temperature 8, temperature_squared false" in lines
    assert "student mlm 0.5 masked" in lines
    assert "1 at random ->[W] teacher 2 ->[W] teacher 2 -> teacher 2" in lines  # nst has no projection
    assert "16 -> 32 (hidden_mse.2: one for all, hidden_mse.3: one for each)" in " ".join(lines)


def test_several_teachers_are_all_shown(prepared: Path) -> None:
    wide = "{source: some/wide, weight: 3, shape: {hidden_size: 48, num_hidden_layers: 3, num_attention_heads: 2}}"
    off = wide.replace("some/wide", "some/off").replace("weight: 3", "weight: 4, head_check: off")
    chosen = f"stages.student.teacher=[teacher, {wide}, {off}]"
    stage = make_plan(open_run(str(prepared), [chosen]), 1).stages[1]
    assert [(t.source, t.share, t.gate) for t in stage.teachers] == [
        ("teacher", 1 / 8, "warn"),
        ("some/wide", 3 / 8, "refuse"),
        ("some/off", 4 / 8, "off"),
    ]
    assert [(t.shape.num_hidden_layers, t.shape.hidden_size) for t in stage.teachers] == [(2, 32), (3, 48), (3, 48)]
    lines = [" ".join(line.split()) for line in shown(prepared, False, chosen, width=140).splitlines()]
    for line in (
        "student teacher 0.125 warned of if random",
        "student some/wide 0.375 refused if random",
        "student some/off 0.5 not checked",
    ):
        assert line in lines
    assert sum(line.startswith("student teacher (some/") and " 3 x 48 " in line for line in lines) == 2
    assert "the layers are those of the first teacher (teacher)" in " ".join(lines)
    hidden = "stages.student.objective=[{kind: hidden_mse, layers: [[2, 1]]}]"
    assert make_plan(open_run(str(prepared), [chosen, hidden]), 1).stages[1].teachers[1].gate is None


def test_how_a_student_begins(prepared: Path) -> None:
    shape = "model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 32}"

    def begins(init: str, model: str = shape) -> list[str]:
        words = [f"stages.student.student={{{model}, init: {{{init}}}}}"]
        return make_plan(open_run(str(prepared), words), 1).stages[1].begins

    narrow = shape.replace("32, num_h", "16, num_h")
    assert begins("kind: random") == ["at random"] * 2
    assert begins("kind: model, source: teacher", "model: null") == ["as in teacher"] * 3
    assert begins("kind: teacher_layers, layers: top, embeddings: false") == ["at random", "teacher layer 2"]
    assert begins("kind: teacher_layers, layers: scores") == ["teacher embeddings", "a teacher layer, by its weights"]
    assert begins("kind: svd", narrow) == ["teacher embeddings made narrower", "at random"]
    with pytest.raises(ConfigError, match="stage 'student': layers can only be copied between equal widths"):
        begins("kind: teacher_layers, layers: top", narrow)


def test_copied_layers_are_drawn(prepared: Path) -> None:
    init = "stages.student.student={model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, "
    init += "max_position_embeddings: 32}, init: {kind: teacher_layers, layers: [1]}}"
    text = shown(prepared, False, init)
    assert "teacher embeddings   -> teacher 0" in text
    assert "teacher layer 2      -> teacher 2" in text


def test_the_estimate_of_time(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_time, "PROBE_SECONDS", 0.02)
    text = " ".join(shown(prepared, True, width=160).split())
    assert "of a matrix product here, which may be off by a factor of two" in text
    assert "on paper: 0.4 of the" in text  # 1, 8, 64 and 512 devices, unasked


def test_seconds_by_hand(prepared: Path) -> None:
    found = make_plan(open_run(str(prepared)), 2)
    teacher, student = found.stages
    place = Place(2, 1, Device(1e9, "x"), here=True)
    times = Times(place, {"student": student.flops_per_step / plan_time.EFFICIENCY}, {}, bandwidth=1e6)
    assert times.seconds(teacher) is None and times.tokens_per_second(teacher) is None
    assert times.seconds(student) == pytest.approx(0.5 + wire_bytes(student, 2) / 1e6)
    assert times.seconds(student, 4) == pytest.approx(0.25 + wire_bytes(student, 4) / 1e6)
    step = (Taken(3.0, 3.0, 0.0),)
    times = replace(times, probed={"student": Probed(2, round(student.tokens_per_step / 2), step, ())})
    assert times.seconds(student) == pytest.approx(3.0, rel=0.05)  # the ranks' own network is in it
    assert times.seconds(student, 4) == pytest.approx(1.5 + wire_bytes(student, 4) / 1e6, rel=0.05)
    shown = plan_time.time_table(found, times)
    assert shown is not None and list(map(str, shown.columns[0].cells)) == ["student", "all"]
    hours = [float(cell) for cell in shown.columns[5].cells]
    assert hours == pytest.approx([2 * 3.0 * 2 / 3600] * 2, rel=0.05)  # two steps on two devices


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1000, "1 k"), (1234567, "1.23 M"), (2.5e10, "25 G"), (3e18, "3 E")]
)
def test_amount(number: float, text: str) -> None:
    assert units.amount(number) == text

"""What is refused before anything is loaded, and what is said of references afterwards."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from configs.errors import ConfigError, DataError
from configs.loader import validate
from distill_core.config import RunConfig
from distill_core.model_card import model_card
from distill_core.outcome import read_outcome
from distill_core.preflight import check
from distill_core.references.config import ReferencesConfig
from distill_core.references.weights import save_extra, split_state, with_references
from distill_core.report_facts import chain_tables
from tests.distill_core.finished import Finished
from tests.distill_core.references.helpers import student

MODEL = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
TRAINING = {"steps": 2, "global_batch_size": 4, "micro_batch_tokens": 512}


def run(tmp_path: Any, second: dict[str, Any] | None = None, **first: Any) -> RunConfig:
    def distilled(name: str, teacher: str, references: dict[str, Any], student: dict[str, Any]) -> dict[str, Any]:
        objective = [{"kind": "kd_ce"}]
        parts = {"teacher": teacher, "student": student, "objective": objective, "training": TRAINING}
        return {"name": name, "kind": "distill", "references": references, **parts}

    model = {**MODEL, "hidden_size": 16, **first.pop("model", {})}
    stages: list[dict[str, Any]] = [
        {"name": name, "kind": "pretrain", "model": {**MODEL, "hidden_size": width}, "training": TRAINING}
        for name, width in (("teacher", 32), ("wide", 64))
    ]
    stages.append(distilled("one", "teacher", first, {"model": model}))
    if second is not None:
        init = {"init": {"kind": "model", "source": "one"}}
        stages.append(distilled("two", second.pop("teacher", "teacher"), second, init))
    data = {"sources": [{"path": "builtin:sample"}], "tokenizer": {"vocab_size": 600}, "sequences": {"max_length": 48}}
    return validate({"name": "x", "output": str(tmp_path), "data": data, "stages": stages}, RunConfig)


def test_what_fits_passes(tmp_path: Any) -> None:
    check(run(tmp_path, {"store": "int8", "max_tokens": 8}), world_size=1)


@pytest.mark.parametrize(
    ("second", "first", "message"),
    [
        (None, {"max_tokens": 65}, "has 64 positions"),
        ({"variant": "C"}, {"variant": "A"}, "variant A and gate False; here they have C"),
        ({"gate": True}, {}, "Give both stages the same"),
        ({"teacher": "wide"}, {}, "hidden_size 32; the teacher here has 64"),
        (
            None,
            {"model": {"family": "mobilebert", "embedding_size": 16, "bottleneck": {"intra_size": 8}}},
            "bottleneck",
        ),
    ],
)
def test_what_does_not_fit_is_refused_early(
    second: dict[str, Any] | None, first: dict[str, Any], message: str, tmp_path: Any
) -> None:
    with pytest.raises(ConfigError, match=message):
        check(run(tmp_path, second, **first), world_size=1)


def test_a_gate_needs_two_sides() -> None:
    with pytest.raises(ValidationError, match="variant B has none"):
        ReferencesConfig(variant="B", gate=True)


def test_weights_of_another_variant_or_width_are_not_taken_along(tmp_path: Any) -> None:
    _, model = student({"variant": "C"})
    save_extra(model, split_state(model.state_dict())[1], tmp_path)
    plain, _ = student(seed=1)
    width = model.teacher_width
    again = with_references(plain, ReferencesConfig(variant="C"), width, str(tmp_path), "stage 'x'")
    assert (again.references.dense.weight == model.references.dense.weight).all()
    for settings, wide in ((ReferencesConfig(variant="A"), width), (ReferencesConfig(variant="C"), width + 1)):
        with pytest.raises(DataError, match=r"stage 'x'.*reads references otherwise"):
            with_references(plain, settings, wide, str(tmp_path), "stage 'x'")


def test_card_report_and_size_count_the_store(finished: Finished) -> None:
    before = read_outcome(finished.config, finished.folder)
    assert before.models[-1].bytes_on_disk is not None
    path = finished.config.stage_folder(1) / "DONE.json"
    facts = {"variant": "A", "gate": True, "texts": 1234, "matched": {"train": 1.0, "held_out": 0.5}}
    facts |= {"store_bytes": 2_000_000, "index_bytes": 500_000, "bytes": 2_600_000}
    facts["milliseconds"] = {"plain": 1.25, "retrieval": 0.5, "with_references": 1.5}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"references": facts}))
    outcome = read_outcome(finished.config, finished.folder)
    assert outcome.models[-1].bytes_on_disk == before.models[-1].bytes_on_disk + 2_600_000
    card = str(model_card(outcome, outcome.stages[1]))
    assert "## References" in card and "1,234 texts" in " ".join(card.split()) and "2.6 MB" in card
    assert "## References" not in str(model_card(before, before.stages[1]))
    table = list(chain_tables(outcome))[-1]
    assert table.rows == [
        ["student", "A with a gate", "1,234", "2.0 MB", "0.5 MB", "50.0%", "1.25 ms", "0.50 ms", "1.50 ms"]
    ]

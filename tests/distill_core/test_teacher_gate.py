"""A whole run whose teachers' masked-LM heads are random: each setting of ``head_check`` does what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from configs.loader import to_yaml, validate
from data_prep.corpus import Corpus
from distill_core.config import RunConfig
from tests.distill_core.teachers import save_teacher
from tests.ranks import start

PROGRAM = Path(__file__).with_name("run_program.py")
SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 48}
TRAINING = {"steps": 1, "global_batch_size": 8, "micro_batch_tokens": 512, "precision": "fp32", "evaluate_sequences": 8}
pytestmark = [pytest.mark.ranks, pytest.mark.timeout(600)]


def distilled(name: str, teacher: Any, *losses: dict[str, Any]) -> dict[str, Any]:
    student = {"model": SHAPE}
    return {"name": name, "kind": "distill", "teacher": teacher, "student": student, "objective": list(losses)}


def test_what_becomes_of_a_teacher_with_a_random_head(tiny_corpus: Corpus, tmp_path: Path) -> None:
    save_teacher(tiny_corpus, tmp_path / "given")
    given, logits = str(tmp_path / "given"), {"kind": "kd_ce"}
    stages = [
        {"name": "own", "kind": "pretrain", "model": SHAPE},  # one step teaches a head nothing
        distilled("by-own", "own", logits),
        distilled("warned", {"source": given, "head_check": "warn"}, logits),
        distilled("off", {"source": given, "head_check": "off"}, logits),
        distilled("without-logits", given, {"kind": "hidden_mse", "layers": "last"}),
        distilled("refused", given, logits),
        distilled("never-reached", given, logits),
    ]
    tree = {
        "name": "run",
        "output": str(tmp_path),
        "data": {**tiny_corpus.manifest["identity"], "folder": str(tiny_corpus.folder)},
        "stages": [stage | {"training": TRAINING} for stage in stages],
    }
    config = validate(tree, RunConfig)
    (config.folder / "logs").mkdir(parents=True)
    (config.folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    (output,) = start(PROGRAM, 1, str(config.folder), status=65)

    lines = [line for line in output.splitlines() if "does not predict better than chance" in line]
    warned = [line.removeprefix("warning: ").split(":")[0] for line in lines if line.startswith("warning: ")]
    assert warned == ["Stage 'by-own'", "Stage 'warned'"]
    assert "the teacher own" in lines[0] and f"the teacher {given}" in lines[1]
    done = [stage.name for i, stage in enumerate(config.stages) if (config.stage_folder(i) / "DONE.json").is_file()]
    assert done == ["own", "by-own", "warned", "off", "without-logits"]
    failure = json.loads((config.folder / "logs" / "rank-0.error.json").read_text(encoding="utf-8"))
    assert (failure["stage"], failure["exit_code"], failure["kind"]) == ("refused", 65, "DataError")
    assert failure["message"].startswith("Stage 'refused': The masked-LM head of the teacher")
    assert "head_check: warn" in failure["message"]
    assert not (config.stage_folder(5) / "metrics.jsonl").exists()  # not a step was taken

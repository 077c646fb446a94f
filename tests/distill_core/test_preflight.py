from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.errors import ConfigError, DataError, OutputError, ZhengliuError
from configs.loader import validate
from data_prep.corpus import Corpus
from distill_core.config import RunConfig
from distill_core.models import pretrained
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.preflight import check
from launcher.plan import make_plan

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 48}


@pytest.fixture
def teacher(tiny_corpus: Corpus, tmp_path: Path) -> Path:
    """A Hugging Face folder with the corpus's vocabulary."""
    shape = EncoderConfig.model_validate({**SHAPE, "intermediate_size": 32, "vocab_size": tiny_corpus.vocab_size})
    pretrained.save(Encoder(shape).state_dict(), shape, tiny_corpus.tokenizer_folder, tmp_path / "teacher")
    return tmp_path / "teacher"


def run_config(tmp_path: Path, teacher: Path, vocab: str | None, **changes: Any) -> RunConfig:
    stage: dict[str, Any] = {
        "name": "student",
        "kind": "distill",
        "teacher": str(teacher),
        "student": {"model": {**SHAPE, "hidden_size": 8}},
        "objective": [{"kind": "kd_ce"}, {"kind": "hidden_mse", "layers": [[0, 0], [2, 2]]}],
        "training": {"steps": 2, "global_batch_size": 6, "micro_batch_tokens": 64},
    }
    stage.update(changes)
    data = {"sources": [{"path": "builtin:sample"}], "sequences": {"max_length": 48}, "tokenizer": {"vocab": vocab}}
    return validate({"name": "r", "output": str(tmp_path / "runs"), "data": data, "stages": [stage]}, RunConfig)


def refused(config: RunConfig, kind: type[ZhengliuError], message: str, world_size: int = 2) -> None:
    with pytest.raises(kind) as error:
        check(config, world_size)
    assert message in str(error.value)


def test_a_fit_run_passes(tmp_path: Path, teacher: Path) -> None:
    check(run_config(tmp_path, teacher, str(teacher / "vocab.txt")), world_size=2)


def test_teachers_that_do_not_fit(tmp_path: Path, teacher: Path) -> None:
    vocab = str(teacher / "vocab.txt")
    refused(run_config(tmp_path, tmp_path / "none", vocab), DataError, "there is no folder")
    refused(run_config(tmp_path, teacher, None), ConfigError, "data.tokenizer.vocab")
    lines = (teacher / "vocab.txt").read_text(encoding="utf-8").splitlines()
    other = tmp_path / "other.txt"
    other.write_text("\n".join([*lines[:-1], "另一个"]) + "\n", encoding="utf-8")
    refused(run_config(tmp_path, teacher, str(other)), ConfigError, "is not data.tokenizer's), and on a corpus")
    other.write_text("\n".join([*lines, "多一个"]) + "\n", encoding="utf-8")
    refused(
        run_config(tmp_path, teacher, str(other)), ConfigError, "by losses that compare whole texts: pkd, task, task_kd"
    )
    (teacher / "model.safetensors").unlink()
    refused(run_config(tmp_path, teacher, vocab), DataError, "holds no weights")


def test_layers_that_do_not_exist(tmp_path: Path, teacher: Path) -> None:
    vocab = str(teacher / "vocab.txt")
    far = [{"kind": "hidden_mse", "layers": [[3, 1]]}]
    refused(run_config(tmp_path, teacher, vocab, objective=far), ConfigError, "teacher layer 3")
    init = {"model": SHAPE, "init": {"kind": "teacher_layers", "layers": [0, 2]}}
    refused(run_config(tmp_path, teacher, vocab, student=init), ConfigError, "teacher layer 2")


@pytest.mark.parametrize(
    ("data", "objective", "message"),
    [
        ({"masks": {"rate": 0}}, [{"kind": "mlm"}], "mlm looks at masked tokens, but data.masks.rate is 0"),
        ({"masks": {"rate": 0}}, [{"kind": "kd_kl"}], "kd_kl looks at masked tokens"),
        (
            {"masks": {"rate": 0}},
            [{"kind": "kd_kl", "positions": "all", "probability_shift": True}],
            "kd_kl with probability_shift exchanges logits at masked tokens, but data.masks.rate is 0",
        ),
        ({}, [{"kind": "sentence_order"}], "sentence_order learns from pairs of texts, but the corpus is made of docu"),
    ],
)
def test_losses_that_the_corpus_has_nothing_for(
    data: dict[str, Any], objective: list[Any], message: str, tmp_path: Path, teacher: Path
) -> None:
    config = run_config(tmp_path, teacher, str(teacher / "vocab.txt"), objective=objective)
    tree = config.model_dump(mode="json")
    tree["data"] |= data
    changed = validate(tree, RunConfig)
    refused(changed, ConfigError, message)
    with pytest.raises(ConfigError, match=message):  # the plan says it, too
        make_plan(changed, 1)


def test_batches_that_cannot_be_cut(tmp_path: Path, teacher: Path) -> None:
    config = run_config(tmp_path, teacher, str(teacher / "vocab.txt"))
    check(config, world_size=3)
    # 6 full sequences of 48 tokens on 4 ranks: one rank gets two of them, more than 64 tokens hold.
    refused(config, ConfigError, "A batch cannot be cut", world_size=4)
    refused(config, ConfigError, "smaller than the 7 ranks", world_size=7)


def test_an_unwritable_run_folder(tmp_path: Path, teacher: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    refused(run_config(tmp_path, teacher, str(teacher / "vocab.txt")), OutputError, "Cannot write")


def test_a_disk_that_is_too_small(tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(tmp_path, teacher, str(teacher / "vocab.txt"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    refused(config, OutputError, "0.00 GB free")


def test_too_few_positions(tmp_path: Path, teacher: Path) -> None:
    short = {"model": {**SHAPE, "max_position_embeddings": 40}}
    config = run_config(tmp_path, teacher, str(teacher / "vocab.txt"), student=short)
    refused(config, ConfigError, "40 positions")


@pytest.mark.parametrize("kind", ["hidden_mse", "attention_probs", "pkd", "nst", "fsp"])
def test_layer_lists_that_compare_nothing_or_the_same_twice(kind: str, tmp_path: Path, teacher: Path) -> None:
    def run(layers: list[Any]) -> RunConfig:
        objective = [{"kind": "mlm"}, {"kind": kind, "layers": layers}]
        return run_config(tmp_path, teacher, str(teacher / "vocab.txt"), objective=objective)

    refused(run([]), ConfigError, f"{kind} has no layers to compare")
    match = [[1, 2], [1, 2]] if kind == "fsp" else [1, 1]
    refused(run([match, [2, 2] if kind != "fsp" else [[1, 2], [0, 2]], match]), ConfigError, "twice; name it once")


def test_entries_that_the_vocabulary_does_not_have(tmp_path: Path, teacher: Path) -> None:
    objective = [{"kind": "kd_kl", "fair_pairs": [["他", "qqqqq"]]}]
    config = run_config(tmp_path, teacher, str(teacher / "vocab.txt"), objective=objective)
    refused(config, ConfigError, "Stage 'student': the vocabulary has no entry 'qqqqq'")

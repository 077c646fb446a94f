from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.errors import ConfigError, DataError
from configs.loader import validate
from data_prep.corpus import Corpus
from distill_core.config import RunConfig, trained
from distill_core.load import check_heads, check_vocabulary, stage_models, stage_teachers, with_token_ids
from distill_core.models import pretrained
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.objective import Distillation, Objective
from distill_core.objectives.logits import KdKlConfig
from distill_core.preflight import check
from distill_core.report_facts import describe_start
from launcher.plan import make_plan
from tests.distill_core.teachers import save_teacher


def shape(vocab_size: int) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=vocab_size, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )


def vocabulary(corpus: Corpus) -> list[str]:
    return (corpus.tokenizer_folder / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")


def teacher(folder: Path, entries: list[str], ending: str = "\n") -> str:
    (folder / "vocab.txt").write_bytes(ending.join([*entries, ""]).encode("utf-8"))
    return str(folder)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_the_same_vocabulary_passes(tiny_corpus: Corpus, tmp_path: Path, ending: str) -> None:
    source = teacher(tmp_path, vocabulary(tiny_corpus), ending)
    check_vocabulary(shape(tiny_corpus.vocab_size), source, tiny_corpus, "stage 's'")


def test_another_vocabulary_is_refused(tiny_corpus: Corpus, tmp_path: Path) -> None:
    entries = vocabulary(tiny_corpus)
    size = len(entries)
    with pytest.raises(DataError, match=rf"has {size + 1} tokens, the prepared corpus {size}"):
        check_vocabulary(shape(size + 1), str(tmp_path), tiny_corpus, "stage 's'")
    swapped = [*entries[:10], entries[11], entries[10], *entries[12:]]
    with pytest.raises(DataError, match=r"2 tokens differ; token 10 is"):
        check_vocabulary(shape(size), teacher(tmp_path, swapped), tiny_corpus, "stage 's'")
    padded = teacher(tmp_path, entries[:-3])  # a model with more rows than its vocabulary has lines
    with pytest.raises(DataError, match=rf"3 tokens differ; token {size - 3} is None there"):
        check_vocabulary(shape(size), padded, tiny_corpus, "stage 's'")


def test_losses_name_entries_of_the_vocabulary(tiny_corpus: Corpus) -> None:
    entries = vocabulary(tiny_corpus)
    pair = (entries[20], 21)
    stage = {
        "name": "s",
        "kind": "distill",
        "teacher": "t",
        "student": {"model": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}},
        "objective": [{"kind": "kd_kl", "fair_pairs": [pair]}],
        "training": {"steps": 1, "global_batch_size": 1},
    }
    tree = {"name": "run", "data": {**tiny_corpus.manifest["identity"]}, "stages": [stage]}
    config = validate(tree, RunConfig)
    found = with_token_ids(trained(config.stages)[0], entries)
    assert isinstance(found[0], KdKlConfig) and found[0].fair_pairs == [(20, 21)]
    stage["objective"] = [{"kind": "kd_kl", "fair_pairs": [("不在", 21)]}]
    config = validate(tree, RunConfig)
    with pytest.raises(ConfigError, match=r"Stage 's': the vocabulary has no entry '不在'"):
        with_token_ids(trained(config.stages)[0], entries)


# ---------------------------------------------------------------- layers of a model that is no teacher

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
SHAPE |= {"max_position_embeddings": 64}


def begun(corpus: Corpus, folder: Path, init: dict[str, Any], kind: str = "pretrain") -> RunConfig:
    """A run whose student begins as ``init`` says; ``other`` in it is a model of two layers in ``folder``."""
    save_teacher(corpus, folder / "other", seed=1)
    save_teacher(corpus, folder / "teacher", seed=2)
    init = {name: str(folder / "other") if value == "other" else value for name, value in init.items()}
    stage: dict[str, Any] = {"name": "s", "kind": kind, "model": SHAPE, "init": init}
    if kind == "distill":
        losses = [{"kind": "hidden_mse", "layers": "last"}]
        student = {"model": SHAPE, "init": init}
        stage = {"name": "s", "kind": kind, "teacher": str(folder / "teacher"), "student": student, "objective": losses}
    stage["training"] = {"steps": 1, "global_batch_size": 8, "micro_batch_tokens": 256}
    data = {"sources": [{"path": "builtin:sample"}], "sequences": {"max_length": 48}}
    data |= {"tokenizer": {"vocab": str(corpus.tokenizer_folder)}}
    return validate({"name": "r", "output": str(folder), "data": data, "stages": [stage]}, RunConfig)


@pytest.mark.parametrize("kind", ["pretrain", "distill"])
@pytest.mark.parametrize("head", [True, False])
def test_layers_of_another_model(tiny_corpus: Corpus, tmp_path: Path, kind: str, head: bool) -> None:
    init = {"kind": "teacher_layers", "layers": "top", "head": head, "source": "other"}
    config = begun(tiny_corpus, tmp_path, init, kind)
    check(config, 1)
    found = stage_models(config, 0, tiny_corpus, [], stage_teachers(config, 0, tiny_corpus, [])).student
    other = pretrained.load(str(tmp_path / "other"), "test").encoder
    assert isinstance(found, Encoder)
    expected = other.bert.encoder.layer[1].state_dict() | other.bert.embeddings.state_dict()
    mine = found.bert.encoder.layer[0].state_dict() | found.bert.embeddings.state_dict()
    assert all(torch.equal(mine[name], expected[name]) for name in mine)
    transform = [model.cls.predictions.transform.dense.weight for model in (found, other)]
    assert torch.equal(*transform) == head
    text = describe_start(trained(config.stages)[0])
    assert text == f"layers of {tmp_path / 'other'}: top (0-based) and embeddings{' and masked-LM head' * head}"
    begins = make_plan(config, 1).stages[0].begins
    assert begins == [f"{tmp_path / 'other'} embeddings", f"{tmp_path / 'other'} layer 2"]


def test_layers_that_cannot_be_taken(tiny_corpus: Corpus, tmp_path: Path) -> None:
    layers = {"kind": "teacher_layers", "layers": "top"}
    with pytest.raises(ConfigError, match=r"\{kind: teacher_layers\} needs a `source` here"):
        begun(tiny_corpus, tmp_path, layers)
    with pytest.raises(ConfigError, match="`source` belongs to kind: model, teacher_layers or svd"):
        begun(tiny_corpus, tmp_path, {"kind": "random", "source": "other"})
    for config in (
        begun(tiny_corpus, tmp_path, layers | {"layers": [2], "source": "other"}),
        begun(tiny_corpus, tmp_path, layers | {"layers": [2], "source": "other"}, "distill"),
    ):
        with pytest.raises(ConfigError, match=r"init\.layers names teacher layer 2"):
            check(config, 1)
    headless = begun(tiny_corpus, tmp_path, layers | {"head": True, "source": "other"})
    weights = tmp_path / "other" / "model.safetensors"
    save_file({name: w for name, w in load_file(weights).items() if not name.startswith("cls.")}, weights)
    with pytest.raises(DataError, match=r"init has head: true, but .*other has no masked-LM head"):
        stage_models(headless, 0, tiny_corpus, [], [])


def test_a_teacher_whose_decoder_is_damaged_is_refused_before_the_first_step(
    tiny_corpus: Corpus, tmp_path: Path
) -> None:
    config = begun(tiny_corpus, tmp_path, {"kind": "random"}, "distill")
    teachers = stage_teachers(config, 0, tiny_corpus, [])
    models = stage_models(config, 0, tiny_corpus, [], teachers)
    objective = Objective([KdKlConfig(kind="kd_kl")], models.student.config, teachers[0].model.config)
    module = Distillation(models.student, [objective])
    check_heads(module, models, "stage 's'")
    assert isinstance(teachers[0].model, Encoder)
    torch.nn.init.constant_(teachers[0].model.cls.predictions.bias[3:4], float("nan"))
    with pytest.raises(DataError, match=r"the masked-LM head of the teacher .* not finite"):
        check_heads(module, models, "stage 's'")

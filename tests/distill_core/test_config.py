from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import yaml

from configs.errors import ConfigError
from configs.loader import PACKAGED, identity, load, to_yaml, validate
from distill_core.config import RunConfig, TrainingConfig
from distill_core.zero import deepspeed_config

TRAINING = {"steps": 5, "global_batch_size": 4, "micro_batch_tokens": 64}
SHAPE = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
RUN: dict[str, Any] = {
    "name": "r",
    "data": {"sources": [{"path": "x.txt"}], "sequences": {"max_length": 32}},
    "stages": [
        {"name": "teacher", "kind": "pretrain", "model": SHAPE, "training": TRAINING},
        {
            "name": "student",
            "kind": "distill",
            "teacher": "teacher",
            "student": {"model": SHAPE},
            "objective": [{"kind": "kd_ce"}],
            "training": TRAINING,
        },
    ],
}


def changed(change: Any) -> dict[str, Any]:
    tree = copy.deepcopy(RUN)
    change(tree)
    return tree


PACKAGED_RUNS = sorted([*PACKAGED.glob("*.yaml"), *PACKAGED.glob("recipes/*.yaml")])


@pytest.mark.parametrize("path", PACKAGED_RUNS, ids=lambda path: path.stem)
def test_packaged_run_files_are_valid_and_round_trip(path: Any) -> None:
    config = load(path, [], RunConfig)
    assert validate(yaml.safe_load(to_yaml(config)), RunConfig) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["stages"][1].update(name="teacher"), "two stages are called 'teacher'"),
        (lambda t: t["stages"][1].update(teacher="student"), "'student' is not an earlier stage"),
        (lambda t: t["data"]["sequences"].update(max_length=65), "a batch cannot be cut"),
        (lambda t: t["stages"][0]["training"].update(zero_stage=0), "take zero_stage: 1"),
        (lambda t: t["stages"][0]["model"].update(num_attention_heads=3), "not divisible by num_attention_heads 3"),
        (lambda t: t["stages"][0].update(model={"preset": "rbt7"}), "no preset 'rbt7'"),
        (lambda t: t["stages"][0].update(model={"hidden_size": 8}), "num_hidden_layers"),
        (lambda t: t["stages"][1]["student"].update(init={"kind": "teacher_layers"}), "`layers` belongs to"),
        (lambda t: t["stages"][1]["objective"].append({"kind": "kd_cee"}), "'kd_cee'"),
        (lambda t: t["stages"][1].update(objective=[]), "at least 1 item"),
        (lambda t: t["stages"][1].update(objective=[{"kind": "mlm", "weight": 0}]), "every loss has the weight 0"),
        (lambda t: t["stages"][1]["objective"][0].update(weight=math.nan), "finite number"),
        (lambda t: t["stages"][0]["training"].update(optimizer={"learning_rate": math.inf}), "finite number"),
        (lambda t: t.update(name="a/b"), "pattern"),
        (lambda t: t.update(evaluation={"sentences": ["no mask"]}), "exactly one [MASK]"),
    ],
)
def test_what_cannot_work_is_refused(change: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(changed(change), RunConfig)
    assert message.lower() in str(error.value).lower()


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"zero_optimisation": {}}, "did you mean 'zero_optimization'"),
        ({"gradient_clipping": 2.0}, "set from the typed keys"),
        ({"zero_optimization": {"stage": 2}}, "training.zero_stage"),
    ],
)
def test_deepspeed_block_is_checked(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate({**TRAINING, "deepspeed": block}, TrainingConfig)


def test_deepspeed_json_is_generated() -> None:
    block = {"zero_optimization": {"reduce_bucket_size": 7}, "wall_clock_breakdown": True}
    training = validate({**TRAINING, "zero_stage": 2, "deepspeed": block}, TrainingConfig)
    made = deepspeed_config(training)
    assert made["zero_optimization"] == {
        "stage": 2,
        "reduce_bucket_size": 7,
        "use_multi_rank_bucket_allreduce": False,
    }
    assert made["wall_clock_breakdown"] is True
    assert made["gradient_clipping"] == 1.0
    assert made["bf16"]["enabled"] is True and made["data_types"] == {"grad_accum_dtype": "fp32"}
    plain = deepspeed_config(validate({**TRAINING, "precision": "fp32"}, TrainingConfig))
    assert plain["bf16"]["enabled"] is False and "data_types" not in plain
    half = deepspeed_config(validate({**TRAINING, "precision": "fp16", "offload": "optimizer"}, TrainingConfig))
    assert half["fp16"]["enabled"] is True and half["fp16"]["loss_scale"] == 0
    assert half["data_types"] == {"grad_accum_dtype": "fp32"}
    assert half["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert "offload_param" not in half["zero_optimization"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"offload": "parameters", "zero_stage": 2}, "needs zero_stage: 3"),
        ({"offload": "optimizer", "zero_stage": 0, "precision": "fp32"}, "needs zero_stage 1, 2 or 3"),
        ({"compile": "default", "zero_stage": 3}, "not offered with zero_stage: 3"),
        ({"precision": "fp16", "zero_stage": 0}, "with 16-bit precision is not offered"),
    ],
)
def test_stages_of_zero_that_cannot_do_it_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate({**TRAINING, **fields}, TrainingConfig)


def test_identity_leaves_runtime_fields_out() -> None:
    stage = validate(RUN, RunConfig).stages[1]
    training = identity(stage)["training"]
    assert "global_batch_size" in training and "precision" in training and "optimizer" in training
    for name in ("steps", "micro_batch_tokens", "checkpoint_every", "keep_last", "log_every", "zero_stage"):
        assert name not in training


def without_corpus(*stages: dict[str, Any], vocab: str | None = "vocab.txt", **fields: Any) -> dict[str, Any]:
    tasks = {"t": {"kind": "classification", "train": "a.jsonl", "dev": "b.jsonl", "max_length": 32}}
    return {"name": "r", "data": {"tokenizer": {"vocab": vocab}}, "tasks": tasks, "stages": list(stages), **fields}


TUNED = {"name": "tuned", "kind": "finetune", "model": "m", "task": "t", "training": TRAINING}
TAUGHT = RUN["stages"][1] | {"teacher": "tuned", "task": "t", "objective": [{"kind": "task_kd"}]}


def test_a_run_on_labelled_rows_needs_no_sources() -> None:
    rows = {"name": "rows", "kind": "augment", "model": "m", "task": "t"}
    config = validate(without_corpus(TUNED, rows, TAUGHT), RunConfig)
    assert config.data.sources == [] and validate(yaml.safe_load(to_yaml(config)), RunConfig) == config


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (without_corpus(TUNED, RUN["stages"][0]), "stage 'teacher' (kind pretrain) learns from the corpus"),
        (
            without_corpus(TUNED, TAUGHT | {"task": None, "objective": [{"kind": "kd_ce"}]}),
            "stage 'student' (kind distill) learns from the corpus, but data.sources names no text; add data.sources, "
            "or give the stage a `task`",
        ),
        (without_corpus(TUNED, vocab=None), "no text to train a vocabulary on; give `tokenizer.vocab`"),
        (
            without_corpus(TUNED, evaluation={"pseudo_perplexity": {"sequences": 2}}),
            "pseudo_perplexity is measured on held-out text",
        ),
    ],
)
def test_what_needs_text_is_named_where_there_is_none(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(tree, RunConfig)
    assert message.lower() in str(error.value).lower()

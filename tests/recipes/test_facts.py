"""Every recipe as it stands, at its full size: what papers, code and cards say of it, and a plan without network."""

from __future__ import annotations

import io
import socket
from typing import Any

import pytest
import yaml
from rich.console import Console

from configs.loader import PACKAGED, differences, identity, load, read_tree
from distill_core.config import RunConfig
from launcher import plan
from launcher.plan import Plan, make_plan
from launcher.plan_view import Wanted, show
from launcher.simulation import Peak

RECIPES = sorted(path.stem for path in (PACKAGED / "recipes").glob("*.yaml"))


def raw(recipe: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((PACKAGED / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8"))
    return found


def modes(recipe: str) -> list[str | None]:
    return list(raw(recipe).get("modes", {})) or [None]


CASES = [(recipe, mode) for recipe in RECIPES for mode in modes(recipe)]
every_case = pytest.mark.parametrize(("recipe", "mode"), CASES, ids=[f"{r}-{m}" if m else r for r, m in CASES])


def read(recipe: str, mode: str | None, *words: str) -> RunConfig:
    chosen = [] if mode is None else [f"mode={mode}"]
    if "sources" in read_tree(f"recipes/{recipe}")[0]["data"]:  # pkd reads labelled rows alone
        chosen.append("data.sources.0.path=builtin:sample")
    return load(f"recipes/{recipe}", [*chosen, *words], RunConfig)


# ---------------------------------------------------------------- the plan


@every_case
def test_a_plan_needs_no_network(recipe: str, mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError(f"a connection to {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    if recipe != "minirbt-h256":  # to simulate a step at full size takes seconds, and losses are met elsewhere
        monkeypatch.setattr(plan, "simulate", lambda work: Peak(1.0, 1.0, True))
    config, out = read(recipe, mode), io.StringIO()
    show(config, Wanted(probe=False), console=Console(file=out, width=100))
    for stage in config.stages:
        assert stage.name in out.getvalue()
        for loss in getattr(stage, "objective", []):
            assert loss.kind in out.getvalue()


# ---------------------------------------------------------------- settings

ADAM = {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01, "gradient_clipping": 1.0, "decay": "linear"}
DISTILBERT_ADAM = {"betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.0, "gradient_clipping": 5.0, "warmup": 0.05}
ROBBERTJE_ADAM = {"learning_rate": 2e-5, "eps": 1e-8, "weight_decay": 0.0, "warmup": 0.0, "decay": "linear"}
MINIRBT_ADAM = ADAM | {"learning_rate": 4e-4, "warmup": 0.1, "bias_correction": False, "decay_projections": False}
TINYBERT_ADAM = ADAM | {"learning_rate": 5e-5, "bias_correction": False}
MINIRBT: dict[str, Any] = {
    "seed": 1337,
    "data.sequences.max_length": 512,
    "data.masks": {"rate": 0.15, "mask": 0.8, "random": 0.1, "unit": "word"},
}
ASSISTANT = {
    "stages.0.student.init": {
        "kind": "teacher_layers",
        "layers": [0, 2, 4, 7, 9, 11],
        "embeddings": True,
        "head": False,
    }
}


def minirbt(*stages: str) -> dict[str, Any]:
    found = dict(MINIRBT)
    for number, name in enumerate(stages):
        optimizer = {k: v for k, v in MINIRBT_ADAM.items() if name != "rbt6" or k != "decay_projections"}
        found |= {
            f"stages.{number}": {"name": name, "kind": "distill", "task": None},
            f"stages.{number}.training": {"steps": 100_000, "global_batch_size": 4096},
            f"stages.{number}.training.optimizer": optimizer,
            f"stages.{number}.student.model.attention_probs_dropout_prob": 0.1,
        }
        if name != "rbt6":
            found[f"stages.{number}.student.init.kind"] = "random"
    return found | (ASSISTANT if stages[0] == "rbt6" else {})


TINYBERT: dict[str, Any] = {
    "data.sequences": {
        "kind": "pairs",
        "pair_order": "next",
        "max_length": 128,
        "copies": 3,
        "short_sequence_probability": 0.1,
    },
    "data.masks.rate": 0.0,
    "stages.0.training": {"epochs": 1, "global_batch_size": 256},
    "stages.0.training.optimizer": TINYBERT_ADAM | {"warmup": 0.1},
    "stages.0.student": {"init": {"kind": "random"}},
    "stages.0.student.model.attention_probs_dropout_prob": 0.1,
    "stages.2.augment": {"copies": 20, "candidates": 15, "probability": 0.4},
    "stages.3.training": {"epochs": 10, "global_batch_size": 32},
    "stages.3.training.optimizer": TINYBERT_ADAM | {"warmup": 0.0, "decay": "none"},
    "stages.4.training": {"epochs": 3, "global_batch_size": 32, "select": "best"},
    "stages.4.training.optimizer": TINYBERT_ADAM | {"learning_rate": 3e-5, "warmup": 0.1},
}
DROPOUT: dict[str, Any] = {"stages.0.student.model.attention_probs_dropout_prob": 0.1}
DISTILBERT: dict[str, Any] = DROPOUT | {
    "data.masks": {"mode": "dynamic", "unit": "token", "smoothing": 0.7, "rate": 0.15},
    "stages.0.student.init": {"kind": "teacher_layers", "layers": "distilbert", "head": True},
    "stages.0.training": {"epochs": 3, "global_batch_size": 4000},
    "stages.0.training.optimizer": DISTILBERT_ADAM | {"learning_rate": 5e-4},
}


def robbertje(kind: str, order: str) -> dict[str, Any]:
    return DROPOUT | {
        "data.clean": {"unit": "line", "min_unit_characters": 11},
        "data.sequences": {"kind": kind, "max_length": 512},
        "data.masks": {"mode": "dynamic", "unit": "token", "rate": 0.15},
        "stages.0.student.init.kind": "random",
        "stages.0.training": {"epochs": 3, "order": order},
        "stages.0.training.optimizer": ROBBERTJE_ADAM,
    }


def relations(rate: float, number: int = 400_000) -> dict[str, Any]:
    return DROPOUT | {
        "data.sequences.max_length": 512,
        "stages.0.training": {"steps": number, "global_batch_size": 1024},
        "stages.0.training.optimizer": {"learning_rate": rate, "weight_decay": 0.01, "warmup": 4000 / number},
    }


FACTS: dict[tuple[str, str | None], dict[str, Any]] = {
    ("minirbt-h256", "faithful"): minirbt("rbt6", "h256"),
    ("minirbt-h288", "faithful"): minirbt("rbt6", "h288"),
    ("minirbt-h256-h288", "faithful"): minirbt("rbt6", "h256", "h288"),
    ("minirbt-h256-one-stage", "faithful"): minirbt("h256"),
    ("minirbt-rbt4-h312", "faithful"): minirbt("h312"),
    ("tinybert-4", "faithful"): TINYBERT,
    ("tinybert-6", "faithful"): TINYBERT,
    ("tinybert-4-zh", "faithful"): TINYBERT,
    ("distilbert", "faithful"): DISTILBERT,
    ("distilroberta", "faithful"): DISTILBERT,
    ("robbertje-nonshuffled", "faithful"): robbertje("lines", "corpus"),
    ("robbertje-shuffled", "faithful"): robbertje("lines", "shuffled"),
    ("robbertje-merged", "faithful"): robbertje("merged", "corpus") | {"data.sequences.merge_probability": 0.5},
    ("robbertje-bort", "faithful"): robbertje("lines", "shuffled"),
    ("bort", "faithful"): DROPOUT
    | {
        "data.sequences.max_length": 512,
        "data.masks": {"rate": 0.15, "max_masked": 80, "unit": "token"},
        "stages.0.training.steps": 2_000_000,
        "stages.0.training.optimizer": ADAM | {"learning_rate": 1e-4, "warmup": 0.01, "bias_correction": False},
    },
    ("minilm-6x384", "faithful"): relations(5e-4),
    ("minilm-12x384", "faithful"): relations(5e-4),
    ("minilmv2-6x384", "faithful"): relations(6e-4),
    ("minilmv2-h256", "faithful"): relations(6e-4),
    ("mobilebert-zh", "faithful"): DROPOUT
    | {
        "stages.0.student.model.preset": "mobilebert",
        "stages.0.progressive": {"steps_per_layer": 10_000, "lower_layers": "freeze"},  # 240,000 for 24 layers
        "stages.0.training": {"steps": 740_000, "global_batch_size": 2048},
    },
    ("pkd", "faithful"): {  # its code's example: alpha 0.7, T 10, beta 500 with a mean over layers and widths
        "stages.0.training.optimizer": ADAM | {"learning_rate": 2e-5, "warmup": 0.1, "bias_correction": False},
        "stages.1.student.init": {
            "kind": "teacher_layers",
            "layers": "bottom",
            "source": "google-bert/bert-base-uncased",
        },
        "stages.1.student.model.attention_probs_dropout_prob": 0.1,
        "stages.1.objective.0.weight": 1 - 0.7,
        "stages.1.objective.1": {"weight": 0.7, "temperature": 10, "temperature_squared": True, "per_label": True},
        "stages.1.objective.2.weight": 500 / (5 * 768),
        "stages.1.training": {"epochs": 4, "global_batch_size": 32},
        "stages.1.training.optimizer": ADAM | {"learning_rate": 1e-5, "warmup": 0.1, "bias_correction": False},
    },
    ("rbt3", "faithful"): {
        "data.sequences.max_length": 512,
        "data.masks": {"rate": 0.15, "mode": "dynamic", "unit": "word"},
        "stages.0.model.attention_probs_dropout_prob": 0.1,
        "stages.0.init": {
            "kind": "teacher_layers",
            "layers": "bottom",
            "head": True,
            "source": "hfl/chinese-roberta-wwm-ext",
        },
        "stages.0.training": {"steps": 1_000_000, "global_batch_size": 384},
    },
    ("refbert-4-zh", None): {
        "stages.0.references": {"variant": "A", "gate": False},
        "stages.2.references": {"variant": "A", "gate": False},
        "stages.3.references": {"variant": "A", "gate": False},
    },
}


def at(config: Any, path: str) -> Any:
    for key in path.split("."):
        config = config[int(key)] if key.isdigit() else getattr(config, key)
    return config


def differing(found: Any, wanted: Any, path: str) -> list[str]:
    if isinstance(wanted, dict):
        return [
            line for key, value in wanted.items() for line in differing(getattr(found, key), value, f"{path}.{key}")
        ]
    same = found == (pytest.approx(wanted) if isinstance(wanted, float) else wanted)
    return [] if same else [f"{path}: {found!r}, but the source has {wanted!r}"]


@pytest.mark.parametrize(("recipe", "mode"), FACTS, ids=[recipe for recipe, _ in FACTS])
def test_settings_are_those_of_the_source(recipe: str, mode: str | None) -> None:
    config = read(recipe, mode)
    assert not [
        line for path, value in FACTS[recipe, mode].items() for line in differing(at(config, path), value, path)
    ]


def test_every_recipe_has_facts() -> None:
    assert {recipe for recipe, _ in FACTS} == set(RECIPES)
    assert all(mode == ("faithful" if "faithful" in modes(recipe) else None) for recipe, mode in FACTS)


@pytest.mark.parametrize("recipe", RECIPES)
def test_modes_are_fixed_and_faithful_and_differ(recipe: str) -> None:
    """But for RefBERT, whose published settings are not known."""
    assert modes(recipe) == ([None] if recipe.startswith("refbert") else ["fixed", "faithful"])
    trees = [identity(read(recipe, mode)) for mode in modes(recipe)]
    assert len(trees) == 1 or differences(*trees)


# ---------------------------------------------------------------- shapes, layers and projections

EVEN = [(0, 0), (2, 1), (4, 2), (6, 3), (8, 4), (10, 5), (12, 6)]
SAME = [(i, i) for i in range(7)]
QUARTER = [(0, 0), (3, 1), (6, 2), (9, 3), (12, 4)]
LAST = [(12, 6)]
# recipe -> stage -> (teacher's and student's parameters in millions as cards count, or None; layer pairs by loss;
# parameters of all projections).
SHAPES: dict[str, dict[str, tuple[float | None, float, dict[str, Any], int]]] = {
    "minirbt-h256": {
        "rbt6": (102.27, 59.74, {"kd_ce": [], "hidden_mse": EVEN}, 0),
        "h256": (59.74, 10.35, {"kd_ce": [], "hidden_mse": SAME}, 7 * 197_376),
    },
    "minirbt-h288": {
        "rbt6": (102.27, 59.74, {"kd_ce": [], "hidden_mse": EVEN}, 0),
        "h288": (59.74, 12.31, {"kd_ce": [], "hidden_mse": SAME}, 7 * (288 * 768 + 768)),
    },
    "minirbt-h256-h288": {
        "rbt6": (102.27, 59.74, {"kd_ce": [], "hidden_mse": EVEN}, 0),
        "h256": (59.74, 10.35, {"kd_ce": [], "hidden_mse": SAME}, 7 * 197_376),
        "h288": (59.74, 12.31, {"kd_ce": [], "hidden_mse": SAME}, 7 * (288 * 768 + 768)),
    },
    "minirbt-h256-one-stage": {"h256": (102.27, 10.35, {"kd_ce": [], "hidden_mse": EVEN}, 7 * 197_376)},
    "minirbt-rbt4-h312": {"h312": (102.27, 11.42, {"kd_ce": [], "hidden_mse": QUARTER}, 5 * (312 * 768 + 768))},
    # 14.35 M and the one shared fit layer of 0.24 M: 14.59 M.
    "tinybert-4": {
        "general": (109.48, 14.35, {"attention_scores": QUARTER[1:], "hidden_mse": QUARTER}, 240_384),
        "intermediate": (109.48, 14.35, {"attention_scores": QUARTER[1:], "hidden_mse": QUARTER}, 240_384),
        "prediction": (109.48, 14.35, {"task_kd": []}, 0),
    },
    "tinybert-4-zh": {
        "general": (102.27, 11.42, {"attention_scores": QUARTER[1:], "hidden_mse": QUARTER}, 240_384),
        "prediction": (102.27, 11.42, {"task_kd": []}, 0),
    },
    "tinybert-6": {
        "general": (109.48, 66.96, {"attention_scores": EVEN[1:], "hidden_mse": EVEN}, 768 * 768 + 768),
        "prediction": (109.48, 66.96, {"task_kd": []}, 0),
    },
    "refbert-4-zh": {
        "general": (102.27, 11.42, {"attention_scores": QUARTER[1:], "hidden_mse": QUARTER}, 240_384),
        "prediction": (102.27, 11.42, {"task_kd": []}, 0),
    },
    "distilbert": {"student": (109.48, 66.36, {"kd_kl": [], "mlm": [], "hidden_cosine": LAST}, 0)},
    "distilroberta": {"student": (124.65, 82.12, {"kd_kl": [], "mlm": [], "hidden_cosine": LAST}, 0)},
    **{
        f"robbertje-{corpus}": {"student": (116.75, 74.22, {"kd_kl": [], "mlm": [], "hidden_cosine": LAST}, 0)}
        for corpus in ("nonshuffled", "shuffled", "merged")
    },
    "robbertje-bort": {"student": (116.75, 45.88, {"kd_kl": [], "mlm": [], "hidden_cosine": [(12, 4)]}, 0)},
    "bort": {"bort": (355.36, 76.16, {"mlm": [], "kd_kl": []}, 0)},
    "rbt3": {"rbt3": (None, 38.48, {"mlm": []}, 0)},
    "minilm-6x384": {"student": (109.48, 22.71, {"minilm": LAST}, 0)},
    "minilm-12x384": {"student": (109.48, 33.36, {"minilm": [(12, 12)]}, 0)},
    "minilmv2-6x384": {"student": (109.48, 22.71, {"minilmv2": LAST}, 0)},
    "minilmv2-h256": {"h256": (102.27, 10.35, {"minilmv2": LAST}, 0)},
    "pkd": {
        "student": (
            109.48,
            66.96,
            {"task": [], "task_kd": [], "pkd": [(2, 1), (4, 2), (6, 3), (8, 4), (10, 5)]},
            0,
        )
    },
    "mobilebert-zh": {
        "student": (
            325.52,
            23.64,
            {
                "hidden_mse": [(i, i) for i in range(25)],
                "attention_ce": [(i, i) for i in range(1, 25)],
                "mlm": [],
            },
            25 * (512 * 1024 + 1024),
        )
    },
}


def test_every_recipe_has_shapes() -> None:
    assert SHAPES.keys() == set(RECIPES)


@pytest.mark.parametrize("recipe", SHAPES)
def test_shapes_layers_and_projections(recipe: str) -> None:
    mode = "faithful" if "faithful" in modes(recipe) else None
    # The corpus's vocabulary is the teacher's in any real run; a plan without it takes the teacher's published size.
    plan: Plan = make_plan(read(recipe, mode, "data.tokenizer.vocab=/no/vocabulary"), 1)
    stages = {stage.name: stage for stage in plan.stages}
    for name, (teacher, student, pairs, projections) in SHAPES[recipe].items():
        stage = stages[name]
        shapes = (stage.teacher, stage.student)
        counts = [None if shape is None else round(shape.published_parameters() / 1e6, 2) for shape in shapes]
        assert counts == [teacher, student], name
        assert {loss.label: loss.pairs for loss in stage.losses} == pairs, name
        assert stage.projections == projections, name

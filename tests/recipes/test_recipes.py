"""Every recipe, made tiny, from raw text to an exported student through the command and the real engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from transformers import AutoConfig, AutoModel, AutoTokenizer

from configs.loader import PACKAGED, read_tree
from data_prep.config import DataConfig
from data_prep.pipeline import prepare
from data_prep.sentences import sentences
from tests.data_prep.latin import TEXTS
from tests.recipes.shrink import TINY, shrunken

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPES = sorted(path.stem for path in (PACKAGED / "recipes").glob("*.yaml"))
pytestmark = [pytest.mark.recipes, pytest.mark.timeout(600)]


def modes(recipe: str) -> list[str | None]:
    raw: dict[str, Any] = yaml.safe_load((PACKAGED / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8"))
    return list(raw.get("modes", {})) or [None]


CASES = [(recipe, mode) for recipe in RECIPES for mode in modes(recipe)]


def sample_lines() -> list[str]:
    files = sorted((ROOT / "data_prep" / "sample_corpus").glob("*.txt"))
    return [line for path in files for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """language -> raw text, one document a paragraph."""
    folder = tmp_path_factory.mktemp("texts")
    files = {"zh": folder / "zh.txt", "latin": folder / "latin.txt"}
    files["zh"].write_text("\n\n".join(sample_lines()[:300]), encoding="utf-8")
    documents = ["\n".join(f"{a} {number}." for a in TEXTS[i : i + 3]) for number in range(6) for i in range(0, 40, 3)]
    files["latin"].write_text("\n\n".join(documents), encoding="utf-8")
    return files


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory, texts: dict[str, Path]) -> dict[str, Path]:
    """kind of tokenizer -> a prepared corpus whose trained tokenizer the recipes take as given."""
    made = {}
    for kind, language, size in (("wordpiece", "zh", 600), ("bpe", "latin", 500)):
        folder = tmp_path_factory.mktemp(kind)
        data = {
            "sources": [{"path": str(texts[language])}],
            "tokenizer": {"kind": kind, "vocab_size": size},
            "sequences": {"max_length": 48},
            "masks": {"views": 1},
            "held_out": 0.05,
            "workers": 1,
        }
        prepare(DataConfig.model_validate(data), folder / "data")
        made[kind] = folder / "data"
    return made


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A task: does the sentence hold 的."""
    folder = tmp_path_factory.mktemp("rows")
    found = [s for line in sample_lines() for s in sentences(line) if 8 <= len(s) <= 40]
    for name, part in (("train", found[:80]), ("dev", found[80:110])):
        lines = [json.dumps({"text_a": s, "label": "yes" if "的" in s else "no"}, ensure_ascii=False) for s in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return {name: folder / f"{name}.jsonl" for name in ("train", "dev")}


@pytest.mark.parametrize(("recipe", "mode"), CASES, ids=[f"{r}-{m}" if m else r for r, m in CASES])
def test_recipe(
    recipe: str,
    mode: str | None,
    texts: dict[str, Path],
    corpora: dict[str, Path],
    rows: dict[str, Path],
    tmp_path: Path,
) -> None:
    kind = read_tree(f"recipes/{recipe}")[0]["data"]["tokenizer"]["kind"]
    text = texts["latin" if kind == "bpe" else "zh"]
    tree = shrunken(f"recipes/{recipe}", mode, corpora[kind], text, rows, tmp_path)
    tree |= {"output": str(tmp_path / "runs"), "launch": {"processes": 1}}
    run_file = tmp_path / "run.yaml"
    run_file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    command = [sys.executable, "-m", "launcher.cli", "run", str(run_file)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    folder = tmp_path / "runs" / tree["name"]
    for number, stage in enumerate(tree["stages"], 1):
        if stage["kind"] != "augment":
            loss_falls(folder / "stages" / f"{number:02d}-{stage['name']}", stage)
    loads(folder / "export" / tree["stages"][-1]["name"])


def loss_falls(folder: Path, stage: dict[str, Any]) -> None:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [row["loss/total"] for row in map(json.loads, lines) if "loss/total" in row]
    assert len(losses) == stage["training"]["steps"]
    together = losses[-TINY.steps :]  # without the steps in which layers come one after another
    first, last = sum(together[:3]) / 3, sum(together[-3:]) / 3
    assert last < first, (stage["name"], losses)


def loads(folder: Path) -> None:
    """The exported student in transformers: no weight of its own class is missing, and outputs are finite."""
    (own,) = AutoConfig.from_pretrained(folder).architectures
    _, whole = getattr(transformers, own).from_pretrained(folder, output_loading_info=True)
    assert not whole["missing_keys"] and not whole["mismatched_keys"], whole
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(["今天天气很好。", "De fiets."], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**{k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask")}).last_hidden_state
    assert torch.isfinite(hidden).all()
    assert (folder / "README.md").is_file()

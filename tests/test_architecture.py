"""The house rules of docs/architecture.md, kept by walking the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {"configs": 0, "data_prep": 1, "distill_core": 2, "launcher": 3}
FILES = sorted(p for room in FLOORS for p in (ROOT / room).rglob("*.py"))
HEAVY = {"torch", "transformers", "deepspeed", "tensorboard", "tensorflow"}
KNOWS_DEEPSPEED = {"distill_core/engine.py", "distill_core/zero.py", "launcher/backends/hosts.py"}
KNOWS_TENSORBOARD = {"distill_core/monitor.py", "data_prep/events.py"}
KNOWS_ENVIRONMENT = {"distill_core/engine.py", "data_prep/cache.py", "data_prep/executors/cluster.py"}
MAX_LINES, MAX_FUNCTION = 400, 60


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of each import, also those inside functions and of ``import_module("literal")``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports between rooms are absolute"
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def upward(path: Path, tree: ast.AST) -> list[str]:
    floor = FLOORS[room(path)]
    return [
        f"{name(path)}:{line} imports {module}, from a floor above"
        for line, module in imported(tree)
        if FLOORS.get(module.split(".")[0], -1) > floor
    ]


def forbidden(path: Path, tree: ast.AST) -> list[str]:
    found = []
    for line, module in imported(tree):
        top = module.split(".")[0]
        known = KNOWS_TENSORBOARD if top == "tensorboard" else set()
        if top in HEAVY and FLOORS[room(path)] < 2 and name(path) not in known:
            found.append(f"{name(path)}:{line} imports {top}; {room(path)}/ runs without it")
        if top == "deepspeed" and name(path) not in KNOWS_DEEPSPEED:
            found.append(f"{name(path)}:{line} imports deepspeed; only {sorted(KNOWS_DEEPSPEED)} may")
        if "tensorboard" in module.split(".") and name(path) not in KNOWS_TENSORBOARD:
            found.append(f"{name(path)}:{line} imports {module}; only {sorted(KNOWS_TENSORBOARD)} may")
    return found


def environment(path: Path, tree: ast.AST) -> list[str]:
    """``os.environ.setdefault(...)`` is allowed: it tells a library something and reads nothing."""
    if room(path) == "launcher" or name(path) in KNOWS_ENVIRONMENT:
        return []
    names = ("environ", "getenv", "putenv", "environb")
    written = {
        id(node.func.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setdefault"
    }
    return [
        f"{name(path)}:{node.lineno} reads the environment; only {sorted(KNOWS_ENVIRONMENT)} and launcher/ may"
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in names and id(node) not in written)
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and any(alias.name in names for alias in node.names)
        )
    ]


def length(path: Path, tree: ast.AST) -> list[str]:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    found = [f"{name(path)} has {lines} lines; at most {MAX_LINES}"] if lines > MAX_LINES else []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            if size > MAX_FUNCTION:
                found.append(f"{name(path)}:{node.lineno} {node.name} has {size} lines; at most {MAX_FUNCTION}")
    return found


RULES = {rule.__name__: rule for rule in (upward, forbidden, environment, length)}


@pytest.mark.parametrize("rule", RULES)
def test_every_file_keeps_the_rule(rule: str) -> None:
    assert FILES
    found = [line for p in FILES for line in RULES[rule](p, ast.parse(p.read_text(encoding="utf-8")))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("rule", "file", "source"),
    [
        ("upward", "configs/x.py", "import launcher.cli"),
        ("upward", "data_prep/x.py", "def f():\n    from distill_core import data"),
        ("upward", "data_prep/x.py", "import importlib\nimportlib.import_module('distill_core.data')"),
        ("forbidden", "data_prep/x.py", "def f():\n    import torch.nn"),
        ("forbidden", "configs/x.py", "from transformers import AutoModel"),
        ("forbidden", "launcher/doctor.py", "import deepspeed"),
        ("forbidden", "distill_core/stage.py", "from deepspeed.utils import logger"),
        ("forbidden", "distill_core/stage.py", "from torch.utils.tensorboard import SummaryWriter"),
        ("forbidden", "launcher/cli.py", "from torch.utils import tensorboard"),
        ("forbidden", "data_prep/block.py", "import tensorboard"),
        ("forbidden", "data_prep/events.py", "from torch.utils import tensorboard"),
        ("environment", "distill_core/stage.py", "import os\nx = os.environ['RANK']"),
        ("environment", "data_prep/x.py", "from os import getenv"),
        ("environment", "data_prep/x.py", "import os\nx = os.environ.get('RANK')"),
    ],
)
def test_each_rule_sees_an_offence(rule: str, file: str, source: str) -> None:
    assert RULES[rule](ROOT / file, ast.parse(source))


def test_length_sees_long_files_and_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def f():\n" + "    x = 1\n" * MAX_LINES
    path = tmp_path / "x.py"
    path.write_text(source)
    monkeypatch.setitem(length.__globals__, "ROOT", tmp_path)
    assert len(length(path, ast.parse(source))) == 2


def test_every_top_level_package_is_a_room() -> None:
    packages = {p.parent.name for p in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages == set(FLOORS)

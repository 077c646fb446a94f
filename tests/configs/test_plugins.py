from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.loader import validate
from distill_core.config import RunConfig

ROOT = Path(__file__).resolve().parent.parent.parent
LOSS = """
from typing import Literal
from distill_core.objectives.base import OBJECTIVES, TermConfig
from distill_core.objectives.logits import Mlm

class LoudConfig(TermConfig):
    kind: Literal["loud_mlm"]
    loudness: float = 2.0

@OBJECTIVES.add("loud_mlm")
class Loud(Mlm):
    Config = LoudConfig
"""
READER = """
from data_prep.readers.base import READERS
from data_prep.readers.text import TextReader

@READERS.add("shouting")
class Shouting(TextReader):
    pass
"""


LOUD = {"losses.loud": "loud_loss"}


def install(folder: Path, entries: dict[str, str], modules: dict[str, str]) -> None:
    """A package as pip would leave it."""
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    info = folder / "loud_plugin-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loud-plugin\nVersion: 1.2\n", encoding="utf-8")
    lines = ["[zhengliu.plugins]", *(f"{name} = {module}" for name, module in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100, check=False
    )


def test_a_loss_and_a_reader_of_another_package(tmp_path: Path) -> None:
    install(
        tmp_path,
        {"losses.loud": "loud_loss", "readers.shout": "loud_reader"},
        {"loud_loss": LOSS, "loud_reader": READER},
    )
    code = """
import json
from configs.loader import validate
from distill_core.config import RunConfig
training = {"steps": 1, "global_batch_size": 1}
model = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
stage = {"name": "s", "kind": "pretrain", "model": model, "training": training, "objective": [{"kind": "loud_mlm"}]}
data = {"sources": [{"path": "x", "kind": "shouting"}]}
config = validate({"name": "n", "data": data, "stages": [stage]}, RunConfig)
print(json.dumps([type(config.stages[0].objective[0]).__name__, config.stages[0].objective[0].loudness]))
"""
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["LoudConfig", 2.0]


@pytest.mark.parametrize(
    ("entries", "modules", "message"),
    [
        (
            {"losses.loud": "loud_loss"},
            {"loud_loss": "1 / 0"},
            "loud-plugin 1.2 (loud_loss) cannot be loaded: ZeroDivisionError",
        ),
        ({"losses.loud": "loud_loss"}, {}, "cannot be loaded: ModuleNotFoundError"),
        ({"loud": "loud_loss"}, {"loud_loss": LOSS}, "KIND.NAME, with KIND one of losses, models"),
    ],
)
def test_a_broken_plugin_is_named(
    tmp_path: Path, entries: dict[str, str], modules: dict[str, str], message: str
) -> None:
    install(tmp_path, entries, modules)
    done = run(tmp_path, "import distill_core.objectives")
    assert done.returncode != 0
    assert "ConfigError" in done.stderr and message in " ".join(done.stderr.split())


def test_a_name_in_a_run_file_never_becomes_code() -> None:
    """Names are looked up in the registries: a module's path is just an unknown name."""
    data = {"sources": [{"path": "x", "kind": "os.system"}], "segment": {"kind": "rjieb"}}
    stage = {"name": "s", "kind": "pretrain", "objective": [{"kind": "os.system"}]}
    with pytest.raises(ConfigError) as error:
        validate({"name": "n", "data": data, "stages": [stage]}, RunConfig)
    text = str(error.value)
    assert "There is no kind of source 'os.system'" in text and "Known: datasets, jsonl" in text
    assert "Did you mean 'rjieba'?" in text and "'os.system'" in text

"""What ``precision: auto`` becomes on which devices, and that it stays what it has become."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from configs.errors import ConfigError
from configs.loader import to_yaml, validate
from distill_core import precision
from distill_core.config import RunConfig
from distill_core.engine import Rank
from launcher.runfile import open_run
from tests.distill_core.test_config import RUN, changed
from tests.ranks import start

PROGRAM = Path(__file__).with_name("precision_program.py")
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 sha_ni", "bf16"),
        ("flags\t\t: fpu avx2 amx_bf16 amx_tile", "bf16"),
        ("Features\t: fp asimd i8mm bf16", "bf16"),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", "fp32"),
        ("model name\t: avx512_bf16 in a name", "fp32"),
    ],
)
def test_cpus(line: str, expected: str, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{line}\nbugs\t\t: none\n")
    assert precision.of_device(CPU, cpuinfo) == expected


def test_a_cpu_that_says_nothing(tmp_path: Path) -> None:
    assert precision.of_device(CPU, tmp_path / "none") == "fp32"


@pytest.mark.parametrize(
    ("bf16", "capability", "expected"),
    [(True, (9, 0), "bf16"), (True, (8, 0), "bf16"), (False, (7, 5), "fp16"), (False, (6, 1), "fp32")],
)
def test_gpus(bf16: bool, capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return bf16 or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision.of_device(torch.device("cuda", 0)) == expected


@pytest.mark.parametrize(
    ("mine", "ranks", "expected"),
    [
        ("bf16", ["bf16", "bf16"], "bf16"),
        ("bf16", ["bf16", "fp16"], "fp16"),
        ("fp16", ["fp16", "bf16", "fp32"], "fp32"),
    ],
)
def test_all_ranks_take_what_all_have(
    mine: str, ranks: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Several(Rank):
        def sum(self, values: torch.Tensor) -> torch.Tensor:
            able = [[place >= precision.BY_SPEED.index(one) for place in range(3)] for one in ranks]
            assert values.tolist() == able[0]
            return torch.tensor(able).sum(0).float()

    monkeypatch.setattr(precision, "of_device", lambda device: mine)
    assert precision.of_all(Several(0, 0, len(ranks), CPU)) == expected


def auto(tmp_path: Path) -> RunConfig:
    tree = changed(lambda t: t["stages"][1].update(training={**t["stages"][1]["training"], "precision": "auto"}))
    return validate({**tree, "output": str(tmp_path)}, RunConfig)


@pytest.mark.ranks
def test_two_ranks_decide_once_and_write_it_down(tmp_path: Path) -> None:
    config = auto(tmp_path)
    config.folder.mkdir()
    (config.folder / "config.yaml").write_text(to_yaml(config))
    said, _ = start(PROGRAM, 2, str(config.folder), "bf16", "fp32")
    assert "precision: auto is fp32 on the devices of this run (student)" in said
    kept = yaml.safe_load((config.folder / "config.yaml").read_text())
    assert [stage["training"]["precision"] for stage in kept["stages"]] == ["bf16", "fp32"]
    again, _ = start(PROGRAM, 2, str(config.folder), "bf16", "bf16")  # other machines: nothing is decided again
    assert "auto" not in again
    assert yaml.safe_load((config.folder / "config.yaml").read_text()) == kept


def test_a_run_file_takes_what_its_run_has_decided(tmp_path: Path) -> None:
    config = auto(tmp_path)
    file = tmp_path / "r.yaml"
    file.write_text(to_yaml(config))
    assert open_run(str(file)) == config
    config.folder.mkdir()
    for damaged in ("", "- a list", "stages: [{name: student}]", "a: b: c", to_yaml(config)):
        (config.folder / "config.yaml").write_text(damaged)
        assert open_run(str(file)) == config
    decided = precision.decided_by(config, "fp16")
    (config.folder / "config.yaml").write_text(to_yaml(decided))
    assert open_run(str(file)) == decided
    assert [stage.training.precision for stage in decided.stages] == ["bf16", "fp16"]  # type: ignore[union-attr]
    plain = open_run(str(file), ["stages.student.training.precision=fp32"])
    assert plain.stages[1].training.precision == "fp32"  # type: ignore[union-attr]


def test_what_may_not_work_is_said_beforehand() -> None:
    def stage(**fields: object) -> RunConfig:
        tree = changed(lambda t: t["stages"][1].update(fields))
        return validate(tree, RunConfig)

    training = {**RUN["stages"][1]["training"], "precision": "auto"}
    with pytest.raises(ConfigError, match=r"16-bit precision is not offered \(precision: auto\)"):
        stage(training={**training, "zero_stage": 0})
    with pytest.raises(ConfigError, match="as it may with precision: auto"):
        stage(training=training, teacher_cache={"precision": "fp32"})
    with pytest.raises(ConfigError, match=r"say teacher_cache\.precision"):
        stage(training=training, teacher_cache={})
    assert stage(training=training, teacher_cache={"precision": "bf16"})

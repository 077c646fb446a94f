"""Where a run is planned to be: this machine, a cluster file, devices by their data sheets."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from configs.cluster import ClusterConfig, load_cluster
from configs.errors import ConfigError
from launcher import devices, plan_view
from launcher.cli import app, status_of
from launcher.plan import make_plan
from launcher.plan_devices import SHARE_OF_SHEET, named, place_of
from launcher.plan_view import Wanted
from launcher.runfile import open_run


def cluster(text: str, folder: Path) -> ClusterConfig:
    path = folder / "cluster.yaml"
    path.write_text(text, encoding="utf-8")
    return load_cluster(path)


def shown(run_file: Path, wanted: Wanted) -> str:
    out = io.StringIO()
    plan_view.show(open_run(str(run_file)), wanted, Console(file=out, width=160))
    return " ".join(out.getvalue().split())


def test_a_gpu_by_its_name_or_by_numbers() -> None:
    found = named("H200")
    assert (found.memory, found.gpu) == (141e9, True)
    assert found.sheet["bf16"] == pytest.approx(SHARE_OF_SHEET * 989e12)
    found = named("96:700")
    assert (found.memory, dict(found.sheet)) == (96e9, dict.fromkeys(("bf16", "fp16", "fp32"), 700e12))
    for wrong in ("h20", "80", "80:x", "0:100", "-1:5", "nan:1"):
        with pytest.raises(ConfigError, match=r"--device .*: give one of .*h200"):
            named(wrong)


def test_the_ranks_of_cluster_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda *_: 0)
    here = place_of(3, None, None)
    assert (here.ranks, here.nodes, here.here, here.words, here.notes) == (3, 1, True, "3 ranks", [])
    assert place_of(None, None, None).words == "1 rank"
    hosts = place_of(2, cluster("{kind: hosts, hosts: [a, b], processes: 8}", tmp_path), None)
    assert (hosts.ranks, hosts.nodes, hosts.here, hosts.words) == (16, 2, False, "16 ranks (2 nodes x 8)")
    assert "name theirs with --device" in hosts.notes[0]
    slurm = place_of(None, cluster("{kind: slurm, partition: gpu, nodes: 4, gpus: 8}", tmp_path), "a100")
    assert (slurm.ranks, slurm.device.memory, slurm.notes) == (32, 80e9, [])


def test_memory_on_gpus_is_that_of_tensors_alone(prepared: Path) -> None:
    config = open_run(str(prepared))
    gpu, cpu = (make_plan(config, 2, gpu).stages[1].memory for gpu in (True, False))
    assert gpu.process == gpu.workspace == gpu.loading == 0 and cpu.process > 0
    assert gpu.activations == cpu.activations


def test_a_plan_for_a_cluster(run_file: Path, tmp_path: Path) -> None:
    """Of machines that cannot be seen from here; nothing is measured for it."""
    where = cluster("{kind: slurm, partition: gpu, nodes: 2, gpus: 2}", tmp_path)
    text = shown(run_file, Wanted(cluster=where, device="a100", counts=(4,)))
    assert "Plan of 'small' on 4 ranks (2 nodes x 2)" in text
    assert "of 80 GB" in text and "on one rank (A100)" in text
    assert "by the data sheet" in text
    assert "network: each rank sends in a step:" in text
    assert "cannot be seen from here" in shown(run_file, Wanted(probe=False, cluster=where))


def test_what_does_not_fit_the_device_is_refused(run_file: Path, tmp_path: Path) -> None:
    where = tmp_path / "cluster.yaml"
    where.write_text("{kind: slurm, partition: gpu, nodes: 2, gpus: 2}", encoding="utf-8")
    words = ["plan", str(run_file), "--cluster", str(where), "--require-fit", "--device"]
    assert status_of(lambda: app([*words, "h100"])) == 0
    assert status_of(lambda: app([*words, "0.0001:100"])) == 64
    assert status_of(lambda: app([*words, "no such thing"])) == 64

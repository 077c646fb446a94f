"""The blocks of docs/clusters.md about hosts; that of torchrun is carried out in ``tests/clusters/test_chain.py``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launcher.cli import app

TEXT = (Path(__file__).resolve().parent.parent.parent / "docs" / "clusters.md").read_text(encoding="utf-8")


def block(heading: str, language: str) -> str:
    section = TEXT.split(f"## {heading}", 1)[1].split("\n## ", 1)[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found is not None, f"no block of {language} under {heading}"
    return found.group(1)


def test_the_hosts_file_shows_what_it_would_start(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts.yaml").write_text(block("Hosts that ssh reaches", "yaml"), encoding="utf-8")
    command = block("Hosts that ssh reaches", "bash").splitlines()[0].split()
    assert command[:3] == ["distill", "run", "RUN.yaml"]
    done = CliRunner().invoke(app, ["run", str(run_file), *command[3:]])
    assert done.exit_code == 0, done.output
    assert "-m deepspeed.launcher.runner" in done.output
    assert "#   node1 slots=1\n#   node2 slots=1\n" in done.output


@pytest.mark.parametrize("kind", ["job", "pytorchjob", "volcano"])
def test_the_kubernetes_file_shows_what_it_would_start(
    kind: str, run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = block("Kubernetes", "yaml").replace("mount: /runs", f"mount: {tmp_path.resolve()}")
    (tmp_path / "kubernetes.yaml").write_text(
        text.replace("job: job", f"job: {kind}").replace("processes: 8", "processes: 2"), encoding="utf-8"
    )
    command = block("Kubernetes", "bash").splitlines()[0].replace("/runs", str(tmp_path.resolve())).split()
    done = CliRunner().invoke(app, ["run", str(run_file), *command[3:]])
    assert done.exit_code == 0, done.output
    assert "kubectl apply -f -" in done.output
    assert "- launcher.node\n" in done.output
    assert not (tmp_path / "small").exists(), "nothing is written"


@pytest.mark.parametrize(
    ("heading", "file", "said"), [("Slurm", "slurm.yaml", "sbatch"), ("MPI", "mpi.yaml", "mpirun")]
)
def test_the_files_of_schedulers_show_what_they_would_start(
    heading: str, file: str, said: str, run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).write_text(block(heading, "yaml"), encoding="utf-8")
    command = block(heading, "bash").splitlines()[0].split()
    sizes = [f"stages.{stage}.training.global_batch_size=16" for stage in range(2)]
    done = CliRunner().invoke(app, ["run", str(run_file), *sizes, *command[3:]])
    assert done.exit_code == 0, done.output
    assert said in done.output.splitlines()[-1].split()
    assert "node.py" in done.output and '"nodes": 2' in done.output

"""Whole runs through the command: text -> exported student, killed and continued, refused when changed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill_core.precision import here

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.chain, pytest.mark.timeout(900)]

RUN = """
name: chain
data:
  sources: [{path: "builtin:sample"}]
  tokenizer: {vocab_size: 600}
  sequences: {max_length: 48}
  masks: {views: 2}
  held_out: 0.05
stages:
  - name: teacher
    kind: pretrain
    model: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, max_position_embeddings: 48}
    training: &training
      steps: 12
      global_batch_size: 16
      micro_batch_tokens: 256
      zero_stage: 1
      checkpoint_every: 4
      evaluate_every: 6
      evaluate_sequences: 20
      log_every: 2
  - name: student
    kind: distill
    teacher: teacher
    student:
      model: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 48}
    objective: [{kind: kd_ce}, {kind: hidden_mse, layers: [[0, 0], [2, 1]]}]
    training: {<<: *training, steps: 60, precision: auto}
launch: {processes: 2}
evaluation:
  latency_repeats: 2
  sentences: ["今天天气很[MASK]。"]
"""


CANARY = "canary-52c1e8"


def distill(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launcher.cli", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "HF_TOKEN": CANARY, "API_KEY": CANARY}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run.yaml"
    path.write_text(RUN, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(run_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an undisturbed run."""
    output = tmp_path_factory.mktemp("whole")
    status, text = finish(distill("run", str(run_file), f"output={output}"))
    assert status == 0, text
    assert "unigram baseline" in text and "今天天气很[MASK]。" in text
    return output / "chain"


def test_the_run_folder_is_complete(whole: Path) -> None:
    for name in ("config.yaml", "environment.json", "report.html", "report.md", "data/manifest.json"):
        assert (whole / name).is_file(), name
    for stage, steps, precision in (("01-teacher", 12, "bf16"), ("02-student", 60, here())):
        folder = whole / "stages" / stage
        done = json.loads((folder / "DONE.json").read_text())
        assert done["steps"] == steps and done["world_size"] == 2 and done["precision"] == precision
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if "loss/total" in row] == list(range(2, steps + 1, 2))
        assert len(list((folder / "checkpoints").glob("step-*"))) == 2
    assert "precision: auto" not in (whole / "config.yaml").read_text()
    log = (whole / "logs" / "rank-0.log").read_text(encoding="utf-8")
    assert f"precision: auto is {here()} on the devices of this run (student)" in log
    report = (whole / "report.html").read_text(encoding="utf-8")
    assert "http://" not in report.replace("http://www.w3.org", "") and "<link" not in report


def test_tensorboard_has_every_curve(whole: Path) -> None:
    read = EventAccumulator(str(whole / "stages" / "02-student" / "tensorboard"))
    read.Reload()
    expected = {"loss/total", "loss/kd_ce", "weighted/kd_ce", "loss/hidden_mse/0-0", "weighted/hidden_mse/2-1"}
    expected |= {"optim/learning_rate", "optim/gradient_norm", "speed/tokens_per_second", "speed/step_seconds"}
    expected |= {"data/wait_seconds", "data/wait_share", "data/padding_share", "memory/gigabytes", "eval/agreement"}
    expected |= {"speed/flops_utilization", "speed/useful_tflops", "time/data", "time/teacher", "time/forward"}
    expected |= {"time/backward", "time/optimizer", "time/communication", "time/other"}
    expected |= {f"eval/{who}_{what}" for who in ("student", "teacher") for what in ("loss", "accuracy")}
    assert expected <= set(read.Tags()["scalars"])
    assert {"config/text_summary", "masked samples/text_summary", "useful FLOPs/text_summary"} <= set(
        read.Tags()["tensors"]
    )


def test_no_secret_is_written_anywhere(whole: Path) -> None:
    """Logs, curves, checkpoints, reports, the exported model."""
    files = [path for path in whole.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


def test_the_student_loads_in_transformers(whole: Path) -> None:
    from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline

    folder = next((whole / "export").iterdir())
    assert {"model.safetensors", "config.json", "vocab.txt", "tokenizer.json", "README.md"} <= {
        path.name for path in folder.iterdir()
    }
    assert AutoModel.from_pretrained(folder).config.hidden_size == 16
    assert AutoModelForMaskedLM.from_pretrained(folder).config.num_hidden_layers == 1
    assert AutoTokenizer.from_pretrained(folder).mask_token == "[MASK]"
    assert len(pipeline("fill-mask", model=str(folder))("今天天气很[MASK]。")) == 5


def test_a_second_run_skips_what_is_done(whole: Path, run_file: Path) -> None:
    before = (whole / "stages" / "02-student" / "DONE.json").stat().st_mtime_ns
    status, text = finish(distill("run", str(run_file), f"output={whole.parent}"))
    assert status == 0, text
    assert (whole / "stages" / "02-student" / "DONE.json").stat().st_mtime_ns == before


def test_a_changed_identity_is_refused_with_the_difference(whole: Path, run_file: Path) -> None:
    change = "stages.student.training.optimizer.learning_rate=0.1"
    status, text = finish(distill("run", str(run_file), f"output={whole.parent}", change))
    assert status == 65, text
    assert "learning_rate: 0.0004 -> 0.1" in " ".join(text.split()), text


def test_killed_and_continued_it_ends_in_the_same_bits(
    whole: Path, run_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """SIGKILL of everything in the middle of the second stage; dropout is on in both runs."""
    output = tmp_path_factory.mktemp("killed")
    process = distill("run", str(run_file), f"output={output}")
    student = output / "chain" / "stages" / "02-student"
    deadline = time.monotonic() + 200
    while not list((student / "checkpoints").glob("step-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    assert not (student / "DONE.json").exists()
    assert wait_until_gone(str(output)), "a rank outlived its killed launcher"

    status, text = finish(distill("run", str(run_file), f"output={output}"))
    assert status == 0, text
    assert "continuing after step" in text
    for stage in ("01-teacher", "02-student"):
        name = f"stages/{stage}/model/model.safetensors"
        assert (output / "chain" / name).read_bytes() == (whole / name).read_bytes(), stage
    rows = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss/total" in row] == list(range(2, 61, 2))

    more = "stages.student.training.steps=64"  # a runtime field: the finished stage goes on
    status, text = finish(distill("run", str(run_file), f"output={output}", more))
    assert status == 0, text
    assert "continuing after step 60" in text
    assert json.loads((student / "DONE.json").read_text())["steps"] == 64


def wait_until_gone(word: str, seconds: float = 10.0) -> bool:
    """Whether no process has ``word`` on its command line any more."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        lines = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                lines.append(path.read_bytes().decode(errors="replace"))
            except OSError:
                continue
        if not any(word in line for line in lines):
            return True
        time.sleep(0.1)
    return False

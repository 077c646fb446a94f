"""The command: quick, thin, and never a traceback for what a user can mend."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.errors import ConfigError, DataError
from launcher import cli, launch
from launcher.signals import Stopped

ROOT = Path(__file__).parents[2]
VERBS = ["run", "prep", "data", "plan", "doctor", "export", "report", "monitor", "try"]
DATA_VERBS = ["inspect", "verify", "count", "convert"]


def distill(*words: str) -> int:
    """The command in this process."""
    return cli.status_of(lambda: cli.app(list(words), prog_name="distill"))


def python(code: str, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)


# ---------------------------------------------------------------- quick and thin


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, launcher.cli as cli\n"
        "status = cli.status_of(lambda: cli.app(['--help'], prog_name='distill'))\n"
        "heavy = {'torch', 'transformers', 'deepspeed', 'numpy', 'numba', 'datasets', 'pydantic'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)), status)"
    )
    seconds = []  # of a processor
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = python(code)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert "HEAVY [] 0" in done.stdout
    assert all(f" {verb} " in done.stdout for verb in VERBS)
    assert min(seconds) < 1.0


@pytest.mark.parametrize(
    "verb", [[v] for v in VERBS] + [["data", v] for v in ("inspect", "verify", "count", "convert")]
)
def test_every_verb_explains_itself(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert distill(*verb, "--help") == 0
    out = capsys.readouterr().out
    assert "Usage: distill" in out
    assert "RUN.yaml" in out or verb == ["data"]


def test_prep_runs_without_torch(run_file: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from launcher.cli import main; main()"
    done = python(code, "prep", str(run_file), "data.held_out=0.3")
    assert done.returncode == 0, done.stderr
    assert "data: prepared in" in done.stdout
    assert (run_file.parent / "runs" / "small" / "data" / "manifest.json").is_file()
    again = python(code, "prep", str(run_file), "data.held_out=0.3")
    assert "data: ready" in again.stdout
    looked = python(code, "data", "inspect", str(run_file))
    assert looked.returncode == 0, looked.stderr


# ---------------------------------------------------------------- exit status


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigError("one [bold]paragraph[/bold]"), 64, "distill: one [bold]paragraph[/bold]\n"),
        (DataError("data"), 65, "distill: data\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 74, "Cannot write /x/y: No space left on device."),
        (MemoryError(), 64, "There is not enough memory."),
        (Stopped(signal.SIGTERM), 143, "Stopped by SIGTERM"),
        (KeyboardInterrupt(), 130, "Interrupted"),
        (SystemExit(3), 3, ""),
        (SystemExit(None), 0, ""),
        (SystemExit("text"), 1, ""),
        (SystemExit(2), 64, ""),
    ],
)
def test_however_it_ends_there_is_a_status(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def end() -> None:
        raise error

    assert cli.status_of(end) == status
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("words", [["no-such-verb"], ["run"], ["run", "--no-such-option", "x"], ["data", "inspect"]])
def test_wrong_usage_is_64(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert distill(*words) == 64
    assert "Usage:" in capsys.readouterr().err


def test_a_defect_of_ours_goes_to_the_crash_log(
    run_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(*_: Any) -> None:
        raise RuntimeError("the very bug")

    monkeypatch.setattr(launch, "launch", crash)
    assert distill("run", str(run_file)) == 70
    shown = capsys.readouterr().err
    log = run_file.parent / "runs" / "small" / "logs" / "crash.log"
    assert "defect of distill: RuntimeError: the very bug" in shown
    assert "crash.log" in re.sub(r"\s", "", shown)
    assert "Traceback" not in shown
    assert "Traceback" in log.read_text()


def test_without_a_run_folder_the_traceback_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.Current, "folder", None)
    assert cli.status_of(lambda: 1 / 0) == 70
    assert "Traceback" in capsys.readouterr().err


# ---------------------------------------------------------------- bad input, before any work


@pytest.mark.parametrize(
    ("override", "status", "said"),
    [
        ("data.sources.0.path=/no/such/file.txt", 65, "/no/such/file.txt"),
        ("stages.0.training.stepps=3", 64, "Did you mean `steps`?"),
        ("stages.student.training.micro_batch_tokens=16", 64, "a batch cannot be cut"),
        ("stages.student.training.global_batch_size=1", 64, "a batch cannot be cut"),
        ("stages.student.teacher={empty}", 65, "config.json"),
        ("output=/proc/nowhere", 74, "Cannot write"),
        ("launch.backend=slrum", 64, "no launch backend 'slrum'"),
        ("data.tokenizer.vocab={vocab}", 65, "[MASK]"),
        ("nonsense", 64, "not of the form a.b=value"),
    ],
)
def test_bad_input_is_one_paragraph(
    run_file: Path, override: str, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, vocab = run_file.parent / "empty", run_file.parent / "vocab.txt"
    empty.mkdir()
    vocab.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n" + "\n".join("一二三四五六七八九十"))
    assert distill("run", str(run_file), override.format(empty=empty, vocab=vocab)) == status
    shown = capsys.readouterr().err
    assert "".join(said.split()) in "".join(shown.split())
    assert "Traceback" not in shown
    assert not (run_file.parent / "runs" / "small" / "data").exists()


def test_prep_looks_only_at_the_data(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_file.write_text(run_file.read_text() + "something_of_the_run: 3\n")
    assert distill("prep", str(run_file), "stages.0.training.stepps=3", "data.masks.view=3") == 64
    shown = capsys.readouterr().err
    assert "1 problem" in shown
    assert "Did you mean `views`?" in shown


def test_an_unknown_stage(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill("run", str(run_file), "--only", "studnet") == 64
    assert "Did you mean 'student'?" in capsys.readouterr().err


# ---------------------------------------------------------------- verbs


def test_prep_on_a_cluster(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--dry-run says what would happen and writes nothing; the work itself is that of this machine."""
    assert distill("prep", str(run_file), "--cluster", "clusters/slurm", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "#SBATCH --partition=gpu" in shown and "# 1 blocks into" in shown
    assert distill("prep", str(run_file), "--dry-run") == 0
    assert "1 processes on this machine" in capsys.readouterr().out
    assert not (run_file.parent / "runs").exists()
    assert distill("prep", str(run_file), "--cluster", "clusters/local") == 0
    assert (run_file.parent / "runs" / "small" / "data" / "manifest.json").is_file()
    assert distill("prep", str(run_file), "--cluster", "clusters/lokal") == 64


def test_count(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill("data", "count", str(prepared)) == 0
    shown = capsys.readouterr().out
    assert re.search(r"kept\W+40\W+100\.00%", shown)
    assert "/corpus." in shown and "1,110" in shown  # a long path is broken where the column ends


def test_inspect_draws_words_and_masks(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill("data", "inspect", str(prepared), "--count", "2", "--view", "1") == 0
    out = capsys.readouterr().out
    assert "[CLS]│" in out
    assert "[MASK]" in out
    assert out.count("view 1") == 2


def test_inspect_says_where_the_end_is(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill("data", "inspect", str(prepared), "--first", "99999") == 64
    assert distill("data", "inspect", str(prepared), "--split", "test") == 64
    assert "train or held_out" in capsys.readouterr().err


def test_inspect_before_preparation(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill("data", "inspect", str(run_file)) == 65
    assert "distill: " in capsys.readouterr().err


def test_verify(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill("data", "verify", str(prepared)) == 0
    assert "every file is as it was written" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet"])
def test_convert(prepared: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill("data", "convert", str(prepared), str(tmp_path / name)) == 0
    assert (tmp_path / name).stat().st_size > 0
    assert distill("data", "convert", str(prepared), str(tmp_path / name)) == 74
    assert distill("data", "convert", str(prepared), str(tmp_path / "x.docx")) == 64
    assert "Known: arrow, jsonl, parquet" in capsys.readouterr().err


def test_try_and_monitor_before_a_run(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill("try", str(run_file)) == 65
    assert distill("try", str(run_file), "-s", "没有空格") == 64
    assert distill("monitor", str(run_file)) == 65
    shown = capsys.readouterr().err
    assert "distill run" in shown


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGHUP, 129)])
def test_a_run_that_is_stopped_while_it_prepares_is_requeued(
    run_file: Path,
    number: signal.Signals,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("launcher.launch.prepare_data", lambda *_: signal.raise_signal(number))
    before = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored, and stays so
    try:
        assert distill("run", str(run_file)) == status
    finally:
        signal.signal(number, before)
    assert f"Stopped by {number.name}" in capsys.readouterr().err


def test_stopping_a_preparation_leaves_no_worker(run_file: Path) -> None:
    code = (
        "import sys, time, multiprocessing\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from launcher import cli\n"
        "def work():\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    with ProcessPoolExecutor(2, mp_context=context) as pool:\n"
        "        futures = [pool.submit(time.sleep, 300) for _ in range(4)]\n"
        "        while not any(f.running() for f in futures): time.sleep(0.01)\n"
        "        time.sleep(0.3)\n"
        "        print(*[p.pid for p in multiprocessing.active_children()], flush=True)\n"
        "        futures[0].result()\n"
        "if __name__ == '__main__': sys.exit(cli.status_of(work))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 2
    process.terminate()
    assert process.wait(20) == 143
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_folder_does_not_hide_a_packaged_run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a dry run with output=. would make of quickstart's own output, and a person of anything."""
    from launcher.runfile import open_prep

    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert open_prep("quickstart").name == "quickstart"
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match=r"other is not a run folder: it has no config\.yaml"):
        open_prep("other")
    (tmp_path / "quickstart" / "config.yaml").write_text(
        "name: quickstart\ndata: {workers: 7, sources: [{path: builtin:sample}]}\n"
    )
    assert open_prep("quickstart").data.workers == 7


# ---------------------------------------------------------------- packages that are not there


@pytest.mark.parametrize("program", [["-m", "launcher.cli"], [str(ROOT / "launcher" / "launch.py")]])
@pytest.mark.parametrize("package", ["typer", "yaml"])
def test_a_missing_package_is_named(tmp_path: Path, program: list[str], package: str) -> None:
    """Of the command itself, and of a verb; by a module that hides it."""
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('No module named {package}', name='{package}')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    words = [*([] if program[0] != "-m" else ["run"]), "quickstart", f"output={tmp_path}"]
    command = [sys.executable, *program, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=tmp_path)
    assert done.returncode == 70
    said = " ".join(done.stderr.split())
    assert f"distill: {package} is not installed, for the Python {sys.executable}." in said
    assert f"`{sys.executable} -m pip install -e {ROOT} -c {ROOT / 'constraints.txt'}`" in said
    assert "Traceback" not in said


def test_a_broken_package_and_a_defect_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise ImportError("libx.so.1: cannot open shared object file", name="torch._C")

    def ours() -> None:
        from launcher.units import no_such_name  # type: ignore[attr-defined]

        assert no_such_name

    assert cli.status_of(broken) == 70
    said = " ".join(capsys.readouterr().err.split())
    assert "torch is installed, but cannot be imported (libx.so.1: cannot open shared object file)" in said
    assert "--force-reinstall" in said
    assert cli.status_of(ours) == 70
    assert "This is a defect of distill" in capsys.readouterr().err

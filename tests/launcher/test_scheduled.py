"""``distill run`` under torchrun, but for the ranks themselves (``tests/clusters/test_chain.py``)."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from pathlib import Path

import pytest

from configs import loader
from configs.errors import ConfigError, LaunchError
from launcher import cli, launch, scheduled
from launcher.runfile import open_run

RANK = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_who_is_a_rank() -> None:
    assert scheduled.is_rank(RANK)
    assert not scheduled.is_rank({})
    assert not scheduled.is_rank(RANK | {"MASTER_ADDR": ""})
    assert not scheduled.is_rank(RANK | {"ZHENGLIU_RENDEZVOUS": "file:///x"})


@pytest.mark.parametrize(
    ("change", "words"),
    [({"RANK": "two"}, "RANK is 'two', which is no number"), ({"RANK": "2"}, "RANK is 2 and WORLD_SIZE 2")],
)
def test_numbers_that_cannot_be(change: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        scheduled._numbers(RANK | change)


def test_the_others_wait_for_this_very_configuration_and_the_data(run_file: Path) -> None:
    config = open_run(str(run_file), [])
    launch.write(config.folder / "config.yaml", "name: of an earlier run\n")
    waiting = threading.Thread(target=scheduled._await_first, args=(config,), daemon=True)
    waiting.start()
    with scheduled._seen(config.folder):
        for path, text in (("data/manifest.json", "{}"), ("config.yaml", loader.to_yaml(config))):
            time.sleep(0.4)
            assert waiting.is_alive()
            launch.write(config.folder / path, text)
        waiting.join(10)
        assert not waiting.is_alive()
    assert not (config.folder / scheduled.SIGN).exists()


@pytest.mark.parametrize("left", [True, False])
def test_a_folder_that_is_not_shared_is_refused(run_file: Path, monkeypatch: pytest.MonkeyPatch, left: bool) -> None:
    """Also where an earlier run has left the same configuration, data, and even a sign on this host."""
    monkeypatch.setattr(scheduled, "SIGN_SECONDS", 0.5)
    config = open_run(str(run_file), [])
    launch.write(config.folder / "config.yaml", loader.to_yaml(config))
    launch.write(config.folder / "data" / "manifest.json", "{}")
    if left:
        launch.write(config.folder / scheduled.SIGN, '{"beat": 7}')
    words = f"{socket.gethostname()}: nothing of rank 0 has been seen in {config.folder} for 0 s"
    with pytest.raises(LaunchError, match=re.escape(words)) as error:
        scheduled._await_first(config)
    assert error.value.exit_code == 69


def test_a_sweep_is_refused_where_each_rank_would_start_all_its_runs(
    run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in RANK.items():
        monkeypatch.setenv(name, value)
    run_file.write_text(run_file.read_text() + "sweep: {grid: {seed: [1, 2]}}\n")
    with pytest.raises(ConfigError, match="This is a sweep, and RANK, WORLD_SIZE"):
        cli.run(str(run_file))
    assert not (run_file.parent / "runs").exists()


def test_one_machine_talks_over_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "")  # restored at the end
        monkeypatch.delenv(name)
    for name, value in (RANK | {"LOCAL_WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)
    scheduled._defaults()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_restarts_of_torchrun_are_warned_about_where_they_hang() -> None:
    shared = {"TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert scheduled._restarts_hang(shared)
    assert not scheduled._restarts_hang(shared | {"TORCHELASTIC_USE_AGENT_STORE": "False"})
    assert not scheduled._restarts_hang(shared | {"TORCHELASTIC_MAX_RESTARTS": "0"})
    assert not scheduled._restarts_hang({})

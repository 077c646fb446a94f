"""``distill run`` as one rank: where torchrun, or a scheduler that speaks like it, has already started the ranks.

They set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. There is no agent then: supervision and restarts are
theirs. Rank 0 checks, prepares and writes; the others wait for it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from configs import loader
from configs.cluster import Timeouts
from configs.errors import ConfigError, LaunchError, output_error
from launcher import environment, launch, network, pins
from launcher.link import Sign
from launcher.lock import agent_lock, folder_lock

if TYPE_CHECKING:
    from distill_core.config import RunConfig

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
WAIT_SECONDS = 0.2
SIGN = "launch/first-rank.json"
"""In the run folder: a number that rank 0 makes grow, by which the others know that the folder is the same one."""
SIGN_SECONDS = 300.0
"""In which the others must see it grow; file systems may show a change late."""
RESTARTS = (
    "warning: torchrun's restarts hang unless TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is in the environment of torchrun "
    "itself. Without it, start the same command again by hand: it continues from the newest checkpoint."
)


def is_rank(variables: Mapping[str, str]) -> bool:
    """Whether this process is one of several that somebody else has started, and no rank of our own agents."""
    return all(variables.get(name) for name in NAMES) and "ZHENGLIU_RENDEZVOUS" not in variables


def refuse_several(variables: Mapping[str, str]) -> None:
    """Raises ConfigError: each rank would be a launcher of all runs of a sweep."""
    if is_rank(variables):
        raise ConfigError(
            "This is a sweep, and RANK, WORLD_SIZE and MASTER_ADDR are set, as by torchrun: ranks that are started so "
            "are those of one run. Start the sweep by itself (with --cluster FILE for several machines), or its runs "
            "(OUTPUT/NAME/0001-...) one by one under torchrun."
        )


def run(config: RunConfig, only: str | None = None) -> int:
    """Be this rank of ``config``'s run; its exit status.

    Raises:
        ZhengliuError: what can be known beforehand.
    """
    from distill_core import preflight
    from distill_core.run import rank_program, run_ranks
    from launcher.runfile import check_stage

    rank, world_size = _numbers(os.environ)
    config = pins.settled(config) if rank == 0 else config
    check_stage([stage.name for stage in config.stages], only)
    preflight.check(config, world_size)
    _defaults()
    if rank > 0:
        _await_first(config)
        return rank_program(config.folder, lambda: run_ranks(config.folder, only))
    if _restarts_hang(os.environ):
        print(RESTARTS, flush=True)
    with folder_lock(config.folder), _seen(config.folder), agent_lock(config.folder, Timeouts().join, lambda: None):
        _begin(config, world_size)
        return rank_program(config.folder, lambda: run_ranks(config.folder, only))


@contextlib.contextmanager
def _seen(folder: Path) -> Iterator[None]:
    """Rank 0's sign, to the end of the run: another rank may come late."""
    path = folder / SIGN
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sign = Sign(path, {"host": socket.gethostname()})
    except OSError as error:
        raise output_error(path, error) from error
    try:
        yield
    finally:
        sign.close()


def _numbers(variables: Mapping[str, str]) -> tuple[int, int]:
    """(rank, world size)."""
    said = {name: variables[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    for name, text in said.items():
        if not text.isdigit():
            raise ConfigError(f"{name} is {text!r}, which is no number. Who started this process sets it.")
    rank, world_size = int(said["RANK"]), int(said["WORLD_SIZE"])
    if rank >= world_size:
        raise ConfigError(f"RANK is {rank} and WORLD_SIZE {world_size}: ranks count from 0.")
    return rank, world_size


def _begin(config: RunConfig, world_size: int) -> None:
    """What the launcher does before it starts ranks."""
    launch.check_sources(config.data, config.data_folder)
    (config.folder / "logs").mkdir(parents=True, exist_ok=True)
    for rank in range(world_size):
        (config.folder / "logs" / f"rank-{rank}.error.json").unlink(missing_ok=True)
    launch.write(config.folder / "environment.json", environment.to_json(pins.record(config)))
    launch.prepare_data(config.data, config.data_folder)
    launch.write(config.folder / "config.yaml", loader.to_yaml(config))  # last: the others wait for it


def _await_first(config: RunConfig) -> None:
    """Until rank 0 is seen at work in this folder, has written this very configuration, and the data is there.

    No limit of time for preparation, which takes what it takes; but rank 0 must be seen to live.

    Raises:
        LaunchError: it is not, so that this host has another folder under the same path; or who started this is gone.
    """
    parent = os.getppid()
    sign, last, seen, heard = config.folder / SIGN, None, 0, time.monotonic()
    while True:
        text = _text(sign)
        if text is not None and text != last:
            last, seen, heard = text, seen + 1, time.monotonic()
        # Twice: the first time it may be what an earlier start has left.
        if seen > 1 and (config.data_folder / "manifest.json").is_file() and _settled_so(config):
            return
        if os.getppid() != parent:
            raise LaunchError("Whoever started this rank is gone, before rank 0 had prepared the data.")
        if time.monotonic() - heard > SIGN_SECONDS:
            raise LaunchError(
                f"{socket.gethostname()}: nothing of rank 0 has been seen in {config.folder.resolve()} for "
                f"{SIGN_SECONDS:.0f} s. The run folder must lie on a file system that all nodes share, under the same "
                "path; or rank 0 has ended, and says why."
            )
        time.sleep(WAIT_SECONDS)


def _settled_so(config: RunConfig) -> bool:
    """Whether config.yaml is this configuration, with the commits that rank 0 has found for names of the hub."""
    return _text(config.folder / "config.yaml") == loader.to_yaml(pins.recorded(config))


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def _defaults() -> None:
    """For gloo and NCCL: the interface by which the first node is reached; a node's name may stand for 127.0.0.1."""
    variables = os.environ
    variables.setdefault("TOKENIZERS_PARALLELISM", "false")
    variables.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if int(variables["WORLD_SIZE"]) == int(variables.get("LOCAL_WORLD_SIZE", "0")):
        variables.setdefault("GLOO_SOCKET_IFNAME", "lo")
        return
    if not variables.get("GLOO_SOCKET_IFNAME"):
        found = network.interface_of(network.own_address(None, [variables["MASTER_ADDR"]]))
        variables["GLOO_SOCKET_IFNAME"] = found
    variables.setdefault("NCCL_SOCKET_IFNAME", variables["GLOO_SOCKET_IFNAME"])


def _restarts_hang(variables: Mapping[str, str]) -> bool:
    restarts = variables.get("TORCHELASTIC_MAX_RESTARTS", "0")
    return restarts not in ("", "0") and variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def leave(config: RunConfig, only: str | None = None) -> None:
    """:func:`run`, and the end of this process."""
    from distill_core.run import leave as end

    status = run(config, only)
    print(f"rank {os.environ['RANK']} ends with status {status}", file=sys.stderr, flush=True)
    end(status)

"""A rank of doctor: all-reduces between the hosts, over the same agents, store and backend as a run's.

``python -m launcher.doctor_rank RESULT``: rank 0 writes ``{"bandwidth": bytes/s, "seconds": s, "backend": name}``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from distill_core.engine import start_ranks, stop_ranks

ELEMENTS = 4 << 20
"""16 MB of fp32, as a bucket of gradients."""
TIMES = 4


def main(result: Path) -> None:
    rank = start_ranks(timeout_minutes=2)
    value = torch.ones(ELEMENTS, device=rank.device)
    dist.all_reduce(value)  # opens the connections
    if value[0].item() != rank.world_size:
        raise RuntimeError(f"an all-reduce of ones over {rank.world_size} ranks gave {value[0].item()}")
    times = []
    for _ in range(TIMES):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(value)
        value[0].item()  # waits for the device
        times.append(time.perf_counter() - began)
    if rank.is_first:
        seconds = sorted(times)[TIMES // 2]
        # What each rank sends and receives in a ring: 2 (n - 1) / n of the buffer ("bus bandwidth" of nccl-tests).
        sent = 4 * ELEMENTS * 2 * (rank.world_size - 1) / rank.world_size
        result.write_text(
            json.dumps({"bandwidth": sent / seconds, "seconds": seconds, "backend": dist.get_backend()}), "utf-8"
        )
    stop_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # as distill_core.run does: threads of gloo do not survive the interpreter's own end

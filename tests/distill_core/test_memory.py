"""Freed memory that stays: pages that the second of two equal steps has to fetch from the system."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from distill_core.memory import freed_memory_kept

PROGRAM = """
import resource, torch
from distill_core.memory import freed_memory_kept

def fetched():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(50 << 18) for _ in range(2)]  # so large that glibc alone gives them back
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 2**20

def settled():
    return round([fetched() for _ in range(12)][-1])

found = [settled()]
with freed_memory_kept(torch.device("cuda")):
    found.append(settled())
with freed_memory_kept(torch.device("cpu")):
    found.append(settled())
print(found)
"""


def test_a_step_finds_the_memory_of_the_last_one() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    alone, with_a_gpu, kept = json.loads(done.stdout)
    assert alone >= 100 and with_a_gpu >= 100 and kept < 5


def test_it_ends_with_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[bool] = []
    monkeypatch.setattr("distill_core.memory._set", lambda settings: said.append(max(settings.values()) > 2**30))
    cpu = torch.device("cpu")
    with pytest.raises(ZeroDivisionError), freed_memory_kept(cpu), freed_memory_kept(cpu, kept=False):
        raise ZeroDivisionError
    assert said == [True, False, True, False]

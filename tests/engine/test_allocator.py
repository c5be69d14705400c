"""What glibc does with freed memory: a large block lies in the heap, which stays as large when the block is freed."""

import os
import platform
import subprocess
import sys

import pytest

from sb3_softac.engine import engine
from tests.helpers import fill_buffer, make_model

PROGRAM = """
import ctypes
from pathlib import Path
from sb3_softac.engine.allocator import keep_freed_memory

def heap():
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("[heap]")]
    addresses = [int(address, 16) for line in lines for address in line.split()[0].split("-")]
    return min(addresses), max(addresses)

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
print(keep_freed_memory())
block = libc.malloc(20 * 2**20)
start, end = heap()
print(start <= block < end)
libc.free(block)
print(heap()[1] == end)
"""


def run(**environment: str) -> list[str]:
    """Whether glibc was told, whether a block of 20 MiB is in the heap, and whether the heap stays as it was."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "SB3_", "LD_PRELOAD"))
    }
    program = [sys.executable, "-c", PROGRAM]
    return subprocess.run(program, env={**kept, **environment}, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_stays_unless_the_user_says_otherwise() -> None:
    assert run() == ["True", "True", "True"]
    assert run(SB3_SOFTAC_NO_MALLOPT="1")[:2] == ["False", "False"]
    assert run(MALLOC_ARENA_MAX="2")[:2] == ["False", "False"]
    assert run(GLIBC_TUNABLES="glibc.malloc.arena_max=2")[:2] == ["False", "False"]


def test_training_on_the_cpu_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(engine, "keep_freed_memory", lambda: asked.append(True))
    model = make_model()
    fill_buffer(model)
    assert not asked
    model.train(1, batch_size=16)
    assert asked == [True]

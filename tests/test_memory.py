"""What glibc does with freed memory, seen in the pages that the system has to clear."""

import os
import platform
import subprocess
import sys

import pytest

from sb3_softac import engine
from tests.helpers import fill_buffer, make_model

PROGRAM = """
import resource, torch as th
from sb3_softac.memory import keep_freed_memory
print(keep_freed_memory())
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        kept = [th.ones(2**18) for _ in range(20)]
        del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages()
print(pages())
"""


def run(**environment: str) -> tuple[str, int]:
    """Whether glibc was told, and how many pages twenty rounds of twenty tensors of a megabyte needed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "SB3_"))}
    program = [sys.executable, "-c", PROGRAM]
    output = subprocess.run(program, env={**kept, **environment}, capture_output=True, text=True, check=True).stdout.split()
    return output[0], int(output[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_stays_unless_the_user_says_otherwise() -> None:
    assert run()[0] == "True"
    assert run()[1] < 1000
    assert run(SB3_SOFTAC_NO_MALLOPT="1")[0] == "False"
    assert run(SB3_SOFTAC_NO_MALLOPT="1")[1] > 20_000
    assert run(MALLOC_ARENA_MAX="2")[0] == "False"
    assert run(GLIBC_TUNABLES="glibc.malloc.arena_max=2")[0] == "False"


def test_training_on_the_cpu_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(engine, "keep_freed_memory", lambda: asked.append(True))
    model = make_model()
    fill_buffer(model)
    assert not asked
    model.train(1, batch_size=16)
    assert asked == [True]

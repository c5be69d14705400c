"""A process that leaves its group keeps nothing of it: threads that were left could abort it when it ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import environment, free_port

ROOT = Path(__file__).parent.parent.parent
TASKS = Path("/proc/self/task")
PROGRAM = """
import os
import torch as th
from sb3_softac.engine import Group
from sb3_softac.engine.group import close_group, open_group

def n_threads():
    return len(os.listdir("/proc/self/task"))

th.set_num_threads(1)
before = n_threads()
for attempt in (0, 1):  # it can be joined again
    open_group(0, 60.0)
    group = Group()
    assert n_threads() > before
    value = th.ones(3, requires_grad=True)
    (2.0 * group.mean(value)).sum().backward()
    assert value.grad.tolist() == [2.0, 2.0, 2.0]
    group.gather_objects("text")
    group.leave() if attempt else close_group()
    assert n_threads() == before, (n_threads(), before)
print("left")
"""


@pytest.mark.skipif(not TASKS.is_dir(), reason="needs /proc")
def test_nothing_of_a_group_stays_behind() -> None:
    variables = environment(rank=0, size=1, port=free_port())
    path = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "left\n", done.stderr

"""Where the environment of this repository is installed, compiling works: no test of compiled steps may be skipped there."""

from pathlib import Path

import pytest
import torch as th

from tests.helpers import MISSING

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def test_compiling_is_available_under_the_pinned_torch() -> None:
    pinned = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch==")).removeprefix("torch==")
    if th.__version__.partition("+")[0] != pinned:
        pytest.skip(f"another PyTorch than the pinned {pinned}")
    assert MISSING is None

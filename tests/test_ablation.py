"""benchmarks/ablation.py: every switch is there, and the report says what was measured."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import ablation  # benchmarks/ablation.py


def test_every_part_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is renamed or moved would be measured as worth nothing."""
    replaced: list[str] = []

    def note(owner: Any, name: str, value: Any) -> None:
        assert callable(getattr(owner, name))
        assert callable(value)
        replaced.append(name)

    monkeypatch.setattr(ablation, "replace", note)
    monkeypatch.setattr(os, "environ", {})
    for switch_off in ablation.PARTS.values():
        switch_off()
    assert os.environ == {"SB3_SOFTAC_NO_ONEDNN": "1"}
    names = ["keep_freed_memory", "make_actor", "can_sample", "can_replace_in_eager_mode"]
    assert replaced == names


@pytest.mark.parametrize("fast", [True, False])
def test_parts_are_measured_where_they_matter(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's matmuls only on a processor for which they are chosen."""
    monkeypatch.setattr(ablation, "uses_onednn", lambda: fast)
    onednn = ["oneDNN matmuls"] * fast
    by_name = {f"{case.name}, {way}": ablation.parts_of(case, way) for case, way in ablation.cases()}
    assert by_name["2x256, 1 thread, SoftAC eager"] == [*onednn, "kept memory", "block sampling", "tensor optimizers"]
    compiled = by_name["learn, 8 environments, 2 threads, SoftAC compiled"]
    assert compiled == [*onednn, "kept memory", "direct acting", "block sampling"]


def test_the_interval_of_a_median() -> None:
    """Of equal ratios it is a point; of others it holds their median, and none that was never seen."""
    assert list(ablation.interval([1.2] * 9)) == pytest.approx([1.2, 1.2])
    ratios = np.linspace(1.0, 1.8, 9).tolist()
    low, high = ablation.interval(ratios)
    assert 1.0 <= low < 1.4 < high <= 1.8


def test_the_table() -> None:
    row = {"case": "2x256", "way": "eager", "machine": "a processor", "gain": "1.25", "low": "1.1", "high": "1.3"}
    lines = ablation.report([row | {"part": "kept memory"}]).splitlines()
    assert lines[0].startswith("a processor; ")
    assert lines[-1] == "| 2x256, eager |  | +25 % (+10 to +30) |  |  |  |"

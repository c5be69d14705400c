"""Two ranks with batches of B train as one process with both batches together: the source of truth is that process."""

from typing import Any

import pytest
import torch as th

from tests.distributed import joint_batches
from tests.ranks import run_ranks

Weights = dict[str, th.Tensor]


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Weights]]:
    results = run_ranks(joint_batches.all_cases, 2)
    assert all(ended for ended, _ in results), results
    return [weights for _, weights in results]


@pytest.mark.parametrize("name", joint_batches.CASES)
def test_two_ranks_train_as_one_process_with_both_batches(ranks: Any, name: str) -> None:
    first, second = (rank[name] for rank in ranks)
    joint = joint_batches.train(joint_batches.CASES[name])
    begun = joint_batches.make(joint_batches.CASES[name]).policy.state_dict()
    assert first.keys() == second.keys() == joint.keys()
    moved = 0.0
    for key, value in joint.items():
        assert th.equal(first[key], second[key]), key  # bit for bit: ranks never drift apart
        assert th.allclose(first[key].double(), value.double(), rtol=1e-5, atol=1e-5), key
        moved = max(moved, float((value - begun[key]).abs().max()) if key in begun else 0.0)
    assert moved > 1e-3

"""Several compiled models in one process: each trains as it would alone.

With discrete actions a step draws no random numbers, and a buffer of one transition gives the same batch every time: threads
that share PyTorch's and NumPy's generators do not disturb each other.
"""

import threading
from typing import Any

import pytest

from sb3_softac import SoftAC
from tests.helpers import RandomDiscreteEnv, assert_close, assert_same_parameters, fill_buffer, make_model


def make(seed: int, compile: Any) -> SoftAC:
    model = make_model(env=RandomDiscreteEnv(), seed=seed, compile=compile, ent_coef_update="log")
    fill_buffer(model, n_transitions=1, seed=seed)
    return model


def train_together(models: list[SoftAC]) -> list[BaseException]:
    """Each in a thread of its own, from the same moment on."""
    start, errors = threading.Barrier(len(models)), list[BaseException]()

    def train(model: SoftAC) -> None:
        try:
            start.wait()
            model.train(12, batch_size=32)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=train, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.traced
def test_two_threads_equal_one_after_the_other() -> None:
    together, apart, eager = ([make(seed, compile) for seed in (0, 1)] for compile in (True, True, False))
    assert train_together(together) == []
    for model in (*apart, *eager):
        model.train(12, batch_size=32)
    for threaded, alone, reference in zip(together, apart, eager, strict=True):
        assert threaded._engine.n_builds == 1
        assert threaded._engine.compiles
        assert_same_parameters(threaded, alone)
        assert_close(threaded, reference)


@pytest.mark.traced
def test_taking_turns_equals_one_after_the_other() -> None:
    turns, apart = ([make(seed, True) for seed in (0, 1)] for _ in range(2))
    for _ in range(4):
        for model in turns:
            model.train(3, batch_size=32)
    for model in apart:
        for _ in range(4):
            model.train(3, batch_size=32)
    for left, right in zip(turns, apart, strict=True):
        assert left._engine.n_builds == 1
        assert_same_parameters(left, right)


def test_captured_models_take_turns(standin: Any) -> None:
    turns, apart = ([make(seed, compile) for seed in (0, 1)] for compile in ("auto", False))
    for _ in range(4):
        for model in turns:
            model.train(3, batch_size=32)
    for left, right in zip(turns, apart, strict=True):
        right.train(12, batch_size=32)
        assert_close(left, right)
    assert standin.captured == 2


def test_two_threads_in_eager_mode() -> None:
    together, apart = ([make(seed, False) for seed in (0, 1)] for _ in range(2))
    assert train_together(together) == []
    for left, right in zip(together, apart, strict=True):
        right.train(12, batch_size=32)
        assert_same_parameters(left, right)

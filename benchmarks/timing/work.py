"""What the process of a peer does."""

import contextlib
import os
import resource
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from timing.cases import Case
from timing.models import make_model, ready


def prepare(case: Case, peer: str) -> Callable[[], int]:
    """A function that does a little of the work, waits for its end, and says how many units it were."""
    model = ready(make_model(case, peer), 5_000 // case.n_envs)

    def settle() -> None:
        if peer == "SBX":
            import jax

            wait: Any = jax.block_until_ready  # jax ships it without annotations
            states = [state for name, state in vars(model.policy).items() if name.endswith("_state")]
            wait([state.params for state in states])
        elif case.device == "cuda":
            import torch as th

            th.cuda.synchronize()

    def work() -> int:
        if case.kind == "updates":
            model.train(case.gradient_steps, case.batch_size)
            settle()
            return case.gradient_steps
        steps = (1000 if case.kind == "act" else 50) * case.n_envs
        model.learn(steps, reset_num_timesteps=False, log_interval=None)
        settle()
        return steps

    return work


def worker(connection: Connection, case: Case, peer: str, seconds: float) -> None:
    """Measure whenever the parent asks; the first answer is the time of the first three calls."""
    with tempfile.TemporaryDirectory() as cache, contextlib.suppress(EOFError):
        os.environ |= {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": cache, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        import torch as th

        th.set_num_threads(case.threads)
        work = prepare(case, peer)
        start = time.perf_counter()
        for _ in range(3):
            work()
        first = time.perf_counter() - start
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            work()
        connection.send(first)
        while True:
            connection.recv()
            start, count = time.perf_counter(), 0
            while (elapsed := time.perf_counter() - start) < seconds:
                count += work()
            connection.send((count / elapsed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0))

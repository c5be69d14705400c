"""The limit of the arithmetic: how fast matrices are multiplied, and how many operations a gradient step needs."""

import dataclasses
import itertools
import time
from collections.abc import Callable
from typing import Any

from flops import gradient_step_flops  # benchmarks/flops.py

from timing.cases import CONTRIB_PRESETS, Case
from timing.models import make_model, ready

#: square matmuls, and how often each is repeated
GEMM_SIZES = ((256, 50), (512, 8), (1024, 2))


def gemm_rate(threads: int, device: str, sizes: tuple[tuple[int, int], ...] = GEMM_SIZES) -> float:
    """The highest FLOP/s of square float32 matmuls that can be seen, by PyTorch's own matmul or oneDNN's.

    On a GPU the matmuls have one size, 4096.
    """
    import torch as th

    th.set_num_threads(threads)
    best = 0.0
    if device == "cuda":
        matrix = th.randn(4096, 4096, device=device)
        for _ in range(8):
            th.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(4):
                th.mm(matrix, matrix)
            th.cuda.synchronize()
            best = max(best, 4 * 2.0 * 4096**3 / (time.perf_counter() - start))
        return best
    matmuls: list[Callable[[Any, Any], Any]] = [th.mm]
    has_onednn: Any = th.backends.mkldnn.is_available  # torch ships it without annotations
    if has_onednn():
        matmuls.append(lambda left, right: th.ops.mkldnn._linear_pointwise.default(left, right, None, "none", [], ""))
    for size, repetitions in sizes:
        left, right = th.randn(size, size), th.randn(size, size)
        for multiply, _ in itertools.product(matmuls, range(8)):
            start = time.perf_counter()
            for _ in range(repetitions):
                multiply(left, right)
            best = max(best, repetitions * 2.0 * size**3 / (time.perf_counter() - start))
    return best


def flop_of(case: Case) -> float:
    """Floating-point operations of one gradient step: by formula, or counted where there is none."""
    if case.algorithm not in CONTRIB_PRESETS:
        return case.flop
    counted = dataclasses.replace(case, kind="updates", device="cpu")
    return gradient_step_flops(ready(make_model(counted, "SoftAC eager"), 500))

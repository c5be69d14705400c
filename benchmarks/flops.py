"""How many floating-point operations a gradient step needs: those of its matmuls, counted while it runs."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from sb3_softac.engine import matmul


@contextlib.contextmanager
def _counted_products() -> Iterator[None]:
    """Let PyTorch's own matmuls do all the work: those of oneDNN are not counted."""
    before, matmul.ONEDNN_IS_FASTER = matmul.ONEDNN_IS_FASTER, False
    try:
        yield
    finally:
        matmul.ONEDNN_IS_FASTER = before


def gradient_step_flops(model: Any) -> float:
    """Floating-point operations of the matmuls and convolutions of one gradient step, as it runs in eager mode.

    A matmul of (m, k) and (k, n) has m·k·n multiplications and as many additions. Forward each layer has one; backward one
    for its weights, and one for its inputs where their gradient is needed. Elementwise operations and optimizers do not count,
    nor does an ensemble's layer with a single output, which multiplies and sums.

    :param model: a model of this package, of SB3 or sb3-contrib in eager mode, with a logger and a filled replay buffer; it
        trains for ``policy_delay`` gradient steps, so that the actor has its turn
    :return: mean over these steps
    """
    steps = getattr(model, "policy_delay", 1)
    counter = FlopCounterMode(display=False)
    with _counted_products(), counter:
        model.train(steps, model.batch_size)
    return counter.get_total_flops() / steps

"""Where the time of a gradient step goes."""

import re
import time
from collections.abc import Callable

from timing.cases import BFLOAT16, Case, peers_of
from timing.limit import gemm_rate
from timing.machine import has_bfloat16
from timing.work import prepare

#: operators that multiply matrices: PyTorch's, in eager mode or called from compiled code, and oneDNN's
MATMUL = re.compile(r"(aten::|aoti_torch_cpu_)(addmm|baddbmm|bmm|mm)(_out)?$|linear_pointwise$")


def steady_seconds(work: Callable[[], int], case: Case) -> float:
    """Of a gradient step, after those that compile."""
    for _ in range(max(3, 60 // case.gradient_steps)):
        work()
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < 3.0:
        steps += work()
    return (time.perf_counter() - start) / steps


def profile(case: Case) -> str:
    """How many milliseconds of a gradient step are matmuls, and how many there would be at the limit, as Markdown."""
    import torch as th

    lines = [f"| {case.name} | matmuls, ms | all else, ms | together, ms |", "|---" * 4 + "|"]
    th.set_num_threads(case.threads)
    chosen = ["SB3", "SoftAC eager", "SoftAC compiled", *([BFLOAT16] if has_bfloat16("cpu") else [])]
    for peer in peers_of(case, chosen):
        total = 1e3 * steady_seconds(prepare(case, peer), case)
        with th._inductor.config.patch({"cpp.enable_kernel_profile": True}):  # else matmuls in compiled code do not show
            work = prepare(case, peer)
            steady_seconds(work, case)
            with th.profiler.profile(activities=[th.profiler.ProfilerActivity.CPU]) as profiler:
                steps = sum(work() for _ in range(max(3, 200 // case.gradient_steps)))
        events = [event for event in profiler.key_averages() if MATMUL.search(event.key)]
        matmuls = sum(event.self_cpu_time_total for event in events) / steps / 1e3
        lines.append(f"| {peer} | {matmuls:.2f} | {total - matmuls:.2f} | {total:.2f} |")
    limit = 1e3 * case.flop / gemm_rate(case.threads, "cpu")
    return "\n".join([*lines, f"| float32 matmuls at their limit | {limit:.2f} | | |"])

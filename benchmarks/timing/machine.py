"""What a measurement depends on: the machine, the packages, and how many threads and CPUs a process has."""

import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path

#: whose versions stand in each row
PACKAGES = ("sb3-softac", "stable-baselines3", "sb3-contrib", "torch", "sbx-rl", "jax", "gymnasium", "mujoco", "numpy")


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def machine(device: str) -> str:
    """The GPU, if it is one that computes; the processor, and how many of its cores there are to use."""
    names = [
        line.partition(":")[2].strip()
        for line in (Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else [])
        if line.startswith("model name")
    ]
    processor = f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"
    if device == "cpu":
        return processor
    import torch as th

    return f"{th.cuda.get_device_name()}, {processor}"


def has_bfloat16(device: str) -> bool:
    """Whether a device multiplies matrices in bfloat16 faster than in float32."""
    import torch as th

    from sb3_softac.engine import missing_for

    return missing_for("bfloat16", th.device(device)) is None


@contextlib.contextmanager
def limited(threads: int, pinned: bool = True) -> Iterator[None]:
    """Let processes that are started here have ``threads`` threads, from their first library on, and CPUs, if ``pinned``."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    cpus = os.sched_getaffinity(0) if pinned and hasattr(os, "sched_getaffinity") else None
    os.environ.update(dict.fromkeys(names, str(threads)))
    if cpus is not None:
        os.sched_setaffinity(0, sorted(cpus)[:threads])
    try:
        yield
    finally:
        if cpus is not None:
            os.sched_setaffinity(0, cpus)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value

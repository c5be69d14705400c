"""How fast SoftAC trains, next to SB3's SAC and SBX's, and how far that is from the limit of the arithmetic; and SoftQL.

    pip install -e ".[mujoco,plots,sbx]"
    python benchmarks/speed.py --output docs/speed

Every peer has a process of its own, with as many CPUs as the case has threads. The peers take turns: in each round each of
them works for a while, and the others wait. Figures are medians over the rounds; what counts are the ratios of one run, since
machines are noisy. Cases of the kind "updates" call `train()` on a filled replay buffer; "learn" and "act" call `learn()` on
HalfCheetah-v5, "act" with policy actions and without updates. Compilers start with empty caches. Writes OUTPUT.csv and
OUTPUT.png; --report prints the tables of a CSV file, --plot draws it again, --only runs the cases whose names contain one of
the given words, and keeps the others of a file that is there. --device cuda runs cases of its own on a GPU, where compiled
steps are captured in a CUDA graph, too; there the peers start at the same time, and take turns from then on. SoftQL has no
peer: its cases, called "SoftQL ...", compare compiled steps with eager ones. Cases called "TQC ..." and "CrossQ ..." compare
presets of ours with the classes of sb3-contrib and SBX, at the same sizes. --profile shows where the time of SoftAC goes in
one case.

    python benchmarks/speed.py --flops --only tqc crossq --peers "SoftAC eager"

--flops counts the floating-point operations of a gradient step for each preset, and prints how many times longer it takes
than they would at the speed of a product of two 1024 x 1024 matrices. --only and --peers choose presets, and eager or compiled
steps.
"""

import argparse
import contextlib
import csv
import dataclasses
import importlib.metadata
import importlib.util
import itertools
import multiprocessing
import os
import platform
import re
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from flops import gradient_step_flops  # benchmarks/flops.py

BFLOAT16 = "SoftAC compiled, bfloat16"
PEERS = {"SB3": "SB3", "SoftAC eager": "SoftAC", "SoftAC compiled": "SoftAC", "SBX": "SBX", BFLOAT16: "SoftAC"}
#: with graphs of eager kernels; what is compiled is captured, too
CUDA_PEERS = {"SB3": "SB3", "SoftAC eager": "SoftAC", "SoftAC captured": "SoftAC", "SoftAC compiled": "SoftAC", "SBX": "SBX"}
CUDA_PEERS[BFLOAT16] = "SoftAC"
#: of the cases of soft Q-learning
SOFT_QL_PEERS = {"SoftQL eager": "SoftQL", "SoftQL compiled": "SoftQL"}
#: the peer of TQC and CrossQ with which the others are compared
CONTRIB = "sb3-contrib"
#: presets that are compared with classes of sb3-contrib and SBX, by the names of these
CONTRIB_PRESETS = {"TQC": "tqc", "CrossQ": "crossq_small"}
PACKAGES = ("sb3-softac", "stable-baselines3", "sb3-contrib", "torch", "sbx-rl", "jax", "gymnasium", "mujoco", "numpy")


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure."""

    name: str
    kind: str = "updates"  # or "learn", "act"
    threads: int = 2
    obs_dim: int = 17
    action_dim: int = 6
    net_arch: tuple[int, ...] = (256, 256)
    n_critics: int = 2
    gradient_steps: int = 1
    batch_size: int = 256
    n_envs: int = 1
    algorithm: str = "SAC"  # or "TQC", "CrossQ"
    particles: int = 0  # of soft Q-learning, for its value and its kernel; 0 for soft actor-critic
    device: str = "cpu"  # or "cuda", where compiled steps are captured in a CUDA graph, too

    @property
    def flop(self) -> float:
        """Floating-point operations of the matrix products of one gradient step of SAC, or of soft Q-learning.

        Critics: targets, values of the batch, values of the policy's actions forward; weights and hidden layers backward for
        the critic loss, all layers' inputs for the actor loss. Actor: both states forward, weights and hidden layers backward.

        Soft Q-learning: critics of the batch forward and backward, target critics at all value particles; sampler at all
        kernel particles forward, and backward for half of them; critics at the other half forward, and all layers' inputs.
        """

        def forward(*units: int) -> tuple[float, float]:
            layers = [2.0 * self.batch_size * a * b for a, b in itertools.pairwise(units)]
            return sum(layers), layers[0]

        if self.particles:
            critic, critic_first = forward(self.obs_dim + self.action_dim, *self.net_arch, 1)
            sampler, sampler_first = forward(self.obs_dim + self.action_dim, *self.net_arch, self.action_dim)
            of_critics = 3.0 * critic - critic_first + 2.0 * self.particles * critic
            return self.n_critics * of_critics + self.particles * (2.0 * sampler - 0.5 * sampler_first)

        critic, critic_first = forward(self.obs_dim + self.action_dim, *self.net_arch, 1)
        actor, actor_first = forward(self.obs_dim, *self.net_arch, 2 * self.action_dim)
        return self.n_critics * (6.0 * critic - critic_first) + 4.0 * actor - actor_first


def _cases() -> list[Case]:
    pendulum: dict[str, Any] = {"obs_dim": 3, "action_dim": 1, "net_arch": (64, 64)}
    cases = []
    for threads in (1, 2):
        suffix = f", {threads} thread{'s' * (threads > 1)}"
        cases += [
            Case(f"2x256{suffix}", threads=threads),
            Case(f"2x256, 20 steps{suffix}", threads=threads, gradient_steps=20),
            Case(f"2x64 Pendulum{suffix}", threads=threads, **pendulum),
            Case(f"400-300{suffix}", threads=threads, net_arch=(400, 300)),
            Case(f"10 critics, 20 steps{suffix}", threads=threads, n_critics=10, gradient_steps=20),
            Case(f"learn, 1 environment{suffix}", kind="learn", threads=threads),
            Case(f"learn, 8 environments{suffix}", kind="learn", threads=threads, n_envs=8),
            *(Case(f"{name} 2x256{suffix}", threads=threads, algorithm=name) for name in CONTRIB_PRESETS),
        ]
    cases += [
        Case("2x256, 100 steps, 2 threads", gradient_steps=100),
        Case("10 critics, 1 step, 2 threads", n_critics=10),
        Case("act, 1 environment, 1 thread", kind="act", threads=1),
    ]
    cases += [Case(f"batch {size}", batch_size=size) for size in (64, 1024)]
    cases += [Case(f"width {width}", net_arch=(width, width)) for width in (64, 128, 512)]
    cases += [Case(f"{n} critics", n_critics=n) for n in (1, 5)]
    # As published for HalfCheetah, with other numbers of particles, and as wide as SoftAC's default.
    published: dict[str, Any] = {"net_arch": (128, 128), "n_critics": 1, "batch_size": 128}
    for threads in (1, 2):
        suffix = f", {threads} thread{'s' * (threads > 1)}"
        cases.append(Case(f"SoftQL 2x128, 16 particles{suffix}", threads=threads, particles=16, **published))
    cases += [Case(f"SoftQL 2x128, {n} particles, 1 thread", threads=1, particles=n, **published) for n in (4, 8, 32, 64)]
    return [*cases, Case("SoftQL 2x256, 16 particles, 2 threads", particles=16, n_critics=1)]


def _cuda_cases() -> list[Case]:
    cases = [
        Case("2x256"),
        Case("learn, 1 environment", kind="learn"),
        Case("2x256, 20 steps", gradient_steps=20),
        Case("learn, 8 environments", kind="learn", n_envs=8),
        Case("SoftQL 2x256, 16 particles", particles=16, n_critics=1),
        Case("10 critics, 20 steps", n_critics=10, gradient_steps=20),
        Case("act, 1 environment", kind="act"),
        Case("batch 1024", batch_size=1024),
        Case("2x256, 100 steps", gradient_steps=100),
        Case("width 1024", net_arch=(1024, 1024)),
        *(Case(f"{name} 2x256", algorithm=name) for name in CONTRIB_PRESETS),
    ]
    return [dataclasses.replace(case, device="cuda") for case in cases]


def cases_on(device: str) -> list[Case]:
    """What is measured on the processor ("cpu") or on a GPU ("cuda")."""
    return _cases() if device == "cpu" else _cuda_cases()


def peers_of(case: Case, chosen: list[str]) -> list[str]:
    """Who is measured in a case; the others are compared with the first."""
    if case.algorithm in CONTRIB_PRESETS:
        return [CONTRIB, *(peer for peer in chosen if peer != "SB3")]
    return list(SOFT_QL_PEERS) if case.particles else chosen


def make_spaces(case: Case) -> Any:
    """An environment that only has spaces."""
    import gymnasium as gym

    class Spaces(gym.Env[Any, Any]):
        observation_space = gym.spaces.Box(-1.0, 1.0, (case.obs_dim,), np.float32)
        action_space = gym.spaces.Box(-1.0, 1.0, (case.action_dim,), np.float32)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            return np.zeros(case.obs_dim, np.float32), {}

    return Spaces()


def make_model(case: Case, peer: str) -> Any:
    """The model that ``peer`` measures ``case`` with."""
    from stable_baselines3.common.env_util import make_vec_env

    env: Any = make_spaces(case) if case.kind == "updates" else make_vec_env("HalfCheetah-v5", n_envs=case.n_envs, seed=0)
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": list(case.net_arch), "n_critics": case.n_critics}}
    kwargs |= {"batch_size": case.batch_size, "learning_starts": 0, "seed": 0}
    kwargs["gradient_steps"] = 0 if case.kind == "act" else case.gradient_steps
    if peer in SOFT_QL_PEERS:
        from sb3_softac import SoftQL

        kwargs |= {"kernel_particles": case.particles, "value_particles": case.particles}
        return SoftQL("MlpPolicy", env, device=case.device, compile=peer.endswith("compiled"), **kwargs)
    if CUDA_PEERS.get(peer) == "SoftAC":
        from sb3_softac import SoftAC, presets

        way: Any = "auto" if peer.endswith("captured") else "compiled" in peer  # too few steps to compile
        kwargs["precision"] = "bfloat16" if peer == BFLOAT16 else "float32"
        if case.algorithm in CONTRIB_PRESETS:
            kwargs = presets.get(CONTRIB_PRESETS[case.algorithm], **kwargs)
        return SoftAC("MlpPolicy", env, device=case.device, compile=way, **kwargs)
    if peer == "SBX":
        import sbx

        return getattr(sbx, case.algorithm)("MlpPolicy", env, **kwargs)
    if peer == CONTRIB:
        import sb3_contrib

        return getattr(sb3_contrib, case.algorithm)("MlpPolicy", env, device=case.device, **kwargs)
    from stable_baselines3 import SAC

    return SAC("MlpPolicy", env, device=case.device, **kwargs)


def fill(model: Any, n_transitions: int) -> None:
    """Random transitions in the replay buffer."""
    buffer, rng = model.replay_buffer, np.random.default_rng(0)
    for _ in range(n_transitions):
        observations = rng.normal(size=(2, buffer.n_envs, *buffer.obs_shape)).astype(np.float32)
        actions = rng.uniform(-1.0, 1.0, (buffer.n_envs, buffer.action_dim)).astype(np.float32)
        none = np.zeros(buffer.n_envs)
        buffer.add(*observations, actions, rng.normal(size=buffer.n_envs), none, [{}] * buffer.n_envs)


def prepare(case: Case, peer: str) -> Callable[[], int]:
    """A function that does a little of the work, waits for its end, and says how many units it were."""
    model = ready(make_model(case, peer), 5_000 // case.n_envs)

    def settle() -> None:
        if peer == "SBX":
            import jax

            states = [state for name, state in vars(model.policy).items() if name.endswith("_state")]
            jax.block_until_ready([state.params for state in states])
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


#: square products, and how often each is repeated
GEMM_SIZES = ((256, 50), (512, 8), (1024, 2))


def gemm_rate(threads: int, device: str, sizes: tuple[tuple[int, int], ...] = GEMM_SIZES) -> float:
    """The highest FLOP/s of square float32 products that can be seen, by PyTorch's own product or oneDNN's.

    On a GPU the products have one size, 4096.
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
    products: list[Callable[[Any, Any], Any]] = [th.mm]
    has_onednn: Any = th.backends.mkldnn.is_available  # torch ships it without annotations
    if has_onednn():
        products.append(lambda left, right: th.ops.mkldnn._linear_pointwise.default(left, right, None, "none", [], ""))
    for size, repetitions in sizes:
        left, right = th.randn(size, size), th.randn(size, size)
        for multiply, _ in itertools.product(products, range(8)):
            start = time.perf_counter()
            for _ in range(repetitions):
                multiply(left, right)
            best = max(best, repetitions * 2.0 * size**3 / (time.perf_counter() - start))
    return best


def measure(
    case: Case,
    peers: list[str],
    rounds: int,
    seconds: float,
    target: Callable[..., None] = worker,
    keep_rates: bool = False,
) -> list[dict[str, Any]]:
    """One row for each peer, which ``target`` runs in a process of its own; with the speeds of all rounds, if asked for."""
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Any] = {}
    started: dict[str, float] = {}
    on_cpu = case.device == "cpu"
    for peer in peers:
        ends[peer], other = context.Pipe()
        with limited(case.threads, pinned=on_cpu):
            context.Process(target=target, args=(other, case, peer, seconds), daemon=True).start()
        other.close()
        if on_cpu:  # one after the other
            started[peer] = ends[peer].recv()
    started |= {peer: ends[peer].recv() for peer in peers if peer not in started}  # all are ready before one is measured
    with limited(case.threads, pinned=on_cpu):  # oneDNN goes on with the threads that a process once had
        arithmetic = context.Pool(1)
    flop = arithmetic.apply(flop_of, (case,))
    rates: dict[str, list[float]] = {peer: [] for peer in peers}
    memory: dict[str, float] = {}
    gemm = [0.0]
    for turn in range(rounds):
        if case.kind == "updates":
            gemm.append(arithmetic.apply(gemm_rate, (case.threads, case.device)))
        for peer in peers[turn % len(peers) :] + peers[: turn % len(peers)]:  # nobody is always the first
            ends[peer].send(None)
            rate, memory[peer] = ends[peer].recv()
            rates[peer].append(rate)
    arithmetic.terminate()
    for end in ends.values():
        end.close()
    setting = {
        **{field.name: getattr(case, field.name) for field in dataclasses.fields(case) if field.name != "name"},
        "rounds": rounds,
        "seconds": seconds,
        "machine": machine(case.device),
        **{package: version(package) for package in PACKAGES},
        "python": platform.python_version(),
    }
    limits = {"mflop": round(flop / 1e6, 2), "gemm_gflops": round(max(gemm) / 1e9, 1)}
    rows = [_row(case, peer, rates, started[peer], memory[peer]) | limits | setting for peer in peers]
    return [row | {"rates": rates[row["peer"]]} for row in rows] if keep_rates else rows


def flop_of(case: Case) -> float:
    """Floating-point operations of one gradient step: by formula, or counted where there is none."""
    if case.algorithm not in CONTRIB_PRESETS:
        return case.flop
    counted = dataclasses.replace(case, kind="updates", device="cpu")
    return gradient_step_flops(ready(make_model(counted, "SoftAC eager"), 500))


def ready(model: Any, n_transitions: int) -> Any:
    """The model with a logger and transitions, so that its ``train()`` can be called."""
    from stable_baselines3.common.logger import Logger

    model.set_logger(Logger(None, []))
    fill(model, n_transitions)
    return model


def _row(case: Case, peer: str, rates: dict[str, list[float]], started: float, memory: float) -> dict[str, Any]:
    """What was measured of one peer; ratios are to the first."""
    first = next(iter(rates.values()))
    return {
        "case": case.name,
        "peer": peer,
        "unit": "gradient steps/s" if case.kind == "updates" else "environment steps/s",
        "median": round(statistics.median(rates[peer]), 2),
        "ratio": round(statistics.median(a / b for a, b in zip(rates[peer], first, strict=True)), 3),
        "lowest": round(min(rates[peer]), 2),
        "highest": round(max(rates[peer]), 2),
        "first_calls_s": round(started, 2),
        "peak_rss_mb": round(memory, 1),
    }


#: operators that multiply matrices: PyTorch's, in eager mode or called from compiled code, and oneDNN's
PRODUCT = re.compile(r"(aten::|aoti_torch_cpu_)(addmm|baddbmm|bmm|mm)(_out)?$|linear_pointwise$")


def steady_seconds(work: Callable[[], int], case: Case) -> float:
    """Of a gradient step, after those that compile."""
    for _ in range(max(3, 60 // case.gradient_steps)):
        work()
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < 3.0:
        steps += work()
    return (time.perf_counter() - start) / steps


def profile(case: Case) -> str:
    """How many milliseconds of a gradient step are matrix products, and how many there would be at the limit, as Markdown."""
    import torch as th

    lines = [f"| {case.name} | products, ms | all else, ms | together, ms |", "|---" * 4 + "|"]
    th.set_num_threads(case.threads)
    chosen = ["SB3", "SoftAC eager", "SoftAC compiled", *([BFLOAT16] if has_bfloat16("cpu") else [])]
    for peer in peers_of(case, chosen):
        total = 1e3 * steady_seconds(prepare(case, peer), case)
        with th._inductor.config.patch({"cpp.enable_kernel_profile": True}):  # else products in compiled code do not show
            work = prepare(case, peer)
            steady_seconds(work, case)
            with th.profiler.profile(activities=[th.profiler.ProfilerActivity.CPU]) as profiler:
                steps = sum(work() for _ in range(max(3, 200 // case.gradient_steps)))
        events = [event for event in profiler.key_averages() if PRODUCT.search(event.key)]
        products = sum(event.self_cpu_time_total for event in events) / steps / 1e3
        lines.append(f"| {peer} | {products:.2f} | {total - products:.2f} | {total:.2f} |")
    limit = 1e3 * case.flop / gemm_rate(case.threads, "cpu")
    return "\n".join([*lines, f"| float32 products at their limit | {limit:.2f} | | |"])


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


def by_case(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """The rows by case and peer."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        table.setdefault(row["case"], {})[row["peer"]] = row
    return table


def report(rows: list[dict[str, Any]]) -> str:
    """Speeds with their ratios to SB3's, then memory, compile times and the distance to the limit, as Markdown."""
    soft_ql = {name: peers for name, peers in by_case(rows).items() if not set(peers) - set(SOFT_QL_PEERS)}
    table = {name: peers for name, peers in by_case(rows).items() if "SB3" in peers}
    contrib = {name: peers for name, peers in by_case(rows).items() if CONTRIB in peers}
    on_gpu = any(row.get("device") == "cuda" for row in rows)
    lines = ["| case | SoftQL eager | SoftQL compiled | limit |", "|---" * 4 + "|"] if soft_ql else []
    for name, (eager, compiled) in ((name, peers.values()) for name, peers in soft_ql.items()):
        limit = 1e3 * float(eager["gemm_gflops"]) / float(eager["mflop"])
        speeds = (
            f"{_rounded(float(eager['median']))} | {_rounded(float(compiled['median']))} ({float(compiled['ratio']):.2f}x)"
        )
        lines.append(f"| {name} | {speeds} | {_rounded(limit)} |")
    of_sac = _report_of_sac(table, on_gpu) if table else []
    columns = [CONTRIB, *(peer for peer in (CUDA_PEERS if on_gpu else PEERS) if peer != "SB3")]
    of_contrib = _speeds(contrib, columns) if contrib else []
    return "\n\n".join("\n".join(part) for part in (lines, of_contrib, of_sac) if part)


def _speeds(table: dict[str, dict[str, dict[str, Any]]], columns: list[str]) -> list[str]:
    """Speeds of some peers, with their ratios to the first of them, and the limit."""
    lines = [f"| case | {' | '.join(columns)} | limit |", "|---" * (len(columns) + 2) + "|"]
    for name, peers in table.items():
        cells = []
        for peer in columns:
            row = peers.get(peer)
            ratio = f" ({float(row['ratio']):.2f}x)" if row and peer != columns[0] else ""
            cells.append("" if row is None else f"{_rounded(float(row['median']))}{ratio}")
        row = peers[columns[0]]
        limit = 1e3 * float(row["gemm_gflops"]) / float(row["mflop"])
        lines.append(f"| {name} | {' | '.join(cells)} | {_rounded(limit) if row['kind'] == 'updates' else ''} |")
    return lines


def _report_of_sac(table: dict[str, dict[str, dict[str, Any]]], on_gpu: bool) -> list[str]:
    lines = _speeds(table, list(CUDA_PEERS if on_gpu else PEERS))
    if on_gpu:
        return lines  # what starts together says nothing of compile times
    lines += ["", "| case | peak memory, MB: SB3 | SoftAC eager | SoftAC compiled | SBX |", "|---" * 5 + "|"]
    for name, peers in table.items():
        if peers["SB3"]["kind"] != "updates":
            cells = [f"{float(peers[peer]['peak_rss_mb']):.0f}" if peer in peers else "" for peer in PEERS if peer != BFLOAT16]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "| case | first calls, s: SoftAC compiled | SBX | gradient steps that repay compiling |",
        "|---" * 4 + "|",
    ]
    for name, peers in table.items():
        if peers["SB3"]["kind"] == "updates" and {"SoftAC eager", "SoftAC compiled"} <= peers.keys():
            eager, compiled = peers["SoftAC eager"], peers["SoftAC compiled"]
            saved = 1.0 / float(eager["median"]) - 1.0 / float(compiled["median"])
            extra = float(compiled["first_calls_s"]) - float(eager["first_calls_s"])
            steps = _rounded(extra / saved) if saved > 0.0 else "never"
            sbx = f"{float(peers['SBX']['first_calls_s']):.1f}" if "SBX" in peers else ""
            lines.append(f"| {name} | {float(compiled['first_calls_s']):.1f} | {sbx} | {steps} |")
    return lines


def _rounded(value: float) -> str:
    """Three digits."""
    if value <= 0.0:
        return "0"
    digits = max(0, 2 - int(np.floor(np.log10(value))))
    return f"{round(value, 2 - int(np.floor(np.log10(value)))):,.{digits}f}"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Ratios to SB3 in every case, and how the time of a gradient step grows."""
    import matplotlib

    matplotlib.use("Agg")  # writes files, needs no screen
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    rows = [row for row in rows if row["peer"] in PEERS and row.get("algorithm") in (None, "", "SAC")]
    table = by_case(rows)
    figure, axes = plt.subplot_mosaic(
        [["ratios", "batch"], ["ratios", "width"], ["ratios", "critics"], ["ratios", "environments"]],
        figsize=(12, 11),
        width_ratios=[1.6, 1.0],
        layout="constrained",
    )
    colours = {"SB3": "0.5", "SoftAC eager": "tab:blue", "SoftAC compiled": "tab:orange", "SBX": "tab:green"}
    colours[BFLOAT16] = "tab:red"
    peers = [peer for peer in PEERS if peer != "SB3" and any(peer in cells for cells in table.values())]
    height = 0.8 / len(peers)
    for index, peer in enumerate(peers):
        present = [(line, float(cells[peer]["ratio"])) for line, cells in enumerate(table.values()) if peer in cells]
        places = [line + (index - (len(peers) - 1) / 2) * height for line, _ in present]
        axes["ratios"].barh(places, [ratio for _, ratio in present], height, label=peer, color=colours[peer])
    axes["ratios"].axvline(1.0, color=colours["SB3"], linewidth=1, label="SB3")
    axes["ratios"].set_yticks(range(len(table)), list(table))
    axes["ratios"].invert_yaxis()
    axes["ratios"].set_xlabel("speed, multiple of SB3's")
    axes["ratios"].legend(loc="lower right")
    growth: dict[str, tuple[str, Callable[[dict[str, Any]], float]]] = {
        "batch": ("batch size", lambda row: float(row["batch_size"])),
        "width": ("units of both hidden layers", lambda row: float(row["net_arch"].strip("()").split(",")[0])),
        "critics": ("critics", lambda row: float(row["n_critics"])),
        "environments": ("environments, one update per step of all", lambda row: float(row["n_envs"])),
    }
    for name, (label, value) in growth.items():
        axis = axes[name]
        for peer in ["SB3", *peers]:
            chosen = [row for row in rows if row["peer"] == peer and _belongs(row, name)]
            if name == "width":
                chosen = [row for row in chosen if len(set(row["net_arch"].strip("()").split(", "))) == 1]
            points = sorted((value(row), 1e3 / float(row["median"])) for row in chosen)
            axis.plot(*zip(*points, strict=True), "o-", label=peer, color=colours[peer])
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
        axis.set_xlabel(label)
        axis.set_ylabel("ms per environment step" if name == "environments" else "ms per gradient step")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _belongs(row: dict[str, Any], name: str) -> bool:
    """Whether the row is a point of the curve ``name``: two threads, and all else as in the first case."""
    standard = {field.name: str(field.default) for field in dataclasses.fields(Case) if field.name != "name"}
    standard["kind"] = "learn" if name == "environments" else "updates"
    free = {"batch": "batch_size", "width": "net_arch", "critics": "n_critics", "environments": "n_envs"}[name]
    return all(str(row.get(field) or value) == value for field, value in standard.items() if field != free)


def make_preset_model(name: str, compile: bool) -> Any:
    """A model of a preset, of ``SoftAC`` or ``SoftQL``, with spaces as large as HalfCheetah's."""
    from sb3_softac import SoftAC, SoftQL, presets

    owner: Any = SoftQL if name in presets.SOFTQL_PRESETS else SoftAC
    arguments = presets.get(name, buffer_size=5_000, learning_starts=0)
    return ready(owner("MlpPolicy", make_spaces(Case(name)), device="cpu", seed=0, compile=compile, **arguments), 5_000)


def seconds_per_step(model: Any, at_least: float) -> float:
    """Time of a gradient step, as a mean over ``at_least`` seconds of those that the model does at a time."""
    at_a_time = max(model.gradient_steps, 1)
    start, steps = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < at_least:
        model.train(at_a_time, model.batch_size)
        steps += at_a_time
    return elapsed / steps


def flops_row(name: str, ways: list[str], threads: int, rounds: int, seconds: float) -> str:
    """One preset: its floating-point operations, and how long a gradient step takes beside them, as a row of Markdown.

    The product of matrices and all ways take turns; times are medians, and the product's speed is the highest.
    """
    flop = gradient_step_flops(make_preset_model(name, compile=False))
    models = {way: make_preset_model(name, compile=way.endswith("compiled")) for way in ways}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for model in models.values():
        for _ in range(max(3, getattr(model, "policy_delay", 1))):  # compiles every kind of step
            model.train(1, model.batch_size)
    peak = 0.0
    for _ in range(rounds):
        peak = max(peak, gemm_rate(threads, "cpu", sizes=((1024, 2),)))
        for way, model in models.items():
            times[way].append(seconds_per_step(model, seconds))
    limit = flop / peak
    cells = [f"{1e3 * statistics.median(each):.2f} | {statistics.median(each) / limit:.1f}" for each in times.values()]
    return f"| `{name}` | {flop / 1e6:,.1f} | {peak / 1e9:.0f} | {1e3 * limit:.2f} | {' | '.join(cells)} |"


def print_flops(chosen: list[str], ways: list[str], threads: int, rounds: int, seconds: float) -> None:
    """The table of all presets whose names contain one of the chosen words, or of all; each row is printed when it is done."""
    from sb3_softac import presets

    names = [
        name for name in (*presets.PRESETS, *presets.SOFTQL_PRESETS) if not chosen or any(word in name for word in chosen)
    ]
    columns = " | ".join(f"{way.rpartition(' ')[2]}, ms | / limit" for way in ways)
    print(f"{machine('cpu')}, {threads} threads\n")
    print(f"| preset | MFLOP per gradient step | 1024³ product, GFLOP/s | limit, ms | {columns} |")
    print("|---" * (4 + 2 * len(ways)) + "|", flush=True)
    for name in names:
        print(flops_row(name, ways, threads, rounds, seconds), flush=True)


def has_bfloat16(device: str) -> bool:
    """Whether a device multiplies matrices in bfloat16 faster than in float32."""
    import torch as th

    from sb3_softac.engine import missing_for

    return missing_for("bfloat16", th.device(device)) is None


def read(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="PATH", help="without suffix")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="some cases")
    parser.add_argument("--peers", nargs="+", choices=CUDA_PEERS, default=list(CUDA_PEERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.7, help="length of a turn")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    names = [case.name for case in _cases()]
    parser.add_argument("--profile", metavar="CASE", choices=names, help="only show where the time of SoftAC goes in a case")
    parser.add_argument("--flops", action="store_true", help="only compare presets with the limit of their arithmetic")
    parser.add_argument("--report", type=Path, metavar="CSV", help="only print the tables of a file")
    parser.add_argument("--plot", type=Path, metavar="CSV", help="only draw a file")
    args = parser.parse_args()
    if args.profile:
        with limited(2):
            print(profile(next(case for case in _cases() if case.name == args.profile)))
        return
    if args.flops:
        with limited(2):
            ways = [peer for peer in ("SoftAC eager", "SoftAC compiled") if peer in args.peers]
            print_flops(args.only or [], ways, 2, args.rounds, args.seconds)
        return
    if args.report or args.plot:
        if args.report:
            print(report(read(args.report)))
        if args.plot:
            plot(read(args.plot), args.plot.with_suffix(".png"))
        return
    if args.output is None:
        parser.error("--output is needed")
    possible = PEERS if args.device == "cpu" else CUDA_PEERS
    peers = [peer for peer in possible if peer in args.peers or peer == "SB3"]
    if "SBX" in peers and importlib.util.find_spec("sbx") is None:
        print("SBX is left out: it is not installed (the extra sbx).")
        peers.remove("SBX")
    if BFLOAT16 in peers and not has_bfloat16(args.device):
        print(f"{BFLOAT16} is left out: this machine does not compute in bfloat16.")
        peers.remove(BFLOAT16)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    path = args.output.with_name(f"{args.output.name}.csv")
    cases = cases_on(args.device)
    order = {case.name: place for place, case in enumerate(cases)}
    rows: list[dict[str, Any]] = read(path) if args.only and path.exists() else []
    for case in cases:
        if args.only and not any(word in case.name for word in args.only):
            continue
        measured = measure(case, peers_of(case, peers), args.rounds, args.seconds)
        rows = sorted([row for row in rows if row["case"] != case.name] + measured, key=lambda row: order[row["case"]])
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
        speeds = [f"{row['peer']} {row['median']:,.0f} ({row['ratio']:.2f}x)" for row in measured]
        print(f"{case.name:34} {', '.join(speeds)}", flush=True)
    rows = read(path)
    print(report(rows))
    if args.device == "cpu" and {row["case"] for row in rows} == set(order):
        plot(rows, path.with_suffix(".png"))


if __name__ == "__main__":
    main()

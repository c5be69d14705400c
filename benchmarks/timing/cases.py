"""What is measured, and with whom."""

import dataclasses
import itertools
from typing import Any

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
        """Floating-point operations of the matmuls of one gradient step of SAC, or of soft Q-learning.

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

"""Published implementations as named arguments of ``SoftAC`` and ``SoftQL``.

Each constant is a read-only mapping of keyword arguments::

    SoftAC("MlpPolicy", env, **presets.SPINNINGUP)
    SoftAC("MlpPolicy", env, **presets.get("spinningup", batch_size=256, policy_kwargs={"n_critics": 4}))

What a preset does not name has the default of its algorithm.

RL Zoo takes the name: ``-params preset:spinningup``, or ``preset: spinningup`` in a hyper-parameter file. docs/presets.md
lists the source of each, and what it does not reproduce.
"""

import copy
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any


class Preset(Mapping[str, Any]):
    """Named arguments that cannot be changed: whoever asks for one gets a copy.

    :param arguments: arguments of ``SoftAC``
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._arguments = copy.deepcopy(dict(arguments))

    def __getitem__(self, name: str) -> Any:
        return copy.deepcopy(self._arguments[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._arguments)

    def __len__(self) -> int:
        return len(self._arguments)

    def __repr__(self) -> str:
        return f"Preset({self._arguments})"


def _preset(base: Preset | None = None, **arguments: Any) -> Preset:
    return Preset({**(base or {}), **arguments})


# What nearly all of them share; each repeats nothing of it, and changes what it must.
_COMMON = _preset(
    learning_rate=3e-4,
    buffer_size=1_000_000,
    batch_size=256,
    tau=0.005,
    gamma=0.99,
    train_freq=1,
    gradient_steps=1,
    target_update_interval=1,
    value_network=False,
    actor_q="min",
    target_q="min",
    policy_kwargs={"net_arch": [256, 256]},
)

#: SB3's ``SAC``
SB3 = _preset(_COMMON, learning_starts=100, ent_coef="auto", ent_coef_update="log", target_entropy="auto")

#: 1801.01290: value network, fixed temperature, scaled rewards
HAARNOJA2018 = _preset(
    _COMMON,
    learning_starts=1000,
    random_steps=10_000,
    value_network=True,
    actor_q="first",
    ent_coef=1.0,
    reward_scale=5.0,
)

#: 1801.01290 with hard target updates
HAARNOJA2018_HARD = _preset(HAARNOJA2018, tau=1.0, target_update_interval=1000, gradient_steps=4)

#: 1812.05905: learned temperature, no value network
HAARNOJA2019 = _preset(_COMMON, learning_starts=100, ent_coef="auto", ent_coef_update="exp", target_entropy="auto")

#: the first version of Spinning Up's SAC page, with a value network
SPINNINGUP_V1 = _preset(
    _COMMON,
    learning_rate=1e-3,
    learning_starts=0,
    random_steps=10_000,
    batch_size=100,
    train_freq=(1, "episode"),
    gradient_steps=-1,
    value_network=True,
    actor_q="first",
    ent_coef=0.2,
    policy_kwargs={"net_arch": [400, 300], "log_std_bounding": "tanh", "log_std_bounds": (-20.0, 2.0), "log_std_init": -9.0},
)

#: Spinning Up's PyTorch code
SPINNINGUP = _preset(
    _COMMON,
    learning_rate=1e-3,
    learning_starts=1000,
    random_steps=10_000,
    batch_size=100,
    train_freq=50,
    gradient_steps=50,
    ent_coef=0.2,
)

#: Stable-Learning-Control as its page describes it: projected ascent on α itself
SLC = _preset(
    _COMMON,
    actor_learning_rate="lin_1e-4_1e-10",
    critic_learning_rate="lin_3e-4_1e-10",
    ent_coef_learning_rate="lin_1e-4_1e-10",
    learning_starts=1000,
    random_steps=0,
    train_freq=100,
    gradient_steps=100,
    ent_coef="auto_0.99",
    ent_coef_update="dual",
    target_entropy="auto",
)

#: Stable-Learning-Control as its code does it: Adam on log α
SLC_CODE = _preset(SLC, ent_coef_update="exp")

#: softlearning's code, by the authors of SAC
SOFTLEARNING = _preset(
    _COMMON, learning_starts=1000, actor_q="mean", ent_coef="auto", ent_coef_update="exp", target_entropy="auto"
)

#: Sigaud's SAC slides; for ``Box`` and ``Discrete`` actions
SIGAUD = _preset(
    _COMMON,
    learning_starts=100,
    actor_q="target_min",
    ent_coef="auto",
    ent_coef_update="exp",
    target_entropy="auto",
    target_entropy_scale=0.98,
    policy_kwargs={"net_arch": [256]},
)

#: 2101.05982: an ensemble with random subsets, 20 updates per step
REDQ = _preset(
    _COMMON,
    learning_starts=5000,
    gradient_steps=20,
    policy_delay=20,
    actor_q="mean",
    target_subset=2,
    ent_coef="auto",
    ent_coef_update="log",
    target_entropy="auto",
    policy_kwargs={"net_arch": [256, 256], "n_critics": 10},
)

#: sb3-contrib's TQC (2005.04269): quantile critics without their largest quantiles
TQC = _preset(
    _COMMON,
    learning_starts=100,
    actor_q="mean",
    top_quantiles_to_drop_per_net=2,
    ent_coef="auto",
    ent_coef_update="log",
    target_entropy="auto",
    policy_kwargs={"net_arch": [256, 256], "critic_head": "quantile", "n_quantiles": 25},
)

#: sb3-contrib's CrossQ (1902.05605): batch renormalisation instead of target networks
CROSSQ = _preset(
    _COMMON,
    learning_rate=1e-3,
    learning_starts=100,
    bootstrap="joint",
    policy_delay=3,
    ent_coef="auto",
    ent_coef_update="log",
    target_entropy="auto",
    policy_kwargs={
        "net_arch": {"pi": [256, 256], "qf": [1024, 1024]},
        "normalization": "batch_renorm",
        "optimizer_kwargs": {"betas": (0.5, 0.999)},
    },
)

#: the same with critics that fit a CPU
CROSSQ_SMALL = _preset(
    CROSSQ,
    policy_kwargs={**CROSSQ["policy_kwargs"], "net_arch": [256, 256]},
)

#: the settings of its paper and its code: critics of 2048 units, 5,000 random steps, α learned by its exponential form
CROSSQ_PAPER = _preset(
    CROSSQ,
    learning_starts=5000,
    ent_coef_update="exp",
    policy_kwargs={**CROSSQ["policy_kwargs"], "net_arch": {"pi": [256, 256], "qf": [2048, 2048]}},
)

#: 2110.02034: two critics with dropout and layer normalisation, 20 updates per step
DROQ = _preset(
    REDQ,
    target_subset=None,
    policy_kwargs={"net_arch": [256, 256], "n_critics": 2, "dropout_rate": 0.01, "layer_norm": True},
)

#: an ensemble of 10 and the minimum of all (2110.01548), here for learning online
SAC_N = _preset(
    _COMMON,
    learning_starts=100,
    ent_coef="auto",
    ent_coef_update="log",
    target_entropy="auto",
    policy_kwargs={"net_arch": [256, 256, 256], "n_critics": 10, "log_std_bounds": (-5.0, 2.0)},
)

# What the modern ones share: half of the usual target entropy, α from 0.01, log σ within [−10, 2] by tanh.
_LOG_STD = {"log_std_bounding": "tanh", "log_std_bounds": (-10.0, 2.0)}
_MODERN = _preset(
    _COMMON,
    learning_starts=5000,
    ent_coef="auto_0.01",
    ent_coef_update="exp",
    target_entropy="auto_0.5",
)

#: 32 updates per step, and networks that begin again (D'Oro et al., ICLR 2023)
SR_SAC = _preset(
    _MODERN,
    learning_starts=10_000,
    gradient_steps=32,
    ent_coef="auto",
    resets=2_560_000,
    policy_kwargs={"net_arch": [256, 256], "weight_init": "orthogonal", "log_std_init": -4.0, **_LOG_STD},
)

#: 2405.16158: large residual critics of quantiles, 10 updates per step, resets
BRO = _preset(
    _MODERN,
    learning_starts=2500,
    batch_size=128,
    gradient_steps=10,
    actor_q="mean",
    target_q="mean",
    top_quantiles_to_drop_per_net=0,
    ent_coef="auto",
    resets=(125_000, 475_000, 2_475_000, 4_975_000, 7_475_000, 9_975_000),
    policy_kwargs={
        "encoder": "bro",
        "net_arch": {"pi": [256], "qf": [512, 512]},
        "critic_head": "quantile",
        "n_quantiles": 100,
        "optimizer_kwargs": {"weight_decay": 1e-4, "decoupled_weight_decay": True},
        **_LOG_STD,
    },
)

#: 2410.09754: residual networks with layer normalisation, normalised observations
SIMBA = _preset(
    _MODERN,
    learning_rate=1e-4,
    gamma=0.995,
    normalize_observations=True,
    policy_kwargs={
        "encoder": "simba",
        "net_arch": {"pi": [128], "qf": [512, 512]},
        "optimizer_kwargs": {"weight_decay": 1e-2, "decoupled_weight_decay": True},
        **_LOG_STD,
    },
)

#: 2502.15280: features and weights on spheres, categorical critics, normalised rewards
SIMBA_V2 = _preset(
    _MODERN,
    learning_rate="lin_1e-4_5e-5",
    gamma=0.995,
    normalize_observations=True,
    normalize_rewards=5.0,
    policy_kwargs={
        "encoder": "simba_v2",
        "net_arch": {"pi": [128], "qf": [512, 512]},
        "critic_head": "categorical",
        "n_atoms": 101,
        "value_range": (-5.0, 5.0),
        **_LOG_STD,
    },
)

#: 2604.04539: batch normalisation, weights on spheres, categorical critics, repeated noise; for one environment
FLASHSAC = _preset(
    _MODERN,
    learning_rate="cos_3e-4_1.5e-4",
    learning_starts=10_000,
    batch_size=512,
    tau=0.01,
    policy_delay=2,
    bootstrap="joint_target",
    target_entropy="std_0.15",
    noise_repeat=16,
    normalize_rewards=5.0,
    policy_kwargs={
        "encoder": "flash",
        "net_arch": {"pi": [128, 128], "qf": [256, 256]},
        "critic_head": "categorical",
        "n_atoms": 101,
        "value_range": (-5.0, 5.0),
        **_LOG_STD,
    },
)

#: the same for about a thousand environments
FLASHSAC_PARALLEL = _preset(FLASHSAC, learning_starts=100_000, batch_size=2048, buffer_size=10_000_000, gradient_steps=2)

#: 1702.08165's own code, ``SoftQL``: one critic, targets that are copied
SOFTQLEARNING = _preset(
    learning_rate=3e-4,
    buffer_size=1_000_000,
    learning_starts=1000,
    random_steps=0,
    batch_size=128,
    tau=1.0,
    gamma=0.99,
    train_freq=1,
    gradient_steps=1,
    ent_coef=1.0,
    target_update_interval=1000,
    target_q="min",
    kernel_particles=16,
    kernel_update_ratio=0.5,
    value_particles=16,
    value_proposal="uniform",
    policy_kwargs={"net_arch": [128, 128], "n_critics": 1, "sampler": "mlp"},
)

#: the ``SQL`` of softlearning, ``SoftQL``: two critics, targets that follow slowly, a Gaussian sampler
SOFTLEARNING_SQL = _preset(
    SOFTQLEARNING,
    random_steps=10_000,
    batch_size=256,
    tau=0.005,
    target_update_interval=1,
    policy_kwargs={"net_arch": [256, 256], "n_critics": 2, "sampler": "gaussian"},
)

#: reward scales of both for MuJoCo tasks
SOFTQL_REWARD_SCALES: Mapping[str, float] = MappingProxyType(
    {"Swimmer": 30.0, "Hopper": 30.0, "HalfCheetah": 30.0, "Walker2d": 10.0, "Ant": 300.0, "Humanoid": 100.0}
)

#: those of ``SoftQL`` by name
SOFTQL_PRESETS: Mapping[str, Preset] = MappingProxyType({"softqlearning": SOFTQLEARNING, "softlearning_sql": SOFTLEARNING_SQL})

#: those of ``SoftAC`` by name
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "sb3": SB3,
        "haarnoja2018": HAARNOJA2018,
        "haarnoja2018_hard": HAARNOJA2018_HARD,
        "haarnoja2019": HAARNOJA2019,
        "spinningup_v1": SPINNINGUP_V1,
        "spinningup": SPINNINGUP,
        "slc": SLC,
        "slc_code": SLC_CODE,
        "softlearning": SOFTLEARNING,
        "sigaud": SIGAUD,
        "redq": REDQ,
        "droq": DROQ,
        "tqc": TQC,
        "crossq": CROSSQ,
        "crossq_small": CROSSQ_SMALL,
        "crossq_paper": CROSSQ_PAPER,
        "sac_n": SAC_N,
        "sr_sac": SR_SAC,
        "bro": BRO,
        "simba": SIMBA,
        "simba_v2": SIMBA_V2,
        "flashsac": FLASHSAC,
        "flashsac_parallel": FLASHSAC_PARALLEL,
    }
)


#: arguments, and those in ``policy_kwargs``, that have no meaning with discrete actions
_CONTINUOUS_ONLY = ("target_entropy", "noise_repeat")
_CONTINUOUS_ONLY_POLICY = ("log_std_init", "log_std_mode", "log_std_bounds", "log_std_bounding")


def get(name: str, *, discrete_actions: bool = False, **overrides: Any) -> dict[str, Any]:
    """The arguments of a preset, with some replaced.

    :param name: name of the preset, such as ``"spinningup"``
    :param discrete_actions: leave out what only continuous actions have: log σ, the repetition of noise, and a target entropy
        that counts the dimensions of actions, instead of which there is ``target_entropy_scale``·log|A|
    :param overrides: arguments that replace those of the preset; ``policy_kwargs`` are replaced one by one
    :return: keyword arguments of ``SoftAC``, or of ``SoftQL``
    :raises ValueError: unknown name
    """
    every = {**PRESETS, **SOFTQL_PRESETS}
    if not isinstance(name, str) or name not in every:
        raise ValueError(f"`preset` is {name!r}, but it must be one of {', '.join(map(repr, every))}.")
    arguments: Mapping[str, Any] = every[name]
    policy_kwargs: Mapping[str, Any] = arguments["policy_kwargs"]
    if discrete_actions:
        arguments = {key: value for key, value in arguments.items() if key not in _CONTINUOUS_ONLY}
        policy_kwargs = {key: value for key, value in policy_kwargs.items() if key not in _CONTINUOUS_ONLY_POLICY}
    return {**arguments, **overrides, "policy_kwargs": {**policy_kwargs, **(overrides.get("policy_kwargs") or {})}}

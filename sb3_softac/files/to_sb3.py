"""From our model to a ``SAC`` of SB3, where its options have a counterpart there."""

from typing import Any, cast

import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.sac import policies as sb3_policies

from sb3_softac.arguments import DEFAULT_LOG_STD_BOUNDS, is_learned
from sb3_softac.arguments.policy import is_for_each
from sb3_softac.files.conversion import hand_over
from sb3_softac.files.weights import copy_optimizer, load_state, unstack_critics
from sb3_softac.networks import CnnPolicy, MultiInputPolicy, SoftACPolicy
from sb3_softac.schedules import warm_up_of
from sb3_softac.update import LogTemperature

POLICIES: dict[type[SoftACPolicy], type[sb3_policies.SACPolicy]] = {
    SoftACPolicy: sb3_policies.SACPolicy,
    CnnPolicy: sb3_policies.CnnPolicy,
    MultiInputPolicy: sb3_policies.MultiInputPolicy,
}
#: options of ours, and the value with which SB3's SAC does the same
NEUTRAL: dict[str, Any] = {
    "value_network": False,
    "actor_q": "min",
    "target_q": "min",
    "bootstrap": "target",
    "target_subset": None,
    "ent_coef_max": None,
    "actor_learning_rate": None,
    "critic_learning_rate": None,
    "ent_coef_learning_rate": None,
    "policy_delay": 1,
    "target_update_interval": 1,
    "reward_scale": 1.0,
    "normalize_observations": False,
    "normalize_rewards": None,
    "max_grad_norm": None,
    "soft_n_step": False,
    "resets": None,
    "noise_repeat": None,
    "overlap": False,
}
NEUTRAL_POLICY: dict[str, Any] = {
    "encoder": "mlp",
    "critic_head": "scalar",
    "log_std_mode": "state",
    "log_std_bounding": "clamp",
    "log_std_bounds": DEFAULT_LOG_STD_BOUNDS,
    "normalization": None,
    "layer_norm": False,
    "dropout_rate": 0.0,
    "target_networks": True,
}
#: policy arguments that only say how the weights begin
INITIAL_ONLY = ("weight_init", "final_init_scale", "value_network")
SAME_NAME = (
    *("buffer_size", "learning_starts", "batch_size", "tau", "gamma", "train_freq", "gradient_steps", "action_noise"),
    *("optimize_memory_usage", "n_steps", "target_update_interval", "use_sde", "sde_sample_freq", "use_sde_at_warmup"),
    *("tensorboard_log", "verbose"),
)


def obstacles(model: Any) -> list[str]:
    """What SB3's SAC cannot do, each with the value that would do; empty if there is nothing.

    :param model: a ``SoftAC``
    """
    found = [
        f"`{name}` is {getattr(model, name)!r} and would have to be {neutral!r}"
        for name, neutral in NEUTRAL.items()
        if getattr(model, name) != neutral
    ]
    for name, neutral in NEUTRAL_POLICY.items():
        value = model.policy_kwargs.get(name, neutral)
        if (tuple(value) if isinstance(value, list) else value) != neutral:
            found.append(f"`policy_kwargs[{name!r}]` is {value!r} and would have to be {neutral!r}")
    for name in ("optimizer_class", "optimizer_kwargs"):
        if is_for_each(model.policy_kwargs.get(name)):
            value = model.policy_kwargs[name]
            found.append(f"`policy_kwargs[{name!r}]` is {value!r} and would have to be the same for all networks")
    if type(model.policy) not in POLICIES:
        found.append(f"`policy` is {type(model.policy).__name__}, which SB3 does not have")
    if not isinstance(model.action_space, spaces.Box):
        found.append(f"the action space is {model.action_space}, and SB3's SAC has continuous actions only")
    if is_learned(model.ent_coef) and model.ent_coef_update != "log":
        found.append(f"`ent_coef_update` is {model.ent_coef_update!r} and would have to be 'log'")
    if not is_learned(model.ent_coef) and model.temperature.schedule(1.0) != model.temperature.schedule(0.0):
        found.append(f"`ent_coef` is {model.ent_coef!r} and would have to be a number or learned")
    if warm_up_of(model.lr_schedule) is not None:
        found.append(f"`learning_rate` is {model.learning_rate!r} and would have to be without a warm-up")
    if model.random_steps not in (None, model.learning_starts):
        found.append(f"`random_steps` is {model.random_steps} and would have to be `learning_starts`={model.learning_starts}")
    return found


def to_sac(model: Any) -> SAC:
    """See ``SoftAC.to_sb3``."""
    found = obstacles(model)
    if found:
        raise ValueError(f"SB3's SAC cannot continue this model: {'; '.join(found)}.")
    sac = SAC(POLICIES[type(model.policy)], cast(Any, None), device=model.device, _init_setup_model=False)
    sac.__dict__.update({name: getattr(model, name) for name in SAME_NAME})
    learned = is_learned(model.ent_coef)
    sac.learning_rate = model.lr_schedule if isinstance(model.learning_rate, str) else model.learning_rate
    sac.ent_coef = model.ent_coef if learned else float(model.temperature.value)
    sac.target_entropy = model.target_entropy if learned else "auto"
    sac.policy_kwargs = {
        name: value for name, value in model.policy_kwargs.items() if name not in (*NEUTRAL_POLICY, *INITIAL_ONLY)
    }
    if sac.policy_kwargs.get("log_std_init", -3) is None:
        del sac.policy_kwargs["log_std_init"]
    sac.replay_buffer_class = None if model._automatic_replay_buffer else model.replay_buffer_class
    sac.replay_buffer_kwargs = dict(model.replay_buffer_kwargs)
    sac._stats_window_size = model._stats_window_size
    sac.observation_space, sac.action_space, sac.n_envs = model.observation_space, model.action_space, model.n_envs
    sac.env, sac._vec_normalize_env = model.env, model._vec_normalize_env
    # No buffer is allocated, and no generator seeded: both go on.
    sac.replay_buffer = cast(ReplayBuffer, object())
    with th.random.fork_rng(devices=[]):
        sac._setup_model()
    sac.replay_buffer, sac.seed = model.replay_buffer, model.seed
    _copy_weights(model, sac)
    hand_over(model, sac)
    return sac


def _copy_weights(model: Any, sac: SAC) -> None:
    policy = model.policy
    sac.actor.load_state_dict(policy.actor.state_dict())
    sac.critic.load_state_dict(unstack_critics(policy.critic.state_dict()))
    sac.critic_target.load_state_dict(unstack_critics(policy.critic_target.state_dict()))
    copy_optimizer(policy.actor, policy.actor.optimizer, sac.actor, sac.actor.optimizer, dict)
    copy_optimizer(policy.critic, policy.critic.optimizer, sac.critic, sac.critic.optimizer, unstack_critics)
    temperature = model.temperature
    if isinstance(temperature, LogTemperature):
        assert sac.log_ent_coef is not None
        assert sac.ent_coef_optimizer is not None
        with th.no_grad():
            sac.log_ent_coef.copy_(temperature.log_ent_coef.reshape(1))
        state = temperature.optimizer.state.get(temperature.log_ent_coef)
        if state:
            shaped = {key: value if key == "step" else value.reshape(1) for key, value in state.items()}
            load_state(sac.ent_coef_optimizer, [shaped])

"""The models that are measured, with filled replay buffers."""

from typing import Any

import numpy as np

from timing.cases import BFLOAT16, CONTRIB, CONTRIB_PRESETS, CUDA_PEERS, SOFT_QL_PEERS, Case


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


def ready(model: Any, n_transitions: int) -> Any:
    """The model with a logger and transitions, so that its ``train()`` can be called."""
    from stable_baselines3.common.logger import Logger

    model.set_logger(Logger(None, []))
    fill(model, n_transitions)
    return model


def make_preset_model(name: str, compile: bool) -> Any:
    """A model of a preset, of ``SoftAC`` or ``SoftQL``, with spaces as large as HalfCheetah's."""
    from sb3_softac import SoftAC, SoftQL, presets

    owner: Any = SoftQL if name in presets.SOFTQL_PRESETS else SoftAC
    arguments = presets.get(name, buffer_size=5_000, learning_starts=0)
    return ready(owner("MlpPolicy", make_spaces(Case(name)), device="cpu", seed=0, compile=compile, **arguments), 5_000)

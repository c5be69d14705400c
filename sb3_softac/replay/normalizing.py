"""What SB3's ``VecNormalize`` does to observations and rewards, on tensors."""

from typing import Any

import torch as th
from stable_baselines3.common.vec_env import VecNormalize


def _exact(device: th.device) -> th.dtype:
    """float64, in which NumPy computes it, where the device has it."""
    return th.float32 if device.type == "mps" else th.float64


def _by_arrays(values: th.Tensor, normalize: Any) -> th.Tensor:
    return th.as_tensor(normalize(values.cpu().numpy())).to(values.device)


def _normalize(values: th.Tensor, statistics: Any, env: VecNormalize) -> th.Tensor:
    mean, var = (
        th.as_tensor(part, dtype=_exact(values.device), device=values.device) for part in (statistics.mean, statistics.var)
    )
    normalized = (values.to(mean.dtype) - mean) / (var + env.epsilon).sqrt()
    return normalized.clamp_(-env.clip_obs, env.clip_obs).float()


def normalize_obs(observations: Any, env: VecNormalize) -> Any:
    """Observations (B, ...), or a dict of them, normalised in the way of ``env``."""
    if not env.norm_obs:
        return observations
    if type(env) is not VecNormalize:  # a subclass may do it in another way
        if isinstance(observations, dict):
            arrays = env.normalize_obs({key: part.cpu().numpy() for key, part in observations.items()})
            return {key: th.as_tensor(arrays[key]).to(part.device) for key, part in observations.items()}
        return _by_arrays(observations, env.normalize_obs)
    statistics: Any = env.obs_rms
    if isinstance(observations, dict):
        keys = set(env.norm_obs_keys or ())
        return {key: _normalize(part, statistics[key], env) if key in keys else part for key, part in observations.items()}
    return _normalize(observations, statistics, env)


def normalize_reward(rewards: th.Tensor, env: VecNormalize) -> th.Tensor:
    """Rewards, normalised in the way of ``env``."""
    if type(env) is not VecNormalize:
        return _by_arrays(rewards, env.normalize_reward).float()
    if not env.norm_reward:
        return rewards
    scale = float((env.ret_rms.var + env.epsilon) ** 0.5)
    return (rewards.to(_exact(rewards.device)) / scale).clamp_(-env.clip_reward, env.clip_reward).float()

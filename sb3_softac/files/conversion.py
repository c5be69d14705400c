"""From a model of SB3's ``SAC``, or of sb3-contrib's ``TQC`` or ``CrossQ``, to ours: arguments, optimizers, counters.

The class of our models is passed in: no file imports it.
"""

import io
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_softac.arguments import check_flag
from sb3_softac.collect import close_trajectory
from sb3_softac.files import from_contrib
from sb3_softac.files.reading import ModelFile, built_from, check_optimizers
from sb3_softac.files.weights import copy_optimizer, load_state, rename_layers, stack_critics
from sb3_softac.networks import SoftACPolicy
from sb3_softac.runtime import Runtime, SetUp
from sb3_softac.update import LearnedTemperature, LogTemperature, Temperature

#: arguments that SAC keeps in attributes of the same name
SAME_NAME = [
    "learning_rate",
    "buffer_size",
    "learning_starts",
    "batch_size",
    "tau",
    "gamma",
    "train_freq",
    "gradient_steps",
    "action_noise",
    "optimize_memory_usage",
    "n_steps",
    "ent_coef",
    "target_update_interval",
    "use_sde",
    "sde_sample_freq",
    "use_sde_at_warmup",
    "tensorboard_log",
    "verbose",
    "seed",
    "device",
]

#: what a run has counted and collected so far
PROGRESS = [
    "num_timesteps",
    "_total_timesteps",
    "_num_timesteps_at_start",
    "_episode_num",
    "_n_updates",
    "_current_progress_remaining",
    "start_time",
    "_last_obs",
    "_last_original_obs",
    "_last_episode_starts",
    "ep_info_buffer",
    "ep_success_buffer",
]


def sac_arguments(sac: Any) -> dict[str, Any]:
    """The constructor arguments of another model, without those that SB3 would ignore and we refuse.

    :raises ValueError: one that has no place here
    """
    arguments = {name: getattr(sac, name) for name in SAME_NAME if hasattr(sac, name)}
    arguments["policy"] = sac.policy_class
    arguments["stats_window_size"] = sac._stats_window_size
    arguments["policy_kwargs"] = dict(sac.policy_kwargs)
    arguments |= from_contrib.own_arguments(sac, arguments)
    if not sac.use_sde:
        for ignored_by_sb3 in ("log_std_init", "use_expln", "clip_mean"):
            arguments["policy_kwargs"].pop(ignored_by_sb3, None)
        arguments["sde_sample_freq"] = -1
        arguments["use_sde_at_warmup"] = False
    if sac.ent_coef_optimizer is not None:
        arguments["ent_coef_update"] = "log"
        arguments["target_entropy"] = sac.target_entropy
    # SB3 takes any negative number here.
    arguments["learning_starts"] = max(sac.learning_starts, 0)
    arguments["gradient_steps"] = max(sac.gradient_steps, -1)
    buffer_kwargs = dict(sac.replay_buffer_kwargs)
    chosen_by_sb3: dict[type[ReplayBuffer], dict[str, Any]] = {ReplayBuffer: {}, DictReplayBuffer: {}}
    if sac.n_steps > 1:
        chosen_by_sb3 = {NStepReplayBuffer: {"n_steps": sac.n_steps, "gamma": sac.gamma}}
    added_by_sb3 = chosen_by_sb3.get(sac.replay_buffer_class or ReplayBuffer)
    if added_by_sb3 is not None and added_by_sb3.items() <= buffer_kwargs.items():
        for name in added_by_sb3:
            buffer_kwargs.pop(name)
    else:
        arguments["replay_buffer_class"] = sac.replay_buffer_class
        arguments["n_steps"] = 1  # which SB3 ignores, with a warning, beside a user-defined buffer class
    arguments["replay_buffer_kwargs"] = buffer_kwargs
    return arguments


def refuse_other_networks(sac: Any, ours: Mapping[str, Any]) -> None:
    """Refuse a way of bootstrapping for which ``sac`` has no networks, or has some that would be lost.

    :raises ValueError: a value network, or targets where there are none, or none where there are targets
    """
    name, bootstrap = type(sac).__name__, ours.get("bootstrap")
    if ours.get("value_network"):
        raise ValueError(f"`value_network` is True, but it must be False: {name} has no value network to take over.")
    if from_contrib.name_of(sac) == "CrossQ":
        if bootstrap not in (None, "joint"):
            raise ValueError(f"`bootstrap` is {bootstrap!r}, but it must be 'joint': {name} has no target networks.")
    elif bootstrap == "joint":
        raise ValueError(
            f"`bootstrap` is 'joint', but it must be 'target': {name} has target networks, which would be lost. A new model "
            "with 'joint' starts from new weights."
        )


def refuse_what_is_handed_over(sac: Any, ours: Mapping[str, Any]) -> None:
    """Refuse arguments that would be ignored, because what they describe comes with ``sac`` as it is.

    :raises ValueError: an option of the replay buffer, or an initial value for an α that is already learned
    """
    if sac.replay_buffer is not None:
        for name in ("buffer_size", "replay_buffer_class", "replay_buffer_kwargs", "optimize_memory_usage"):
            if name in ours:
                raise ValueError(f"`{name}` is {ours[name]!r}, but the replay buffer of `sac` is handed over as it is.")
    ent_coef = ours.get("ent_coef", sac.ent_coef)
    if sac.log_ent_coef is not None and str(ent_coef).startswith("auto") and ent_coef != sac.ent_coef:
        raise ValueError(f"`ent_coef` is {ent_coef!r}, but the learned temperature of `sac` is handed over as it is.")


def copy_networks(sac: Any, policy: SoftACPolicy) -> None:
    """Copy actor, critics, targets where there are any, and their optimizers.

    :raises ValueError: the networks of ``policy`` have other shapes, or share what ``sac`` does not
    """
    refuse_new_sharing(sac.policy, policy)
    try:
        policy.actor.load_state_dict(rename_layers(sac.actor.state_dict()))
        policy.critic.load_state_dict(stack_critics(sac.critic.state_dict()))
        if policy.critic_target is not None:
            policy.critic_target.load_state_dict(stack_critics(sac.critic_target.state_dict()))
    except RuntimeError as error:
        raise ValueError(f"`policy_kwargs` do not fit the weights of the {type(sac).__name__} model: {error}") from error
    copy_optimizer(sac.actor, sac.actor.optimizer, policy.actor, policy.actor.optimizer, rename_layers)
    copy_optimizer(sac.critic, sac.critic.optimizer, policy.critic, policy.critic.optimizer, stack_critics)


def is_known(model: Any) -> bool:
    """Whether a model is of SB3's ``SAC``, or of sb3-contrib's ``TQC`` or ``CrossQ``."""
    return isinstance(model, SAC) or from_contrib.name_of(model) is not None


def is_known_data(data: Mapping[str, Any]) -> bool:
    """Whether these are the attributes of such a model, out of a file."""
    return is_sac_data(data) or from_contrib.name_of_data(data) is not None


def is_sac_data(data: Mapping[str, Any]) -> bool:
    """Whether these are the attributes of a ``SAC``, out of a file."""
    return {"batch_norm_stats", "ent_coef"} <= set(data) and "top_quantiles_to_drop_per_net" not in data


def load_sac(source: Any, trusted: bool = False, argument: str = "sac") -> Any:
    """A model of SB3's ``SAC``, or of sb3-contrib's ``TQC`` or ``CrossQ``, from its file, without environment and buffer.

    No random generator is seeded.

    :param source: file name, binary stream, or the file if it has been read
    :param trusted: run whatever code the file holds, as SB3 does
    :param argument: what the caller has it for
    :raises ValueError: another file
    :raises UntrustedFileError: the file asks for code that is not on the list of what files may use
    :raises DamagedFileError: the file is incomplete, or no model can be made of it
    """
    file = source if isinstance(source, ModelFile) else ModelFile(source)
    owner: Any = SAC if is_sac_data(file.attributes) else from_contrib.class_of_data(file.attributes)
    if owner is None:
        raise ValueError(
            f"`{argument}` is {file.name!r}, but it must be a file that SB3's SAC saved, or, where sb3-contrib "
            "is installed, its TQC or CrossQ."
        )
    # No replay buffer of any size or kind: SB3 would allocate it, or ask for an environment.
    placeholder: dict[str, Any] = {"buffer_size": 1, "replay_buffer_class": None, "replay_buffer_kwargs": {}, "n_steps": 1}
    placeholder |= {"optimize_memory_usage": False, "seed": None}
    if trusted:
        values = load_from_zip_file(file.stream, device="cpu")[0] or {}
        sac = owner.load(file.stream, device="cpu", **placeholder)
    else:
        values = file.objects(owner)
        with built_from(file.name):
            sac = owner.load(file.stream, device="cpu", custom_objects=values, **placeholder)
            check_optimizers(sac)
    sac.__dict__.update({name: values[name] for name in placeholder if name in values})
    sac.replay_buffer = None
    return sac


def refuse_new_sharing(source: BasePolicy, policy: SoftACPolicy) -> None:
    """Refuse to put the critics' features extractor in the place of the actor's.

    :raises ValueError: actor and critics share one here, and have two in ``source``
    """
    shares = source.share_features_extractor
    if policy.share_features_extractor and not shares and any(True for _ in policy.actor.features_extractor.parameters()):
        raise ValueError(
            "`share_features_extractor` is True, but it must be False: actor and critics of the source have one each."
        )


def ent_coef_of(source: Any) -> float:
    """The α that ``source`` would use next."""
    if not is_known(source):
        return float(source.temperature.value)
    return float(source.ent_coef_tensor if source.log_ent_coef is None else source.log_ent_coef.detach().exp())


def copy_temperature(sac: Any, temperature: Temperature) -> None:
    """Copy a learned α, and its optimizer where the update is SB3's own."""
    if sac.log_ent_coef is None or not isinstance(temperature, LearnedTemperature):
        return
    temperature.set_value(ent_coef_of(sac))
    if type(temperature) is LogTemperature and sac.ent_coef_optimizer is not None:
        with th.no_grad():
            temperature.log_ent_coef.copy_(sac.log_ent_coef.squeeze())
            temperature.project(temperature.maximum)
        state = sac.ent_coef_optimizer.state[sac.log_ent_coef]
        if state:
            load_state(temperature.optimizer, [{key: entry.squeeze() for key, entry in state.items()}])


def _continued_target_updates(sac: Any, ours: Mapping[str, Any]) -> dict[str, Any]:
    """SB3 counts ``target_update_interval`` again in each ``train()``, and always updates the targets at its first step.

    :return: the interval that does the same, counted over the whole training, where there is one
    :raises ValueError: there is none
    """
    if getattr(sac, "target_update_interval", 1) == 1 or "target_update_interval" in ours:
        return {}
    frequency: Any = sac.train_freq
    steps = sac.gradient_steps if sac.gradient_steps >= 0 else frequency.frequency * sac.n_envs
    if steps == 1 and (sac.gradient_steps >= 0 or frequency.unit is TrainFrequencyUnit.STEP):
        warnings.warn(
            f"SB3 counts `target_update_interval`={sac.target_update_interval} again in each call of train(), which does one "
            "gradient step: it updates the targets at every one. The model continues so, with `target_update_interval=1`.",
            stacklevel=4,
        )
        return {"target_update_interval": 1}
    raise ValueError(
        f"`target_update_interval` is {sac.target_update_interval}, which SB3 counts again in each call of train(), and here "
        "it is counted over the whole training: pass `target_update_interval` to say how often targets are updated now."
    )


def continue_sac(cls: type[Any], sac: Any, ours: dict[str, Any], trusted: bool = False) -> Any:
    """See ``SoftAC.from_sb3``.

    :param cls: class of the new model
    """
    check_flag("trusted", trusted)
    if isinstance(sac, str | pathlib.Path | io.BufferedIOBase):
        sac, ours = load_sac(sac, trusted), {"device": "auto", **ours}
    if not is_known(sac):
        raise ValueError(
            f"`sac` is a {type(sac).__name__}, but it must be a stable_baselines3.SAC, an sb3_contrib.TQC, an "
            "sb3_contrib.CrossQ, or a file of one."
        )
    refuse_other_networks(sac, ours)
    if ours.get("normalize_observations"):
        raise ValueError(
            "`normalize_observations` is True, but it must be False: the networks of `sac` know observations as they are. "
            "A new model with it learns from scratch."
        )
    arguments = sac_arguments(sac) | {"env": sac.env} | _continued_target_updates(sac, ours) | ours
    refuse_what_is_handed_over(sac, ours)
    if not str(arguments["ent_coef"]).startswith("auto"):
        for unused in {"ent_coef_update", "target_entropy"} - set(ours):
            arguments.pop(unused, None)
    model = cls(_init_setup_model=False, **arguments)
    if model.env is not None:
        check_for_correct_spaces(model.env, sac.observation_space, sac.action_space)
        if sac.replay_buffer is not None and model.n_envs != sac.n_envs:
            raise ValueError(f"`env` has {model.n_envs} environments, but the replay buffer of `sac` is for {sac.n_envs}.")
    model.observation_space, model.action_space = sac.observation_space, sac.action_space
    model.n_envs = sac.n_envs if model.env is None else model.n_envs
    model.replay_buffer = sac.replay_buffer
    model._runtime = Runtime(SetUp(seeds="seed" in ours, weights_follow=True))
    model._setup_model()
    copy_networks(sac, model.policy)
    copy_temperature(sac, model.temperature)
    if sac.replay_buffer is not None:
        model._match_returns(model.replay_buffer)  # last: what was refused before leaves the buffer as it is
        model.replay_buffer.device = model.device
    hand_over(sac, model)
    return model


def hand_over(source: Any, target: Any) -> None:
    """Counters, the place in the environment, and the logger."""
    target.__dict__.update({name: getattr(source, name) for name in PROGRESS})
    if target.env is not source.env:
        close_trajectory(target.replay_buffer)
        target._last_obs = None
        if isinstance(target.replay_buffer, HerReplayBuffer):
            target.replay_buffer.env = target.env
    if target.use_sde:
        target.policy.reset_noise()  # from the weights that were copied
    if source._custom_logger:
        target.set_logger(source.logger)

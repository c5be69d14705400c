"""Checks of the options of ``SoftQL``."""

from collections.abc import Mapping
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim

from sb3_softac.arguments.checks import check_choice, check_count, check_real, is_learned, refuse, refuse_for_discrete_actions
from sb3_softac.arguments.options import check_common_options, check_weights_fit, temperature_weights

#: options of the sampler, with the values that they have without one
OF_SAMPLER: dict[str, Any] = {
    "kernel_particles": 16,
    "kernel_update_ratio": 0.5,
    "value_particles": 16,
    "value_proposal": "uniform",
    "noise_dim": None,
    "action_noise": None,
    "actor_learning_rate": None,
}


def n_updated(kernel_particles: int, kernel_update_ratio: float) -> int:
    """How many of the particles are moved; the others are the fixed half."""
    return int(kernel_particles * kernel_update_ratio + 1e-9)  # 0.3 times 10 is 3


def check_architecture(
    model: Any, built_for: Mapping[str, Any] | None, expected_policy_kwargs: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Refuse options that the weights of a saved model have no place for.

    :param model: a ``SoftQL``
    :param built_for: what the weights were built for, or None if they are still to be built
    :param expected_policy_kwargs: what a user passed to ``load``
    :return: what the weights are built for
    :raises ValueError: another architecture
    """
    of_algorithm = ("kernel_particles", "noise_dim", "target_q")
    noise_dim = get_action_dim(model.action_space) if model.noise_dim is None else model.noise_dim
    now = {"kernel_particles": model.kernel_particles, "noise_dim": noise_dim, **temperature_weights(model)}
    check_weights_fit(model, now, built_for, expected_policy_kwargs, of_algorithm)
    return now


def _check_sampler(arguments: Mapping[str, Any], normal: dict[str, Any]) -> None:
    particles = normal["kernel_particles"] = check_count("kernel_particles", arguments["kernel_particles"], 2)
    ratio = check_real("kernel_update_ratio", arguments["kernel_update_ratio"], above=0.0)
    if not 0 < n_updated(particles, ratio) < particles:
        allowed = f"at least {1 / particles:g} and below 1, so that neither part of `kernel_particles`={particles} is empty"
        refuse("kernel_update_ratio", ratio, allowed)
    normal["value_particles"] = check_count("value_particles", arguments["value_particles"], 1)
    check_choice("value_proposal", arguments["value_proposal"], ("uniform", "policy"))
    if arguments["noise_dim"] is not None:
        normal["noise_dim"] = check_count("noise_dim", arguments["noise_dim"], 1)
    if not callable(arguments["kernel"]):
        refuse("kernel", arguments["kernel"], "a function such as sb3_softac.update.gaussian_kernel")


def check_arguments(
    arguments: Mapping[str, Any],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    n_envs: int,
    weights_follow: bool = False,
) -> dict[str, Any]:
    """Check the arguments of ``SoftQL`` that need no network, and return those that have one normal form in it.

    :param arguments: argument values by name
    :param observation_space: of the environment
    :param action_space: of the environment
    :param n_envs: number of environments
    :param weights_follow: whether another model is taken over
    :return: as ``check_common_options``
    :raises ValueError: a value out of range, or options that contradict each other
    """
    discrete = isinstance(action_space, spaces.Discrete)
    given = {**arguments, "trains_actor": not discrete}
    normal = check_common_options(given, observation_space, n_envs, weights_follow)
    _check_sampler(arguments, normal)
    if discrete:
        refuse_for_discrete_actions(arguments, OF_SAMPLER)
    elif is_learned(arguments["ent_coef"]):
        refuse(
            "ent_coef",
            arguments["ent_coef"],
            "a number or a schedule with continuous actions, whose entropy is not at hand: no temperature can be learned",
        )
    return normal

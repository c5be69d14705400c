"""To train on from the weights of another model: which fit, and which mean something else here."""

import io
import pathlib
from typing import Any

from gymnasium import spaces

from sb3_softac.arguments import check_flag, comparable
from sb3_softac.files import from_contrib
from sb3_softac.files.allowed import derives_from
from sb3_softac.files.conversion import ent_coef_of, is_known, is_known_data, load_sac, refuse_new_sharing
from sb3_softac.files.reading import ModelFile
from sb3_softac.files.weights import Tensors, rename_layers, stack_critics
from sb3_softac.networks import SoftPolicy
from sb3_softac.update import LearnedTemperature


def load_source(source: Any, ours: type[Any], takes_sac: bool, trusted: bool) -> Any:
    """The model to start from; a file is loaded without its replay buffer.

    :param source: a model, a file name or a binary stream
    :param ours: class of our models
    :param takes_sac: whether it may be an SB3 ``SAC``, or sb3-contrib's ``TQC`` or ``CrossQ``, too
    :param trusted: run whatever code the file holds, as SB3 does
    :raises ValueError: neither a model nor a file of one
    """
    if isinstance(source, ours) or (takes_sac and is_known(source)):
        return source
    if not isinstance(source, str | pathlib.Path | io.BufferedIOBase):
        kinds = f"a {ours.__name__}{', an SB3 SAC, an sb3-contrib TQC or CrossQ,' if takes_sac else ''}"
        raise ValueError(f"`source` is a {type(source).__name__}, but it must be {kinds} or a file of one.")
    file = ModelFile(source)
    if takes_sac and is_known_data(file.attributes):
        return load_sac(file, trusted, argument="source")
    if "_built_for" in file.attributes and (trusted or derives_from(file.read("policy_class"), (ours.policy_base,))):
        return ours.load(source, device="cpu", trusted=trusted)
    savers = ours.__name__ + (", SB3's SAC, or sb3-contrib's TQC or CrossQ" if takes_sac else "")
    raise ValueError(f"`source` is {str(source)!r}, but it must be a file that {savers} saved.")


def _refuse_other_spaces(source: Any, model: Any) -> None:
    """Weights mean something else where actions are rescaled to other bounds, or counted from another number.

    :raises ValueError: other actions, or another kind of observations
    """
    if source.action_space != model.action_space:
        raise ValueError(
            f"`source` does not fit this model: its action space is {source.action_space}, here it is {model.action_space}."
        )
    theirs, own = source.observation_space, model.observation_space
    bounds_count = not isinstance(own, spaces.Box | spaces.Dict)
    if type(theirs) is not type(own) or (bounds_count and theirs != own):
        raise ValueError(f"`source` does not fit this model: its observation space is {theirs}, here it is {own}.")


def _refuse_other_functions(source: Any, policy: SoftPolicy) -> None:
    """Refuse networks that would compute something else with the same weights.

    :raises ValueError: an option that the shapes of the weights do not show
    """
    # of SB3's own policy, and of sb3-contrib's
    of_sb3 = {"log_std_mode": "state", "log_std_bounding": "clamp", "critic_head": from_contrib.head_of(source)}
    theirs, own = (of_sb3 | each._get_constructor_parameters() for each in (source.policy, policy))
    names = ["activation_fn", "normalize_images", "features_extractor_class", "critic_head"]
    names += ["value_range"] if own["critic_head"] == "categorical" else []
    names += [name for name in ("log_std_bounding", "sampler") if name in own]
    if own.get("log_std_bounding") == "tanh":
        names.append("log_std_bounds")
    names += ["use_expln", "clip_mean"] if own.get("use_sde") else []
    for name in names:
        if comparable(theirs.get(name)) != comparable(own[name]):
            raise ValueError(f"`source` does not fit this model: its {name} is {theirs.get(name)}, here it is {own[name]}.")


def _weights_of(source: Any) -> Tensors:
    """The weights of all networks under our names.

    :raises ValueError: normalisation that would compute something else here
    """
    if not is_known(source):
        return dict(source.policy.state_dict())
    from_contrib.refuse_other_normalisation(source.policy, ("batch_norm_eps",))
    weights: Tensors = {}
    for name, network in source.policy.named_children():
        convert = stack_critics if name.startswith("critic") else rename_layers
        weights |= {f"{name}.{key}": tensor for key, tensor in convert(network.state_dict()).items()}
    return weights


def copy_weights(source: Any, model: Any) -> None:
    """Copy the weights of all networks, and change nothing if one does not fit.

    :raises ValueError: a network that only one side has, parameters of other shapes, other spaces, or another function of the
        same weights
    """
    policy = model.policy
    normalizes = getattr(source.policy, "normalize_observations", False)
    if normalizes != policy.normalize_observations:
        raise ValueError(
            f"`source` does not fit this model: its normalize_observations is {normalizes}, here it is "
            f"{policy.normalize_observations}."
        )
    theirs, of_sb3 = _weights_of(source), is_known(source)
    own = policy.state_dict()
    advice = "; `SoftAC.from_sb3(source)` makes a model that fits" if of_sb3 else ""
    differing = [name for name in own if name in theirs and own[name].shape != theirs[name].shape]
    if differing:
        name = differing[0]
        raise ValueError(
            f"`source` does not fit this model: {name} has shape {tuple(theirs[name].shape)} there and "
            f"{tuple(own[name].shape)} here{advice}."
        )
    for side, names, others in (("here", own, theirs), ("there", theirs, own)):
        missing = [name for name in names if name not in others]
        if missing:
            name, tensor = missing[0], names[missing[0]]
            found = f"{name} of shape {tuple(tensor.shape)} exists only {side}"
            raise ValueError(f"`source` does not fit this model: {found}{advice}.")
    refuse_new_sharing(source.policy, policy)
    _refuse_other_functions(source, policy)
    _refuse_other_spaces(source, model)
    policy.load_state_dict(theirs)


def warm_start(model: Any, source: Any, temperature: bool, ours: type[Any], takes_sac: bool, trusted: bool = False) -> None:
    """See ``SoftAC.warm_start`` and ``SoftQL.warm_start``; the last three as in :func:`load_source`."""
    check_flag("trusted", trusted)
    check_flag("temperature", temperature)
    if temperature and not isinstance(model.temperature, LearnedTemperature):
        raise ValueError(f"`temperature` is True, but `ent_coef`={model.ent_coef!r} is fixed: there is none to start from.")
    source = load_source(source, ours, takes_sac, trusted)
    ent_coef = ent_coef_of(source)
    if temperature and ent_coef == 0.0 and model.ent_coef_update != "dual":
        raise ValueError(
            "`temperature` is True, but the temperature of the source is 0, where "
            f"`ent_coef_update`={model.ent_coef_update!r} cannot start."
        )
    copy_weights(source, model)
    moments = getattr(source, "_return_moments", None)
    if moments is not None and model._return_moments is not None:
        model._return_moments = moments.copy()  # the unit of the values that the critics know
    for network in model.policy.trained_networks().values():
        model.policy.add_optimizer(network, float(model.lr_schedule(1.0)))
    model.temperature = model._make_temperature().to(model.device)
    if temperature:
        model.temperature.set_value(ent_coef)
    if model.use_sde:
        model.policy.reset_noise()  # from the weights that were copied

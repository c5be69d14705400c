"""What can be compared: an algorithm with settings, by name."""

from pathlib import Path
from typing import Any

import rl_zoo3
import yaml
from stable_baselines3 import DQN, SAC

from sb3_softac import SoftAC, SoftQL, presets
from sb3_softac.arguments.checks import refuse
from sb3_softac.zoo import hyperparams_path

OURS = (SoftAC, SoftQL)
VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SoftAC": (SoftAC, {}),
    "SoftAC dual": (SoftAC, {"ent_coef_update": "dual"}),
    "SoftAC log": (SoftAC, {"ent_coef_update": "log"}),
    "SoftAC value network": (SoftAC, {"value_network": True}),
    **{f"SoftAC scale {scale}": (SoftAC, {"target_entropy_scale": scale}) for scale in (0.98, 0.89, 0.7, 0.5, 0.3)},
    "TQC": (SoftAC, dict(presets.TQC)),
    "CROSSQ": (SoftAC, dict(presets.CROSSQ)),
    "CROSSQ_SMALL": (SoftAC, dict(presets.CROSSQ_SMALL)),
    "SoftQL": (SoftQL, {}),
    "SoftQL published": (SoftQL, dict(presets.SOFTQLEARNING)),
    "SoftQL softlearning": (SoftQL, dict(presets.SOFTLEARNING_SQL)),
    "SB3 SAC": (SAC, {}),
    "SB3 DQN": (DQN, {}),
    **{name: (SoftAC, dict(preset)) for name, preset in presets.PRESETS.items()},
    **{name: (SoftQL, dict(preset)) for name, preset in presets.SOFTQL_PRESETS.items()},
}


def check_variant(name: str) -> None:
    """:raises ValueError: there is no such variant"""
    if name not in VARIANTS:
        refuse("variant", name, f"one of {', '.join(map(repr, VARIANTS))}")


def zoo_settings(algorithm: Any, env: str) -> dict[str, Any]:
    """The constructor arguments that RL Zoo would take from the file of ``algorithm`` for ``env``.

    :raises ValueError: the file has no entry for it
    """
    name = algorithm.__name__.lower()
    theirs = Path(rl_zoo3.__file__).parent / "hyperparams" / f"{name}.yml"
    path = Path(hyperparams_path(name)) if algorithm in OURS else theirs
    entries = yaml.safe_load(path.read_text())
    if env not in entries:
        raise ValueError(f"`zoo` is True, but {path.name} has no entry for {env}: leave it out, or add the entry.")
    entry = entries[env]
    settings = {name: value for name, value in entry.items() if name not in ("n_timesteps", "policy", "preset")}
    if isinstance(settings.get("policy_kwargs"), str):
        settings["policy_kwargs"] = eval(settings["policy_kwargs"])  # as RL Zoo does
    return presets.get(entry["preset"], **settings) if "preset" in entry else settings


def settings_of(base: str, env: str, zoo: bool, options: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments of a variant.

    :param base: its name
    :param env: the task
    :param zoo: whether to begin with those of the hyperparameter file, instead of 1,000 random steps and a rate of 3e-4
    :param options: others, for the algorithms of this package
    """
    algorithm, own = VARIANTS[base]
    settings: dict[str, Any] = zoo_settings(algorithm, env) if zoo else {"learning_starts": 1000, "learning_rate": 3e-4}
    return settings | own | (options if algorithm in OURS else {})

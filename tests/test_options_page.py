"""docs/options.md: an entry with a source for each option, and what it says is refused is refused by the classes."""

import inspect
import re
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_softac import SoftAC, SoftACPolicy, SoftQL, SoftQLPolicy
from sb3_softac.configuration import ConfiguredAlgorithm
from sb3_softac.update import gaussian_kernel
from tests.test_docs import PAGES

PAGE = PAGES["options.md"]
INTRODUCTION, OF_SOFT_AC, OF_POLICY, OF_SOFT_QL = re.split(r"^## .*$", PAGE, flags=re.MULTILINE)
KNOWN: dict[str, Any] = {
    "gaussian_kernel": gaussian_kernel,
    "HerReplayBuffer": HerReplayBuffer,
    "NormalActionNoise": NormalActionNoise,
    "np": np,
    "NStepReplayBuffer": NStepReplayBuffer,
    "torch": torch,
}
#: what no option is: what the model learns, and from what
NOT_OPTIONS = {"self", "policy", "env", "_init_setup_model", "observation_space", "action_space", "lr_schedule"}


def entries(part: str) -> dict[str, str]:
    """The text of the entries of a part, by their headings."""
    found = re.split(r"^#### (.+)$", part, flags=re.MULTILINE)
    return {
        heading: re.split(r"^[#[]", text, flags=re.MULTILINE)[0]
        for heading, text in zip(found[1::2], found[2::2], strict=True)
    }


def names_of(heading: str) -> list[str]:
    return heading.removeprefix("SoftQL: ").split(", ")


def field(entry: str, name: str) -> str:
    """What follows ``*name*:`` in an entry, in one line; nothing if it is not there."""
    for bullet in re.split(r"^- ", entry, flags=re.MULTILINE):
        if bullet.startswith(f"*{name}*:"):
            return " ".join(bullet.partition(":")[2].split())
    return ""


def options_of(owner: type) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(owner.__init__).parameters  # type: ignore[misc]  # a class of ours
    return {name: parameter for name, parameter in parameters.items() if name not in NOT_OPTIONS}


def described(part: str) -> set[str]:
    return {name for heading in entries(part) for name in names_of(heading)}


@pytest.mark.parametrize("owner", [SoftAC, SoftACPolicy, SoftQL, SoftQLPolicy])
def test_every_option_has_an_entry(owner: type) -> None:
    of_algorithm, of_policy = described(OF_SOFT_AC), described(OF_POLICY)
    known = of_algorithm if issubclass(owner, ConfiguredAlgorithm) else of_policy | of_algorithm  # some set by the algorithm
    if owner in (SoftQL, SoftQLPolicy):
        known = known | described(OF_SOFT_QL)
    assert options_of(owner).keys() - known == set()


def test_no_entry_is_of_an_option_that_is_gone() -> None:
    assert described(OF_SOFT_AC) <= options_of(SoftAC).keys()
    assert described(OF_POLICY) <= options_of(SoftACPolicy).keys()
    assert described(OF_SOFT_QL) <= options_of(SoftQL).keys() | options_of(SoftQLPolicy).keys()


@pytest.mark.parametrize("part", [OF_SOFT_AC, OF_POLICY, OF_SOFT_QL], ids=["SoftAC", "policy_kwargs", "SoftQL"])
def test_every_entry_has_a_source_and_is_linked(part: str) -> None:
    for heading, entry in entries(part).items():
        assert field(entry, "Source").endswith((".", ")")), heading
        bullets = re.findall(r"^- \*([\w ]+)\*:", entry, flags=re.MULTILINE)
        assert set(bullets) <= {"Equation", "Source", "Refused", "Warned of", "Needs", "Changes"}, heading
        anchor = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()))
        linked = ", ".join(f"`{name}`" for name in names_of(heading))
        assert f"| [{linked}](#{anchor}) |" in part, heading


@pytest.mark.parametrize(
    ("part", "owners", "inherited"),
    [
        (OF_SOFT_AC, (SoftAC,), set()),
        (OF_POLICY, (SoftACPolicy,), {"use_sde", "value_network", "normalize_observations"}),  # set by the algorithm
        (OF_SOFT_QL, (SoftQL, SoftQLPolicy), set()),
    ],
    ids=["SoftAC", "policy_kwargs", "SoftQL"],
)
def test_the_tables_have_the_true_defaults(part: str, owners: tuple[type, ...], inherited: set[str]) -> None:
    parameters = {name: parameter for owner in reversed(owners) for name, parameter in options_of(owner).items()}
    listed: set[str] = set()
    for options, defaults in re.findall(r"^\| (\[?`[^|]+) \| (`[^|]+`) \|", part, flags=re.MULTILINE):
        names = re.findall(r"`(\w+)`", options)
        values = [eval(value, dict(KNOWN)) for value in re.findall(r"`([^`]+)`", defaults)] * len(names)
        for name, value in zip(names, values, strict=False):
            default = [256, 256] if name == "net_arch" and parameters[name].default is None else parameters[name].default
            assert default == value, name
            listed.add(name)
    if owners == (SoftQL, SoftQLPolicy):  # what is as in SoftAC is left out
        keyword_only = {name for name, each in options_of(SoftQL).items() if each.kind is each.KEYWORD_ONLY}
        shared = {name: each.default for name, each in {**options_of(SoftAC), **options_of(SoftACPolicy)}.items()}
        differing = {name for name, each in parameters.items() if shared.get(name) != each.default}
        assert listed >= keyword_only | (differing - {"target_entropy"})
    else:
        assert listed == parameters.keys() - inherited


def test_what_is_chosen_once_is_named() -> None:
    sentence = INTRODUCTION.split("Chosen once are")[1].split("\n\n")[0]
    of_soft_ac, of_soft_ql = (set(re.findall(r"`(\w+)`", text)) for text in sentence.split("of `SoftQL`"))
    assert of_soft_ac == SoftAC.fixed_options
    assert of_soft_ql == SoftQL.fixed_options - ConfiguredAlgorithm.fixed_options


class Spaces(gym.Env[Any, Any]):
    """An environment that only has spaces."""

    def __init__(self, observation_space: spaces.Space[Any] | None = None, action_space: Any = None) -> None:
        box = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = box if observation_space is None else observation_space
        self.action_space = box if action_space is None else action_space


#: environments by what stands in parentheses behind a combination, with the policy that they need
SETTINGS: dict[str, tuple[Any, str]] = {
    "": (Spaces, "MlpPolicy"),
    "discrete actions": (lambda: Spaces(action_space=spaces.Discrete(3)), "MlpPolicy"),
    "several environments": (lambda: DummyVecEnv([Spaces, Spaces]), "MlpPolicy"),
    "Dict observations": (lambda: Spaces(spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2,))})), "MultiInputPolicy"),
    "image observations": (lambda: Spaces(spaces.Box(0, 255, (36, 36, 3), np.uint8)), "CnnPolicy"),
    "integer observations": (lambda: Spaces(spaces.Box(0, 9, (2,), np.int64)), "MlpPolicy"),
    "VecNormalize": (lambda: VecNormalize(DummyVecEnv([Spaces])), "MlpPolicy"),
}
Combination = tuple[type, str, str]


def combinations(name: str) -> list[Combination]:
    """Class, code and setting of everything that entries say is refused or warned of."""
    found = []
    for owner, part in ((SoftAC, OF_SOFT_AC + OF_POLICY), (SoftQL, OF_SOFT_QL)):
        for heading, entry in entries(part).items():
            for code, setting in re.findall(r"`(\w+=[^`]+)`(?: \(([^)]+)\))?", field(entry, name)):
                assert any(re.search(rf"\b{option}=", code) for option in names_of(heading)), (heading, code)
                found.append((owner, code, setting))
    return list(dict.fromkeys(found))


def construct(owner: Any, code: str, setting: str) -> dict[str, Any]:
    """Make the model; gives the options that the code sets, those of the policy one by one."""
    make_env, policy = SETTINGS[setting]
    given = eval(f"dict({code})", dict(KNOWN))
    small = {} if "net_arch" in code or "encoder" in code else {"net_arch": [8]}
    options = {"buffer_size": 10, **given, "policy_kwargs": {**small, **given.get("policy_kwargs", {})}}
    owner(policy, make_env(), device="cpu", **options)
    return options


def names_in(code: str) -> set[str]:
    given = eval(f"dict({code})", dict(KNOWN))
    return {*given, *given.get("policy_kwargs", {})} - {"policy_kwargs"}


REFUSED = combinations("Refused")
WARNED = combinations("Warned of")


def test_there_are_many() -> None:
    assert len(REFUSED) > 80
    assert len(WARNED) == 3


@pytest.mark.parametrize(("owner", "code", "setting"), REFUSED, ids=lambda value: getattr(value, "__name__", value))
def test_what_is_refused_raises_and_names_both(owner: type, code: str, setting: str) -> None:
    with pytest.raises(
        ValueError, match=r"must be|must equal|both must|already|starts above|stay above|leave it out|Allowed"
    ) as error:
        construct(owner, code, setting)
    message = str(error.value)
    names = names_in(code)
    missing = {name for name in names if not re.search(rf"\b{name}\b", message)}
    assert len(names) - len(missing) >= min(len(names), 2), message
    words = {
        "discrete actions": "discrete|actions",
        "several environments": "several environments",
        "VecNormalize": "VecNormalize",
    }
    assert re.search(words.get(setting, ""), message)


@pytest.mark.parametrize(("owner", "code", "setting"), WARNED, ids=lambda value: getattr(value, "__name__", value))
def test_what_is_warned_of_works_with_a_warning(owner: type, code: str, setting: str) -> None:
    (name,) = names_in(code)
    with pytest.warns(UserWarning, match=f"`{name}`"):
        construct(owner, code, setting)


def test_what_holds_critics_back_brings_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for code in (
            "policy_kwargs=dict(layer_norm=True)",
            'policy_kwargs=dict(normalization="layer")',
            'policy_kwargs=dict(encoder="simba", net_arch=[8])',
            "resets=100",
            "target_subset=1",
        ):
            construct(SoftAC, f"gradient_steps=5, {code}", "")
        construct(SoftAC, 'bootstrap="joint", policy_kwargs=dict(normalization="batch_renorm")', "")
        construct(SoftAC, 'bootstrap="joint", policy_kwargs=dict(encoder="flash", net_arch=[8])', "")

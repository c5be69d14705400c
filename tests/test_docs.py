"""The documentation names things that exist, with the defaults that they have."""

import builtins
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import sb3_softac
from sb3_softac import SoftAC, SoftACPolicy, SoftQL, SoftQLPolicy
from sb3_softac.update import gaussian_kernel

ROOT = Path(__file__).parent.parent
README, ALGORITHM = (ROOT / "README.md").read_text(), (ROOT / "docs" / "algorithm.md").read_text()
TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))


def table(heading: str) -> list[list[str]]:
    """The cells of the rows of the first table below ``heading`` in the README."""
    rows = README.split(heading)[1].split("\n\n| ")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\\\)\|", row.strip("| "))] for row in rows]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+|Test\w+)`", ALGORITHM))))
def test_every_test_that_is_named_exists(name: str) -> None:
    assert re.search(rf"(def|class) {name}\b", TESTS)


def parameters_of(owner: type) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(owner.__init__).parameters)  # type: ignore[misc]  # a class of ours


def is_defined(code: str) -> bool:
    """Whether Python knows a name: an option of ours, an attribute or method of SoftAC, or a function or class of a module.

    :param code: a name, ``owner.name`` with a module or class of the package, ``option=value``, or a call
    """
    owner, _, name = re.split(r"[=(]", code)[0].rpartition(".")
    modules = [importlib.import_module(module.name) for module in pkgutil.walk_packages(sb3_softac.__path__, "sb3_softac.")]
    if owner == "model":
        return is_defined(name)
    if owner == "torch":
        return hasattr(torch, name)
    if owner:
        places = [module for module in modules if module.__name__.endswith(f".{owner}")]
        return any(hasattr(place, name) for place in [*places, *(vars(module).get(owner) for module in modules)])
    options = {option for owner in (SoftAC, SoftACPolicy, SoftQL, SoftQLPolicy) for option in parameters_of(owner)}
    if name.endswith("_"):  # short for a rate, in a list of them
        return f"{name}learning_rate" in options
    if "=" in code and "(" not in code:
        return name in options
    return name in options | SoftAC.__annotations__.keys() or any(
        hasattr(place, name) for place in (SoftAC, *modules, spaces, builtins)
    )


@pytest.mark.parametrize("code", sorted(set(re.findall(r"`(?!test_|Test)([A-Za-z_][\w.]*(?:[=(][^`\n]*)?)`", ALGORITHM))))
def test_every_function_and_option_that_is_named_exists(code: str) -> None:
    """Against the classes and modules themselves: a comment, a string or a local variable defines nothing."""
    assert is_defined(code)


@pytest.mark.parametrize("code", ["loss", "losses.soft_values", "SoftAC._step", "SoftActor", "actor_p=1", "policy_", "stair"])
def test_what_is_only_mentioned_does_not_exist(code: str) -> None:
    """Words that the package contains, or nearly, without defining them."""
    assert not is_defined(code)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+\.py)`", ALGORITHM))))
def test_every_file_of_tests_that_is_named_exists(name: str) -> None:
    assert list((ROOT / "tests").rglob(name))


@pytest.mark.parametrize(
    ("heading", "owner"),
    [("## Options", SoftAC), ("`policy_kwargs` takes those of SB3's", SoftACPolicy), ("## Soft Q-learning", SoftQL)],
)
def test_the_tables_of_options_have_the_true_defaults(heading: str, owner: type) -> None:
    parameters = parameters_of(owner)
    keyword_only = {name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
    listed: set[str] = set()
    for options, defaults, *_ in table(heading):
        names = re.findall(r"`(\w+)`", options)
        known = {"gaussian_kernel": gaussian_kernel, "torch": torch}
        values = [eval(value, known) for value in re.findall(r"`([^`]+)`", defaults)] * len(names)
        for name, value in zip(names, values, strict=False):
            default = [256, 256] if name == "net_arch" and parameters[name].default is None else parameters[name].default
            assert default == value, name
            listed.add(name)
    of_algorithm = {"value_network", "normalize_observations"} if owner is SoftACPolicy else set()
    assert keyword_only - of_algorithm <= listed


CHECKPOINTS = (ROOT / "docs" / "checkpoints.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README + CHECKPOINTS, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_every_snippet_runs_when_pasted_alone(number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a hundredth of its training."""
    learn = OffPolicyAlgorithm.learn

    def shortened(self: OffPolicyAlgorithm, total_timesteps: int, *args: object, **kwargs: object) -> object:
        self.learning_starts = min(self.learning_starts, 5)
        return learn(self, total_timesteps // 100, *args, **kwargs)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(OffPolicyAlgorithm, "learn", shortened)
    monkeypatch.chdir(tmp_path)
    exec(compile(SNIPPETS[number], f"snippet {number}", "exec"), {})

"""The documentation names things that exist, with the defaults that they have."""

import builtins
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import sb3_softac
from sb3_softac import SoftAC, SoftACPolicy, SoftQL, SoftQLPolicy
from sb3_softac.collect import FACTS
from sb3_softac.engine.group import close_group
from tests.ranks import environment, free_port

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
NAMES = PAGES["algorithm.md"] + PAGES["diagnosis.md"].partition("## Findings")[0]  # what they name must exist
TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+|Test\w+)`", NAMES))))
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


@pytest.mark.parametrize("code", sorted(set(re.findall(r"`(?!test_|Test)([A-Za-z_][\w.]*(?:[=(][^`\n]*)?)`", NAMES))))
def test_every_function_and_option_that_is_named_exists(code: str) -> None:
    """Against the classes and modules themselves: a comment, a string or a local variable defines nothing."""
    assert is_defined(code)


@pytest.mark.parametrize("code", ["loss", "losses.soft_values", "SoftAC._step", "SoftActor", "actor_p=1", "policy_", "stair"])
def test_what_is_only_mentioned_does_not_exist(code: str) -> None:
    """Words that the package contains, or nearly, without defining them."""
    assert not is_defined(code)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+\.py)`", NAMES))))
def test_every_file_of_tests_that_is_named_exists(name: str) -> None:
    assert list((ROOT / "tests").rglob(name))


SNIPPETS = {
    f"{name} {number}": code
    for name, text in PAGES.items()
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
}


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_every_snippet_runs_when_pasted_alone(snippet: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a hundredth of its training."""
    learn = OffPolicyAlgorithm.learn

    def shortened(self: OffPolicyAlgorithm, total_timesteps: int, *args: object, **kwargs: object) -> object:
        self.learning_starts = min(self.learning_starts, 5)
        return learn(self, total_timesteps // 100, *args, **kwargs)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(OffPolicyAlgorithm, "learn", shortened)
    monkeypatch.chdir(tmp_path)
    for name, value in environment(rank=0, size=1, port=free_port()).items():  # as torchrun would start it
        monkeypatch.setenv(name, value)
    names: dict[str, Any] = {}
    try:
        exec(compile(SNIPPETS[snippet], snippet, "exec"), names)
    finally:
        for value in names.values():
            if isinstance(value, OffPolicyAlgorithm) and hasattr(value, "_logger"):
                value.logger.close()
        close_group()


def test_every_logged_metric_is_explained(tmp_path: Path) -> None:
    rows = re.findall(r"^\| ((?:`[\w/]+`(?:, )?)+)", PAGES["diagnosis.md"], flags=re.MULTILINE)
    explained = {name for row in rows for name in re.findall(r"`([\w/]+)`", row)}
    explained |= {f"train/{owner}_learning_rate" for owner in ("critic", "value", "ent_coef")}  # short in one row
    logged: set[str] = set()
    options = {"actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3, "normalize_rewards": 5.0, "resets": 20}
    wide = {"policy_kwargs": {"net_arch": [8], "critic_head": "categorical", "value_range": (-2000.0, 2000.0)}}
    cases: list[tuple[Any, str, dict[str, Any]]] = [
        (SoftAC, "Pendulum-v1", options),
        (SoftAC, "Pendulum-v1", {"value_network": True, "use_sde": True}),
        (SoftAC, "Pendulum-v1", wide),
        (SoftAC, "CartPole-v1", {}),
        (SoftQL, "Pendulum-v1", {}),
    ]
    for owner, env, extra in cases:
        model = owner("MlpPolicy", env, **{"learning_starts": 10, "train_freq": 8, "policy_kwargs": {"net_arch": [8]}} | extra)
        logger = configure(str(tmp_path), ["csv"])
        model.set_logger(logger)
        model.learn(410, log_interval=1)
        logger.close()
        logged |= set((tmp_path / "progress.csv").read_text().splitlines()[0].split(","))
    ours = {name for name in logged if name.startswith("train/") or name in {f"rollout/{fact}" for fact in FACTS}}
    assert len(ours) > 15
    assert {"train/target_clipped", "train/std"} <= ours
    assert ours <= explained
    assert {f"rollout/{fact}" for fact in FACTS} <= ours


def test_the_readme_is_for_five_minutes() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150
    assert PAGES["README.md"].count("![") == 2  # returns and speed


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    listed = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE))
    assert pages | {"index.md", "contributing.md", "changelog.md"} == listed

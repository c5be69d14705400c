"""The documentation names things that exist, with the defaults that they have."""

import inspect
import re
from pathlib import Path

import pytest

from sb3_softac import SoftAC, SoftACPolicy

ROOT = Path(__file__).parent.parent
README, ALGORITHM = (ROOT / "README.md").read_text(), (ROOT / "docs" / "algorithm.md").read_text()
TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
PACKAGE = "\n".join(path.read_text() for path in (ROOT / "sb3_softac").rglob("*.py"))


def table(heading: str) -> list[list[str]]:
    """The cells of the rows of the first table below ``heading`` in the README."""
    rows = README.split(heading)[1].split("\n\n| ")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\\\)\|", row.strip("| "))] for row in rows]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+|Test\w+)`", ALGORITHM))))
def test_every_test_that_is_named_exists(name: str) -> None:
    assert re.search(rf"(def|class) {name}\b", TESTS)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(?:losses\.|SoftAC\.)?(_?[a-zA-Z]+(?:_\w+)+)`", ALGORITHM))))
def test_every_function_and_option_that_is_named_exists(name: str) -> None:
    assert re.search(rf"\b{name}\b", PACKAGE + TESTS) or name.endswith("_")


@pytest.mark.parametrize(
    ("heading", "owner"), [("## Options", SoftAC), ("`policy_kwargs` takes those of SB3's", SoftACPolicy)]
)
def test_the_tables_of_options_have_the_true_defaults(heading: str, owner: type) -> None:
    parameters = inspect.signature(owner.__init__).parameters  # type: ignore[misc]  # a class of ours
    keyword_only = {name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
    listed: set[str] = set()
    for options, defaults, *_ in table(heading):
        names = re.findall(r"`(\w+)`", options)
        values = [eval(value) for value in re.findall(r"`([^`]+)`", defaults)] * len(names)
        for name, value in zip(names, values, strict=False):
            default = [256, 256] if name == "net_arch" and parameters[name].default is None else parameters[name].default
            assert default == value, name
            listed.add(name)
    assert keyword_only - {"value_network"} <= listed

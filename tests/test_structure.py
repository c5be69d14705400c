"""The structure of the package, read from its code: who imports whom, and how long files and functions are."""

import ast
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sb3_softac"


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
#: what stands above all wings
ALGORITHMS = {f"sb3_softac.{name}" for name in ("algorithm", "configuration", "soft_ac", "soft_ql", "softac")} | {"sb3_softac"}
#: folders with one door, which any algorithm may use
WINGS = ("update", "networks", "engine", "replay", "collect")


def imported_names(name: str) -> set[str]:
    """Everything that a module imports, wherever it does and also for types only, by full names."""
    found = set()
    package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def imports(name: str) -> set[str]:
    """Modules of the package that a module imports: a name from a module is the module, and a door is a module too."""
    own = {full if full in FILES else full.rpartition(".")[0] for full in imported_names(name)}
    return {module for module in own if module in FILES and module != name}


GRAPH = {name: imports(name) for name in FILES}


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle in ``graph``, or nothing."""
    done: set[str] = set()
    path: list[str] = []

    def visit(node: str) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        path.append(node)
        for following in sorted(graph[node]):
            if circle := visit(following):
                return circle
        path.pop()
        done.add(node)
        return []

    return next(filter(None, map(visit, graph)), [])


def wing_of(name: str) -> str:
    """The folder of a module, or the module itself if it is in none."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else name


def test_the_search_for_circles_finds_one() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_modules_import_in_no_circle() -> None:
    assert find_circle(GRAPH) == []


def test_folders_import_in_no_circle() -> None:
    wings: dict[str, set[str]] = {wing_of(name): set() for name in FILES}
    for name, imported in GRAPH.items():
        wings[wing_of(name)] |= {wing_of(other) for other in imported} - {wing_of(name)}
    assert find_circle(wings) == []


@pytest.mark.parametrize("wing", WINGS)
def test_no_folder_knows_an_algorithm(wing: str) -> None:
    names = [name for name in FILES if name.startswith(f"sb3_softac.{wing}")]
    assert names
    for name in names:
        assert not GRAPH[name] & ALGORITHMS, name


def test_the_gradient_step_knows_no_algorithm_of_sb3_and_no_logger() -> None:
    for name in FILES:
        if name.startswith(("sb3_softac.update", "sb3_softac.engine", "sb3_softac.networks")):
            for imported in imported_names(name):
                assert not imported.startswith("stable_baselines3.common.logger"), name
                assert "algorithm" not in imported, name


def test_only_one_file_imports_rl_zoo() -> None:
    importers = {name for name in FILES if any(full.split(".")[0] == "rl_zoo3" for full in imported_names(name))}
    assert importers == {"sb3_softac.zoo"}


def test_nothing_needs_the_report() -> None:
    importers = {name for name in FILES if any(module.startswith("sb3_softac.report") for module in GRAPH[name])}
    assert all(name.startswith("sb3_softac.report") for name in importers)


@pytest.mark.parametrize("name", FILES)
def test_files_are_short(name: str) -> None:
    n_lines = len(FILES[name].read_text().splitlines())
    assert n_lines <= (400 if name == "sb3_softac.soft_ac" else 450)


def length(function: Any) -> int:
    """Lines of a function, without its docstring."""
    body = function.body
    has_docstring = len(body) > 1 and ast.get_docstring(function) is not None
    return int(function.end_lineno - body[has_docstring].lineno + 1)


@pytest.mark.parametrize("name", FILES)
def test_functions_are_short(name: str) -> None:
    functions = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {function.name: length(function) for function in functions if function.name != "__init__"}
    assert {function: lines for function, lines in lengths.items() if lines > 45} == {}

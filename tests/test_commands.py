"""Every block of code of README.md and of the site runs in a test, or its arguments are checked, or it says that it is not.

Marked as not run is a block behind a line ``<!-- not run: REASON -->``, with a reason that is listed here. Commands of RL Zoo
run with few steps, in this process; scripts of benchmarks/ and examples/ would take minutes to days, and are asked to parse
their arguments; ``make`` says what it would do.
"""

import argparse
import ast
import functools
import importlib.util
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from torch.distributed.run import get_args_parser

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from harness.variants import check_variant
from timing.cases import cases_on

from sb3_softac import SoftAC, presets, zoo
from sb3_softac.report.command import main as report
from tests import test_docs, test_guides
from tests.report.made import write_run
from tests.test_examples import script

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted((ROOT / "docs").rglob("*.md"))
#: why a block is not run
REASONS = {
    "changes the checkout",
    "needs a browser",
    "needs npm and a browser",
    "needs ONNX Runtime's headers",  # where they are, tests/test_guides.py runs it
    "needs SLURM",
    "needs Kubernetes",
    "needs several machines",  # tests/test_zoo_sweeps.py has several processes
}
#: commands of RL Zoo that need a screen, and are parsed only
NOT_SHORT = ("rl_zoo3.record_video", "enjoy --algo softac --env Pendulum-v1 -f logs --exp-id 1")
#: what tasks need
PACKAGES = {"HalfCheetah": "mujoco", "LunarLander": "Box2D"}


class Block(NamedTuple):
    page: str
    language: str
    code: str
    not_run: str | None

    def commands(self) -> Iterator[str]:
        """One by one, without comments."""
        for line in self.code.replace("\\\n", " ").splitlines():
            if command := shlex.join(shlex.split(line, comments=True)):
                yield command


def blocks_of(page: Path) -> list[Block]:
    found = re.findall(r"^(?:<!-- not run: (.+) -->\n)?```(.*)\n((?:.*\n)*?)```$", page.read_text(), flags=re.MULTILINE)
    name = page.relative_to(ROOT).as_posix()
    return [Block(name, language, code, reason or None) for reason, language, code in found]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
#: commands in running text and in tables, too
INLINE = [
    Block(page.relative_to(ROOT).as_posix(), "sh", f"{code}\n", None)
    for page in PAGES
    if page.name != "CHANGELOG.md"
    for code in re.findall(
        r"`((?:python |rl_zoo3 |make |pip install [\".])[^`]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    )
]
COMMANDS = [
    (block.page, line)
    for block in [*BLOCKS, *INLINE]
    if block.language == "sh" and not block.not_run
    for line in block.commands()
]
OF_ZOO = [(page, line) for page, line in COMMANDS if re.match(r"rl_zoo3 |python -m rl_zoo3", line)]


def test_all_blocks_are_found() -> None:
    """None is indented, and each says what language it is in."""
    for page in PAGES:
        text = page.read_text()
        assert text.count("```") == 2 * len(blocks_of(page)), page.name
        outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        assert not re.search(r"(?:^|\n)\n {4,}[^\s*-]", outside), page.name
    assert {block.language for block in BLOCKS} == {"python", "sh", "yaml", "html", "cpp", "text"}


def test_what_is_not_run_says_why() -> None:
    marked = {block.not_run for block in BLOCKS if block.not_run}
    assert marked == REASONS
    marks = [mark for page in PAGES for mark in re.findall(r"^<!-- not run.*", page.read_text(), flags=re.MULTILINE)]
    assert len(marks) == sum(bool(block.not_run) for block in BLOCKS)


def test_every_block_is_run_or_says_that_it_is_not() -> None:
    """Python: by tests/test_docs.py and tests/test_guides.py, and below; ``text`` is no code; commands: below."""
    run = {f"docs/{name}" for name in test_docs.PAGES} | {"README.md", "CONTRIBUTING.md"}
    run |= {page.relative_to(ROOT).as_posix() for page in test_guides.PAGES}
    neither = [
        block
        for block in BLOCKS
        if not block.not_run
        and not (block.language == "python" and block.page in run)
        and not (block.language == "yaml" and block.page == "docs/recipes/goals.md")
        and block.language not in ("sh", "text")
    ]
    assert neither == []
    unknown = [(page, line) for page, line in COMMANDS if kind_of(line) is None]
    assert unknown == []


def kind_of(command: str) -> str | None:
    """How a command is tested."""
    kinds = {
        "zoo": r"rl_zoo3 |python -m rl_zoo3\.",
        "script": r"python (benchmarks|examples)/\w+\.py",
        "make": r"make \w+$",
        "pip": r"pip install ",
        "report": r"python -m sb3_softac\.report ",
        "our zoo": r"python -m sb3_softac\.zoo ",
        "python": r"python -c ",
        "torchrun": r"torchrun ",
    }
    return next((kind for kind, pattern in kinds.items() if re.match(pattern, command)), None)


def of_kind(kind: str) -> list[str]:
    return list(dict.fromkeys(line for _, line in COMMANDS if kind_of(line) == kind))


class Parsed(Exception):
    """Arguments were accepted, and nothing else happens."""

    def __init__(self, found: argparse.Namespace) -> None:
        self.found = found


def parsed(monkeypatch: pytest.MonkeyPatch, call: Any, command: list[str]) -> argparse.Namespace:
    """What the parser of a script makes of a command; the script ends there."""
    original = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        raise Parsed(original(self, *args, **kwargs))

    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", parse)
        patched.setattr(sys, "argv", command)
        with pytest.raises(Parsed) as caught:
            call()
    return caught.value.found


@pytest.mark.parametrize("command", of_kind("script"))
def test_scripts_take_their_arguments(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are read exist; variants and cases that are named are known."""
    _, path, *arguments = shlex.split(command)
    arguments = ["0" if argument == "SEED" else argument for argument in arguments]
    module = script(path)
    description = [module.__doc__] if module.main.__code__.co_argcount else []
    found = parsed(monkeypatch, lambda: module.main(*description), [path, *arguments])
    for name in ("plan", "table", "evidence", "report"):
        given = getattr(found, name, None) or []
        for file in given if isinstance(given, list) else [given]:
            assert (ROOT / file).is_file(), file
    if path.endswith("returns.py"):
        for variant in found.variants or []:
            check_variant(variant)
    if path.endswith("speed.py") and found.only and not found.flops:
        names = [case.name for case in cases_on(found.device)]
        assert all(any(word in name for name in names) for word in found.only)


def test_an_unknown_argument_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = script("benchmarks/speed.py")
    with pytest.raises(SystemExit):
        parsed(monkeypatch, lambda: module.main(""), ["speed.py", "--round", "3", "--peer", "SBX", "--flop", "1"])
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize("command", of_kind("make"))
def test_make_knows_its_targets(command: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", of_kind("pip"))
def test_what_is_installed_has_the_extras(command: str) -> None:
    section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", section, flags=re.MULTILINE))
    *_, target = shlex.split(command)
    match = re.fullmatch(r"\.(?:\[([\w,]+)\])?", target)
    assert match
    assert set((match[1] or "plots").split(",")) <= extras


@pytest.mark.parametrize("command", of_kind("python"))
def test_lines_of_python(command: str) -> None:
    _, _, code = shlex.split(command)
    with redirect_stdout(StringIO()) as printed:
        exec(code, {})
    assert printed.getvalue()


@pytest.mark.parametrize("command", of_kind("report"))
def test_reports(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the usage shows it: without brackets, once for a folder and once for two."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        write_run(tmp_path / name)
    arguments = [word.strip("[]") for word in shlex.split(command)[3:] if not word.startswith("...")]
    folders = iter(["first", "second"])
    given = [next(folders) if word in ("LOGDIR", "FOLDER") else word for word in arguments]
    assert report(given) == 0
    assert Path("report.html").stat().st_size > 1000


@pytest.mark.parametrize("command", of_kind("torchrun"))
def test_torchrun_takes_its_arguments(command: str) -> None:
    """Training by RL Zoo on two ranks runs in tests/distributed/test_zoo.py."""
    found = get_args_parser().parse_args(shlex.split(command)[1:])
    assert found.training_script == "rl_zoo3.train" if found.module else found.training_script.endswith(".py")


@pytest.mark.parametrize("command", of_kind("our zoo"))
def test_our_own_entry_to_rl_zoo(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [word for word in shlex.split(command)[3:] if word != "..."]
    if arguments == ["--help"]:
        monkeypatch.setattr(sys, "argv", ["zoo.py", *arguments])
        with pytest.raises(SystemExit, match="0"):
            zoo.main()
    else:
        importlib.import_module(f"rl_zoo3.{arguments[0]}")
        assert arguments[1:3] == ["--algo", "softac"]


# --- RL Zoo -----------------------------------------------------------------------------------------------------------


def zoo_call(command: str) -> tuple[Any, list[str]]:
    """The function of RL Zoo that a command ends in, and its arguments."""
    words = shlex.split(command)
    module, arguments = (words[2], words[3:]) if words[0] == "python" else (f"rl_zoo3.{words[1]}", words[2:])
    zoo.register()
    function = getattr(importlib.import_module(module), module.removeprefix("rl_zoo3."), None)
    return function or functools.partial(runpy.run_module, module, run_name="__main__"), arguments


@pytest.mark.parametrize("name", [*presets.PRESETS, *presets.SOFTQL_PRESETS])
def test_the_command_of_a_preset(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them runs below; what a preset is, RL Zoo is told in the same way for all."""
    (command,) = [line for page, line in OF_ZOO if page == f"docs/presets/{name}.md"]
    call, arguments = zoo_call(command)
    found = parsed(monkeypatch, call, ["train.py", *arguments])
    assert found.hyperparams["preset"] == name
    assert found.algo == ("softql" if name in presets.SOFTQL_PRESETS else "softac")


def shortened(arguments: list[str]) -> list[str]:
    """A training of 300 steps that keeps what others go on from, and a search of one trial."""
    if "-f" in arguments and "--no-render" in arguments:  # enjoy
        return [*arguments, "-n", "200"]
    short = [*arguments, "-n", "300", "--eval-freq", "-1", "--save-freq", "150", "--save-replay-buffer"]
    short += ["--device", "cpu", "--seed", "1"]
    return [*short, "--n-trials", "1", "--n-evaluations", "1"] if "-optimize" in short else short


@pytest.mark.filterwarnings("ignore")  # of RL Zoo, optuna and pygame
def test_the_commands_of_rl_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order in which a reader meets them, in one folder; those of the presets' pages are checked above."""
    monkeypatch.chdir(tmp_path)
    commands = [line for page, line in OF_ZOO if not page.startswith("docs/presets/")]
    commands.sort(key=lambda line: "-i logs/sac" in line)  # it needs a run of SAC, which its row names behind it
    different = {re.sub(r" (-n|--n-trials) \d+", "", line): line for line in commands}
    for command in different.values():
        call, arguments = zoo_call(command)
        needed = next((package for task, package in PACKAGES.items() if task in command), "numpy")
        if any(word in command for word in NOT_SHORT) or importlib.util.find_spec(needed) is None:
            parsed(monkeypatch, call, ["script.py", *arguments])
            continue
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", ["script.py", *shortened(arguments)])
            call()
    runs = list((tmp_path / "logs" / "softac").glob("*/*.zip"))
    assert len(runs) >= 8


# --- the rest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len([block for block in BLOCKS if block[:2] == ("CONTRIBUTING.md", "python")])))
def test_snippets_of_contributing(number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    learn = SoftAC.learn
    monkeypatch.setattr(
        SoftAC, "learn", lambda self, total_timesteps, **kwargs: learn(self, min(total_timesteps, 120), **kwargs)
    )
    snippets = [block.code for block in BLOCKS if block[:2] == ("CONTRIBUTING.md", "python")]
    exec(compile(snippets[number], f"CONTRIBUTING.md, snippet {number}", "exec"), {})


def test_the_file_of_hyperparameters_in_a_recipe() -> None:
    """Keys are options, and what stands in quotes are Python's values."""
    (block,) = [block for block in BLOCKS if block.language == "yaml" and not block.not_run]
    for options in yaml.safe_load(block.code).values():
        for name, value in options.items():
            assert name == "n_timesteps" or name in SoftAC.__init__.__annotations__, name
            if isinstance(value, str) and "(" in value:
                assert isinstance(ast.parse(value, mode="eval").body, ast.Call)

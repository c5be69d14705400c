"""Plans: what they consist of, what they refuse, and that those of the repository can be run."""

import datetime
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.command import main, make_parser, plan_of
from harness.plans import Plan, Run, as_dict, from_dict, preflight, read_plan
from harness.variants import settings_of

from sb3_softac import SoftAC, SoftQL, presets

PLANS = Path(__file__).parents[2] / "benchmarks" / "plans"
GROUP: dict[str, Any] = {"variants": ["SoftAC"], "tasks": ["Pendulum-v1"], "seeds": 1, "steps": 100}


def plan(folder: Path, *groups: dict[str, Any], **keys: Any) -> Plan:
    (folder / "plan.yml").write_text(yaml.safe_dump({"runs": [GROUP | group for group in groups], **keys}))
    return read_plan(folder / "plan.yml")


def test_a_group_is_a_product(tmp_path: Path) -> None:
    half = {"name": "half", "base": "SoftAC", "set": {"target_entropy": "auto_0.5"}}
    group: dict[str, Any] = {
        "variants": ["sb3", half],
        "tasks": ["Pendulum-v1", "CartPole-v1"],
        "seeds": 3,
        "set": {"batch_size": 32},
    }
    made = plan(tmp_path, group, {"seeds": [7]}, output="rows.csv")
    assert made.output == Path("rows.csv")
    assert Counter((run.variant, run.env) for run in made.runs) == Counter(
        {(name, env): 3 for name in ("sb3", "half") for env in group["tasks"]} | {("SoftAC", "Pendulum-v1"): 1}
    )
    assert {run.seed for run in made.runs if run.variant == "half"} == {0, 1, 2}
    first = next(run for run in made.runs if run.variant == "half")
    expected = {"learning_starts": 1000, "learning_rate": 3e-4, "batch_size": 32, "target_entropy": "auto_0.5"}
    assert (first.algorithm, first.settings) == (SoftAC, expected)


def test_the_same_run_in_two_groups_is_one(tmp_path: Path) -> None:
    assert len(plan(tmp_path, {}, {"seeds": 2}).runs) == 2
    with pytest.raises(ValueError, match="SoftAC, Pendulum-v1, seed 0 is there twice with other settings"):
        plan(tmp_path, {}, {"set": {"batch_size": 8}})


def test_a_run_that_the_command_line_names_twice_is_one() -> None:
    words = ["--env", "Pendulum-v1", "Pendulum-v1", "--variants", "SoftAC", "SoftAC", "--seeds", "0", "0", "1"]
    assert [run.seed for run in plan_of(make_parser(None).parse_args([*words, "--steps", "100"])).runs] == [0, 1]


def test_presets_are_variants_by_their_names() -> None:
    for name in [*presets.PRESETS, *presets.SOFTQL_PRESETS]:
        run = Run(name, name, "Pendulum-v1", 0, 100)
        assert run.algorithm is (SoftAC if name in presets.PRESETS else SoftQL)
        assert run.settings == {"learning_starts": 1000, "learning_rate": 3e-4, **presets.get(name)}


def test_a_run_is_known_by_its_settings_only() -> None:
    """And by nothing that does not change what is trained."""
    run = Run("SoftAC", "SoftAC", "Pendulum-v1", 0, 100, {"batch_size": 8})
    assert from_dict(json.loads(json.dumps(as_dict(run)))) == run
    assert Run("SoftAC", "SoftAC", "Pendulum-v1", 0, 100, {"batch_size": 8}, points=20).id == run.id
    assert Run("SoftAC", "SoftAC", "Pendulum-v1", 0, 100, {"batch_size": 9}).id != run.id
    assert Run("SoftAC", "SoftQL", "Pendulum-v1", 0, 100, {"batch_size": 8}).id != run.id


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"task": ["Pendulum-v1"]}, "has the key 'task', but it may have only variants, tasks"),
        ({"variants": ["SoftBC"]}, "`variant` is 'SoftBC', but it must be one of 'SoftAC'"),
        ({"variants": []}, "variants` is .*, but it must be a list that is not empty"),
        ({"variants": [{"name": "x"}]}, "a variant has no key 'base'"),
        ({"variants": [{"name": "x", "base": "SB3 SAC", "set": {"tau": 1}}]}, "needs a name of its own, and a base"),
        ({"variants": [{"name": "sb3", "base": "SoftAC"}]}, "another one, because it is that of a variant"),
        ({"seeds": 0}, "seeds` is 0, but it must be an integer of at least 1"),
        ({"seeds": ["a"]}, "seeds` is .*, but it must be a list"),
        ({"steps": 5}, "steps` is 5, but it must be an integer of at least 10"),
        ({"zoo": "yes please"}, "zoo` is 'yes please', but it must be True or False"),
        ({"set": [1]}, "set` is .*, but it must be settings by their names"),
        ({"set": {"learning_starts": datetime.date(2020, 1, 1)}}, "set` is .*, but it must be settings of texts, numbers"),
        ({"variants": [{"name": "x", "base": "SoftAC", "set": 5}]}, "set` is 5, but it must be settings by their names"),
        ({"variants": [{"name": "x", "base": ["SoftAC"]}]}, r"base of a variant` is \['SoftAC'\], but it must be a text"),
        ({"variants": [{"name": 5, "base": "SoftAC"}]}, "name of a variant` is 5, but it must be a text"),
        ({"variants": [{"name": "a\u0085b", "base": "SoftAC"}]}, "but it must be a text in one line"),
    ],
)
def test_a_group_that_makes_no_sense(group: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        plan(tmp_path, group)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runs: [", "cannot be read"),
        ("run: []", "has the key 'run', but it may have only output, runs"),
        ("output: x.csv", "has no key 'runs'"),
        ("", "must have output, runs"),
        ("runs: \xff", "plan.yml' cannot be read"),
        (
            "output: 5\nruns: [{variants: [SoftAC], tasks: [Pendulum-v1], seeds: 1, steps: 10}]",
            "output` is 5, but it must be the name",
        ),
    ],
)
def test_a_file_that_is_no_plan(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.yml").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        read_plan(tmp_path / "plan.yml")


def test_settings_from_files_and_their_absence() -> None:
    assert settings_of("SB3 DQN", "CartPole-v1", True, {"tau": 3})["learning_rate"] == 2.3e-3  # RL Zoo's dqn.yml
    with pytest.raises(ValueError, match=r"softac\.yml has no entry for Nothing-v0"):
        settings_of("SoftAC", "Nothing-v0", True, {})


def test_what_cannot_be_made_is_named_before_anything_runs() -> None:
    with pytest.raises(ValueError, match="The task 'Nothing-v0' cannot be made, and no run has begun"):
        preflight([Run("SoftAC", "SoftAC", env, 0, 100) for env in ("Pendulum-v1", "Nothing-v0")])
    with pytest.raises(ValueError, match="SoftAC on Pendulum-v1 cannot be made, and no run has begun: `tau` is 2"):
        preflight([Run("SoftAC", "SoftAC", "Pendulum-v1", 0, 100, {"tau": 2})])
    with pytest.raises(ValueError, match=r"cannot be made, and no run has begun.*'tauu'"):
        preflight([Run("SoftAC", "SoftAC", "Pendulum-v1", 0, 100, {"tauu": 2})])


@pytest.mark.filterwarnings("ignore")  # of Box2D, which does not survive that one is an error
@pytest.mark.parametrize(
    ("name", "n_runs"),
    [
        ("mujoco-100k", 4 * 5 * 5),
        ("mujoco-1m", 2 * 2 * 2),
        ("discrete", 2 * 3 * 5),
        ("defaults", 56),
        ("scales", 70),
        ("cartpole", 3 * 5),
    ],
)
def test_the_plans_of_the_repository(name: str, n_runs: int) -> None:
    """`defaults`: 16 settings with 3 seeds, 4 elsewhere with 2; `scales`: 5 on two tasks and 4 on one, with 5 seeds."""
    runs = read_plan(PLANS / f"{name}.yml").runs
    assert len(runs) == n_runs
    preflight(runs)
    assert {path.stem for path in PLANS.iterdir()} == {
        "mujoco-100k",
        "mujoco-1m",
        "discrete",
        "defaults",
        "scales",
        "cartpole",
    }


def test_rows_of_the_repository_count(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PLANS.parents[1])
    monkeypatch.setattr("sys.argv", ["returns.py", "--plan", str(PLANS / "mujoco-100k.yml"), "--env", "Hopper-v5", "--status"])
    with pytest.raises(SystemExit, match="0"):
        main()
    printed = capsys.readouterr().out
    assert "| SoftAC | " in printed
    assert "| SoftAC | 0 of 5 |" not in printed
    assert "Walker2d" not in printed

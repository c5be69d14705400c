"""Tables and figures of rows: against hand-computed numbers, and rliable against its formulas."""

import csv
import json
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import rows, tables
from harness.command import main
from harness.references import published, published_at, random_return
from harness.rows import Row
from harness.scores import curves_over_time, final_scores, reference_of, tasks_of

ROOT = Path(__file__).parents[2]
#: returns of the last policies by seed
FINAL = {"SoftAC": {"HalfCheetah-v5": [4000, 5000, 6000], "Hopper-v5": [900, 1000, 1400]}}
FINAL["sb3"] = {"HalfCheetah-v5": [2000, 4500, 5500], "Hopper-v5": [800, 950, 1000]}


def row(variant: str, env: str, seed: int, final: float, with_times: bool = True) -> Row:
    """Four evaluations, at 10, 20, 30 and 40 seconds and more with each seed; returns grow to the last one."""
    curve = " ".join(str(final * share) for share in (0.25, 0.5, 0.75, 1.0))
    times = " ".join(str(10.0 * (place + 1) * (seed + 1)) for place in range(4))
    made = {"variant": variant, "env": env, "steps": 100_000, "seed": seed, "return": float(final), "best": float(final)}
    made |= {"curve": curve, "alpha": 0.1, "settings": json.dumps({"variant": variant}), "times": times if with_times else ""}
    return {name: str(value) for name, value in made.items()}


def every(with_times: bool = True) -> list[Row]:
    return [
        row(variant, env, seed, final, with_times)
        for variant, by_env in FINAL.items()
        for env, returns in by_env.items()
        for seed, final in enumerate(returns)
    ]


def call(patch: pytest.MonkeyPatch, *arguments: str) -> None:
    patch.setattr("sys.argv", ["returns.py", *arguments])
    main("what it does")


def by_scale(given: list[rows.Row], update: str, cell: str) -> dict[float, list[float]]:
    """A cell of the rows that differ from the default in the update of α and the scale of rewards alone, by that scale."""
    found: dict[float, list[float]] = {}
    for row in given:
        settings = json.loads(row["settings"])
        if settings.get("ent_coef_update") == update and not {"target_entropy", "ent_coef_learning_rate"} & {*settings}:
            found.setdefault(settings.get("reward_scale", 1), []).append(float(row[cell]))
    return found


class TestTables:
    def test_seed_by_seed(self, tmp_path: Path) -> None:
        rows.write(tmp_path / "rows.csv", every())
        table = tables.table(tables.load([tmp_path / "rows.csv"]))
        first, second = table.split("\n\nHopper-v5, 100,000 steps\n\n")
        assert first.startswith("HalfCheetah-v5, 100,000 steps\n\n| | seed 0 | seed 1 | seed 2 | mean |")
        assert "| SoftAC | 4000 | 5000 | 6000 | 5000 | 5000 | 0.1 |" in first
        assert second.splitlines()[-1] == "| sb3 | 800 | 950 | 1000 | 917 | 917 | 0.1 |"

    def test_the_tables_of_the_documentation(self) -> None:
        """As they stand there."""
        text = (ROOT / "docs" / "benchmarks.md").read_text()
        for name in ("cartpole", "acrobot", "discrete", "defaults"):
            assert tables.table(tables.load([ROOT / "docs" / f"returns-{name}.csv"])) in text

    def test_evaluations_at_a_step(self) -> None:
        rows_at = tables.at([{**each, "curve": "1.0 2.0 3.0 4.0", "steps": "100000"} for each in every()], 75_000)
        assert {(each["return"], each["steps"], each["alpha"]) for each in rows_at} == {("3.0", "75000", "")}
        for step in (0, 30_000, 125_000):
            with pytest.raises(ValueError, match="has 4 evaluations in 100,000 steps"):
                tables.at([{**every()[0], "curve": "1.0 2.0 3.0 4.0"}], step)

    def test_the_scales_of_rewards_in_the_documentation(self) -> None:
        """Lines of the two tables that are put together from several, from the rows."""
        text = (ROOT / "docs" / "benchmarks.md").read_text()
        path = ROOT / "docs" / "returns-defaults.csv"
        pendulum = tables.load([path], ["Pendulum-v1"])
        for update in ("dual", "log"):
            for of, cell, form in (
                (pendulum, "return", ",.0f"),
                (tables.at(pendulum, 5_000), "return", ",.0f"),
                (pendulum, "alpha", ".2g"),
            ):
                found = by_scale(of, update, cell)
                means = [format(statistics.mean(found[scale]), form) for scale in (0.01, 0.1, 1, 10, 100)]
                assert f" | {' | '.join(means)} |" in text
        cheetah = tables.at(tables.load([path], ["HalfCheetah-v5"]), 30_000)
        plain = tables.load([ROOT / "docs" / "returns-mujoco.csv"], ["HalfCheetah-v5"], ["SoftAC", "sb3"], [0])
        for update, row in zip(("dual", "log"), tables.at(plain, 30_000), strict=True):
            found = by_scale(cheetah, update, "return")
            small, large = (", ".join(f"{value:,.0f}" for value in found[scale]) for scale in (0.01, 100))
            assert re.search(rf"\| {small} \| {float(row['return']):,.0f}, [^|]+ \| {large} \|", text)

    def test_the_first_files_had_neither_settings_nor_evaluations(self, tmp_path: Path) -> None:
        (tmp_path / "rows.csv").write_text("variant,env,steps,seed,return,alpha\nSB3 SAC,Pendulum-v1,100,0,-9.6,0.5\n")
        assert "| SB3 SAC | -10 | -10 |  | 0.5 |" in tables.table(tables.load([tmp_path / "rows.csv"]))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"seed": "3"}, "SoftAC on HalfCheetah-v5 has no row of seed 0, but others do: .*choose --seeds 1 2"),
            ({"seed": "1"}, "SoftAC on HalfCheetah-v5 has two rows of seed 1"),
            ({"settings": '{"gamma": 0.5}'}, "SoftAC on .* different settings: gamma is 0.5 and None with seeds 0 and 1"),
            ({"algorithm": "SoftQL"}, "SoftAC on HalfCheetah-v5 has rows of different settings: algorithm is 'SoftQL'"),
            ({"steps": "50000"}, "runs of 50,000 and 100,000 steps on HalfCheetah-v5: choose with --steps"),
        ],
    )
    def test_rows_that_do_not_go_together(self, change: dict[str, str], message: str) -> None:
        mixed = every()
        mixed[0] |= change
        with pytest.raises(ValueError, match=message):
            tables.check(mixed)

    def test_a_choice(self, tmp_path: Path) -> None:
        rows.write(tmp_path / "rows.csv", every()[1:])
        with pytest.raises(ValueError, match="has no row of seed 0"):
            tables.load([tmp_path / "rows.csv"])
        chosen = tables.load([tmp_path / "rows.csv"], ["HalfCheetah-v5"], ["SoftAC", "sb3"], [1, 2], 100_000)
        assert [float(each["return"]) for each in chosen] == [5000, 6000, 4500, 5500]
        with pytest.raises(ValueError, match=r"No row of .*rows\.csv is of what is asked for"):
            tables.load([tmp_path / "rows.csv"], ["Ant-v5"])


class TestReferences:
    def test_published_figures(self) -> None:
        """200 of them, five steps of each task; some as the authors' files have them."""
        with (ROOT / "docs" / "published-returns.csv").open() as file:
            assert len(list(csv.DictReader(file))) == 200
        (sac,) = [each for each in published_at("Hopper-v5", 100_000) if each.algorithm == "SAC"]
        assert (sac.task, sac.n_seeds, sac.mean, sac.deviation) == ("Hopper-v4", 10, 1103.0, 388.0)
        assert {each.steps for each in published("HalfCheetah-v5")} == {100_000, 200_000, 300_000, 500_000, 1_000_000}
        assert published_at("CartPole-v1", 100_000) == published_at("Hopper-v5", 12_345) == []
        means = [each.mean for each in published_at("Ant-v5", 100_000)]
        assert means == sorted(means, reverse=True)

    def test_random_actions(self) -> None:
        """Hopper falls at once, and Acrobot is not swung up by chance."""
        assert 5 < random_return("Hopper-v5") < 40
        assert -500 <= random_return("Acrobot-v1") < -490
        with pytest.raises(ValueError, match=r"has no row of Nothing-v0: `benchmarks/returns\.py --random --env Nothing-v0`"):
            random_return("Nothing-v0")


class TestScores:
    def test_of_a_reference(self) -> None:
        tasks = tasks_of(every())
        assert reference_of(tasks, None) == "sb3"
        scores = final_scores(tasks, "sb3")
        cheetah, hopper = random_return("HalfCheetah-v5"), random_return("Hopper-v5")
        assert scores["SoftAC"][2] == pytest.approx(
            [(6000 - cheetah) / (4000 - cheetah), (1400 - hopper) / ((800 + 950 + 1000) / 3 - hopper)]
        )
        assert scores["sb3"].mean(axis=0) == pytest.approx([1.0, 1.0])
        of_published = final_scores(tasks, "published SAC")
        assert of_published["SoftAC"][0] == pytest.approx(
            [(4000 - cheetah) / (6156 - cheetah), (900 - hopper) / (1103 - hopper)]
        )

    def test_what_is_no_reference(self) -> None:
        tasks = tasks_of(every())
        with pytest.raises(ValueError, match="`--reference` is 'SAC', but it must be one of 'SoftAC', 'sb3', or 'published '"):
            reference_of(tasks, "SAC")
        with pytest.raises(ValueError, match="has nothing of 'PPO' on HalfCheetah-v5 at 100,000 steps"):
            final_scores(tasks, "published PPO")
        worst = [{**each, "return": "-900.0"} if each["variant"] == "sb3" else each for each in every()]
        with pytest.raises(ValueError, match="whose return on HalfCheetah-v5 is -900, but it must be above that of random"):
            final_scores(tasks_of(worst), "sb3")
        assert reference_of(tasks_of([each for each in every() if each["variant"] == "SoftAC"]), None) is None

    def test_rows_that_make_no_scores(self) -> None:
        lacking = [each for each in every() if (each["variant"], each["env"]) != ("sb3", "Hopper-v5")]
        with pytest.raises(ValueError, match="sb3 has no row on Hopper-v5"):
            tasks_of(lacking)
        with pytest.raises(ValueError, match="SoftAC has one seed on HalfCheetah-v5, but intervals need at least two"):
            tasks_of([each for each in every() if each["seed"] == "0"])
        other = every()
        other[0]["curve"] = "1 2 3"
        with pytest.raises(ValueError, match="HalfCheetah-v5 have different numbers of evaluations"):
            tasks_of(other)
        fewer = [each for each in every() if (each["env"], each["seed"]) != ("Hopper-v5", "2")]
        with pytest.raises(ValueError, match="SoftAC has different numbers of seeds on the tasks"):
            final_scores(tasks_of(fewer), "sb3")

    def test_over_time(self) -> None:
        """Until the fastest run ends, after 40 seconds; seed 0 is evaluated every 10, seed 1 every 20, seed 2 every 30."""
        grid, curves = curves_over_time(tasks_of(every())[0], n_points=8)
        assert grid.tolist() == [5, 10, 15, 20, 25, 30, 35, 40]
        nan = np.nan
        np.testing.assert_array_equal(
            curves["SoftAC"],
            [
                [nan, 1000, 1000, 2000, 2000, 3000, 3000, 4000],
                [nan, nan, nan, 1250, 1250, 1250, 1250, 2500],
                [nan, nan, nan, nan, nan, 1500, 1500, 1500],
            ],
        )
        assert tasks_of(every(with_times=False))[0].times == {}
        mixed = [{**each, "processor": f"processor {number % 2}"} for number, each in enumerate(every())]
        assert tasks_of(mixed)[0].times == {}


class TestRliable:
    """Where it is installed: `pip install -e ".[evidence]"`."""

    @pytest.fixture(autouse=True)
    def _needs_rliable(self) -> None:
        pytest.importorskip("rliable")

    def test_interquartile_means(self) -> None:
        """The mean of the middle half of all runs and tasks: of 8 numbers the middle 4. Bootstrapped within each task."""
        from harness.evidence import interquartile_curves, interquartile_means

        scores = np.array([[1.0, 100.0], [2.0, 200.0], [3.0, 300.0], [7.0, 400.0]])
        found = interquartile_means({"x": scores})["x"]
        assert float(found.value) == pytest.approx((3 + 7 + 100 + 200) / 4)
        curves = interquartile_curves({"x": np.stack([scores, -scores], axis=-1)})["x"]
        assert curves.value.tolist() == pytest.approx([77.5, -77.5])
        assert curves.low.tolist() == pytest.approx([float(found.low), -float(found.high)], rel=0.2)

    def test_intervals(self) -> None:
        """Of two runs a resample is twice the first, twice the second, or both, with 1/4, 1/4 and 1/2."""
        from harness.evidence import interquartile_means

        found = interquartile_means({"x": np.array([[1.0], [3.0]])})["x"]
        assert [float(each) for each in found] == [2.0, 1.0, 3.0]
        assert f"{found:.1f}" == "2.0 [1.0, 3.0]"

    def test_stratified(self) -> None:
        """Runs of one task never stand for those of another: with equal runs on each there is nothing to be unsure of."""
        from harness.evidence import interquartile_means

        found = interquartile_means({"x": np.array([[1.0, 5.0], [1.0, 5.0], [1.0, 5.0]])})["x"]
        assert [float(each) for each in found] == [3.0, 3.0, 3.0]

    def test_probability_of_improvement(self) -> None:
        """Over all pairs of runs on a task, ties as a half, and then over tasks."""
        from harness.evidence import improvement

        ours, theirs = np.array([[1.0, 5.0], [4.0, 6.0]]), np.array([[1.0, 7.0], [2.0, 5.5]])
        pairs = [[(a > b) + 0.5 * (a == b) for a in ours[:, task] for b in theirs[:, task]] for task in range(2)]
        found = improvement({"x": ours, "y": theirs}, over="y")
        assert set(found) == {"x"}
        assert float(found["x"].value) == pytest.approx(np.mean(pairs))

    def test_profiles(self) -> None:
        from harness.evidence import profiles

        found = profiles({"x": np.array([[0.2, 0.4], [0.6, 0.8]])}, np.array([0.0, 0.2, 0.5, 0.8]))["x"]
        assert found.value.tolist() == [1.0, 0.75, 0.5, 0.0]
        assert found.low[0] == found.high[0] == 1.0

    def test_the_report(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """With published figures of the same step beside ours, and two figures."""
        rows.write(tmp_path / "rows.csv", every())
        call(monkeypatch, "--evidence", str(tmp_path / "rows.csv"), "--plot", str(tmp_path / "plot.png"))
        printed = capsys.readouterr().out
        assert "| SoftAC | 5,000 [4,000, 6,000] | 5,000 | 3 | 80 |" in printed
        assert "| published: SAC, HalfCheetah-v4 | | 6,156 ± 738 | 10 | |" in printed
        assert (
            "Score 0 is the return of uniformly random actions, 1 the mean return of sb3 (HalfCheetah-v5: -285 and 4,000"
            in printed
        )
        assert f"| SoftAC | {(6 + 6.5) / 18:.2f} [" in printed.split("probability of improvement over sb3 [95 %]")[1]
        assert {path.name for path in tmp_path.iterdir()} == {"rows.csv", "plot.png", "plot-profiles.png"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--plan x.yml --steps 10", "--steps has no meaning with --plan, which says it itself"),
        ("--plan x.yml --set a=b", "--set has no meaning with --plan"),
        ("--status --table x.csv", "--status and --table are different commands"),
        ("--table x.csv --output y.csv", "--output has no meaning with --table"),
        ("--table x.csv --zoo", "--zoo has no meaning with --table"),
        ("--random --seeds 1", "--variants and --seeds have no meaning with --random"),
        ("--plot x.png --output y.csv", "--plot needs --table or --evidence"),
        ("--reference sb3 --table y.csv", "--reference needs --evidence"),
        ("--variants SoftAC", "--output is needed"),
        ("--variants SoftBC --output y.csv", "`variant` is 'SoftBC', but it must be one of 'SoftAC', "),
        ("--set tau --output y.csv", "`--set` is 'tau', but it must be NAME=VALUE"),
        ("--variants DQN --output y.csv", "`variant` is 'DQN'"),
        ("--variants=SB3_SAC --output y.csv", "`variant` is 'SB3_SAC'"),
        ("--processes 0 --output y.csv", "`--processes` is 0"),
        ("--patience 0 --worker y.log", "`--patience` is 0.0"),
        ("--patience 9 --output y.csv", "--patience needs --worker"),
        ("--env Nothing-v0 --output {}/rows.csv", "The task 'Nothing-v0' cannot be made, and no run has begun"),
        ("--env Pendulum-v1 --output {}", "`--output` is .*, which cannot be written: it is a folder"),
        ("--table {}/none.csv", "is not there"),
        ("--plan {}/none.yml", "cannot be read"),
        ("--set tau=[ --output y.csv", r"`--set` is 'tau=\[', but it must be NAME=VALUE, with the value as YAML has it"),
        ("--env Pendulum-v1 --output {}/y.csv --checkpoints {}/file", "`--checkpoints` is .*, which cannot be written"),
        ("--table docs/returns-acrobot.csv --plot {}/file/x.png", "`--plot` is .*, which cannot be written"),
        ("--table docs/returns-acrobot.csv --plot {}/x.xyz", "`--plot` is .*, but it must be a file that ends in one of"),
        ("--table {}/short.csv --plot {}/x.png", "There are rows without a curve"),
        ("--evidence {}/short.csv", "There are rows without a curve on Pendulum-v1"),
        ("--random --env Pendulum-v1 Nothing-v0", "The task 'Nothing-v0' cannot be made, and no run has begun"),
    ],
)
def test_contradictions(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, and nothing has run."""

    def would_run(*_: Any) -> None:
        raise AssertionError("a run has begun")

    (tmp_path / "file").touch()
    lines = ["variant,env,steps,seed,return", *(f"SoftAC,Pendulum-v1,100,{seed},-1.5" for seed in range(2))]
    (tmp_path / "short.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr("harness.pool.Pool.perform", would_run)
    monkeypatch.setattr("harness.references.random_returns", would_run)
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, *arguments.replace("{}", str(tmp_path)).split())
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("returns.py: error: ")
    assert re.search(message, last)

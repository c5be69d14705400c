"""Every rule finds its symptom in logs that are made to have it, and nothing in those that are not."""

import ast
import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sb3_softac import SoftAC, SoftACPolicy
from sb3_softac.algorithm import MOST_CLIPPED
from sb3_softac.report import rules_runs, rules_values
from sb3_softac.report.data import Run, Series
from sb3_softac.report.rules import RULES, judge
from sb3_softac.report.verdicts import FEWEST, Finding, Rule, Unknown
from sb3_softac.schedules import parse_schedule
from tests.report.made import episodes, evaluations, run, series

DECIDE = {rule.name: rule.decide for rule in RULES}
NORMED = {"layer_norm": True}
RANDOM = [-10.0, -12.0, -11.0, -9.0, -10.0]  # the first 500 steps

SICK: dict[str, list[Run]] = {
    "no-updates": [
        run(given={"learning_starts": 5000}, episodes=episodes([1.0] * 20)),  # 2,000 steps, and nothing else is known
        run(known=False, rollout__ep_rew_mean=1.0),
        run(algorithm=None, rollout__ep_rew_mean=1.0, time__episodes=3),  # SB3's off-policy algorithms count episodes
    ],
    "not-finite": [
        run(train__critic_loss=lambda share: np.nan if share > 0.5 else 1.0),
        run(episodes=episodes([1.0, np.inf])),
        run(evaluations=evaluations([10, 20], [1.0, np.nan])),
    ],
    "below-random": [
        run(
            given={"learning_starts": 500},
            episodes=episodes([*RANDOM, *[-5.0] * 20]),
            evaluations=evaluations([550, 1000, 2000], [-50.0, -60.0, -70.0]),
        ),
        run(given={"learning_starts": 0, "random_steps": 500}, episodes=episodes([*RANDOM, *[-50.0] * 20])),
    ],
    "values-above-returns": [
        run(
            train__q_value=lambda share: 10 + 1000 * share,
            rollout__discounted_return=10.0,
            train__ent_coef=0.1,
            train__entropy=1,
        ),
        run(train__q_value=lambda share: 900 * share, episodes=episodes([100.0] * 400)),  # 1 for each step: 100
        run(algorithm="SAC", train__actor_loss=lambda share: -900 * share, episodes=episodes([100.0] * 400)),
        run(
            algorithm="SAC",
            n_dimensions=1,
            train__ent_coef=0.1,  # whose bonus is 7 at most
            train__actor_loss=lambda share: -900 * share,
            episodes=episodes([100.0] * 400),
        ),
    ],
    "targets-clipped": [run(train__target_clipped=0.2)],
    "gradients-exploding": [
        run(train__grad_norm_critic=lambda share: 10 ** (8 * share), train__grad_norm_actor=1.0),
        run(train__grad_norm_critic=1.0, train__grad_norm_actor=lambda share: 10 ** (8 * share)),
        run(algorithm="SAC", train__critic_loss=lambda share: 10 ** (8 * share)),
        run(algorithm="SAC", train__critic_loss=lambda share: 10 ** (8 * share), episodes=episodes([1.0] * 400)),
    ],
    "alpha-growing": [run(train__ent_coef=lambda share: float(np.exp(6 * share)))],
    "alpha-at-bound": [run(given={"ent_coef_max": 0.5}, train__ent_coef=0.5), run(train__ent_coef=0.0)],
    "entropy-off-target": [
        run(train__entropy=-5.0, train__target_entropy=-3.0, train__ent_coef=1.0),
        run(train__entropy=0.0, train__target_entropy=-3.0, train__ent_coef=1.0),
    ],
    "log-std-at-bound": [
        run(train__log_std=-19.9),
        run(train__log_std=1.9),
        run(given={"policy_kwargs": {"log_std_bounds": [-5, 2]}}, train__log_std=-4.95),
    ],
    "actions-saturated": [run(rollout__saturation=0.95)],
    "timeouts-as-ends": [run(episodes=episodes([1.0] * 20, 50), rollout__timeout_rate=0.0)],
    "many-updates": [
        run(train__n_updates=lambda share: 8 * 39_000 * share),
        run(given={"gradient_steps": 20, "train_freq": 2}),
        run(given={"gradient_steps": 20, "policy_kwargs": {"normalization": {"pi": "layer"}}}),
    ],
    "learning-rate-gone": [
        run(train__learning_rate=lambda share: 1e-3 * max(1 - 2 * share, 0)),
        run(train__learning_rate=1e-3, train__actor_learning_rate=lambda share: 10 ** (-3 - 8 * share)),
    ],
}
WELL: dict[str, list[Run]] = {
    "no-updates": [
        run(given={"learning_starts": 5000}, train__critic_loss=1.0),
        run(algorithm=None, train__loss=1.0, time__episodes=3),
    ],
    "not-finite": [run(train__critic_loss=1.0, episodes=episodes([1.0]))],
    "below-random": [
        run(
            given={"learning_starts": 500},
            episodes=episodes([*RANDOM, *[-50.0] * 20]),  # exploration is worse than the policy
            evaluations=evaluations([100, 1000, 2000], [-50.0, -10.0, -8.0]),
        ),
        # more than a standard deviation lower, as one evaluation of six of random actions is by chance
        run(
            given={"learning_starts": 500},
            episodes=episodes([*RANDOM, *[-10.0] * 20]),
            evaluations=evaluations([1000], [-12.0]),
        ),
        # the last quarter of the steps, not of the episodes: long ones are good, and short ones at the start were bad
        run(
            given={"learning_starts": 500},
            episodes=episodes([*RANDOM, *[-50.0] * 40, *[-5.0] * 5], [100] * 5 + [1] * 40 + [100] * 5),
        ),
    ],
    "values-above-returns": [
        run(train__q_value=lambda share: 100 * share, rollout__discounted_return=lambda share: 100 * share),
        # overestimation that goes away, and negative returns of which Q knows nothing yet
        run(train__q_value=lambda share: -500 * share, rollout__discounted_return=-500.0),
        # the entropy bonus: 0.1 · 50 · 0.99/0.01 = 495
        run(train__q_value=500.0, rollout__discounted_return=20.0, train__ent_coef=0.1, train__entropy=50.0),
        run(train__q_value=90.0, episodes=episodes([100.0] * 400)),
        # SB3 logs no entropy: uniform actions have the bonus 0.1 · log 2 · 0.99/0.01 = 6.9
        run(algorithm="SAC", n_dimensions=1, train__ent_coef=0.1, train__actor_loss=-3.0, episodes=episodes([-0.01] * 400)),
        run(
            train__q_value=lambda share: 100 * share,
            given={"normalize": {"norm_obs": True, "norm_reward": False}},
            episodes=episodes([100.0] * 400),
        ),
    ],
    "targets-clipped": [run(train__target_clipped=0.01), run(train__q_value=1.0)],
    "gradients-exploding": [
        run(train__grad_norm_critic=lambda share: 1 + 10 * share, train__grad_norm_actor=1.0),
        run(train__grad_norm_critic=lambda share: 1000.0 if share > 0.4 else 1.0),  # larger, but no longer growing
        # a task that is solved for the first time
        run(
            train__critic_loss=lambda share: 1.3 if share > 0.72 else 2e-4,
            episodes=episodes([*[-3.0] * 288, *[90.0] * 112]),
        ),
    ],
    "alpha-growing": [run(train__ent_coef=lambda share: min(0.1 + share, 0.5)), run(train__ent_coef=lambda share: 1 - share)],
    "alpha-at-bound": [run(given={"ent_coef_max": 0.5}, train__ent_coef=0.2), run(train__ent_coef=0.01)],
    "entropy-off-target": [
        run(train__entropy=lambda share: 1 - 4 * share, train__target_entropy=-3.0),
        run(train__entropy=0.0, train__target_entropy=-3.0, train__ent_coef=0.0),  # there is nothing to do
    ],
    "log-std-at-bound": [run(train__log_std=-4.95), run(train__log_std=-1.0)],
    "actions-saturated": [run(rollout__saturation=0.3)],
    "timeouts-as-ends": [
        run(episodes=episodes([1.0] * 20, 50), rollout__timeout_rate=1.0),
        run(episodes=episodes([1.0] * 20, [50] * 19 + [49]), rollout__timeout_rate=0.0),
    ],
    "many-updates": [
        run(train__n_updates=lambda share: 39_000 * share),
        run(given={"gradient_steps": 20, "policy_kwargs": NORMED}),
        run(given={"gradient_steps": 20, "resets": 1000}),
        run(given={"gradient_steps": 20, "target_subset": 2}),
        run(given={"gradient_steps": 20, "policy_kwargs": {"encoder": "simba"}}),
        run(given={"gradient_steps": 20, "n_envs": 10}),
        run(given={"gradient_steps": -1, "train_freq": 4}),
    ],
    "learning-rate-gone": [
        run(train__learning_rate=lambda share: 1e-3 * (1 - share)),  # it ends at 0, but is not there for long
        run(train__learning_rate=1e-3),
    ],
}
SILENT: dict[str, list[Run]] = {
    "no-updates": [
        run(known=False),
        run(algorithm="PPO", rollout__ep_rew_mean=1.0),
        run(algorithm=None, rollout__ep_rew_mean=1.0, time__iterations=1),
        # 19 of 20 environments may be far into their next episode
        run(given={"learning_starts": 5000}, episodes=replace(episodes([1.0] * 20, 200), n_envs=20)),
    ],
    "not-finite": [run()],
    "below-random": [
        run(episodes=episodes([1.0] * 20)),  # no episode ends within 100 steps
        run(known=False, episodes=episodes([*RANDOM, *[-50.0] * 20])),
        run(algorithm="PPO", episodes=episodes([*RANDOM, *[-50.0] * 20])),
    ],
    "values-above-returns": [
        run(train__q_value=1e6),
        run(train__q_value=1e6, given={"normalize": True}, episodes=episodes([1.0] * 50)),
        run(algorithm="SAC", train__ent_coef=0.1, train__actor_loss=-1e6, episodes=episodes([1.0] * 50)),
    ],
    "timeouts-as-ends": [
        run(episodes=episodes([1.0] * 20, 50)),
        run(episodes=episodes([1.0] * 5, 50), rollout__timeout_rate=0),
    ],
    "many-updates": [
        run(known=False),
        run(known=False, train__n_updates=lambda share: 8 * 39_000 * share),
        run(given={"train_freq": (1, "episode")}),
        run(given={"gradient_steps": 20}, unread=("policy_kwargs",)),
    ],
    "log-std-at-bound": [run(given={"use_sde": True}, train__log_std=-30.0)],
}


def cases(table: dict[str, list[Run]]) -> list[Any]:
    return [pytest.param(name, made, id=f"{name} {i}") for name, runs in table.items() for i, made in enumerate(runs)]


@pytest.mark.parametrize(("name", "made"), cases(SICK))
def test_the_symptom_is_found(name: str, made: Run) -> None:
    finding = DECIDE[name](made)
    assert isinstance(finding, Finding)
    for sentence in (finding.symptom, finding.evidence, finding.advice):
        assert sentence.endswith(".")
    assert re.search(r"\d", finding.evidence)


@pytest.mark.parametrize(("name", "made"), cases(WELL))
def test_a_run_without_it_has_no_finding(name: str, made: Run) -> None:
    assert DECIDE[name](made) is None


@pytest.mark.parametrize(("name", "made"), cases(SILENT))
def test_what_the_logs_do_not_hold_is_said(name: str, made: Run) -> None:
    assert isinstance(DECIDE[name](made), Unknown)


def test_what_explodes_while_returns_rise_is_a_hint() -> None:
    rising = run(train__grad_norm_critic=lambda share: 10 ** (8 * share), episodes=episodes([*range(400)]))
    finding = rules_values.gradients_exploding(rising)
    assert isinstance(finding, Finding)
    assert finding.is_hint


def test_a_run_that_goes_on_from_an_agent_has_its_updates_counted_from_there() -> None:
    """One row says nothing of a ratio, and options do."""
    made = run(given={"learning_starts": 100})
    made.metrics["train/n_updates"] = Series(np.array([500.0]), np.array([100_400.0]))
    assert rules_runs.many_updates(made) is None


def test_every_rule_has_runs_of_both_kinds() -> None:
    assert [*SICK] == [*WELL]
    assert [*WELL] == [*DECIDE]


def test_nothing_is_found_where_nothing_was_logged() -> None:
    (group,) = {outcome.group for outcome in judge({"empty": [run(known=False)]})}
    assert group == "empty"
    for outcome in judge({"empty": [run(known=False)]}):
        assert not outcome.findings
        assert outcome.unknown, outcome.rule


def test_the_evidence_holds_the_numbers() -> None:
    finding = rules_values.temperature_growing(run(train__ent_coef=lambda share: 2.0 ** (4 * share)))
    assert isinstance(finding, Finding)
    late = series(lambda share: 2.0 ** (4 * share)).values[30:].mean()
    assert f"{late:.3g} in the last (from step 30,250 to 40,000)" in finding.evidence
    finding = rules_runs.timeouts_as_ends(run(episodes=episodes([1.0] * 20, 50), rollout__timeout_rate=0.0))
    assert isinstance(finding, Finding)
    assert "All 20 episodes have 50 steps" in finding.evidence


PAGE = (Path(__file__).parents[2] / "docs" / "diagnosis.md").read_text()
#: symptom, when, cause and remedy of each rule, as the page has them
ROWS = {
    name: [cell.strip() for cell in re.split(r"(?<!\\)\|", cells)]
    for name, cells in re.findall(r"^\| `([a-z-]+)` \|(.*)\|$", PAGE, flags=re.MULTILINE)
}


def numbers_in(text: str) -> list[float]:
    """The numbers of a sentence; percentages as shares. Zero is no threshold, nor is what stands in a formula."""
    found = re.findall(r"(?<![\w.])(\d+(?:\.\d+)?)( %)?", text.replace("γ/(1 − γ)", ""))
    return [round(float(number) / (100 if percent else 1), 9) for number, percent in found if float(number) != 0.0]


def test_the_documentation_has_a_row_for_each_rule_in_the_same_order() -> None:
    assert [*ROWS] == [*DECIDE]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_documentation_states_the_numbers_of_each_rule_and_no_others(rule: Rule) -> None:
    assert set(numbers_in(ROWS[rule.name][1])) == set(rule.limits)


def test_the_documentation_says_what_is_judged_at_all() -> None:
    (sentence,) = re.findall(r'"Late" is [^.]*\.', PAGE.replace("\n", " "))
    assert numbers_in(sentence) == [FEWEST]
    assert "the last quarter" in sentence
    assert [*series(lambda share: share).late()] == [*series(lambda share: share).part(0.75, 1.0)]


def test_training_warns_at_the_number_of_the_page() -> None:
    (percent,) = re.findall(r"above (\d+) % a warning says so", PAGE)
    assert float(percent) / 100 == MOST_CLIPPED


def edges() -> list[Any]:
    """Runs on either side of a number that the page states: not yet a finding, and already one."""
    limits = {name: numbers_in(cells[1]) for name, cells in ROWS.items()}
    (clipped,), (saturated,), (growth,) = (limits[name] for name in ("targets-clipped", "actions-saturated", "alpha-growing"))
    (explosion, growing), (mostly, almost, _) = limits["gradients-exploding"], limits["alpha-at-bound"]
    (margin,), (share, nats) = limits["log-std-at-bound"], limits["entropy-off-target"]
    (same,), (updates,), (nothing, end) = (limits[name] for name in ("timeouts-as-ends", "many-updates", "learning-rate-gone"))
    deviations, chance, fewest = limits["below-random"]
    by_chance = stats.t.ppf(1 - chance, fewest - 1) * np.sqrt(1 / fewest + 1 / 50)  # of 200 episodes 50 are late

    def steps(*values: float) -> Any:
        """A metric with one value in each quarter of the run."""
        return lambda done: values[min(int(done * 4 + 1e-9), 3)]

    def late(n_at: int) -> Any:
        """α at its maximum in the last ``n_at`` of the ten late values."""
        return lambda done: 0.5 if done > 1 - (n_at - 0.5) / 39 else 0.1

    def random(n_random: int, factor: float) -> Run:
        """Random returns of mean −10 and standard deviation 2, then worse ones."""
        spaced = np.linspace(-1.0, 1.0, n_random)
        given = -10.0 + 2.0 * spaced / spaced.std(ddof=1)
        return run(
            given={"learning_starts": 100 * n_random}, episodes=episodes([*given, *[-10.0 - 2.0 * factor * deviations] * 200])
        )

    def rate(value: float, since: float) -> Run:
        return run(train__learning_rate=lambda done: 1e-3 if done < since else value * 1e-3)

    bounded = {"ent_coef_max": 0.5}
    table: dict[str, list[tuple[Run, Run]]] = {
        "targets-clipped": [(run(train__target_clipped=0.99 * clipped), run(train__target_clipped=1.01 * clipped))],
        "actions-saturated": [(run(rollout__saturation=0.99 * saturated), run(rollout__saturation=1.01 * saturated))],
        "alpha-growing": [
            (
                run(train__ent_coef=steps(0.1, 0.2, 0.4, 0.4 * growth * 0.99)),
                run(train__ent_coef=steps(0.1, 0.2, 0.4, 0.4 * growth * 1.01)),
            )
        ],
        "gradients-exploding": [
            (
                run(train__grad_norm_critic=steps(1, 1, 1, 0.99 * explosion)),
                run(train__grad_norm_critic=steps(1, 1, 1, 1.01 * explosion)),
            ),
            (
                run(train__grad_norm_critic=steps(1, 1, 1000, 0.99 * growing * 1000)),
                run(train__grad_norm_critic=steps(1, 1, 1000, 1.01 * growing * 1000)),
            ),
        ],
        "alpha-at-bound": [
            (
                run(given=bounded, train__ent_coef=late(round(10 * mostly) - 1)),
                run(given=bounded, train__ent_coef=late(round(10 * mostly))),
            ),
            (
                run(given=bounded, train__ent_coef=0.5 * (almost - 1e-4)),
                run(given=bounded, train__ent_coef=0.5 * (almost + 1e-4)),
            ),
        ],
        "entropy-off-target": [
            (
                run(train__entropy=-8 * (1 + 0.99 * share), train__target_entropy=-8.0),
                run(train__entropy=-8 * (1 + 1.01 * share), train__target_entropy=-8.0),
            ),
            (
                run(train__entropy=-0.1 - 0.99 * nats, train__target_entropy=-0.1),
                run(train__entropy=-0.1 - 1.01 * nats, train__target_entropy=-0.1),
            ),
        ],
        "log-std-at-bound": [(run(train__log_std=-20 + 22.0 * 1.01 * margin), run(train__log_std=-20 + 22.0 * 0.99 * margin))],
        "timeouts-as-ends": [
            (
                run(episodes=episodes([1.0] * (round(same) - 1), 50), rollout__timeout_rate=0.0),
                run(episodes=episodes([1.0] * round(same), 50), rollout__timeout_rate=0.0),
            )
        ],
        "many-updates": [(run(given={"gradient_steps": round(updates)}), run(given={"gradient_steps": round(updates) + 1}))],
        "learning-rate-gone": [
            (rate(1.01 * nothing, 0.5), rate(0.99 * nothing, 0.5)),
            (rate(0.0, 1 - 0.9 * end), rate(0.0, 1 - 1.2 * end)),
        ],
        "below-random": [
            (random(40, 0.99), random(40, 1.01)),
            (random(round(fewest) - 1, 2.5), random(round(fewest), 2.5)),
            (random(round(fewest), 0.99 * by_chance), random(round(fewest), 1.01 * by_chance)),
        ],
    }
    return [
        pytest.param(name, *pair, id=f"{name} {number}") for name, pairs in table.items() for number, pair in enumerate(pairs)
    ]


@pytest.mark.parametrize(("name", "below", "above"), edges())
def test_rules_decide_at_the_numbers_of_the_page(name: str, below: Run, above: Run) -> None:
    assert not isinstance(DECIDE[name](below), Finding)
    assert isinstance(DECIDE[name](above), Finding)


OPTIONS = {
    name: parameter
    for owner in (SoftACPolicy, SoftAC)
    for name, parameter in inspect.signature(owner.__init__).parameters.items()
}
#: of the environment and of SB3's replay buffer
OF_OTHERS = {"terminated", "truncated", "TimeLimit.truncated", "handle_timeout_termination"}


@pytest.mark.parametrize("code", sorted(set(re.findall(r"`([^`]+)`", PAGE.partition("## Findings")[2])) - {*DECIDE}))
def test_what_the_findings_name_exists(code: str) -> None:
    """Options with a value are accepted with it, schedules are ones, and metrics are among those that the page explains."""
    name, _, value = code.partition("=")
    if name in OF_OTHERS:
        return
    if "/" in code:
        assert f"| `{code}`" in PAGE or code == "train/"
    elif code.startswith('"'):
        assert callable(parse_schedule("learning_rate", ast.literal_eval(code)))
    else:
        assert name in OPTIONS
        if value:
            given = ast.literal_eval(value)
            of_policy = name not in inspect.signature(SoftAC.__init__).parameters
            options: dict[str, Any] = {"policy_kwargs": {name: given}} if of_policy else {name: given}
            SoftAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu", **options)

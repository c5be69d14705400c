"""Every rule finds its symptom in logs that are made to have it, and nothing in those that are not."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_softac.report import rules_runs, rules_values
from sb3_softac.report.data import Run
from sb3_softac.report.rules import RULES, judge
from sb3_softac.report.verdicts import Finding, Unknown
from tests.report.made import episodes, evaluations, run, series

DECIDE = {rule.name: rule.decide for rule in RULES}
NORMED = {"layer_norm": True}
RANDOM = [-10.0, -12.0, -11.0, -9.0]  # the first 400 steps

SICK: dict[str, list[Run]] = {
    "no-updates": [
        run(given={"learning_starts": 5000}, episodes=episodes([1.0] * 20)),  # 2,000 steps, and nothing else is known
        run(known=False, rollout__ep_rew_mean=1.0),
    ],
    "not-finite": [
        run(train__critic_loss=lambda share: np.nan if share > 0.5 else 1.0),
        run(episodes=episodes([1.0, np.inf])),
        run(evaluations=evaluations([10, 20], [1.0, np.nan])),
    ],
    "below-random": [
        run(
            given={"learning_starts": 400},
            episodes=episodes([*RANDOM, *[-5.0] * 20]),
            evaluations=evaluations([500, 1000, 2000], [-50.0, -60.0, -70.0]),
        ),
        run(given={"learning_starts": 0, "random_steps": 400}, episodes=episodes([*RANDOM, *[-50.0] * 20])),
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
    ],
    "targets-clipped": [run(train__target_clipped=0.2)],
    "gradients-exploding": [
        run(train__grad_norm_critic=lambda share: 10 ** (8 * share), train__grad_norm_actor=1.0),
        run(train__grad_norm_critic=1.0, train__grad_norm_actor=lambda share: 10 ** (8 * share)),
        run(algorithm="SAC", train__critic_loss=lambda share: 10 ** (8 * share)),
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
    "no-updates": [run(given={"learning_starts": 5000}, train__critic_loss=1.0)],
    "not-finite": [run(train__critic_loss=1.0, episodes=episodes([1.0]))],
    "below-random": [
        run(
            given={"learning_starts": 400},
            episodes=episodes([*RANDOM, *[-50.0] * 20]),  # exploration is worse than the policy
            evaluations=evaluations([100, 1000, 2000], [-50.0, -10.0, -8.0]),
        ),
    ],
    "values-above-returns": [
        run(train__q_value=lambda share: 100 * share, rollout__discounted_return=lambda share: 100 * share),
        # overestimation that goes away, and negative returns of which Q knows nothing yet
        run(train__q_value=lambda share: -500 * share, rollout__discounted_return=-500.0),
        # the entropy bonus: 0.1 · 50 · 0.99/0.01 = 495
        run(train__q_value=500.0, rollout__discounted_return=20.0, train__ent_coef=0.1, train__entropy=50.0),
        run(train__q_value=90.0, episodes=episodes([100.0] * 400)),
    ],
    "targets-clipped": [run(train__target_clipped=0.01), run(train__q_value=1.0)],
    "gradients-exploding": [
        run(train__grad_norm_critic=lambda share: 1 + 10 * share, train__grad_norm_actor=1.0),
        run(train__grad_norm_critic=lambda share: 1000.0 if share > 0.4 else 1.0),  # larger, but no longer growing
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
    ],
    "learning-rate-gone": [
        run(train__learning_rate=lambda share: 1e-3 * (1 - share)),  # it ends at 0, but is not there for long
        run(train__learning_rate=1e-3),
    ],
}
SILENT: dict[str, list[Run]] = {
    "no-updates": [run(known=False), run(algorithm="PPO", rollout__ep_rew_mean=1.0)],
    "not-finite": [run()],
    "below-random": [
        run(episodes=episodes([1.0] * 20)),  # no episode ends within 100 steps
        run(known=False, episodes=episodes([*RANDOM, *[-50.0] * 20])),
        run(algorithm="PPO", episodes=episodes([*RANDOM, *[-50.0] * 20])),
    ],
    "values-above-returns": [
        run(train__q_value=1e6),
        run(train__q_value=1e6, given={"normalize": True}, episodes=episodes([1.0] * 50)),
    ],
    "timeouts-as-ends": [
        run(episodes=episodes([1.0] * 20, 50)),
        run(episodes=episodes([1.0] * 5, 50), rollout__timeout_rate=0),
    ],
    "many-updates": [run(known=False), run(known=False, train__n_updates=lambda share: 8 * 39_000 * share)],
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


def test_the_documentation_has_a_row_for_each_rule_in_the_same_order() -> None:
    text = (Path(__file__).parents[2] / "docs" / "diagnosis.md").read_text()
    assert re.findall(r"^\| `([a-z-]+)` \|", text, flags=re.MULTILINE) == [*DECIDE]

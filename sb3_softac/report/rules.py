"""All rules by name, and what they say of the runs of a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sb3_softac.report import rules_runs, rules_values
from sb3_softac.report.data import Run
from sb3_softac.report.verdicts import Finding, Rule, Unknown

RULES = (
    Rule("no-updates", rules_runs.no_updates),
    Rule("not-finite", rules_runs.not_finite),
    Rule("below-random", rules_runs.below_random),
    Rule("values-above-returns", rules_values.values_above_returns),
    Rule("targets-clipped", rules_values.targets_clipped),
    Rule("gradients-exploding", rules_values.gradients_exploding),
    Rule("alpha-growing", rules_values.temperature_growing),
    Rule("alpha-at-bound", rules_values.temperature_at_bound),
    Rule("entropy-off-target", rules_values.entropy_off_target),
    Rule("log-std-at-bound", rules_values.log_std_at_bound),
    Rule("actions-saturated", rules_values.actions_saturated),
    Rule("timeouts-as-ends", rules_runs.timeouts_as_ends),
    Rule("many-updates", rules_runs.many_updates),
    Rule("learning-rate-gone", rules_runs.learning_rate_gone),
)


@dataclass
class Outcome:
    """What one rule says of the runs of one group."""

    rule: str
    group: str
    findings: dict[str, Finding] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    n_runs: int = 0

    @property
    def is_hint(self) -> bool:
        """Whether it may be as it should be in all runs."""
        return all(finding.is_hint for finding in self.findings.values())


def judge(groups: Mapping[str, Sequence[Run]]) -> list[Outcome]:
    """Every rule on every run.

    :param groups: runs by the name of their group
    :return: one outcome for each rule and group, in the order of ``RULES``
    """
    outcomes = []
    for rule in RULES:
        for label, runs in groups.items():
            outcome = Outcome(rule.name, label, n_runs=len(runs))
            for run in runs:
                verdict = rule.decide(run)
                if isinstance(verdict, Finding):
                    outcome.findings[run.name] = verdict
                elif isinstance(verdict, Unknown):
                    outcome.unknown[run.name] = verdict.reason
            outcomes.append(outcome)
    return outcomes

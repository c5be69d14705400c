"""All rules by name, and what they say of the runs of a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sb3_softac.algorithm import MOST_CLIPPED
from sb3_softac.arguments.soft_ac import MOST_UPDATES
from sb3_softac.report import rules_runs as runs
from sb3_softac.report import rules_values as values
from sb3_softac.report.data import Run
from sb3_softac.report.verdicts import Finding, Rule, Unknown

RULES = (
    Rule("no-updates", runs.no_updates),
    Rule("not-finite", runs.not_finite),
    Rule("below-random", runs.below_random, (runs.FEWEST_RANDOM, runs.DEVIATIONS, runs.CHANCE)),
    Rule("values-above-returns", values.values_above_returns, (values.MOSTLY,)),
    Rule("targets-clipped", values.targets_clipped, (MOST_CLIPPED,)),
    Rule("gradients-exploding", values.gradients_exploding, (values.EXPLOSION, values.STILL_GROWING)),
    Rule("alpha-growing", values.temperature_growing, (values.GROWTH,)),
    Rule("alpha-at-bound", values.temperature_at_bound, (values.MOSTLY, values.ALMOST)),
    Rule("entropy-off-target", values.entropy_off_target, (values.TOLERANCE,)),
    Rule("log-std-at-bound", values.log_std_at_bound, (values.MARGIN,)),
    Rule("actions-saturated", values.actions_saturated, (values.MOST_SATURATED,)),
    Rule("timeouts-as-ends", runs.timeouts_as_ends, (runs.SAME_LENGTHS,)),
    Rule("many-updates", runs.many_updates, (MOST_UPDATES,)),
    Rule("learning-rate-gone", runs.learning_rate_gone, (runs.NOTHING, runs.AT_THE_END)),
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
        for label, members in groups.items():
            outcome = Outcome(rule.name, label, n_runs=len(members))
            for run in members:
                try:
                    verdict = rule.decide(run)
                except Exception as error:  # logs may hold anything, and one of them must not cost the whole report
                    verdict = Unknown(f"the rule failed on what these logs hold ({type(error).__name__}: {error})")
                if isinstance(verdict, Finding):
                    outcome.findings[run.name] = verdict
                elif isinstance(verdict, Unknown):
                    outcome.unknown[run.name] = verdict.reason
            outcomes.append(outcome)
    return outcomes

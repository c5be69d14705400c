"""What a rule may say of a run, and how numbers read in its sentences."""

from collections.abc import Callable
from dataclasses import dataclass

from sb3_softac.report.data import Array, Run, Series


@dataclass(frozen=True)
class Finding:
    """A symptom that a run has.

    :param symptom: what is wrong, one sentence
    :param evidence: the numbers and steps that show it
    :param advice: likely causes, and what to try
    :param is_hint: whether it may well be as it should be
    """

    symptom: str
    evidence: str
    advice: str
    is_hint: bool = False


@dataclass(frozen=True)
class Unknown:
    """The logs do not tell.

    :param reason: what is missing, in words
    """

    reason: str


#: a finding, what is missing to tell, or None where all is well
Verdict = Finding | Unknown | None
RuleFunction = Callable[[Run], Verdict]
#: a metric that was logged less often says nothing of how it moves
FEWEST = 5


@dataclass(frozen=True)
class Rule:
    """A rule by its name in docs/diagnosis.md, and the function that decides.

    :param limits: the numbers by which it decides; the page states all of them
    """

    name: str
    decide: RuleFunction
    limits: tuple[float, ...] = ()


def enough(run: Run, name: str) -> Series | Unknown:
    """A metric that was logged often enough to be judged."""
    series = run.metric(name)
    if series is None:
        return Unknown(f"{name} was not logged")
    return series if len(series) >= FEWEST else Unknown(f"{name} was logged only {count(len(series), 'time')}")


def quarters(series: Series) -> list[Array]:
    """Its values in the four quarters of its steps."""
    return [series.part(start, start + 0.25) for start in (0.0, 0.25, 0.5, 0.75)]


def since(series: Series, share: float = 0.75) -> str:
    """The steps of the last part of a series, in words."""
    first, last = series.steps[0], series.steps[-1]
    return f"from step {first + share * (last - first):,.0f} to {last:,.0f}"


def number(value: float) -> str:
    """Three digits, as people write them."""
    if value == 0.0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.1e}"


def count(n: int, thing: str) -> str:
    """``n`` things."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"

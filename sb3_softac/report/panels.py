"""What a report shows: for each plot its curves, and the sentence below it. Nothing here draws."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sb3_softac.report.curves import rolling, smooth
from sb3_softac.report.data import Run, Series, in_order
from sb3_softac.report.estimates import critic_values, discounted_returns
from sb3_softac.report.rules_runs import random_returns
from sb3_softac.report.verdicts import Unknown

Groups = Mapping[str, Sequence[Run]]
Read = Callable[[Run], Series | None]
#: metrics are smoothed over this part of their values
SMOOTHING = 100


@dataclass(frozen=True)
class Line:
    """One curve, of one or several runs.

    :param label: in the legend
    :param curves: of each run
    :param color: number of its colour
    :param dashes: how it is drawn: 0 solid, 1 dashed, 2 dotted
    :param points: what the curve is the mean of, if that is to be seen too
    """

    label: str
    curves: tuple[Series, ...]
    color: int
    dashes: int = 0
    points: tuple[Series, ...] = ()


@dataclass(frozen=True)
class Panel:
    """One plot.

    :param title: what it shows
    :param unit: of the vertical axis
    :param caption: how to read it
    :param lines: at least one
    :param is_logarithmic: whether the vertical axis may be, if the values span more than two decades
    """

    title: str
    unit: str
    caption: str
    lines: tuple[Line, ...]
    is_logarithmic: bool = False


def metric(name: str) -> Read:
    """Reads a metric, smoothed a little where it was logged often."""

    def read(run: Run) -> Series | None:
        series = run.metric(name)
        return None if series is None else rolling(series, SMOOTHING)

    return read


def setting(name: str) -> Read:
    """Reads a metric that has no noise."""
    return lambda run: run.metric(name)


def lines(groups: Groups, **readers: Read) -> tuple[Line, ...]:
    """A line for each group and metric that at least one of its runs has, by the words of the metric (``_`` is a space)."""
    found = []
    for index, (label, runs) in enumerate(groups.items()):
        for number, (words, read) in enumerate(readers.items()):
            curves = tuple(curve for curve in map(read, runs) if curve is not None and len(curve) > 0)
            if not curves:
                continue
            parts = [words.replace("_", " ")] if len(readers) > 1 else []
            name = ", ".join([*parts, *([label] if len(groups) > 1 else [])])
            color = index if len(groups) > 1 else number
            found.append(Line(name, curves, color, dashes=number % 3))
    return tuple(found)


def _training(groups: Groups) -> tuple[Line, ...]:
    found = []
    for line, runs in _by_group(groups, lambda run: smooth(run.episodes) if run.episodes is not None else None):
        raw = [run.episodes for run in runs if run.episodes is not None] if len(runs) == 1 else []
        points = tuple(in_order(episodes.steps, episodes.returns).finite() for episodes in raw)
        found.append(Line(line.label, line.curves, line.color, points=points))
    return tuple(found)


def _by_group(groups: Groups, read: Read) -> list[tuple[Line, Sequence[Run]]]:
    found = []
    for index, (label, runs) in enumerate(groups.items()):
        curves = tuple(curve for curve in map(read, runs) if curve is not None and len(curve) > 0)
        if curves:
            found.append((Line(label if len(groups) > 1 else "", curves, index), runs))
    return found


def _evaluations(groups: Groups) -> tuple[Line, ...]:
    found = []
    for line, runs in _by_group(groups, lambda run: run.evaluations.means().finite() if run.evaluations is not None else None):
        label = line.label or "mean of the evaluation episodes"
        found.append(Line(label, line.curves, line.color))
        references = [returns for returns in map(random_returns, runs) if not isinstance(returns, Unknown)]
        if references:
            mean = float(np.mean([returns.mean() for returns in references]))
            ends = np.array([min(c.steps[0] for c in line.curves), max(c.steps[-1] for c in line.curves)])
            name = ", ".join(["random actions", *([line.label] if line.label else [])])
            found.append(Line(name, (Series(ends, np.full(2, mean)),), line.color, dashes=1))
    return tuple(found)


def lengths(run: Run) -> Series | None:
    """Lengths of episodes, smoothed."""
    return None if run.episodes is None else rolling(in_order(run.episodes.steps, run.episodes.lengths))


def speed(run: Run) -> Series | None:
    """Environment steps per second between ends of episodes, in at most fifty parts of the run; else what SB3 has logged."""
    episodes = run.episodes
    if episodes is None or len(episodes) < 3:
        return run.metric("time/fps")
    parts = np.unique(np.linspace(0, len(episodes) - 1, min(max(len(episodes) // 4, 3), 50)).astype(int))
    steps, seconds = np.diff(episodes.steps[parts]), np.diff(episodes.seconds[parts])
    fits = seconds > 0
    return in_order(episodes.steps[parts][1:][fits], steps[fits] / seconds[fits])


def mean_speed(run: Run) -> float | None:
    """Environment steps per second between the first and the last end of an episode; else what SB3 has logged last."""
    if run.episodes is not None and len(run.episodes) > 1:
        steps, seconds = np.diff(run.episodes.steps), np.diff(run.episodes.seconds)
        fits = seconds > 0  # a second `learn` starts its clock again
        if fits.any():
            return float(steps[seconds >= 0].sum() / seconds[fits].sum())
    logged = run.metric("time/fps")
    return None if logged is None else float(logged.values[-1])


def _value(run: Run) -> Series | None:
    value = critic_values(run)
    return None if isinstance(value, Unknown) else rolling(value.series, SMOOTHING)


def _measured(run: Run) -> Series | None:
    return run.metric("rollout/discounted_return")


def _estimated(run: Run) -> Series | None:
    value = discounted_returns(run)
    return value.series if not isinstance(value, Unknown) and value.is_estimate and run.is_soft else None


def _values(groups: Groups) -> Panel:
    readers: dict[str, Read] = {
        "Q": _value,
        "discounted_return_that_was_obtained": _measured,
        "estimate_of_it_from_returns_and_lengths": _estimated,
    }
    caption = (
        "The discounted return is rollout/discounted_return: the mean over the states of the last episodes, with rewards as "
        "the critics see them. Q also holds the entropy bonus, at most α Ĥ γ/(1 − γ)."
    )
    runs = [run for group in groups.values() for run in group]
    if any(_estimated(run) is not None for run in runs):
        caption += (
            " Where only returns and lengths are known, the estimate takes all rewards of an episode to be equal, and the "
            "larger of the values with and without a future behind its end."
        )
    if any("train/q_value" not in run.metrics and _value(run) is not None for run in runs):
        caption += " SB3's SAC logs no Q: minus its actor loss, Q − α log π, is shown."
    return Panel("Q against what was obtained", "discounted return", caption, lines(groups, **readers))


def _returns(groups: Groups) -> list[Panel]:
    training = "Return of each training episode, and its mean over a twentieth of all episodes (at most 100)."
    return [
        Panel("Training returns", "return of an episode", training, _training(groups)),
        Panel("Evaluation returns", "return of an episode", "Mean return of each evaluation.", _evaluations(groups)),
    ]


def _one(groups: Groups, title: str, unit: str, caption: str, name: str, log: bool = False) -> Panel:
    """A panel of one metric."""
    return Panel(title, unit, caption, lines(groups, value=metric(name)), is_logarithmic=log)


def _rates(groups: Groups) -> Panel:
    names = sorted(
        {name for runs in groups.values() for run in runs for name in run.metrics if name.endswith("learning_rate")}
    )
    readers = {name.removeprefix("train/"): setting(name) for name in names}
    return Panel(
        "Learning rates", "learning rate", "As the optimizers had them.", lines(groups, **readers), is_logarithmic=True
    )


def _learning(groups: Groups) -> list[Panel]:
    entropy = lines(groups, entropy=metric("train/entropy"), target=setting("train/target_entropy"))
    norms = lines(groups, critics=metric("train/grad_norm_critic"), actor=metric("train/grad_norm_actor"))
    losses = lines(groups, critics=metric("train/critic_loss"), value_network=metric("train/value_loss"))
    return [
        _values(groups),
        Panel("Entropy against its target", "nats", "Ĥ of the policy, in the action space scaled to [−1, 1].", entropy),
        _one(groups, "Temperature α", "reward per nat", "Weight of the entropy in the rewards.", "train/ent_coef", log=True),
        _one(groups, "log σ", "log σ (mean)", "Near its lower bound the policy is deterministic.", "train/log_std"),
        Panel("Loss of the critics", "loss", "Grows with the scale of the values.", losses, is_logarithmic=True),
        _one(groups, "Loss of the actor", "loss", "About minus the value of the states.", "train/actor_loss"),
        Panel("Gradient norms", "Euclidean norm", "Before clipping.", norms, is_logarithmic=True),
    ]


def make_panels(groups: Groups) -> list[Panel]:
    """The plots that these runs have data for.

    :param groups: runs by the name of their group
    """
    share = "Share of the components of actions at 99 % of a bound or beyond; uniform actions have 1 %."
    speeds = lines(groups, speed=speed)
    panels = [
        *_returns(groups),
        *_learning(groups),
        _one(groups, "Actions at their bounds", "share", share, "rollout/saturation"),
        _one(groups, "Clipped targets", "share", "Share of the targets outside of value_range.", "train/target_clipped"),
        _one(groups, "Divisor of rewards", "reward", "Should settle.", "train/reward_divisor", log=True),
        _one(groups, "Success rate", "share", "Of the last episodes.", "rollout/success_rate"),
        Panel("Length of episodes", "steps", "Mean over episodes, as for returns.", lines(groups, length=lengths)),
        _rates(groups),
        Panel("Speed", "steps per second", "Environment steps, the time of updates and evaluations included.", speeds),
    ]
    return [panel for panel in panels if panel.lines]


def by_task(groups: Groups) -> dict[str, dict[str, Sequence[Run]]]:
    """Groups of each task: returns of different tasks have nothing to say to each other."""
    tasks: dict[str, dict[str, Sequence[Run]]] = {}
    for label, runs in groups.items():
        tasks.setdefault(runs[0].env_id or "unknown task", {})[label] = runs
    return tasks

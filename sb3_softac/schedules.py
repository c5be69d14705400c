"""Schedules of learning rates and temperatures: picklable callables, and the strings that stand for them.

A schedule maps the progress that remains (1 at the start of ``learn()``, 0 at its end) to a value, as everywhere in SB3. A
warm-up is counted in environment steps instead: :func:`value_at` tells it their number.
"""

import math
import numbers

from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_softac.arguments import check_count

GRAMMAR = (
    '"3e-4" (constant), "lin_3e-4" (linear to 0), "lin_3e-4_1e-10" (linear), "exp_3e-4_1e-10" (exponential), '
    '"cos_3e-4_1.5e-4" (cosine), "lin_3e-4_1e-10_100", "exp_..._100" or "cos_..._100" (the same in 100 steps), or one of '
    'these after "warm_1000_" (linear from 0 over the first 1000 environment steps)'
)


class ExponentialSchedule:
    """Geometric interpolation, start^p · end^(1 − p) for the remaining progress p.

    :param start: value at the start of training, above 0
    :param end: value at its end, above 0
    """

    def __init__(self, start: float, end: float) -> None:
        self.start = start
        self.end = end

    def __call__(self, progress_remaining: float) -> float:
        # Training may run past its planned last step: the value then stays at its end.
        progress_remaining = max(progress_remaining, 0.0)
        return float(self.start**progress_remaining * self.end ** (1.0 - progress_remaining))

    def __repr__(self) -> str:
        return f"ExponentialSchedule(start={self.start}, end={self.end})"


class CosineSchedule:
    """Half a wave of a cosine, end + (start − end)·(1 + cos(π(1 − p)))/2 for the remaining progress p (1608.03983, eq. 5).

    :param start: value at the start of training
    :param end: value at its end
    """

    def __init__(self, start: float, end: float) -> None:
        self.start = start
        self.end = end

    def __call__(self, progress_remaining: float) -> float:
        done = 1.0 - max(progress_remaining, 0.0)
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * done))

    def __repr__(self) -> str:
        return f"CosineSchedule(start={self.start}, end={self.end})"


class StaircaseSchedule:
    """Decay by epoch: another schedule in steps of equal length, the first at its start and the last at its end.

    :param schedule: the schedule that decays by step
    :param n_stairs: number of stairs, at least 2; with as many stairs as epochs the value changes once in each
    """

    def __init__(self, schedule: Schedule, n_stairs: int) -> None:
        self.schedule = _without_warm_up("schedule", schedule)
        self.n_stairs = check_count("n_stairs", n_stairs, 2)

    def __call__(self, progress_remaining: float) -> float:
        # The tolerance keeps a rounding error at a boundary from repeating a step.
        stair = min(math.floor((1.0 - progress_remaining) * self.n_stairs + 1e-9), self.n_stairs - 1)
        return float(self.schedule(1.0 - stair / (self.n_stairs - 1)))

    def __repr__(self) -> str:
        return f"StaircaseSchedule({self.schedule!r}, n_stairs={self.n_stairs})"


class WarmUpSchedule:
    """A learning rate that rises linearly over the first environment steps to what another schedule says.

    After t steps it is min(1, t/n) times the other: exactly 0 at t = 0, when nothing is trained, and 1/n of it after the first
    step. Steps are those of ``model.num_timesteps``, of all environments together, with the steps before the first update. A
    ``learn()`` that counts them again, as it does by default, warms up again.

    :param schedule: the schedule that follows; it runs from the start of training
    :param n_steps: n, steps of the warm-up, at least 1
    :raises ValueError: ``n_steps`` out of range, or ``schedule`` has a warm-up itself
    """

    def __init__(self, schedule: Schedule, n_steps: int) -> None:
        self.schedule = _without_warm_up("schedule", schedule)
        self.n_steps = check_count("n_steps", n_steps, 1)

    def __call__(self, progress_remaining: float) -> float:
        """The value without a warm-up: that of the other schedule."""
        return float(self.schedule(progress_remaining))

    def at(self, progress_remaining: float, num_timesteps: float) -> float:
        """The value after ``num_timesteps`` environment steps."""
        return min(1.0, num_timesteps / self.n_steps) * self(progress_remaining)

    def __repr__(self) -> str:
        return f"WarmUpSchedule({self.schedule!r}, n_steps={self.n_steps})"


def warm_up_of(schedule: Schedule) -> WarmUpSchedule | None:
    """The warm-up that a schedule begins with, or None."""
    if isinstance(schedule, FloatSchedule):
        schedule = schedule.value_schedule
    return schedule if isinstance(schedule, WarmUpSchedule) else None


def value_at(schedule: Schedule, progress_remaining: float, num_timesteps: float) -> float:
    """The value of any schedule.

    :param schedule: one with or without a warm-up
    :param progress_remaining: from 1 to 0
    :param num_timesteps: environment steps so far
    """
    warm_up = warm_up_of(schedule)
    return schedule(progress_remaining) if warm_up is None else warm_up.at(progress_remaining, num_timesteps)


def _without_warm_up(name: str, schedule: Schedule) -> Schedule:
    if warm_up_of(schedule) is not None:
        raise ValueError(
            f"`{name}` is {schedule!r}, but it must be without a warm-up: a `WarmUpSchedule` is around all others."
        )
    return schedule


def _parse_warm_up(name: str, text: str) -> Schedule:
    _, length, rest = (*text.split("_", 2), "", "")[:3]
    try:
        n_steps = float(length)
    except ValueError:
        n_steps = math.nan
    if not (rest and not rest.startswith("warm_") and n_steps >= 1.0 and n_steps.is_integer()):
        raise ValueError(
            f"`{name}` is {text!r}, which is no schedule: allowed are {GRAMMAR}, where a warm-up takes at least 1 step."
        )
    return WarmUpSchedule(_parse_string(name, rest), int(n_steps))


def _parse_string(name: str, text: str) -> Schedule:
    if text.startswith("warm_"):
        return _parse_warm_up(name, text)
    kind, *fields = text.split("_") if "_" in text else ("", text)
    try:
        values = [float(field) for field in fields]
    except ValueError:
        values = []
    match kind, values:
        case "", [value] if "_" not in text:
            schedule: Schedule = ConstantSchedule(value)
        case "lin", [start]:
            schedule = LinearSchedule(start, 0.0, 1.0)
        case "lin", [start, end]:
            schedule = LinearSchedule(start, end, 1.0)
        case "cos", [start, end]:
            schedule = CosineSchedule(start, end)
        case (("lin" | "exp" | "cos"), [_, _, steps]) if steps >= 2.0 and steps.is_integer():
            schedule = StaircaseSchedule(_parse_string(name, text.rpartition("_")[0]), int(steps))
        case "exp", [start, end] if start > 0.0 and end > 0.0:
            schedule = ExponentialSchedule(start, end)
        case _:
            raise ValueError(
                f"`{name}` is {text!r}, which is no schedule: allowed are {GRAMMAR}, where both ends of exp are above 0 and "
                "there are at least 2 steps."
            )
    if not all(math.isfinite(value) and value >= 0.0 for value in values):
        raise ValueError(f"`{name}` is {text!r}, but its values must be finite and at least 0.")
    return schedule


def parse_schedule(name: str, value: float | str | Schedule) -> FloatSchedule:
    """Turn what a user passes for a learning rate into a schedule.

    :param name: name of the argument, for the error message
    :param value: a number at or above 0, a schedule string, or a callable of the remaining progress
    :return: a picklable schedule (as picklable as the callable that the user passed)
    :raises ValueError: malformed string, negative or non-finite value
    """
    if isinstance(value, str):
        return FloatSchedule(_parse_string(name, value))
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        check_rate(name, float(value))
        return FloatSchedule(float(value))
    if not callable(value):
        raise ValueError(
            f"`{name}` is {value!r}, but it must be a number, a callable of the remaining progress, or one of {GRAMMAR}."
        )
    schedule = FloatSchedule(value)
    check_rate(f"{name}(1.0)", schedule(1.0))
    return schedule


def check_rate(name: str, value: float) -> float:
    """Return ``value`` if it is finite and at least 0; a user's schedule can leave that range in the middle of a run.

    :raises ValueError: negative or non-finite value
    """
    if not (math.isfinite(value) and value >= 0.0):
        raise ValueError(f"`{name}` is {value!r}, but it must be finite and at least 0.")
    return value

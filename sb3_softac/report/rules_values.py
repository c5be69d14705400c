"""Rules on what is learned: temperature, entropy, values, actions, gradients. What they are: docs/diagnosis.md."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sb3_softac.algorithm import MOST_CLIPPED
from sb3_softac.arguments.policy import DEFAULT_LOG_STD_BOUNDS
from sb3_softac.report.data import LARGEST_NUMBER, Run, Series, in_order
from sb3_softac.report.estimates import bonus, critic_values, discounted_returns
from sb3_softac.report.verdicts import FEWEST, Finding, Unknown, Verdict, enough, number, quarters, since

#: α is at a bound if it is there in so many of the late values; Q does not come back while it is so much of what it was
MOSTLY = 0.9
#: at ``ent_coef_max`` is what reaches this share of it
ALMOST = 0.999
#: how much α must have grown between the third and the last quarter
GROWTH = 1.5
#: how far the entropy may be from its target: this share of it, and at least so many nats
TOLERANCE = 0.25
#: log σ is at a bound within this share of its range
MARGIN = 0.025
#: gradients explode if they are so many times those of the beginning, and still grow by so much
EXPLOSION, STILL_GROWING = 100.0, 3.0
#: so many components of actions at their bounds are nearly all
MOST_SATURATED = 0.8


def temperature_at_bound(run: Run) -> Verdict:
    """α is at ``ent_coef_max``, or at 0."""
    series = enough(run, "train/ent_coef")
    if isinstance(series, Unknown):
        return series
    late, highest = series.late(), run.settings.number("ent_coef_max")
    if highest is not None and np.mean(late >= ALMOST * highest) >= MOSTLY:
        return Finding(
            "α is at its upper bound.",
            f"train/ent_coef is {number(late.mean())} {since(series)}, and ent_coef_max={highest:g}.",
            "The target entropy is out of reach at this α. A lower target_entropy (for Box actions), a smaller "
            "target_entropy_scale (for Discrete ones) or a larger ent_coef_max gives it room.",
        )
    if np.mean(late <= 0.0) >= MOSTLY:
        return Finding(
            "α is at its lower bound, 0: nothing rewards entropy any more.",
            f"train/ent_coef is 0 {since(series)}.",
            "This is right where the entropy stays above its target by itself. If returns stand still, a higher "
            'target_entropy, or ent_coef_update="log", whose α never becomes 0, keeps the policy exploring.',
            is_hint=True,
        )
    return None


def temperature_growing(run: Run) -> Verdict:
    """α grows from quarter to quarter, and no end is in sight."""
    series = enough(run, "train/ent_coef")
    if isinstance(series, Unknown):
        return series
    parts = quarters(series)
    if any(len(part) == 0 for part in parts):
        return Unknown("train/ent_coef was not logged in each quarter of the run")
    _, second, third, last = (float(part.mean()) for part in parts)
    if not (second < third and last >= GROWTH * third > 0.0 and last > series.values[0]):
        return None
    return Finding(
        "α grows without end.",
        f"train/ent_coef was {number(second)} in the second quarter, {number(third)} in the third and {number(last)} in the "
        f"last ({since(series)}).",
        "The policy cannot reach its target entropy. A lower target_entropy, or target_entropy_scale for Discrete actions; "
        "rewards that are not too large (reward_scale, normalize_rewards); ent_coef_max as a stop.",
    )


def entropy_off_target(run: Run) -> Verdict:
    """After the first quarter the entropy never came near its target."""
    entropy, target = enough(run, "train/entropy"), run.metric("train/target_entropy")
    if isinstance(entropy, Unknown):
        return entropy
    if target is None:
        return Unknown("train/target_entropy was not logged: α is not learned")
    goal = float(target.values[-1])
    gap = np.concatenate(quarters(entropy)[1:]) - goal
    width = TOLERANCE * max(1.0, abs(goal))
    alpha = run.metric("train/ent_coef")
    if len(gap) < FEWEST - 1:
        return Unknown("train/entropy was logged too rarely after the first quarter")
    if not (np.all(gap < -width) or np.all(gap > width)):
        return None
    below = bool(gap[-1] < 0.0)
    if not below and alpha is not None and np.mean(alpha.late() <= 0.0) >= MOSTLY:
        return None  # the constraint is inactive
    evidence = (
        f"train/entropy is {number(float(np.mean(entropy.late())))} nats {since(entropy)}, its target {number(goal)}; it was "
        f"never within {number(width)} of it after the first quarter of the run."
    )
    if below:
        advice = (
            "α is too small to matter, or log σ is held down: a larger ent_coef_learning_rate, a larger ent_coef_max, or "
            "log_std_bounds with more room; a lower target_entropy if the task needs exact actions."
        )
        return Finding("The entropy never came up to its target.", evidence, advice)
    advice = (
        "α falls too slowly for this run: more steps, a larger ent_coef_learning_rate, or a smaller start such as "
        'ent_coef="auto_0.1".'
    )
    return Finding("The entropy never came down to its target.", evidence, advice, is_hint=True)


def values_above_returns(run: Run) -> Verdict:
    """Q exceeds what was obtained by more than the largest return that ever was, and does not come back."""
    q, obtained = critic_values(run), discounted_returns(run)
    if isinstance(q, Unknown) or isinstance(obtained, Unknown):
        return q if isinstance(q, Unknown) else obtained if isinstance(obtained, Unknown) else None
    values, returns = q.series, obtained.series
    if len(values) < FEWEST or len(returns) < FEWEST:
        return Unknown("Q or the discounted return was logged too rarely")
    at = np.interp(values.steps, returns.steps, returns.values)
    extra = bonus(run, values.steps)
    if isinstance(extra, Unknown):
        return extra
    excess = Series(values.steps, values.values - np.maximum(extra, 0.0) - at)
    scale = float(np.max(np.abs(returns.values)))
    before, late = excess.part(0.5, 0.75), excess.late()
    if len(before) == 0 or len(late) == 0 or not (late.mean() > scale > 0.0 and late.mean() >= MOSTLY * before.mean()):
        return None
    sources = " and ".join(dict.fromkeys(part.name for part in (q, obtained)))
    return Finding(
        "Q is far above the returns that were really obtained.",
        f"{since(values).capitalize()} Q is {number(values.late().mean())} on average, the discounted return "
        f"{number(float(np.mean(at[-len(values.late()) :])))}, and the entropy bonus at most "
        f"{number(float(np.max(np.maximum(extra, 0.0))))}; no discounted return was beyond {number(scale)} ({sources}).",
        "Overestimation feeds on itself. policy_kwargs={'layer_norm': True}, fewer gradient_steps, a lower "
        "critic_learning_rate, max_grad_norm, more critics (n_critics, target_subset), or critic_head='quantile', which drops "
        "the largest values.",
        is_hint=obtained.is_estimate or q.is_estimate,
    )


def actions_saturated(run: Run) -> Verdict:
    """Nearly all actions are at their bounds."""
    series = enough(run, "rollout/saturation")
    if isinstance(series, Unknown):
        return Unknown(f"{series.reason}; without it the logs do not show actions")
    late = float(series.late().mean())
    if late < MOST_SATURATED:
        return None
    return Finding(
        "Most actions are at their bounds.",
        f"rollout/saturation is {late:.0%} {since(series)}: so many components of actions are at 99 % of a bound or beyond.",
        "Some tasks want bang-bang control. If returns stand still: smaller rewards (reward_scale, normalize_rewards) or a "
        "larger α (ent_coef, target_entropy) against Q values that drown the entropy; normalize_observations for inputs that "
        "drive tanh to its ends; max_grad_norm.",
        is_hint=True,
    )


def log_std_bounds(run: Run) -> tuple[tuple[float, float], str] | Unknown:
    """The range of log σ, and where that is known from."""
    bounds = run.settings.policy("log_std_bounds")
    is_pair = isinstance(bounds, list | tuple) and len(bounds) == 2
    if is_pair and not all(isinstance(bound, int | float) and abs(bound) <= LARGEST_NUMBER for bound in bounds):
        return Unknown(f"log_std_bounds={tuple(bounds)} are not numbers that are read here")
    if is_pair:
        return (float(bounds[0]), float(bounds[1])), "log_std_bounds"
    return DEFAULT_LOG_STD_BOUNDS, f"the default of log_std_bounds{'' if run.settings.known else ', assumed'}"


def log_std_at_bound(run: Run) -> Verdict:
    """log σ is at an end of its range."""
    series = enough(run, "train/log_std")
    if isinstance(series, Unknown):
        return series
    if run.settings.get("use_sde"):
        return Unknown("with gSDE train/log_std is that of the noise matrix, which has no bounds")
    bounds = log_std_bounds(run)
    if isinstance(bounds, Unknown):
        return bounds
    (low, high), source = bounds
    margin, late = MARGIN * (high - low), float(series.late().mean())
    evidence = f"train/log_std is {number(late)} {since(series)}; its range is {number(low)} to {number(high)} ({source})."
    if late <= low + margin:
        return Finding(
            "log σ is at its lower bound: the policy is deterministic.",
            evidence,
            "α is too small, or rewards are too large for it: target_entropy, normalize_rewards or reward_scale; "
            "log_std_bounds with a higher lower end keeps some noise.",
        )
    if late >= high - margin:
        return Finding(
            "log σ is at its upper bound: the policy is nothing but noise.",
            evidence,
            "α is too large against Q: a lower target_entropy, ent_coef_max, or a larger reward_scale; tanh of such noise is "
            "at the bounds of the actions.",
        )
    return None


def gradients_exploding(run: Run) -> Verdict:
    """A gradient norm, or where none is logged the critics' loss, is a hundred times what it was, and grows."""
    names = ("train/grad_norm_critic", "train/grad_norm_actor")
    present = [name for name in names if run.metric(name) is not None] or ["train/critic_loss"]
    verdicts = [_explosion(run, name) for name in present]
    found = [verdict for verdict in verdicts if isinstance(verdict, Finding)]
    return (found or verdicts)[0]


def _explosion(run: Run, name: str) -> Verdict:
    series = enough(run, name)
    if isinstance(series, Unknown):
        return series
    parts = quarters(series)
    if any(len(part) == 0 for part in parts):
        return Unknown(f"{name} was not logged in each quarter of the run")
    first, _, third, last = (float(np.median(np.abs(part))) for part in parts)
    if not (first > 0.0 and last >= EXPLOSION * first and last >= STILL_GROWING * third):
        return None
    improves = returns_rise(run)  # a task that begins to be solved has larger values, and larger errors of them
    if improves and "grad_norm" not in name:
        return None
    return Finding(
        "Gradients explode." if "grad_norm" in name else "The critics' loss explodes.",
        f"The median of {name} was {number(first)} in the first quarter, {number(third)} in the third and {number(last)} in "
        f"the last ({since(series)}).",
        "max_grad_norm (a few times the norm of the beginning), a lower learning_rate or critic_learning_rate, smaller "
        "rewards (reward_scale, normalize_rewards), policy_kwargs={'layer_norm': True}.",
        is_hint=improves,
    )


def returns_rise(run: Run) -> bool:
    """Whether returns of the last quarter are above those of the second, by more than these vary."""
    if run.evaluations is not None and len(run.evaluations.means().finite()) >= FEWEST:
        returns = run.evaluations.means().finite()
    elif run.episodes is not None:
        returns = in_order(run.episodes.steps, run.episodes.returns).finite()
    else:
        return False
    _, second, _, last = quarters(returns)
    return len(second) > 0 and len(last) > 0 and bool(last.mean() > second.mean() + second.std())


def targets_clipped(run: Run) -> Verdict:
    """Targets of a categorical critic lie outside of its atoms."""
    series = enough(run, "train/target_clipped")
    if isinstance(series, Unknown):  # SoftAC logs it with categorical critics, and no other critics clip
        has_no_atoms = "train/q_value" in run.metrics and "train/target_clipped" not in run.metrics
        return None if has_no_atoms else series
    late = float(series.late().mean())
    if late <= MOST_CLIPPED:
        return None
    bounds: Any = run.settings.policy("value_range")
    known = f" value_range is {tuple(bounds)}." if isinstance(bounds, list | tuple) else ""
    return Finding(
        "Targets of the categorical critics are cut off at value_range.",
        f"train/target_clipped is {late:.0%} {since(series)}.{known}",
        "A larger policy_kwargs['value_range'], normalize_rewards with a bound inside of it, or a smaller reward_scale.",
    )


def has_normalisation(settings: Mapping[str, Any]) -> bool:
    """Whether ``policy_kwargs`` normalise hidden layers of the critics."""

    def of_critics(value: Any, default: Any) -> Any:
        return value.get("qf", default) if isinstance(value, Mapping) else value

    normalised = of_critics(settings.get("normalization"), None) is not None or bool(settings.get("layer_norm"))
    return normalised or of_critics(settings.get("encoder", "mlp"), "mlp") != "mlp"

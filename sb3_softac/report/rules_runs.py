"""Rules on how a run went: updates, learning rates, returns, ends of episodes. What they are: docs/diagnosis.md."""

from collections.abc import Mapping

import numpy as np
from scipy import stats

from sb3_softac.arguments.soft_ac import MOST_UPDATES
from sb3_softac.report.data import LARGEST_NUMBER, Array, Run, Series
from sb3_softac.report.rules_values import has_normalisation
from sb3_softac.report.verdicts import FEWEST, Finding, Unknown, Verdict, count, number

#: a learning rate below this share of its largest value, during the last such part of a run, is nothing
NOTHING, AT_THE_END = 0.01, 0.1
#: episodes of one length that are no coincidence
SAME_LENGTHS = 10
#: random episodes without which nothing is compared
FEWEST_RANDOM = 5
#: how many standard deviations of theirs returns must be lower to be worse, and how likely that may be by chance
DEVIATIONS, CHANCE = 1.0, 0.01


def no_updates(run: Run) -> Verdict:
    """Not one gradient step."""
    starts, n_steps = run.settings.number("learning_starts"), run.n_steps
    trained = any(name.startswith("train/") and name != "train/std" for name in run.metrics)
    advice = "Fewer learning_starts (and random_steps), or more steps."
    if trained:
        return None
    if starts is not None and 0 < n_steps <= starts and run.is_soft:
        if n_steps + _in_unfinished_episodes(run) > starts:
            return Unknown(
                f"monitor.csv has episodes of {count(n_steps, 'step')} in all, and learning_starts is {starts:,.0f}: whether "
                "episodes that had not ended reached it is not known"
            )
        evidence = f"The run has {count(n_steps, 'step')}, and learning_starts is {starts:,.0f}: no gradient step was done."
        return Finding("Nothing was learned: learning_starts was never reached.", evidence, advice)
    if not run.metrics:
        return Unknown("no metrics were logged (RL Zoo: -tb FOLDER; SB3: a logger with csv or tensorboard)")
    if not run.is_soft and (run.algorithm is not None or "time/episodes" not in run.metrics):  # SB3's off-policy ones log it
        return Unknown(f"what {run.algorithm or 'an unknown algorithm'} logs is not known here")
    evidence = f"Metrics were logged up to step {n_steps:,}, but none of train/."
    return Finding("No gradient step was logged.", evidence, f"learning_starts may lie above the steps of the run. {advice}")


def _in_unfinished_episodes(run: Run) -> float:
    """How many steps there may be at most that no log knows of: with metrics none, which are logged later than episodes."""
    if run.metrics or run.episodes is None or len(run.episodes) == 0:
        return 0.0
    return float(run.episodes.n_envs * run.episodes.lengths.max())


def not_finite(run: Run) -> Verdict:
    """NaN or infinity in any log."""
    bad = {name: series.where(~np.isfinite(series.values)) for name, series in run.metrics.items()}
    places = {name: float(series.steps[0]) for name, series in bad.items() if len(series) > 0}
    if run.episodes is not None and not np.isfinite(run.episodes.returns).all():
        places["the returns in monitor.csv"] = float(run.episodes.steps[~np.isfinite(run.episodes.returns)][0])
    if run.evaluations is not None and not np.isfinite(run.evaluations.returns).all():
        wrong = ~np.isfinite(run.evaluations.returns).all(axis=1)
        places["the returns in evaluations.npz"] = float(run.evaluations.steps[wrong][0])
    if not places:
        return None if run.metrics or run.episodes or run.evaluations else Unknown("there are no numbers")
    first = sorted(places, key=lambda name: places[name])
    shown = ", ".join(f"{name} from step {places[name]:,.0f}" for name in first[:4])
    more = f" and {count(len(first) - 4, 'more metric')}" if len(first) > 4 else ""
    return Finding(
        "There are values that are not finite.",
        f"{shown}{more}.",
        "Training has diverged, or the environment returns NaN. A lower learning_rate, max_grad_norm, ent_coef_max, "
        "normalize_rewards or normalize_observations; SoftAC itself stops where it happens, and says what it was.",
    )


def many_updates(run: Run) -> Verdict:
    """More than four gradient steps per environment step, and nothing that makes critics bear it."""
    updates, starts = run.metric("train/n_updates"), run.settings.number("learning_starts")
    ratio: float | None = None
    if updates is not None and len(updates) > 1:
        between = updates.steps[-1] - updates.steps[0]
        ratio = float((updates.values[-1] - updates.values[0]) / between) if between > 0 else None
    if ratio is None:
        ratio = _asked_for(run)
    if ratio is None and updates is not None and starts is not None and updates.steps[-1] > starts:
        ratio = float(updates.values[-1] / (updates.steps[-1] - starts))
    if ratio is None:
        return Unknown("neither train/n_updates nor gradient_steps with train_freq in steps is known")
    if ratio <= MOST_UPDATES:
        return None
    if not run.settings.known:
        return Unknown(f"{number(ratio)} updates per environment step, but whether critics are normalised is not known")
    if "policy_kwargs" in run.settings.unread:
        return Unknown(f"{number(ratio)} updates per environment step, but policy_kwargs could not be read")
    kwargs = run.settings.get("policy_kwargs")
    held_back = has_normalisation(kwargs if isinstance(kwargs, Mapping) else {})
    if held_back or run.settings.get("resets") is not None or run.settings.get("target_subset") is not None:
        return None
    return Finding(
        "Many updates per environment step, by critics without normalisation.",
        f"{number(ratio)} gradient steps per environment step; from about {number(MOST_UPDATES)} on they often overestimate.",
        "policy_kwargs={'layer_norm': True}, resets, or an ensemble with target_subset; or fewer gradient_steps.",
    )


def _asked_for(run: Run) -> float | None:
    """Updates per step by the options alone."""
    steps, frequency, n_envs = (run.settings.number(name) for name in ("gradient_steps", "train_freq", "n_envs"))
    if steps is not None and steps < 0:
        return 1.0  # as many as there were steps
    pair = run.settings.get("train_freq")
    if isinstance(pair, list | tuple) and len(pair) == 2 and pair[1] == "step" and isinstance(pair[0], int):
        frequency = float(min(pair[0], LARGEST_NUMBER))
    n_envs = 1.0 if n_envs is None else n_envs
    if steps is None or frequency is None or not min(steps, frequency, n_envs) > 0:
        return None
    return steps / (frequency * n_envs)


def learning_rate_gone(run: Run) -> Verdict:
    """A learning rate was below a hundredth of its largest value for a tenth of the run."""
    names = sorted(name for name in run.metrics if name.startswith("train/") and name.endswith("learning_rate"))
    if not names:
        return Unknown("no learning rate was logged")
    verdicts: list[Verdict] = []
    for name in names:
        series = run.metric(name)
        if series is None or len(series) < FEWEST:
            verdicts.append(Unknown(f"{name} was logged too rarely"))
            continue
        largest = float(series.values.max())
        if largest <= 0.0:
            verdicts.append(Unknown(f"{name} was never above 0"))
            continue
        last = int(np.flatnonzero(series.values >= NOTHING * largest)[-1])  # where it still was something
        since_step = series.steps[min(last + 1, len(series) - 1)]
        if series.steps[-1] - since_step >= AT_THE_END * series.steps[-1]:
            verdicts.append(
                Finding(
                    "A learning rate has decayed to nothing.",
                    f"{name} was {number(largest)} at most, and below {NOTHING:.0%} of that since step {since_step:,.0f} of "
                    f"{series.steps[-1]:,.0f}.",
                    'A schedule that ends higher, such as "lin_3e-4_1e-5" or "cos_3e-4_1.5e-4", or one over more steps.',
                )
            )
    found: list[Verdict] = [verdict for verdict in verdicts if isinstance(verdict, Finding)]
    return (found or [verdict for verdict in verdicts if verdict is not None] or [None])[0]


def _n_random(run: Run) -> float | None:
    """How many steps had uniformly random actions."""
    steps = run.settings.number("random_steps")
    return run.settings.number("learning_starts") if steps is None else steps


def random_returns(run: Run) -> Array | Unknown:
    """Returns of the episodes that ended while actions were uniformly random."""
    steps = _n_random(run)
    if run.episodes is None or len(run.episodes) == 0:
        return Unknown("there is no monitor.csv with episodes")
    if not run.episodes.is_whole:
        return Unknown("monitor.csv has seen a part of the training: which of its episodes were random is not known")
    if not run.is_soft or steps is None:
        return Unknown("it is not known how many steps were random (learning_starts, random_steps)")
    returns = run.episodes.returns[run.episodes.steps <= steps]
    returns = returns[np.isfinite(returns)]
    if len(returns) < FEWEST_RANDOM:
        return Unknown(f"{count(len(returns), 'episode')} ended within the {steps:,.0f} random steps: too few to compare with")
    return np.asarray(returns)


def below_random(run: Run) -> Verdict:
    """Late returns are below those of random actions, by more than one standard deviation of these, and than by chance."""
    random, n_random = random_returns(run), _n_random(run)
    if isinstance(random, Unknown):
        return random
    assert run.episodes is not None
    assert n_random is not None
    episodes = Series(run.episodes.steps, run.episodes.returns)
    trained, name = episodes.where(episodes.steps > n_random), "training return"
    if run.evaluations is not None:
        means = run.evaluations.means().finite()
        after = means.where(means.steps > n_random)
        if len(after) > 0:
            trained, name = after, "evaluation"
    late = trained.late()
    if len(late) == 0:
        return Unknown("no return was logged after the random steps")
    mean, spread = float(random.mean()), float(random.std(ddof=1))
    by_chance = stats.t.ppf(1.0 - CHANCE, len(random) - 1) * np.sqrt(1 / len(random) + 1 / len(late))
    if not late.mean() < mean - max(DEVIATIONS, float(by_chance)) * spread:
        return None
    return Finding(
        "The policy does worse than random actions.",
        f"The mean {name} in the last quarter is {number(float(late.mean()))}; {count(len(random), 'episode')} of random "
        f"actions at the start had {number(mean)} ± {number(spread)}.",
        "Early on that is common, as a policy that commits itself may fail faster. If it stays: the sign of the rewards, "
        "reward_scale, normalize_observations, a lower learning_rate; and the findings on Q and α above.",
        is_hint=name != "evaluation",
    )


def timeouts_as_ends(run: Run) -> Verdict:
    """All episodes have one length, and the replay buffer knows of no time limit."""
    lengths = run.episodes.lengths if run.episodes is not None else np.zeros(0)
    if len(lengths) < SAME_LENGTHS:
        return Unknown(f"{count(len(lengths), 'episode')} in monitor.csv: too few to see a time limit")
    if len(np.unique(lengths)) > 1 or lengths[0] <= 1:
        return None
    rate = run.metric("rollout/timeout_rate")
    if rate is None:
        return Unknown(
            f"all episodes have {lengths[0]:,.0f} steps, but the logs do not hold TimeLimit.truncated, and "
            "rollout/timeout_rate was not logged"
        )
    if rate.values.max() > 0.0:
        return None
    return Finding(
        "Time-outs are learned as terminations.",
        f"All {count(len(lengths), 'episode')} have {lengths[0]:,.0f} steps, and rollout/timeout_rate is 0 throughout: the "
        "replay buffer never saw TimeLimit.truncated.",
        "An environment with a time limit of its own must return truncated=True, not terminated=True (gymnasium's TimeLimit "
        "does), and replay_buffer_kwargs must not say handle_timeout_termination=False. A task that really ends after so many "
        "steps should have the time in its observations.",
    )

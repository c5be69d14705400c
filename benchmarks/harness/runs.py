"""One training run: its evaluations, its time, and the row that it becomes."""

import json
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import rl_zoo3
import stable_baselines3
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_softac
from harness.plans import Run
from harness.rows import Row
from harness.variants import OURS
from sb3_softac.checkpoint import ExactCheckpointCallback

#: seconds between two reports of a run
REPORT_EVERY = 2.0


class Clock:
    """The wall clock of one process; what a checkpoint holds is kept by :class:`Evaluations`."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.reported = 0.0
        self.has_stepped = False

    def lap(self) -> float:
        """Seconds since the last call."""
        before, self.last = self.last, time.perf_counter()
        return self.last - before


class Evaluations(BaseCallback):
    """Mean return of ``n_episodes`` deterministic episodes, ``n_points`` times in equal distances.

    Its attributes are in the checkpoints by the name of this class, so that a run that goes on has those of all its parts.

    :param clock: of this process, started with it
    :param report: is told the step and the seconds so far, every few seconds
    """

    def __init__(
        self,
        env: str,
        steps: int,
        n_points: int,
        n_episodes: int,
        seed: int,
        clock: Clock | None = None,
        report: Callable[[int, float], None] | None = None,
    ) -> None:
        super().__init__()
        self.eval_env = make_vec_env(env, seed=seed)
        self.every = max(steps // n_points, 1)
        self.n_episodes = n_episodes
        self.clock = clock or Clock()
        self.report = report
        self.returns: list[float] = []
        #: seconds of training, without evaluations, at each of them
        self.times: list[float] = []
        self.training_seconds = 0.0
        self.evaluation_seconds = 0.0
        #: processes that this run has had; 0 in a checkpoint that knows no times
        self.parts = 0
        self.is_timed = True

    def _on_step(self) -> bool:
        self.training_seconds += self.clock.lap()
        if not self.clock.has_stepped:
            self.clock.has_stepped = True
            self.is_timed &= self.parts > 0 or self.n_calls == 1
            self.parts += 1
        if self.num_timesteps % self.every == 0:
            mean: Any = evaluate_policy(self.model, self.eval_env, n_eval_episodes=self.n_episodes)[0]
            self.returns.append(round(float(mean), 1))
            self.times.append(round(self.training_seconds, 2))
            self.evaluation_seconds += self.clock.lap()
        if self.report is not None and self.clock.last - self.clock.reported > REPORT_EVERY:
            self.clock.reported = self.clock.last
            self.report(self.num_timesteps, self.training_seconds)
        return True


def entropy_coefficient(model: Any) -> float | str:
    """α of SoftAC or SB3's SAC, learned or fixed, rounded; nothing for algorithms that have none."""
    if isinstance(model, OURS):
        alpha = model.temperature.value
    elif isinstance(model, SAC):
        alpha = model.ent_coef_tensor if model.log_ent_coef is None else model.log_ent_coef.exp()
    else:
        return ""
    return round(alpha.item(), 4)  # `float` of a tensor that requires a gradient warns


def processor(device: str = "cpu") -> str:
    """Its name; where a GPU trains, that of the GPU comes first."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return name if not device.startswith("cuda") else f"{th.cuda.get_device_name(device)}, {name}"


def folder_of(run: Run, checkpoints: Path) -> Path:
    """Where the checkpoints of a run are: by its name and its settings, or by its name alone if older ones are there."""
    old = checkpoints / f"{run.variant}-{run.env}-{run.steps}-{run.seed}".replace(" ", "_").replace("/", "_")
    return old if any(old.glob("checkpoint-*")) else old.with_name(f"{old.name}-{run.id[:8]}")


def train(run: Run, curve: Evaluations, folder: Path | None, device: str = "cpu") -> Any:
    """The trained model, of a new run or of one that goes on."""
    callback: Any = curve
    if folder and run.algorithm in OURS:
        callback = CallbackList([curve, ExactCheckpointCallback(max(run.steps // 10, 1), folder, keep=1)])
    env = make_vec_env(run.env, seed=run.seed)
    if folder and any(folder.glob("checkpoint-*")):  # none: it was killed before the first
        expected = {} if folder.name.endswith(run.id[:8]) else run.settings
        model = run.algorithm.resume(folder, env, device=device, **expected)
        model.learn(callback=callback, log_interval=None)
    else:
        model = run.algorithm("MlpPolicy", env, seed=run.seed, device=device, **run.settings)
        model.learn(run.steps, callback=callback, log_interval=None)
    return model


def versions() -> dict[str, str]:
    return {
        "sb3_softac": sb3_softac.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "rl_zoo3": rl_zoo3.__version__,
        "torch": th.__version__,
        "gymnasium": gym.__version__,
        "python": platform.python_version(),
    }


def perform(
    run: Run, checkpoints: Path | None = None, report: Callable[[int, float], None] | None = None, device: str = "cpu"
) -> Row:
    """A training run on one thread, and the mean return of its last evaluation.

    :param checkpoints: where runs that are killed are kept; remove their folder with :func:`forget` when the row is safe
    :param report: see :class:`Evaluations`
    :param device: where networks are; no setting of the run, and named in its row as the processor
    """
    th.set_num_threads(1)
    curve = Evaluations(run.env, run.steps, run.points, 10, 10_000 + run.seed, Clock(), report)
    model = train(run, curve, checkpoints and folder_of(run, checkpoints), device)
    curve.training_seconds += curve.clock.lap()
    final: Any = evaluate_policy(model, curve.eval_env, n_eval_episodes=run.episodes)[0]
    seconds = curve.training_seconds + curve.evaluation_seconds
    return {
        "variant": run.variant,
        "env": run.env,
        "steps": run.steps,
        "seed": run.seed,
        "return": round(float(final), 1),
        "best": max(curve.returns),
        "curve": " ".join(map(str, curve.returns)),
        "alpha": entropy_coefficient(model),
        "entropy": round(model.logger.name_to_value.get("train/entropy", float("nan")), 4),
        "settings": json.dumps(run.settings),
        "episodes": run.episodes,
        "seconds": round(seconds) if curve.is_timed else "",
        "processor": processor(device),
        **versions(),
        "algorithm": run.algorithm.__name__,
        "times": " ".join(map(str, curve.times)) if curve.is_timed else "",
        "parts": curve.parts if curve.is_timed else "",
    }


def forget(run: Run, checkpoints: Path | None) -> None:
    """Remove the checkpoints of a run that has its row."""
    if checkpoints is not None:
        shutil.rmtree(folder_of(run, checkpoints), ignore_errors=True)

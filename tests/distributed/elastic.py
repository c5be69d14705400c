"""A training that goes on from its newest checkpoint when torchrun starts it again: a script, as a user has it."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_softac import SoftAC
from sb3_softac.checkpoint import ExactCheckpointCallback, newest_step
from sb3_softac.ranks import _summary, state_tensors
from tests.helpers import SMALL, RandomEnv


class Kill(BaseCallback):
    """Ends one rank without a word, in its first life."""

    def __init__(self, rank: int, step: int) -> None:
        super().__init__()
        self.rank, self.step = rank, step

    def _on_step(self) -> bool:
        model: Any = self.model
        is_first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if is_first and model._rank == self.rank and self.num_timesteps >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)
        return True


OPTIONS: dict[str, Any] = {
    "policy_kwargs": SMALL,
    "learning_starts": 20,
    "batch_size": 8,
    "buffer_size": 90,
    "seed": 0,
    "device": "cpu",
    "compile": False,
    "normalize_observations": True,
    "normalize_rewards": 5.0,
}


def one_rank(folder: Path, total: int) -> str:
    """The first part of a run, by the one process of torchrun."""
    model = SoftAC("MlpPolicy", RandomEnv(), distributed=True, **OPTIONS)
    model.learn(total, callback=ExactCheckpointCallback(20, folder))
    return _summary(state_tensors(model))


def main(folder: Path, total: int, killed_at: int) -> None:
    th.set_num_threads(1)
    begun = newest_step(folder)
    if begun is None:
        model = SoftAC("MlpPolicy", RandomEnv(), distributed={"timeout": 60}, **OPTIONS)
    else:
        model = SoftAC.resume(folder, RandomEnv(), device="cpu", distributed={"timeout": 60})
    callbacks: list[BaseCallback] = [ExactCheckpointCallback(20, folder)]
    if killed_at:
        callbacks.append(Kill(1, killed_at))
    model.learn(total, callback=callbacks, log_interval=None)
    buffer: Any = model.replay_buffer
    result = {
        "begun": begun,
        "steps": model.num_timesteps,
        "updates": model._n_updates,
        "weights": _summary(state_tensors(model)),
        "buffer": float(buffer.observations.sum() + buffer.rewards.sum()),
        "size": buffer.size(),
    }
    (folder.parent / f"{folder.name}-result-{model._rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

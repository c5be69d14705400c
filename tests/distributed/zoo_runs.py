"""What two ranks do in one start of torchrun, for ``test_zoo``: a user's own script, then runs of RL Zoo that go on."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import rl_zoo3.train
from stable_baselines3.common.callbacks import BaseCallback

from sb3_softac import SoftAC, zoo
from sb3_softac.files import ranked
from sb3_softac.ranks import _summary, state_tensors

TOTAL = 300
SETTINGS: dict[str, Any] = {"learning_starts": 50, "buffer_size": 400, "compile": False, "policy_kwargs": {"net_arch": [8]}}


class FailsOnOne(BaseCallback):
    """Raises an error on the last rank, at its tenth step."""

    def _on_step(self) -> bool:
        model: Any = self.model
        if model._rank == 1 and self.n_calls == 10:
            raise OSError("the sensor is gone")
        return True


def script(folder: Path) -> None:
    """Train as the run in ``folder``, without RL Zoo."""
    model = SoftAC("MlpPolicy", "Pendulum-v1", learning_rate=1e-3, seed=3, distributed=True, **SETTINGS)
    model.learn(TOTAL, log_interval=None)
    rank = model._rank
    result = {"weights": _summary(state_tensors(model)), "steps": model.num_timesteps, "updates": model._n_updates}
    Path(f"script-{rank}.json").write_text(json.dumps(result))
    if rank == 0:
        model.save("script.zip")
        shutil.copytree(folder, "again")
        for each in (0, 1):  # as if it had been killed before its last checkpoint
            shutil.rmtree(ranked.folder_of("again/checkpoints", each) / f"checkpoint-{TOTAL:012d}")
    assert model._runtime.group is not None
    assert model._runtime.group.all_agree(True)  # the copy is there


def train(*arguments: str) -> None:
    sys.argv = ["train.py", "--algo", "softac", "--env", "Pendulum-v1", *arguments]
    rl_zoo3.train.train()


if __name__ == "__main__":
    run = Path(sys.argv[1])
    zoo.register()
    script(run)
    train("-i", "again")
    train("-i", str(run / "Pendulum-v1.zip"), "-n", "60", "--eval-freq", "-1", "-f", "from_file", "-params", "compile:False")

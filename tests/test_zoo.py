"""RL Zoo: its literal commands in processes of their own, and what registration changes inside one."""

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import optuna
import pytest
import rl_zoo3.exp_manager
import rl_zoo3.utils
import yaml
from huggingface_sb3 import EnvironmentName
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3 import SAC

from sb3_softac import SoftAC, zoo

PYTHON, RL_ZOO3 = [sys.executable], [str(Path(sys.executable).parent / "rl_zoo3")]
PENDULUM = ["--algo", "softac", "--env", "Pendulum-v1"]
ENTRIES: dict[str, dict[str, Any]] = yaml.safe_load(zoo.hyperparams_path().read_text())
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command in an empty folder and return what it printed."""

    def execute(*command: str, expect: int = 0, **environment: str) -> str:
        result = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert result.returncode == expect, result.stdout
        return result.stdout

    return execute


class TestCommands:
    def test_train_then_enjoy_then_continue(self, run: Run, tmp_path: Path) -> None:
        """The three commands of a user, with nothing but what RL Zoo's own documentation shows."""
        printed = run(*PYTHON, "-m", "rl_zoo3.train", *PENDULUM, "-n", "300", "--eval-freq", "150", "--eval-episodes", "1")
        assert "softac.yml" in printed
        assert "('learning_rate', 0.001)" in printed
        assert "Eval num_timesteps=300" in printed
        assert "could not register" not in printed
        agent = tmp_path / "logs" / "softac" / "Pendulum-v1_1" / "Pendulum-v1.zip"
        assert SoftAC.load(agent).num_timesteps == 300
        printed = run(*RL_ZOO3, "enjoy", *PENDULUM, "-f", "logs", "--no-render", "-n", "400")
        assert "2 Episodes" in printed
        run(*RL_ZOO3, "train", *PENDULUM, "-n", "150", "--eval-freq", "-1", "--trained-agent", str(agent))
        assert (tmp_path / "logs" / "softac" / "Pendulum-v1_2" / "Pendulum-v1.zip").is_file()

    def test_options_on_the_command_line(self, run: Run, tmp_path: Path) -> None:
        run(
            *PYTHON,
            "-m",
            "rl_zoo3.train",
            *PENDULUM,
            "-n",
            "250",
            "--eval-freq",
            "-1",
            "-params",
            "actor_learning_rate:lin_3e-4",
            "value_network:True",
            "learning_rate:exp_1e-3_1e-5",
            "ent_coef:auto_0.1",
            "policy_kwargs:dict(net_arch=[16])",
            "actor_q:min",
        )
        model = SoftAC.load(tmp_path / "logs" / "softac" / "Pendulum-v1_1" / "Pendulum-v1.zip")
        assert model.value_net is not None
        assert model.actor_learning_rate == "lin_3e-4"
        assert model.lr_schedule(0.5) == pytest.approx(1e-4)
        assert model.ent_coef == "auto_0.1"

    def test_a_preset_on_a_task_with_discrete_actions(self, run: Run, tmp_path: Path) -> None:
        """The preset replaces what the file tunes for CartPole-v1; what is given beside it wins."""
        task = ["--algo", "softac", "--env", "CartPole-v1"]
        given = ["-params", "preset:sigaud", "learning_starts:50", "target_q:mean"]
        run(*PYTHON, "-m", "rl_zoo3.train", *task, "-n", "150", "--eval-freq", "100", "--eval-episodes", "1", *given)
        model = SoftAC.load(tmp_path / "logs" / "softac" / "CartPole-v1_1" / "CartPole-v1.zip")
        assert (model.actor_q, model.target_q, model.learning_rate) == ("target_min", "mean", 3e-4)
        assert model.target_entropy == pytest.approx(0.98 * math.log(2))
        assert (model._n_updates, model.policy_kwargs["net_arch"]) == (100, [256])
        assert "Episodes" in run(*RL_ZOO3, "enjoy", *task, "-f", "logs", "--no-render", "-n", "600")
        printed = run(*PYTHON, "-m", "rl_zoo3.train", *task, "-params", "preset:sigmund", expect=1)
        assert "`preset` is 'sigmund', but it must be one of 'sb3', 'haarnoja2018'" in printed

    def test_hyper_parameter_search(self, run: Run, tmp_path: Path) -> None:
        printed = run(
            *PYTHON,
            "-m",
            "rl_zoo3.train",
            *PENDULUM,
            "-n",
            "200",
            "-optimize",
            "--n-trials",
            "2",
            "--n-evaluations",
            "1",
            "--eval-episodes",
            "1",
            "--no-optim-plots",
        )
        assert printed.count("finished with value") == 2
        assert "Trial 1 pruned" not in printed
        for name in zoo.SAMPLED_BY_US:
            assert name in printed
        (report,) = (tmp_path / "logs" / "softac").glob("report_*.csv")
        assert len(report.read_text().splitlines()) == 3

    def test_our_own_entry_point_needs_no_start_up_hook(self, run: Run) -> None:
        command = ["-m", "sb3_softac.zoo", "train", *PENDULUM, "-n", "150", "--eval-freq", "-1"]
        assert "Saving to logs/softac" in run(*PYTHON, *command, SB3_SOFTAC_NO_STARTUP="1")
        assert "usage: python -m sb3_softac.zoo" in run(*PYTHON, "-m", "sb3_softac.zoo", expect=1)

    def test_the_hook_can_be_switched_off(self, run: Run) -> None:
        printed = run(*PYTHON, "-m", "rl_zoo3.train", *PENDULUM, expect=2, SB3_SOFTAC_NO_STARTUP="1")
        assert "invalid choice: 'softac'" in printed

    def test_other_algorithms_are_not_touched(self, run: Run) -> None:
        printed = run(
            *PYTHON, "-m", "rl_zoo3.train", "--algo", "sac", "--env", "Pendulum-v1", "-n", "150", "--eval-freq", "-1"
        )
        assert f"rl_zoo3{os.sep}hyperparams{os.sep}sac.yml" in printed


class TestStartUp:
    def test_looking_for_the_module_before_importing_it(self, run: Run) -> None:
        code = (
            "import importlib.util; importlib.util.find_spec('rl_zoo3.exp_manager')\n"
            "import rl_zoo3.exp_manager; from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER\n"
            "print('softac' in HYPERPARAMS_SAMPLER)"
        )
        assert run(*PYTHON, "-c", code) == "True\n"

    def test_python_starts_without_our_package(self, run: Run) -> None:
        code = "import sys; print('_sb3_softac_startup' in sys.modules, 'sb3_softac' in sys.modules, 'torch' in sys.modules)"
        assert run(*PYTHON, "-c", code) == "True False False\n"

    def test_rl_zoo_without_its_experiments_stays_light(self, run: Run) -> None:
        """``import rl_zoo3`` gets the algorithm, and does not load Optuna for it."""
        code = "import sys, rl_zoo3; print('softac' in rl_zoo3.ALGOS, 'optuna' in sys.modules)"
        assert run(*PYTHON, "-c", code) == "True False\n"

    def test_it_never_raises(self, run: Run) -> None:
        code = "import sys; sys.modules['sb3_softac.zoo'] = None; import rl_zoo3; print('sac' in rl_zoo3.ALGOS)"
        printed = run(*PYTHON, "-c", code)
        assert "sb3-softac could not register itself with RL Zoo" in printed
        assert printed.endswith("True\n")

    def test_a_missing_rl_zoo_is_reported_as_ever(self, run: Run) -> None:
        code = (
            "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'sb3_softac' in type(f).__module__]\n"
            "try:\n    import rl_zoo3.utils\nexcept ModuleNotFoundError as error:\n    print('as ever:', error.name)"
        )
        assert run(*PYTHON, "-c", code).startswith("as ever: rl_zoo3")

    def test_it_costs_next_to_nothing(self, tmp_path: Path) -> None:
        """Time of the processor, with a wide margin: 0.2 ms is usual, a module that loads torch takes a second."""
        source = Path(__file__).parent.parent / "startup" / "_sb3_softac_startup.py"
        code = compile(source.read_text(), str(source), "exec")
        before, start = list(sys.meta_path), time.process_time()
        try:
            exec(code, {"__name__": "startup"})
            elapsed = time.process_time() - start
        finally:
            sys.meta_path[:] = before
        assert elapsed < 0.02


def manager(algo: str, **kwargs: Any) -> ExperimentManager:
    return ExperimentManager(argparse.Namespace(), algo, "Pendulum-v1", "logs", **kwargs)


class TestRegistration:
    def test_register_twice_changes_nothing(self) -> None:
        zoo.register()
        store, init = rl_zoo3.utils.StoreDict.__call__, ExperimentManager.__init__
        zoo.register()
        assert rl_zoo3.utils.ALGOS["softac"] is SoftAC
        assert rl_zoo3.utils.ALGOS["sac"] is SAC
        assert rl_zoo3.utils.StoreDict.__call__ is store
        assert rl_zoo3.exp_manager.ExperimentManager.__init__ is init

    def test_the_hyper_parameter_file(self, tmp_path: Path) -> None:
        zoo.register()
        assert Path(manager("softac").config) == zoo.hyperparams_path()
        assert Path(manager("sac").config).name == "sac.yml"
        for given in (str(tmp_path / "mine.yml"), "my.package"):
            assert manager("softac", config=given).config == given

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("lin_3e-4", "lin_3e-4"),
            ("exp_3e-4_1e-10", "exp_3e-4_1e-10"),
            ("auto", "auto"),
            ("auto_0.1", "auto_0.1"),
            ("'lin_3e-4'", "lin_3e-4"),
            ("3e-4", 3e-4),
            ("True", True),
            ("dict(net_arch=[8])", {"net_arch": [8]}),
        ],
    )
    def test_params(self, text: str, value: Any) -> None:
        zoo.register()
        parser = argparse.ArgumentParser()
        parser.add_argument("-params", nargs="+", action=rl_zoo3.utils.StoreDict)
        assert parser.parse_args(["-params", f"name:{text}"]).params == {"name": value}

    @pytest.mark.parametrize(("text", "value"), [("min", "min"), ("'mean'", "mean"), ("target_min", "target_min")])
    def test_params_with_names(self, text: str, value: str) -> None:
        """Python would take ``min`` for its own function."""
        zoo.register()
        parser = argparse.ArgumentParser()
        parser.add_argument("-params", nargs="+", action=rl_zoo3.utils.StoreDict)
        assert parser.parse_args(["-params", f"actor_q:{text}"]).params == {"actor_q": value}

    def test_params_still_refuse_what_is_no_python(self) -> None:
        zoo.register()
        parser = argparse.ArgumentParser()
        parser.add_argument("-params", nargs="+", action=rl_zoo3.utils.StoreDict)
        with pytest.raises(NameError):
            parser.parse_args(["-params", "name:linear"])

    def test_rl_zoo_still_parses_schedules_for_others(self) -> None:
        zoo.register()
        assert type(manager("sac")._preprocess_schedules({"learning_rate": "lin_1e-3"})["learning_rate"]) is not str
        assert manager("softac")._preprocess_schedules({"learning_rate": "lin_1e-3"}) == {"learning_rate": "lin_1e-3"}


class TestSearchSpace:
    @pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
    @pytest.mark.parametrize("seed", range(8))
    def test_every_sample_constructs_a_model(self, seed: int, env: str) -> None:
        zoo.register()
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        trial = study.ask()
        sampled = HYPERPARAMS_SAMPLER["softac"](trial, 1, 1, {"using_her_replay_buffer": False, "her_kwargs": {}})
        given = {"ent_coef": 0.1, "value_learning_rate": 1e-3, "device": "cpu"}  # what a file or a command line may set
        model = SoftAC("MlpPolicy", env, **{**given, **sampled})
        for name in zoo.SAMPLED_BY_US:
            assert getattr(model, name) == trial.params[name]

    def test_the_converter_gives_what_the_sampler_gave(self) -> None:
        zoo.register()
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
        sampled = HYPERPARAMS_SAMPLER["softac"](trial, 1, 1, {"using_her_replay_buffer": False, "her_kwargs": {}})
        assert HYPERPARAMS_CONVERTER["softac"](trial.params) == sampled


def test_the_file_lists_the_tasks() -> None:
    mujoco = ["HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid", "Swimmer", "Reacher", "Pusher"]
    mujoco += ["InvertedPendulum", "InvertedDoublePendulum"]
    tasks = {f"{name}-v{version}" for name in mujoco for version in (4, 5)}
    tasks |= {"default", "Pendulum-v1", "MountainCarContinuous-v0", "BipedalWalker-v3", "LunarLanderContinuous-v3"}
    tasks |= {"CartPole-v1", "Acrobot-v1", "LunarLander-v3"}
    assert tasks <= set(ENTRIES)
    assert ENTRIES["Swimmer-v5"]["gamma"] == 0.999


@pytest.mark.filterwarnings("ignore")  # old versions of the tasks warn that newer ones exist
@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_constructs_a_model(name: str) -> None:
    """Through RL Zoo's own reading of the entry."""
    zoo.register()
    environment = "Pendulum-v1" if name == "default" else name
    # Gymnasium builds Pusher-v4 with mujoco < 3 only; its observations and actions are those of version 5.
    environment = environment.replace("Pusher-v4", "Pusher-v5")
    experiment = manager("softac")
    experiment.env_name = EnvironmentName(name)
    unprocessed, _ = experiment.read_hyperparameters()
    hyperparams = experiment._preprocess_hyperparams(unprocessed)[0]
    assert experiment.n_timesteps > 0
    with gym.make(environment) as env:
        model = SoftAC(env=env, **{**hyperparams, "buffer_size": 10, "device": "cpu"})
        assert env.action_space.contains(model.predict(env.reset(seed=0)[0])[0])

"""RL Zoo: its literal commands in processes of their own, and what registration changes inside one."""

import argparse
import importlib.util
import math
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import optuna
import pytest
import rl_zoo3.exp_manager
import rl_zoo3.utils
import yaml
from huggingface_sb3 import EnvironmentName
from rl_zoo3.callbacks import ParallelTrainCallback
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.vec_env import VecNormalize

from sb3_softac import SoftAC, presets, zoo
from sb3_softac.errors import TrainingDivergedError
from sb3_softac.networks.catalogue import ENCODERS
from sb3_softac.zoo_algorithms import ALGORITHMS, OF_RL_ZOO

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
        entry = (tmp_path / "logs" / "softac" / "CartPole-v1_1" / "CartPole-v1" / "config.yml").read_text()
        assert yaml.unsafe_load(entry)["learning_rate"] == 3e-4
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
        for name in ALGORITHMS["softac"].sampled:
            assert name in printed
        (report,) = (tmp_path / "logs" / "softac").glob("report_*.csv")
        assert len(report.read_text().splitlines()) == 3

    def test_a_search_over_critics(self, run: Run, tmp_path: Path) -> None:
        short = ["-n", "150", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots", "--seed", "0"]
        search = ["-optimize", "--n-trials", "2", "--sampler", "random", "--pruner", "none", "-params", "search:critics"]
        printed = run(*PYTHON, "-m", "rl_zoo3.train", *PENDULUM, *short, *search)
        assert printed.count("finished with value") == 2
        assert "Search space: critics (critic_head, " in printed
        (report,) = (tmp_path / "logs" / "softac").glob("report_*.csv")
        columns, *trials = report.read_text().splitlines()
        assert len(trials) == 2
        assert {"params_critic_head", "params_encoder", "user_attrs_search"} <= set(columns.split(","))
        printed = run(*PYTHON, "-m", "rl_zoo3.train", *PENDULUM, "-params", "search:critics", expect=1)
        assert "`search` is 'critics', but it must be left out without -optimize" in printed

    def test_our_own_entry_point_needs_no_start_up_hook(self, run: Run) -> None:
        command = ["-m", "sb3_softac.zoo", "train", *PENDULUM, "-n", "150", "--eval-freq", "-1"]
        assert "Saving to logs/softac" in run(*PYTHON, *command, SB3_SOFTAC_NO_STARTUP="1")
        assert "usage: python -m sb3_softac.zoo" in run(*PYTHON, "-m", "sb3_softac.zoo", expect=2)

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

    def test_a_callback_without_experiments(self, run: Run) -> None:
        """The hook of this checkout, whichever is installed."""
        startup = str(Path(__file__).parent.parent / "startup")
        code = (
            "import sys; sys.modules.pop('_sb3_softac_startup', None); sys.meta_path[:] = [f for f in sys.meta_path "
            f"if 'softac' not in type(f).__module__]; sys.path.insert(0, {startup!r}); import _sb3_softac_startup\n"
            "from rl_zoo3.callbacks import ParallelTrainCallback; print(hasattr(ParallelTrainCallback._init_callback, "
            "'__wrapped__'), 'rl_zoo3.exp_manager' in sys.modules)"
        )
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


Experiment = Callable[..., tuple[ExperimentManager, Any]]


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Experiment]:
    """Set up an experiment as RL Zoo's train script does: the manager, and the model that it would train."""
    create, opened = ExperimentManager.create_envs, []

    def create_envs(self: ExperimentManager, *args: Any, **kwargs: Any) -> Any:
        opened.append(create(self, *args, **kwargs))
        return opened[-1]

    def set_up(env: str = "Pendulum-v1", algo: str = "softac", **kwargs: Any) -> tuple[ExperimentManager, Any]:
        zoo.register()
        arguments: dict[str, Any] = {"eval_freq": -1, "log_interval": -1, "device": "cpu", "verbose": 0, **kwargs}
        one = ExperimentManager(argparse.Namespace(seed=0), algo, env, str(tmp_path / "logs"), **arguments)
        result = one.setup_experiment()
        return one, None if result is None else result[0]

    monkeypatch.setattr(ExperimentManager, "create_envs", create_envs)
    yield set_up
    for env in opened:
        env.close()


def config_of(manager: ExperimentManager) -> Path:
    return Path(manager.params_path) / "config.yml"


def saved_by(manager: ExperimentManager) -> dict[str, Any]:
    return dict(yaml.unsafe_load(config_of(manager).read_text()))


FROM_FILE = """
Pendulum-v1:
  n_timesteps: 700
  policy: MlpPolicy
  preset: sigaud
  n_envs: 2
  normalize: "dict(norm_reward=False)"
  gamma: 0.9
  policy_kwargs: "dict(activation_fn=nn.Tanh)"
"""


class TestSavedHyperparameters:
    """``config.yml`` and the console show what the model is built from."""

    @pytest.mark.parametrize(
        "given",
        [
            {"preset": "sigaud"},
            {"preset": "droq", "learning_starts": 7, "policy_kwargs": {"dropout_rate": 0.5}},
            {"preset": "spinningup_v1", "n_envs": 1, "env_wrapper": "rl_zoo3.wrappers.TimeFeatureWrapper"},
            {"learning_rate": "lin_3e-4", "train_freq": (2, "episode")},
        ],
    )
    def test_what_the_command_line_asks_for(
        self, given: dict[str, Any], experiment: Experiment, capsys: pytest.CaptureFixture[str]
    ) -> None:
        manager, model = experiment(hyperparams=given)
        saved = saved_by(manager)
        printed = capsys.readouterr().out
        named = {name: value for name, value in saved.items() if name not in OF_RL_ZOO}
        for name, value in named.items():
            assert f"('{name}'," in printed
            if name in ("policy_kwargs", "train_freq"):  # in other forms in the model
                continue
            assert getattr(model, name) == value or value == "auto", name
        assert "preset" not in saved
        expected = presets.get(given["preset"], **given) if "preset" in given else given
        assert {name: saved[name] for name in expected if name != "preset"} == {
            name: value for name, value in expected.items() if name != "preset"
        }
        if "preset" in given:
            assert expected["policy_kwargs"].items() <= model.policy_kwargs.items()
            assert "net_arch=[64, 64]" not in printed

    def test_a_preset_of_a_file(self, experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "mine.yml").write_text(FROM_FILE)
        manager, model = experiment(config=str(tmp_path / "mine.yml"), hyperparams={"batch_size": 32})
        saved, printed = saved_by(manager), capsys.readouterr().out
        assert (saved["learning_rate"], saved["gamma"], saved["batch_size"]) == (3e-4, 0.9, 32)
        assert (model.learning_rate, model.gamma, model.batch_size, model.n_envs) == (3e-4, 0.9, 32, 2)
        assert isinstance(model.env, VecNormalize)
        assert (saved["n_envs"], saved["normalize"], saved["n_timesteps"]) == (2, "dict(norm_reward=False)", 700)
        assert printed.count("Loading hyperparameters from") == printed.count(zoo.HEADING) == 1
        assert "('learning_rate', 0.0003)" in printed

    @pytest.mark.parametrize("given", [{"preset": "spinningup_v1", "n_envs": 1}, {"gamma": 0.9, "n_envs": 2}, None])
    def test_a_run_can_be_repeated_from_its_config(self, given: dict[str, Any] | None, experiment: Experiment) -> None:
        first, model = experiment(hyperparams=given, n_timesteps=321, env_kwargs={"g": 9.0}, seed=3)
        second, again = experiment(config=str(config_of(first)), seed=3)
        assert saved_by(first) == saved_by(second)
        assert (second.n_timesteps, second.env_kwargs, second.eval_env_kwargs) == (321, {"g": 9.0}, {"g": 9.0})
        assert again.learning_rate == model.learning_rate
        for name, parameter in model.policy.state_dict().items():
            assert (again.policy.state_dict()[name] == parameter).all()

    def test_a_config_can_be_changed_when_it_is_repeated(self, experiment: Experiment) -> None:
        first, _ = experiment(hyperparams={"preset": "sigaud"})
        _, model = experiment(config=str(config_of(first)), hyperparams={"gamma": 0.5})
        assert (model.gamma, model.actor_q) == (0.5, "target_min")

    def test_a_trial_is_not_overridden_by_a_preset(self, experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ExperimentManager, "load_trial", lambda *_: {"gamma": 0.6, "tau": 0.3})
        trial = {"storage": "s.log", "study_name": "s", "trial_id": 1}
        manager, model = experiment(hyperparams={"preset": "sigaud", "tau": 0.2}, **trial)
        assert (model.gamma, model.tau, model.learning_rate) == (0.6, 0.2, 3e-4)
        assert saved_by(manager)["gamma"] == 0.6

    def test_what_a_search_starts_from(self, experiment: Experiment) -> None:
        manager, model = experiment(hyperparams={"preset": "sigaud"}, optimize_hyperparameters=True)
        assert model is None
        assert manager._hyperparams["learning_rate"] == 3e-4

    def test_other_algorithms_save_what_they_did(self, experiment: Experiment) -> None:
        manager, _ = experiment(algo="sac", hyperparams={"gamma": 0.9}, n_timesteps=321)
        assert (saved_by(manager)["n_timesteps"], saved_by(manager)["gamma"]) == (20000, 0.9)

    def test_a_missing_file_is_reported_as_ever(self, experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(FileNotFoundError):
            experiment(config="missing.yml")
        assert capsys.readouterr().out == "Loading hyperparameters from: missing.yml\n"


def parse_params(*texts: str, algo: str = "softac") -> dict[str, Any]:
    zoo.register()
    parser = argparse.ArgumentParser()
    parser.add_argument("--algo", default="ppo")
    parser.add_argument("-params", "--hyperparams", nargs="+", action=rl_zoo3.utils.StoreDict)
    parser.add_argument("--env-kwargs", nargs="+", action=rl_zoo3.utils.StoreDict)
    return dict(parser.parse_args(["--algo", algo, "-params", *texts]).hyperparams)


class TestUnknownNames:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("actorq:mean", "`actorq` is 'mean', but there is no such hyperparameter. Did you mean actor_q?"),
            ("actorq:1", "`actorq` is '1', but there is no such hyperparameter. Did you mean actor_q?"),
            ("n_env:2", "Did you mean n_envs?"),
            ("learning-rate:1e-3", "Did you mean learning_rate?"),
            ("xyz:1", "`xyz` is '1', but there is no such hyperparameter. Allowed are"),
            ("seed:1", "`seed` is '1', but it must not be a hyperparameter: pass --seed instead"),
            ("tensorboard_log:logs", "pass --tensorboard-log instead"),
            ("gradient_steps:two", "`gradient_steps` is 'two', which Python does not understand (name 'two' is not defined)"),
            ("policy_kwargs:dict(net_arch=[64)", "which Python does not understand"),
            ("batch_size:int('many')", "`batch_size` is \"int('many')\", which Python does not understand (invalid literal"),
            ("preset", "`preset` has no value; write preset:VALUE"),
            ("gamma=0.9", "there is no such hyperparameter. Did you mean gamma?"),
        ],
    )
    def test_on_the_command_line(self, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            parse_params("tau:0.1", text)
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize("algo", [["--algo", "softac"], ["--algo=softac"]])
    def test_where_the_algorithm_follows(self, algo: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["train.py", "-params", "actorq:mean", *algo])
        parser = argparse.ArgumentParser()
        parser.add_argument("-params", nargs="+", action=rl_zoo3.utils.StoreDict)
        parser.add_argument("--algo", default="ppo")
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args()

    def test_other_algorithms_have_their_own_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["train.py", "--algo", "ppo", "-f", "softac"])
        assert parse_params("clip_range:0.2", algo="ppo") == {"clip_range": 0.2}
        with pytest.raises(NameError):
            parse_params("actorq:mean", algo="ppo")

    @pytest.mark.parametrize("given", [{"actorq": "mean"}, {"gamma": 0.9, "actorq": 1}])
    def test_in_python_before_anything_is_made(self, given: dict[str, Any], experiment: Experiment, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"`actorq` is .*Did you mean actor_q\?"):
            experiment(hyperparams=given)
        assert not (tmp_path / "logs").exists()

    def test_in_a_file(self, experiment: Experiment, tmp_path: Path) -> None:
        (tmp_path / "mine.yml").write_text(FROM_FILE.replace("gamma", "gama"))
        with pytest.raises(ValueError, match=r"`gama` is 0.9, .*Did you mean gamma\?"):
            experiment(config=str(tmp_path / "mine.yml"))

    def test_arguments_of_a_subclass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Mine(SoftAC):
            def __init__(self, *args: Any, flavour: str = "sweet", **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)

        zoo.register()
        monkeypatch.setitem(rl_zoo3.utils.ALGOS, "softac", Mine)
        assert parse_params("flavour:sour", "gamma:0.9") == {"flavour": "sour", "gamma": 0.9}

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("policy:MlpPolicy", "MlpPolicy"),
            ("compile:auto", "auto"),
            ("compile:False", False),
            ("target_subset:None", None),
            ("noise_type:ornstein-uhlenbeck", "ornstein-uhlenbeck"),
            ("replay_buffer_class:HerReplayBuffer", "HerReplayBuffer"),
            ("env_wrapper:rl_zoo3.wrappers.TimeFeatureWrapper", "rl_zoo3.wrappers.TimeFeatureWrapper"),
            ("callback:rl_zoo3.callbacks.ParallelTrainCallback", "rl_zoo3.callbacks.ParallelTrainCallback"),
            ("env_wrapper:['rl_zoo3.wrappers.TimeFeatureWrapper']", ["rl_zoo3.wrappers.TimeFeatureWrapper"]),
            ("target_entropy:-1.0", -1.0),
        ],
    )
    def test_names_need_no_quotes(self, text: str, value: Any) -> None:
        assert parse_params(text) == {text.partition(":")[0]: value}

    def test_several(self) -> None:
        assert parse_params("gamma:0.9", "actor_q:min", "preset:redq") == {"gamma": 0.9, "actor_q": "min", "preset": "redq"}


class TestOurEntryPoint:
    @pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["-h"], 0), ([], 2), (["foo"], 2), (["plot_trian"], 2)])
    def test_usage(
        self, arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["zoo.py", *arguments])
        with pytest.raises(SystemExit) as stopped:
            zoo.main()
        printed = capsys.readouterr()
        shown = printed.err if code else printed.out
        assert stopped.value.code == code
        for script in zoo.SCRIPTS:
            assert script in shown
        assert ("Did you mean plot_train?" in shown) == (arguments == ["plot_trian"])

    @pytest.mark.parametrize("script", zoo.SCRIPTS)
    def test_every_script_exists(self, script: str) -> None:
        assert importlib.util.find_spec(f"rl_zoo3.{zoo.SCRIPTS[script][0]}") is not None


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # RL Zoo leaves a temporary file to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestParallelTraining:
    def test_it_trains(self, experiment: Experiment) -> None:
        """As ``-params callback:rl_zoo3.callbacks.ParallelTrainCallback`` does."""
        callback = {"rl_zoo3.callbacks.ParallelTrainCallback": {"gradient_steps": 5}}
        given = {"callback": [callback], "train_freq": (1, "episode"), "buffer_size": 2000, "learning_starts": 100}
        manager, model = experiment(hyperparams=given, n_timesteps=1000)
        before = {name: tensor.clone() for name, tensor in model.actor.state_dict().items()}
        manager.learn(model)
        manager.save_trained_model(model)
        trained = SoftAC.load(Path(manager.save_path) / "Pendulum-v1.zip")
        assert trained._n_updates >= 5
        assert trained._n_updates % 5 == 0
        # What acts has received the weights of what trains.
        assert not all((model.actor.state_dict()[name] == tensor).all() for name, tensor in before.items())

    @pytest.mark.parametrize("algorithm", [SAC, TQC])
    def test_others_still_do(self, algorithm: Any) -> None:
        zoo.register()
        model = algorithm("MlpPolicy", "Pendulum-v1", train_freq=(1, "episode"), buffer_size=1000, device="cpu")
        callback = ParallelTrainCallback(gradient_steps=2)
        model.learn(400, callback=callback)
        assert type(callback._model) is algorithm
        assert callback._model._n_updates >= 2


class TestContinuing:
    @pytest.fixture
    def sac(self, tmp_path: Path) -> SAC:
        """Trained for a while, and saved with its buffer as RL Zoo does."""
        sac = SAC("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [16]}, gamma=0.95, tau=0.02, device="cpu", seed=0)
        sac.learn(150)
        sac.save(tmp_path / "sac.zip")
        return sac

    def test_an_agent_of_sac(
        self, sac: SAC, experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Arguments of the hyperparameters replace those of the file, but for the policy's, as RL Zoo has it."""
        sac.save_replay_buffer(tmp_path / "replay_buffer.pkl")
        agent = str(tmp_path / "sac.zip")
        manager, model = experiment(
            trained_agent=agent, hyperparams={"tau": 0.3, "ent_coef": "auto_0.2", "learning_starts": 20}, n_timesteps=60
        )
        assert type(model) is SoftAC
        assert (model.gamma, model.tau, model.learning_rate, model.ent_coef_update) == (0.95, 0.3, 1e-3, "log")
        assert sac.log_ent_coef is not None
        assert model.temperature.value.item() == pytest.approx(sac.log_ent_coef.exp().item())
        for name, tensor in sac.actor.state_dict().items():
            assert (model.actor.state_dict()[name] == tensor).all()
        assert model.replay_buffer is not None
        assert model.replay_buffer.size() == 150
        printed = capsys.readouterr().out
        assert printed.count("was saved by SB3's SAC: SoftAC goes on from its networks") == 1
        saved = saved_by(manager)
        assert saved["policy_kwargs"] == {"net_arch": [16]}
        assert (saved["tau"], saved["ent_coef"]) == (0.3, "auto")
        n_updates = model._n_updates
        manager.learn(model)
        assert model._n_updates > n_updates

    def test_another_temperature(self, sac: SAC, experiment: Experiment, tmp_path: Path) -> None:
        agent = str(tmp_path / "sac.zip")
        _, model = experiment(trained_agent=agent, hyperparams={"preset": "sigaud", "ent_coef_update": "dual"})
        assert (model.ent_coef_update, model.actor_q, model.replay_buffer.size()) == ("dual", "target_min", 0)
        _, model = experiment(trained_agent=agent, hyperparams={"ent_coef": 0.1})
        assert model.temperature.value.item() == pytest.approx(0.1)

    def test_what_sac_has_no_weights_for(self, sac: SAC, experiment: Experiment, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="`value_network` is True"):
            experiment(trained_agent=str(tmp_path / "sac.zip"), hyperparams={"value_network": True})

    def test_several_environments(self, sac: SAC, experiment: Experiment, tmp_path: Path) -> None:
        _, model = experiment(trained_agent=str(tmp_path / "sac.zip"), hyperparams={"n_envs": 2})
        assert model.n_envs == model.replay_buffer.n_envs == 2

    def test_our_own_agent(self, experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        agent = tmp_path / "ours.zip"
        SoftAC("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [16]}, gamma=0.9, device="cpu").save(agent)
        manager, model = experiment(trained_agent=str(agent))
        assert (model.gamma, model.learning_rate) == (0.9, 1e-3)
        assert saved_by(manager)["policy_kwargs"] == {"net_arch": [16]}
        assert "SB3's SAC" not in capsys.readouterr().out

    def test_which_files_are_those_of_peers(self, sac: SAC, tmp_path: Path) -> None:
        assert zoo.saved_by_peer(tmp_path / "sac.zip") == "SB3's SAC"
        expected = {SoftAC: None, TQC: "sb3-contrib's TQC", CrossQ: "sb3-contrib's CrossQ", TD3: None}
        for algorithm, name in expected.items():
            algorithm("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu").save(tmp_path / "other.zip")
            assert zoo.saved_by_peer(tmp_path / "other.zip") == name
        (tmp_path / "broken.zip").write_bytes(b"no archive")
        assert zoo.saved_by_peer(tmp_path / "broken.zip") is None

    @pytest.mark.parametrize(
        ("algorithm", "of_peer"), [(TQC, {"critic_head": "quantile"}), (CrossQ, {"normalization": "batch_renorm"})]
    )
    def test_an_agent_of_sb3_contrib(
        self,
        algorithm: Any,
        of_peer: dict[str, Any],
        experiment: Experiment,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        agent = tmp_path / "peer.zip"
        sizes = {"net_arch": {"pi": [16], "qf": [24]}}
        peer = algorithm("MlpPolicy", "Pendulum-v1", policy_kwargs=sizes, learning_starts=10, seed=0, device="cpu").learn(30)
        peer.save(agent)
        manager, model = experiment(trained_agent=str(agent), hyperparams={"gamma": 0.9}, n_timesteps=20)
        assert type(model) is SoftAC
        assert model.gamma == 0.9
        assert f"was saved by sb3-contrib's {algorithm.__name__}" in capsys.readouterr().out
        observations = np.stack([model.observation_space.sample() for _ in range(20)])
        expected, actual = (each.predict(observations, deterministic=True)[0] for each in (peer, model))
        np.testing.assert_allclose(actual, expected, atol=1e-5)
        assert saved_by(manager)["policy_kwargs"].items() >= of_peer.items()
        n_updates = model._n_updates
        manager.learn(model)
        assert model._n_updates > n_updates

    def test_sac_continues_its_own(self, sac: SAC, experiment: Experiment, tmp_path: Path) -> None:
        assert type(experiment(algo="sac", trained_agent=str(tmp_path / "sac.zip"))[1]) is SAC


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
        for name in ALGORITHMS["softac"].sampled:
            assert getattr(model, name) == trial.params[name]

    def test_the_converter_gives_what_the_sampler_gave(self) -> None:
        zoo.register()
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
        sampled = HYPERPARAMS_SAMPLER["softac"](trial, 1, 1, {"using_her_replay_buffer": False, "her_kwargs": {}})
        assert HYPERPARAMS_CONVERTER["softac"](trial.params) == sampled


def sample_critics(seed: int, n_trials: int) -> Iterator[tuple[optuna.Trial, dict[str, Any]]]:
    """Trials of the search over critics, and the constructor arguments of each."""
    zoo.register()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(n_trials):
        trial = study.ask()
        trial.set_user_attr("search", "critics")
        yield trial, HYPERPARAMS_SAMPLER["softac"](trial, 1, 1, {"using_her_replay_buffer": False, "her_kwargs": {}})


class TestSearchOverCritics:
    #: what a hyperparameter file or a command line may set
    GIVEN: ClassVar[dict[str, Any]] = {
        "bootstrap": "joint",
        "ent_coef": 0.1,
        "value_learning_rate": 1e-3,
        "value_network": True,
        "target_q": "mean",
        "target_update_interval": 4,
        "tau": 0.3,
        "top_quantiles_to_drop_per_net": 7,
    }

    @pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
    @pytest.mark.parametrize("given", [{}, GIVEN])
    def test_200_trials_construct_a_model_each(self, given: dict[str, Any], env: str) -> None:
        small = {64: 4, 256: 5, 400: 6, 300: 7}
        if given and env == "Pendulum-v1":
            given = {**given, "use_sde": True, "sde_sample_freq": 4}
        seen: dict[str, set[Any]] = {}
        for trial, sampled in sample_critics(seed=3, n_trials=200):
            policy_kwargs = dict(sampled["policy_kwargs"])
            widths = policy_kwargs["net_arch"] = [small[width] for width in policy_kwargs["net_arch"]]
            arguments = {**given, **sampled, "policy_kwargs": policy_kwargs, "device": "cpu", "buffer_size": 10}
            model = SoftAC("MlpPolicy", env, **arguments)
            params = trial.params
            assert model.policy.critic_head == params["critic_head"]
            assert model.policy.encoder == params["encoder"]
            assert model.bootstrap == params.get("bootstrap", "target")
            assert ("tau" in params) == (model.bootstrap != "joint")
            assert params.get("normalization") == policy_kwargs.get("normalization")
            assert params["encoder"] == "mlp" or len(set(widths)) == 1
            assert model.bootstrap == "target" or "batch_renorm" in params.values() or params["encoder"] == "flash"
            if params["critic_head"] == "quantile":
                assert model.critic.head.n_numbers == params["n_quantiles"]
                assert model.top_quantiles_to_drop_per_net == params["top_quantiles_to_drop_per_net"] < params["n_quantiles"]
            if params["critic_head"] == "categorical":
                assert model.policy_kwargs["value_range"] == (-params["value_bound"], params["value_bound"])
            seen.setdefault("pair", set()).add((params["critic_head"], model.bootstrap))
            for name, value in params.items():
                seen.setdefault(name, set()).add(value)
        heads, ways = ("scalar", "quantile", "categorical"), ("target", "joint", "joint_target")
        assert seen["pair"] == {(head, way) for head in heads for way in ways}
        assert seen["encoder"] == set(ENCODERS)
        assert seen["normalization"] == {None, "layer", "batch_renorm"}
        assert seen["value_network"] == {False, True}
        assert set(ALGORITHMS["softac"].searches["critics"].sampled) <= seen.keys()

    def test_every_kind_of_trial_trains(self) -> None:
        """One of each head, encoder, normalisation and bootstrap, with whatever else came along."""
        done = set()
        for trial, sampled in sample_critics(seed=4, n_trials=300):
            kind = tuple(trial.params.get(name) for name in ("critic_head", "encoder", "normalization", "bootstrap"))
            if kind in done or max(sampled["policy_kwargs"]["net_arch"]) > 64:
                continue
            done.add(kind)
            arguments = {**sampled, "batch_size": 8, "train_freq": 1, "gradient_steps": 3, "learning_starts": 10}
            model = SoftAC("MlpPolicy", "Pendulum-v1", buffer_size=50, device="cpu", compile=False, **arguments)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*targets lie outside of `value_range`")
                model.learn(12, log_interval=None)
            assert model._n_updates == 6
        assert len(done) >= 25

    def test_the_converter_gives_what_the_sampler_gave(self) -> None:
        for trial, sampled in sample_critics(seed=5, n_trials=50):
            converted = HYPERPARAMS_CONVERTER["softac"](trial.params)
            assert {"tau": 0.005, **converted} == {"tau": 0.005, **sampled}

    def test_without_the_switch_nothing_has_changed(self) -> None:
        """The same names, in the same order, as in version 0.1: from one seed come the same trials."""
        zoo.register()
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
        HYPERPARAMS_SAMPLER["softac"](trial, 1, 1, {"using_her_replay_buffer": False, "her_kwargs": {}})
        shared = ["one_minus_gamma", "batch_size_pow", "learning_rate", "train_freq", "tau", "net_arch"]
        ours = ["value_network", "actor_q", "target_q", "policy_delay", "ent_coef_update", "actor_learning_rate"]
        assert list(trial.params) == [*shared, *ours]
        assert trial.user_attrs.keys() == {"gamma", "batch_size"}

    @pytest.mark.parametrize(
        ("algo", "name", "message"),
        [
            ("softac", "critic", "`search` is 'critic', but it must be one of 'critics', or left out for SoftAC"),
            ("softql", "critics", "`search` is 'critics', but it must be left out for SoftQL"),
        ],
    )
    def test_unknown_searches(self, algo: str, name: str, message: str, experiment: Experiment) -> None:
        with pytest.raises(ValueError, match=message):
            experiment(algo=algo, hyperparams={"search": name}, optimize_hyperparameters=True)

    def test_in_a_file(self, experiment: Experiment, tmp_path: Path) -> None:
        """There it belongs to searches alone, and the command line can take it back."""
        (tmp_path / "mine.yml").write_text(FROM_FILE + "  search: critics\n")
        config = str(tmp_path / "mine.yml")
        for given, search in (({}, "critics"), ({"search": None}, None)):
            manager, _ = experiment(config=config, optimize_hyperparameters=True, hyperparams=given)
            assert vars(manager)["search"] == search
        manager, model = experiment(config=config)
        assert type(model) is SoftAC
        assert "search" not in saved_by(manager)

    def test_a_trial_that_diverges_is_pruned(self, experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
        """It ends no search: RL Zoo expects a ValueError there."""

        def diverge(*_: Any, **__: Any) -> None:
            raise TrainingDivergedError("critic_loss is nan")

        manager, _ = experiment(optimize_hyperparameters=True, n_timesteps=100, n_evaluations=1)
        monkeypatch.setattr(SoftAC, "learn", diverge)
        study = optuna.create_study()
        study.optimize(manager.objective, n_trials=2)
        assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.PRUNED] * 2


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

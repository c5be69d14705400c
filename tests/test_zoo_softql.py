"""RL Zoo with ``softql``: where it is not what ``softac`` is to it, and that nothing is missing."""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import optuna
import pytest
import rl_zoo3.utils
import yaml
from huggingface_sb3 import EnvironmentName
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3 import SAC

from sb3_softac import SoftAC, SoftQL, presets, zoo
from sb3_softac.networks import GaussianSampler
from sb3_softac.zoo_algorithms import ALGORITHMS
from tests import test_zoo
from tests.test_zoo import PYTHON, RL_ZOO3, Experiment, Run, manager, parse_params, saved_by

experiment, run = test_zoo.experiment, test_zoo.run  # fixtures
ENTRIES: dict[str, dict[str, Any]] = yaml.safe_load(zoo.hyperparams_path("softql").read_text())
NETWORKS: dict[str, Any] = {"net_arch": [16]}
#: what only samplers of continuous actions have
CONTINUOUS = {"kernel_particles", "value_particles", "actor_learning_rate"}


class TestCommands:
    def test_train_then_enjoy(self, run: Run, tmp_path: Path) -> None:
        task = ["--algo", "softql", "--env", "Pendulum-v1"]
        given = ["-params", "learning_starts:50", "target_q:mean", "actor_learning_rate:lin_3e-4"]
        given.append("policy_kwargs:dict(net_arch=[16])")
        evaluated = ["--eval-freq", "150", "--eval-episodes", "1"]
        printed = run(*PYTHON, "-m", "rl_zoo3.train", *task, "-n", "250", *evaluated, *given)
        assert "could not register" not in printed
        assert "softql.yml" in printed
        assert "Eval num_timesteps=150" in printed
        model = SoftQL.load(tmp_path / "logs" / "softql" / "Pendulum-v1_1" / "Pendulum-v1.zip")
        assert (model.num_timesteps, model._n_updates) == (250, 200)
        assert (model.target_q, model.actor_learning_rate) == ("mean", "lin_3e-4")
        assert "2 Episodes" in run(*RL_ZOO3, "enjoy", *task, "-f", "logs", "--no-render", "-n", "400")

    def test_a_search_by_our_own_entry_point(self, run: Run, tmp_path: Path) -> None:
        """On a task with discrete actions, for which RL Zoo must say so to the sampler."""
        search = ["-n", "200", "-optimize", "--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1"]
        arguments = ["train", "--algo", "softql", "--env", "CartPole-v1", *search, "--no-optim-plots"]
        printed = run(*PYTHON, "-m", "sb3_softac.zoo", *arguments, SB3_SOFTAC_NO_STARTUP="1")
        assert printed.count("finished with value") == 2
        for name in ("reward_scale", "target_update", "n_critics"):
            assert f"'{name}'" in printed
        for name in CONTINUOUS:
            assert name not in printed
        assert len(list((tmp_path / "logs" / "softql").glob("report_*.csv"))) == 1


class TestHyperparameterFile:
    def test_each_algorithm_has_its_own(self) -> None:
        zoo.register()
        assert rl_zoo3.utils.ALGOS["softql"] is SoftQL
        assert manager("softql").config == str(zoo.hyperparams_path("softql"))
        assert zoo.hyperparams_path() == zoo.hyperparams_path("softac") != zoo.hyperparams_path("softql")
        with pytest.raises(ValueError, match="`algo` is 'sac', but it must be one of 'softac', 'softql'"):
            zoo.hyperparams_path("sac")

    def test_the_tasks_and_their_published_reward_scales(self) -> None:
        tasks = {f"{name}-v5": scale for name, scale in presets.SOFTQL_REWARD_SCALES.items()}
        assert set(ENTRIES) == {"default", "Pendulum-v1", "CartPole-v1", *tasks}
        assert {name: ENTRIES[name]["reward_scale"] for name in tasks} == tasks
        assert {ENTRIES[name]["preset"] for name in tasks} == {"softqlearning"}

    @pytest.mark.parametrize("name", ENTRIES)
    def test_every_entry_constructs_a_model(self, name: str) -> None:
        zoo.register()
        one = manager("softql")
        one.env_name = EnvironmentName(name)
        unprocessed, _ = one.read_hyperparameters()
        hyperparams = one._preprocess_hyperparams(unprocessed)[0]
        assert one.n_timesteps > 0
        with gym.make("Pendulum-v1" if name == "default" else name) as env:
            model = SoftQL(env=env, **{**hyperparams, "buffer_size": 10, "device": "cpu"})
            assert env.action_space.contains(model.predict(env.reset(seed=0)[0])[0])
        assert model.reward_scale == ENTRIES[name].get("reward_scale", 1.0)


FROM_FILE = """
Pendulum-v1:
  n_timesteps: 700
  policy: MlpPolicy
  preset: softqlearning
  gamma: 0.9
  reward_scale: 7.0
  policy_kwargs: "dict(activation_fn=nn.Tanh)"
"""


class TestPresets:
    def test_of_a_file(self, experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "mine.yml").write_text(FROM_FILE)
        one, model = experiment(algo="softql", config=str(tmp_path / "mine.yml"))
        assert type(model) is SoftQL
        assert (model.batch_size, model.target_update_interval, model.gamma, model.reward_scale) == (128, 1000, 0.9, 7.0)
        saved = saved_by(one)
        assert (saved["batch_size"], saved["gamma"], saved["reward_scale"]) == (128, 0.9, 7.0)
        assert saved["policy_kwargs"]["net_arch"] == [128, 128]
        assert "preset" not in saved
        assert "('kernel_particles', 16)" in capsys.readouterr().out

    def test_of_the_command_line(self, experiment: Experiment, tmp_path: Path) -> None:
        """It replaces what the file tunes, but for the reward scale, which no preset can know."""
        given = parse_params("preset:softlearning_sql", "value_proposal:policy", algo="softql")
        assert given == {"preset": "softlearning_sql", "value_proposal": "policy"}
        (tmp_path / "mine.yml").write_text(FROM_FILE)
        one, model = experiment(algo="softql", config=str(tmp_path / "mine.yml"), hyperparams=given)
        assert (model.tau, model.gamma, model.value_proposal, model.reward_scale) == (0.005, 0.99, "policy", 7.0)
        assert isinstance(model.actor, GaussianSampler)
        assert saved_by(one)["policy_kwargs"] == presets.SOFTLEARNING_SQL["policy_kwargs"]
        _, again = experiment(algo="softql", config=str(Path(one.params_path) / "config.yml"))
        assert (again.tau, again.reward_scale, again.value_proposal) == (0.005, 7.0, "policy")

    @pytest.mark.parametrize(
        ("algo", "preset", "message"),
        [
            (
                "softql",
                "redq",
                r"'redq', a preset of SoftAC \(--algo softac\), but it must be one of 'softqlearning', 'softlear",
            ),
            (
                "softac",
                "softqlearning",
                r"'softqlearning', a preset of SoftQL \(--algo softql\), but it must be one of 'sb3',",
            ),
            ("softql", "softq", "'softq', but it must be one of 'softqlearning', 'softlearning_sql' for SoftQL"),
            ("softql", 1, "1, but it must be one of"),
        ],
    )
    def test_those_of_the_other_algorithm(
        self, algo: str, preset: Any, message: str, experiment: Experiment, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match="`preset` is " + message):
            experiment(algo=algo, hyperparams={"preset": preset})
        assert not (tmp_path / "logs").exists()


class TestNames:
    @pytest.mark.parametrize("text", ["actor_q:min", "use_sde:True", "value_network:True", "policy_delay:2"])
    def test_those_that_only_softac_has(self, text: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            parse_params(text, algo="softql")
        printed = capsys.readouterr().err
        name, _, value = text.partition(":")
        assert f"`{name}` is {value!r}, but there is no such hyperparameter" in printed
        assert "Allowed are arguments of SoftQL (learning_rate, " in printed
        assert "value_particles" in printed
        assert f", {name}," not in printed

    def test_without_quotes(self) -> None:
        texts = ["value_proposal:uniform", "ent_coef:lin_1_0.1", "target_q:min", "compile:False", "kernel_particles:8"]
        expected = {"value_proposal": "uniform", "ent_coef": "lin_1_0.1", "target_q": "min"}
        assert parse_params(*texts, algo="softql") == {**expected, "compile": False, "kernel_particles": 8}

    def test_where_the_algorithm_follows(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        zoo.register()
        monkeypatch.setattr(sys, "argv", ["train.py", "-params", "actor_q:min", "--algo", "softql"])
        parser = argparse.ArgumentParser()
        parser.add_argument("-params", nargs="+", action=rl_zoo3.utils.StoreDict)
        parser.add_argument("--algo", default="ppo")
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args()
        assert "arguments of SoftQL" in capsys.readouterr().err

    def test_in_a_file(self, experiment: Experiment, tmp_path: Path) -> None:
        (tmp_path / "mine.yml").write_text(FROM_FILE.replace("reward_scale", "actor_q"))
        with pytest.raises(ValueError, match=r"`actor_q` is 7.0, .* arguments of SoftQL"):
            experiment(algo="softql", config=str(tmp_path / "mine.yml"))

    def test_a_subclass_of_one_does_not_change_the_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Mine(SoftQL):
            def __init__(self, *args: Any, flavour: str = "sweet", **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)

        zoo.register()
        monkeypatch.setitem(rl_zoo3.utils.ALGOS, "softql", Mine)
        assert parse_params("flavour:sour", "gamma:0.9", algo="softql") == {"flavour": "sour", "gamma": 0.9}
        with pytest.raises(SystemExit):
            parse_params("flavour:sour", algo="softac")


class TestContinuing:
    def test_its_own_agent(self, experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """The policy keeps its architecture, and what is saved says so; its other settings are those of RL Zoo."""
        agent = tmp_path / "ours.zip"
        ours = SoftQL("MlpPolicy", "Pendulum-v1", policy_kwargs=NETWORKS, kernel_particles=6, gamma=0.9, device="cpu")
        ours.learn(150)
        ours.save(agent)
        ours.save_replay_buffer(tmp_path / "replay_buffer.pkl")
        one, model = experiment(algo="softql", trained_agent=str(agent), hyperparams={"tau": 0.3}, n_timesteps=20)
        assert type(model) is SoftQL
        # What is passed, then the entry of the file, then what its networks are built for.
        assert (model.tau, model.gamma, model.learning_rate, model.kernel_particles) == (0.3, 0.95, "lin_1e-3", 6)
        assert model.replay_buffer is not None
        assert model.replay_buffer.size() == 150
        assert saved_by(one)["policy_kwargs"] == NETWORKS
        assert "Kept from" in capsys.readouterr().out
        for name, tensor in ours.policy.state_dict().items():
            assert (model.policy.state_dict()[name] == tensor).all()
        model.learning_starts = 0
        one.learn(model)
        assert model._n_updates == ours._n_updates + 20

    @pytest.mark.parametrize("algorithm", [SAC, SoftAC])
    def test_another_agent(self, algorithm: Any, experiment: Experiment, tmp_path: Path) -> None:
        algorithm("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(NETWORKS), device="cpu").save(tmp_path / "other.zip")
        with pytest.raises(ValueError, match="What another algorithm has saved is loaded by that one"):
            experiment(algo="softql", trained_agent=str(tmp_path / "other.zip"))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # RL Zoo leaves a temporary file to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_training_in_parallel(env: str, experiment: Experiment) -> None:
    callback = {"rl_zoo3.callbacks.ParallelTrainCallback": {"gradient_steps": 5}}
    given = {"callback": [callback], "train_freq": (1, "episode"), "learning_starts": 50, "policy_kwargs": NETWORKS}
    one, model = experiment(env, "softql", hyperparams={**given, "buffer_size": 1000}, n_timesteps=700)
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    one.learn(model)
    one.save_trained_model(model)
    trained = SoftQL.load(Path(one.save_path) / f"{env}.zip")
    assert trained._n_updates >= 5
    assert trained._n_updates % 5 == 0
    # What acts has received the weights of what trains.
    assert not all((model.policy.state_dict()[name] == tensor).all() for name, tensor in before.items())


class TestSearchSpace:
    @pytest.mark.parametrize(("env", "n_actions"), [("Pendulum-v1", 1), ("CartPole-v1", 0)])
    def test_every_sample_constructs_a_model(self, env: str, n_actions: int) -> None:
        """Whatever a file or a command line has set for what is not sampled."""
        zoo.register()
        given: dict[str, Any] = {"ent_coef_update": "log", "target_entropy_scale": 0.7, "critic_learning_rate": 1e-3}
        given |= {"ent_coef": "auto_0.1", "ent_coef_learning_rate": 1e-3, "value_proposal": "policy"}
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        seen: dict[str, set[Any]] = {}
        for trial in (study.ask() for _ in range(30)):
            sampled = HYPERPARAMS_SAMPLER["softql"](trial, n_actions, 1, {"using_her_replay_buffer": False, "her_kwargs": {}})
            assert HYPERPARAMS_CONVERTER["softql"](trial.params) == sampled
            assert (set(trial.params) >= CONTINUOUS) == bool(n_actions)
            assert "tau" not in trial.params
            assert 0.1 <= trial.params["reward_scale"] <= 100.0
            model = SoftQL(env=env, policy="MlpPolicy", **{**given, **sampled}, buffer_size=10, device="cpu")
            assert (model.ent_coef, model.target_q, model.value_proposal) == (1.0, "min", "uniform")
            for name in {"reward_scale", "learning_rate", "train_freq"} | (CONTINUOUS if n_actions else set()):
                value = getattr(model, name)
                assert (value.frequency if name == "train_freq" else value) == trial.params[name]
            assert model.critic.n_critics == trial.params["n_critics"]
            assert model.policy.net_arch == sampled["policy_kwargs"]["net_arch"]
            copied = trial.params["target_update"] == "copy"
            assert (model.tau, model.target_update_interval) == ((1.0, 1000) if copied else (0.005, 1))
            for name in ALGORITHMS["softql"].sampled:
                seen.setdefault(name, set()).add(trial.params.get(name))
        of_two = {"target_update": {"copy", "polyak"}, "n_critics": {1, 2}}
        of_two |= dict.fromkeys(("kernel_particles", "value_particles"), {16, 32} if n_actions else {None})
        assert {name: seen[name] for name in of_two} == of_two
        assert math.log10(max(seen["reward_scale"]) / min(seen["reward_scale"])) > 2

    def test_a_search_with_continuous_actions(self, experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
        search = {"optimize_hyperparameters": True, "n_trials": 1, "no_optim_plots": True, "n_eval_episodes": 1}
        given = {"preset": "softlearning_sql", "learning_starts": 100}
        one, _ = experiment(algo="softql", n_timesteps=110, verbose=1, hyperparams=given, **search)
        one.hyperparameters_optimization()
        printed = capsys.readouterr().out
        for name in ALGORITHMS["softql"].sampled:
            assert f"    {name}: " in printed

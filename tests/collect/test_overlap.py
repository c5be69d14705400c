"""Gradient steps while environments step: when they run, how many, and what is refused."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_softac import SoftAC, SoftQL, TensorReplayBuffer, TrainingDivergedError
from sb3_softac.collect.overlap import share, warn_of_no_overlap
from sb3_softac.update import ActorCriticUpdate
from tests.helpers import RandomDiscreteEnv, RandomEnv, assert_same_parameters, quick_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`overlap` is True, but a DummyVecEnv"),
]


class Recorded(VecEnvWrapper):
    """Environments that write down what they are asked, and how many gradient steps were done by then."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.model: Any = None
        self.events: list[tuple[str, int]] = []

    def reset(self) -> Any:
        return self.venv.reset()

    def step_async(self, actions: Any) -> None:
        self.events.append(("begin", self.model._n_updates))
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        self.events.append(("end", self.model._n_updates))
        return self.venv.step_wait()


class Lags(BaseCallback):
    """What is logged as the lag, at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def _on_step(self) -> bool:
        self.seen.append(self.logger.name_to_value.get("train/lag"))
        return True


def recorded(**kwargs: Any) -> tuple[SoftAC, Recorded]:
    env = Recorded(make_vec_env(RandomEnv, kwargs.pop("n_envs", 1)))
    model = quick_model(env, seed=0, **kwargs)
    env.model = model
    return model, env


def test_gradient_steps_run_between_the_two_halves_of_a_step() -> None:
    """Those of rollout k run during rollout k + 1; the last ones where nothing follows."""
    model, env = recorded(overlap=True, train_freq=1, gradient_steps=2)
    lags = Lags()
    model.learn(15, callback=lags)
    begun = [count for what, count in env.events if what == "begin"]
    done = [count for what, count in env.events if what == "end"]
    # Step 11 is the first behind `learning_starts`: its gradient steps run during step 12.
    assert begun == [0] * 11 + [0, 2, 4, 6]
    assert done == [0] * 11 + [2, 4, 6, 8]
    assert model._n_updates == 10
    assert lags.seen == [None] * 11 + [1] * 4


def test_they_are_spread_over_a_rollout() -> None:
    model, env = recorded(overlap=True, train_freq=4, gradient_steps=6)
    model.learn(20)  # rollouts of 4: those that end at 12, 16 and 20 are followed by six each
    done = [count for what, count in env.events if what == "end"]
    assert done == [0] * 12 + [1, 3, 4, 6] + [7, 9, 10, 12]
    assert model._n_updates == 18


@pytest.mark.parametrize(("total", "n_parts"), [(7, 3), (0, 4), (3, 7), (12, 4)])
def test_shares_add_up(total: int, n_parts: int) -> None:
    shares = [share(total, part, n_parts) for part in range(n_parts)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1
    assert share(total, n_parts, n_parts) == 0


def vector(env: Any, in_processes: bool, n_envs: int = 2, **kwargs: Any) -> VecEnv:
    """Processes are forks, which do not import everything again."""
    classes: Any = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}} if in_processes else {}
    return make_vec_env(env, n_envs, env_kwargs=kwargs or None, **classes)


CASES: dict[str, tuple[Callable[[bool], Any], dict[str, Any]]] = {
    "one step": (lambda processes: vector(RandomEnv, processes), {"train_freq": 1}),
    "three steps": (lambda processes: vector(RandomEnv, processes), {"train_freq": 3, "n_steps": 3}),
    "discrete": (lambda processes: vector(lambda: RandomDiscreteEnv(3), processes), {"train_freq": 2}),
    "normalised": (lambda processes: VecNormalize(vector(RandomEnv, processes), norm_reward=False), {"train_freq": 2}),
    "tensors": (
        lambda processes: vector(RandomEnv, processes),
        {"train_freq": 2, "replay_buffer_class": TensorReplayBuffer},
    ),
    "hindsight": (
        lambda processes: vector(BitFlippingEnv, processes, n_bits=3, continuous=True),
        {"train_freq": 2, "replay_buffer_class": HerReplayBuffer, "policy": "MultiInputPolicy"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_processes_learn_what_one_process_does(case: str) -> None:
    """What runs meanwhile depends on no timing: equal weights with environments in processes and without."""
    make, options = CASES[case]
    models = []
    for in_processes in (False, True):
        env = make(in_processes)
        models.append(quick_model(env, seed=0, overlap=True, gradient_steps=-1, **options).learn(60))
        env.close()
    assert models[0]._n_updates > 20
    assert_same_parameters(*models)


@pytest.mark.parametrize(
    ("algorithm", "compile"), [(SoftAC, False), (SoftQL, False), pytest.param(SoftAC, True, marks=pytest.mark.traced)]
)
def test_as_many_gradient_steps_as_without(compile: bool, algorithm: Any) -> None:
    counts = []
    for overlap in (False, True):
        options: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "learning_starts": 10, "batch_size": 8}
        model = algorithm("MlpPolicy", make_vec_env(RandomEnv, 2), seed=0, overlap=overlap, compile=compile, **options)
        model.learn(50)
        model.learn(21, reset_num_timesteps=False)
        counts.append(model._n_updates)
    assert counts[0] == counts[1] > 20


class StopAt(BaseCallback):
    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        return self.n_calls < self.at


def test_nothing_is_owed_after_a_stop() -> None:
    model, _ = recorded(overlap=True, train_freq=4, gradient_steps=6)
    model.learn(100, callback=StopAt(14))
    assert model._owed_steps == 0
    assert model._n_updates == 6  # those of the rollout before the one that was stopped


class TrainsAtTheEnd(StopAt):
    model: Any

    def _on_training_end(self) -> None:
        self.model.train(3, 8)


@pytest.mark.parametrize("options", [{}, {"learning_starts": 1000}, {"gradient_steps": 0}], ids=["plain", "before", "none"])
def test_gradient_steps_after_a_stop_are_done_at_once(options: dict[str, Any]) -> None:
    """They are the user's own, whatever SB3 has asked for behind the last rollout."""
    model, _ = recorded(overlap=True, **options)
    model.learn(100, callback=TrainsAtTheEnd(14))
    before = model._n_updates
    assert before == (3 if options else 4 + 3 - 1)
    model.train(5, 8)
    assert (model._n_updates, model._owed_steps) == (before + 5, 0)


class Matrices(BaseCallback):
    """gSDE's matrices, at each step."""

    model: Any

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def _on_step(self) -> bool:
        distribution = self.model.actor.action_dist
        self.seen.append(distribution.exploration_matrices.detach().clone())
        return True


@pytest.mark.parametrize("overlap", [False, True])
def test_gsde_explores_with_one_matrix_for_each_environment_and_rollout(overlap: bool) -> None:
    model, _ = recorded(overlap=overlap, n_envs=2, use_sde=True, train_freq=4, gradient_steps=4, learning_starts=8)
    callback = Matrices()
    model.learn(64, callback=callback)
    assert model._n_updates > 8
    for number in range(2, 8):
        first, *others = callback.seen[4 * number : 4 * number + 4]
        assert first.shape[0] == 2
        assert not th.equal(first[0], first[1])
        assert all(th.equal(first, other) for other in others)
        assert not th.equal(first, callback.seen[4 * number - 1])


class SwitchOff(BaseCallback):
    model: Any

    def _on_step(self) -> bool:
        if self.n_calls == 16:
            self.model.overlap = False
        return True


def test_it_may_be_switched_off_on_the_way() -> None:
    model, env = recorded(overlap=True, train_freq=2, gradient_steps=2)
    model.learn(24, callback=SwitchOff())
    assert model._n_updates == 14  # of the rollouts that end at 12, 14, ..., 24
    assert [count for what, count in env.events if what == "begin"][18:] == [8, 8, 10, 10, 12, 12]


class TrainsItself(BaseCallback):
    """Does gradient steps of its own, at once."""

    model: Any

    def _on_step(self) -> bool:
        if self.n_calls == 14:
            before = self.model._n_updates
            self.model.train(3, 8)
            assert self.model._n_updates == before + 3
        return True


def test_a_callback_may_train_and_change_the_model() -> None:
    """Callbacks run between two steps, never while gradient steps run: there is one thread."""
    model, _ = recorded(overlap=True)
    model.learn(20, callback=TrainsItself())
    assert model._n_updates == 10 + 3


def test_a_diverged_training_leaves_environments_that_can_be_used() -> None:
    env = vector(RandomEnv, in_processes=True)
    try:
        model = quick_model(env, seed=0, overlap=True)
        model.learn(20)
        with th.no_grad():
            for parameter in model.critic.parameters():
                parameter.fill_(float("nan"))
        with pytest.raises(TrainingDivergedError):
            model.learn(20)
        env.reset()
        obs: Any = env.step(np.zeros((2, 2)))[0]
        assert obs.shape == (2, 4)
    finally:
        env.close()


def test_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match="`overlap` is True, but it must be False with `train_freq` in episodes"):
        quick_model(RandomEnv(), overlap=True, train_freq=(1, "episode"))
    with pytest.raises(ValueError, match="`overlap` is True, but it must be False with `distributed`"):
        SoftAC("MlpPolicy", RandomEnv(), overlap=True, distributed=True, buffer_size=10)
    with pytest.raises(ValueError, match="`overlap` is 'yes', but it must be True or False"):
        quick_model(RandomEnv(), overlap="yes")
    model = quick_model(RandomEnv(), train_freq=(1, "episode"))
    model.overlap = True
    with pytest.raises(ValueError, match="`overlap` is True"):
        model.learn(20)


def test_a_warning_names_what_cannot_overlap() -> None:
    with pytest.warns(UserWarning, match="`overlap` is True, but a DummyVecEnv steps its environments in this process"):
        warn_of_no_overlap(make_vec_env(RandomEnv, 1))
    env = vector(RandomEnv, in_processes=True, n_envs=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_of_no_overlap(env)
    finally:
        env.close()


class OwnStep(VecEnvWrapper):
    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()

    def step(self, actions: Any) -> Any:
        return self.venv.step(actions)


def test_a_step_that_has_no_halves_is_refused() -> None:
    message = "`overlap` is True, but it must be False with a OwnStep"
    with pytest.raises(ValueError, match=message):
        quick_model(OwnStep(make_vec_env(RandomEnv, 1)), overlap=True)
    model = quick_model(RandomEnv(), overlap=True)
    with pytest.raises(ValueError, match=message):
        model.set_env(OwnStep(make_vec_env(RandomEnv, 1)))
    model = quick_model(OwnStep(make_vec_env(RandomEnv, 1)))
    with pytest.raises(ValueError, match=message):
        model.learn(20, callback=SwitchOn())  # no gradient step looks at the options before


class SwitchOn(BaseCallback):
    model: Any

    def _on_step(self) -> bool:
        self.model.overlap = True
        return True


class OwnTrain(SoftAC):
    """Trains on in its own way."""

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        self._n_updates += gradient_steps


def test_a_train_of_ones_own_is_refused() -> None:
    """SB3 calls it behind each rollout: nothing of it would run while the environments step."""
    message = "`overlap` is True, but it must be False with a .* that has a `train` of its own"
    options: dict[str, Any] = {"learning_starts": 10, "buffer_size": 500}
    with pytest.raises(ValueError, match=message):
        OwnTrain("MlpPolicy", RandomEnv(), overlap=True, **options)
    assert OwnTrain("MlpPolicy", RandomEnv(), **options).learn(20)._n_updates == 10
    model = quick_model(RandomEnv(), overlap=True)
    vars(model)["train"] = lambda gradient_steps, batch_size: None
    with pytest.raises(ValueError, match=message):
        model.learn(20)


class OwnUpdate(ActorCriticUpdate):
    """Counts."""

    n_calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        OwnUpdate.n_calls += 1
        return super().__call__(*args, **kwargs)


class WithOwnUpdate(SoftAC):
    update_class = OwnUpdate


def test_an_update_of_ones_own_runs_meanwhile() -> None:
    env = Recorded(make_vec_env(RandomEnv, 1))
    model = WithOwnUpdate(
        "MlpPolicy", env, overlap=True, learning_starts=10, buffer_size=500, batch_size=8, seed=0, compile=False
    )
    env.model, OwnUpdate.n_calls = model, 0
    model.learn(15)
    assert OwnUpdate.n_calls == model._n_updates == 5
    assert [count for what, count in env.events if what == "end"] == [0] * 11 + [1, 2, 3, 4]

"""Saving and loading: everything that training needs comes back, and nothing else changes on the way."""

import copy
import errno
import io
import os
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_softac import SoftAC, SoftACPolicy, UntrustedFileError
from sb3_softac.update import LearnedTemperature
from tests.helpers import (
    OPTIONS,
    SMALL,
    CountingEnv,
    RandomDiscreteEnv,
    RandomEnv,
    assert_same_parameters,
    fill_buffer,
    make_model,
    net,
    parameters_of,
    quick_model,
)


def seed_everything() -> None:
    random.seed(7)
    th.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002  # the generator that SB3's buffers draw from


def state_of_generators() -> tuple[Any, ...]:
    """Where Python's and NumPy's generators are, and the seed that PyTorch's began with."""
    state: Any = np.random.get_state()  # noqa: NPY002
    return random.getstate(), (state[1].tobytes(), *state[2:]), th.initial_seed()


@pytest.mark.parametrize("kwargs", OPTIONS)
def test_training_after_load_equals_training_without_it(kwargs: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(**kwargs)
    fill_buffer(model)
    model.train(5, batch_size=16)
    model.save(tmp_path / "model.zip")
    loaded = SoftAC.load(tmp_path / "model.zip", env=RandomEnv(), device="cpu")
    assert_same_parameters(model, loaded)
    assert loaded._n_updates == 5
    loaded.replay_buffer = model.replay_buffer
    loaded.set_logger(model.logger)
    for either in (model, loaded):
        seed_everything()
        either.train(5, batch_size=16)
    assert_same_parameters(model, loaded)


@pytest.mark.parametrize("update", ["dual", "log", "exp"])
def test_the_temperature_keeps_training_after_load(update: str, tmp_path: Path) -> None:
    model = make_model(ent_coef_update=update, ent_coef="auto_0.5", learning_rate=1e-2)
    fill_buffer(model)
    model.train(5, batch_size=16)
    saved = model.temperature.value.item()
    assert saved != pytest.approx(0.5, abs=1e-3)
    model.save(tmp_path / "model.zip")
    loaded = SoftAC.load(tmp_path / "model.zip", env=RandomEnv())
    assert loaded.temperature.value.item() == saved
    loaded.set_logger(model.logger)
    fill_buffer(loaded)
    loaded.train(1, batch_size=16)
    assert loaded.temperature.value.item() != saved


@pytest.mark.parametrize("kwargs", [{}, {"value_network": True, "ent_coef_update": "log"}, {"ent_coef": 0.2}])
def test_set_parameters_and_get_parameters(kwargs: dict[str, Any]) -> None:
    source, target = make_model(seed=1, **kwargs), make_model(seed=2, **kwargs)
    fill_buffer(source)
    source.train(3, batch_size=16)
    parameters: Any = source.get_parameters()
    target.set_parameters(parameters)
    assert_same_parameters(source, target)
    names = {"policy", "actor.optimizer", "critic.optimizer"}
    names |= {"value_net.optimizer"} if kwargs.get("value_network") else set()
    names |= set() if "ent_coef" in kwargs else {"temperature", "temperature.optimizer"}
    assert set(source.get_parameters()) == names


def test_set_parameters_from_a_file(tmp_path: Path) -> None:
    source, target = make_model(seed=1), make_model(seed=2)
    source.save(tmp_path / "model.zip")
    target.set_parameters(str(tmp_path / "model.zip"))
    assert_same_parameters(source, target)
    only_the_policy: Any = {"policy": source.policy.state_dict()}
    with pytest.raises(ValueError, match="Names of parameters do not match"):
        target.set_parameters(only_the_policy)
    target.set_parameters(only_the_policy, exact_match=False)


class TestFiles:
    def test_streams(self) -> None:
        model, stream = make_model(), io.BytesIO()
        model.save(stream)
        stream.seek(0)
        assert_same_parameters(model, SoftAC.load(stream))

    def test_names_as_in_sb3(self, tmp_path: Path) -> None:
        model = make_model()
        model.save(tmp_path / "new folder" / "model")
        model.save(str(tmp_path / "model.pkl"))
        assert (tmp_path / "new folder" / "model.zip").is_file()
        assert (tmp_path / "model.pkl").is_file()
        SoftAC.load(tmp_path / "new folder" / "model")

    def test_a_folder_of_that_name(self, tmp_path: Path) -> None:
        (tmp_path / "model.zip").mkdir()
        with pytest.warns(UserWarning, match="is a folder. Will save instead to"):
            make_model().save(tmp_path / "model")
        SoftAC.load(tmp_path / "model.zip_2")

    def test_a_symbolic_link_stays_one(self, tmp_path: Path) -> None:
        (tmp_path / "link.zip").symlink_to(tmp_path / "real.zip")
        make_model().save(tmp_path / "link.zip")
        assert (tmp_path / "link.zip").is_symlink()
        SoftAC.load(tmp_path / "real.zip")

    def test_a_failed_save_keeps_the_old_file(self, tmp_path: Path) -> None:
        """SB3 opens the file first, and leaves it empty when an attribute cannot be pickled."""
        model, path = make_model(), tmp_path / "model.zip"
        model.save(path)
        before = path.read_bytes()
        model.seed = (seed for seed in range(3))  # type: ignore[assignment]  # a generator cannot be pickled
        with pytest.raises(TypeError, match="pickle"):
            model.save(path)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["model.zip"]

    def test_an_interrupted_write_leaves_no_rubbish(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model, path = make_model(), tmp_path / "model.zip"
        model.save(path)
        before = path.read_bytes()

        def full_disk(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "no space left on device")

        monkeypatch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="no space") as raised:
            model.save(path)
        assert raised.value.filename == str(path)
        assert path.read_bytes() == before
        assert len(list(tmp_path.iterdir())) == 1

    def test_two_threads_save_to_one_path(self, tmp_path: Path) -> None:
        model, errors = make_model(), []

        def save() -> None:
            try:
                for _ in range(20):
                    model.save(tmp_path / "model")
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=save) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert [file.name for file in tmp_path.iterdir()] == ["model.zip"]

    def test_include_and_exclude(self, tmp_path: Path) -> None:
        model = make_model(learning_starts=123)
        model.save(tmp_path / "model.zip", exclude=["learning_starts"])
        assert SoftAC.load(tmp_path / "model.zip").learning_starts == 100


class TestReplayBuffer:
    def test_loading_to_act_allocates_none(self, tmp_path: Path) -> None:
        model = make_model()
        model.save(tmp_path / "model.zip")
        loaded = SoftAC.load(tmp_path / "model.zip")
        assert loaded.replay_buffer is None
        observation = np.zeros(4, np.float32)
        np.testing.assert_array_equal(
            loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
        )
        loaded.set_env(RandomEnv())
        assert loaded.replay_buffer is not None
        assert loaded.replay_buffer.buffer_size == 500
        loaded.learn(5)

    def test_the_same_with_hindsight_experience_replay(self, tmp_path: Path) -> None:
        env = BitFlippingEnv(n_bits=4, continuous=True)
        model = SoftAC(
            "MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, policy_kwargs=SMALL, buffer_size=100, device="cpu"
        )
        model.save(tmp_path / "model.zip")
        loaded = SoftAC.load(tmp_path / "model.zip")
        assert loaded.replay_buffer is None
        loaded.set_env(env)
        assert isinstance(loaded.replay_buffer, HerReplayBuffer)

    @pytest.mark.parametrize("steps", [20, 29, 30, 50])  # of 30 rows
    @pytest.mark.parametrize("options", [{}, {"n_steps": 3}, {"optimize_memory_usage": True}])
    def test_rows_that_are_not_in_use_take_no_space(self, steps: int, options: dict[str, Any], tmp_path: Path) -> None:
        if options.get("optimize_memory_usage"):
            options = {**options, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
        model = quick_model(buffer_size=30, **options).learn(steps)
        model.save_replay_buffer(tmp_path / "buffer.pkl")
        loaded = quick_model(buffer_size=30, **options)
        loaded.load_replay_buffer(tmp_path / "buffer.pkl")
        theirs = SAC("MlpPolicy", RandomEnv(), device="cpu", buffer_size=30)
        theirs.load_replay_buffer(tmp_path / "buffer.pkl")
        for name, rows in vars(model.replay_buffer).items():
            for other in (loaded, theirs):
                there = getattr(other.replay_buffer, name)
                if isinstance(rows, np.ndarray):
                    assert np.array_equal(rows, there)
                    assert there.flags.writeable
                elif name in ("pos", "full"):
                    assert rows == there

    def test_the_size_of_a_file_is_that_of_its_transitions(self, tmp_path: Path) -> None:
        model = quick_model(buffer_size=1_000_000).learn(20)
        model.save_replay_buffer(tmp_path / "buffer.pkl")
        assert (tmp_path / "buffer.pkl").stat().st_size < 10_000

    def test_new_gamma_and_n_steps_reach_it(self, tmp_path: Path) -> None:
        model = make_model(n_steps=3, gamma=0.9)
        model.save(tmp_path / "model.zip")
        model.save_replay_buffer(tmp_path / "buffer.pkl")
        loaded = SoftAC.load(tmp_path / "model.zip", env=RandomEnv(), gamma=0.8, n_steps=5)
        assert isinstance(loaded.replay_buffer, NStepReplayBuffer)
        assert (loaded.replay_buffer.gamma, loaded.replay_buffer.n_steps) == (0.8, 5)
        del loaded.replay_buffer  # frees its memory first, as SB3's users do
        loaded.load_replay_buffer(tmp_path / "buffer.pkl")
        assert isinstance(loaded.replay_buffer, NStepReplayBuffer)
        assert (loaded.replay_buffer.gamma, loaded.replay_buffer.n_steps) == (0.8, 5)

    def test_from_one_step_to_n_steps_and_back(self, tmp_path: Path) -> None:
        make_model().save(tmp_path / "one.zip")
        make_model(n_steps=3).save(tmp_path / "three.zip")
        assert isinstance(SoftAC.load(tmp_path / "one.zip", env=RandomEnv(), n_steps=3).replay_buffer, NStepReplayBuffer)
        one = SoftAC.load(tmp_path / "three.zip", env=RandomEnv(), n_steps=1)
        assert not isinstance(one.replay_buffer, NStepReplayBuffer)

    def test_a_buffer_of_the_users_own_must_agree(self, tmp_path: Path) -> None:
        kwargs = {"n_steps": 3, "gamma": 0.99}
        make_model(replay_buffer_class=NStepReplayBuffer, replay_buffer_kwargs=kwargs).save(tmp_path / "model.zip")
        with pytest.raises(ValueError, match=r"`gamma` is 0\.9, but the replay buffer discounts with 0\.99"):
            SoftAC.load(tmp_path / "model.zip", env=RandomEnv(), gamma=0.9)

    def test_a_one_step_buffer_has_no_n_step_returns(self, tmp_path: Path) -> None:
        make_model().save_replay_buffer(tmp_path / "buffer.pkl")
        model = make_model(n_steps=3)
        before = model.replay_buffer
        with pytest.raises(ValueError, match="`n_steps` is 3, but the ReplayBuffer has one-step returns"):
            model.load_replay_buffer(tmp_path / "buffer.pkl")
        assert model.replay_buffer is before

    def test_a_buffer_of_another_number_of_environments_is_refused(self, tmp_path: Path) -> None:
        quick_model(CountingEnv(5)).learn(20).save_replay_buffer(tmp_path / "buffer")
        four = quick_model(make_vec_env(lambda: CountingEnv(5), 4))
        before = four.replay_buffer
        with pytest.raises(ValueError, match="for 1 environments, but the model has 4"):
            four.load_replay_buffer(tmp_path / "buffer")
        assert four.replay_buffer is before


class TestReplacedArguments:
    def test_learning_rates(self, tmp_path: Path) -> None:
        make_model(learning_rate=1e-3, actor_learning_rate="lin_1e-3").save(tmp_path / "model.zip")
        loaded = SoftAC.load(tmp_path / "model.zip", env=RandomEnv(), learning_rate="lin_4e-4", actor_learning_rate=1e-5)
        loaded.set_logger(make_model().logger)
        fill_buffer(loaded)
        loaded._current_progress_remaining = 0.5
        loaded.train(1, batch_size=8)
        assert loaded.critic.optimizer.param_groups[0]["lr"] == pytest.approx(2e-4)
        assert loaded.actor.optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)

    def test_a_fixed_temperature(self, tmp_path: Path) -> None:
        make_model(ent_coef=0.2).save(tmp_path / "model.zip")
        assert SoftAC.load(tmp_path / "model.zip").temperature.value.item() == pytest.approx(0.2)
        assert SoftAC.load(tmp_path / "model.zip", ent_coef=0.4).temperature.value.item() == pytest.approx(0.4)

    def test_bounds_and_targets_of_a_learned_temperature(self, tmp_path: Path) -> None:
        make_model().save(tmp_path / "model.zip")
        loaded = SoftAC.load(tmp_path / "model.zip", target_entropy=-0.5, ent_coef_max=2.0)
        assert loaded.target_entropy == -0.5
        assert loaded.temperature.maximum == 2.0

    def test_a_target_entropy_asked_for_is_taken(self, tmp_path: Path) -> None:
        """Also one that equals the saved automatic one, beside a scale that the file has."""
        model = make_model(env=RandomDiscreteEnv(2), target_entropy_scale=0.98)
        model.save(tmp_path / "model.zip")
        loaded = SoftAC.load(tmp_path / "model.zip", target_entropy=model.target_entropy)
        assert isinstance(loaded.temperature, LearnedTemperature)
        assert loaded.temperature.target_entropy == pytest.approx(0.98 * np.log(2))

    @pytest.mark.parametrize("update", ["dual", "log"])
    @pytest.mark.parametrize(("alpha", "expected"), [(0.05, 0.05), (5.0, 0.5)])
    def test_a_bound_meets_the_temperature_that_was_saved(
        self, update: str, alpha: float, expected: float, tmp_path: Path
    ) -> None:
        """Not the initial one, which was 1."""
        model = make_model(ent_coef_update=update)
        assert isinstance(model.temperature, LearnedTemperature)
        model.temperature.set_value(alpha)
        model.save(tmp_path / "model.zip")
        loaded = SoftAC.load(tmp_path / "model.zip", ent_coef_max=0.5)
        assert loaded.temperature.value.item() == pytest.approx(expected)
        assert loaded.temperature.value.item() <= 0.5

    @pytest.mark.parametrize(
        ("saved", "replaced"),
        [
            ({}, {"value_network": True}),
            ({}, {"use_sde": True}),
            ({}, {"ent_coef": 0.2}),
            ({"ent_coef": 0.2}, {"ent_coef": "auto"}),
            ({}, {"ent_coef": "auto_0.5"}),
            ({}, {"ent_coef_update": "log"}),
        ],
    )
    def test_what_the_weights_have_no_place_for(self, saved: dict[str, Any], replaced: dict[str, Any], tmp_path: Path) -> None:
        make_model(**saved).save(tmp_path / "model.zip")
        (name,) = replaced
        with pytest.raises(ValueError, match=f"`{name}` is .*, but the saved model needs {name} "):
            SoftAC.load(tmp_path / "model.zip", **replaced)

    def test_bad_values_are_refused_as_at_construction(self, tmp_path: Path) -> None:
        make_model().save(tmp_path / "model.zip")
        with pytest.raises(ValueError, match="`tau` is 2"):
            SoftAC.load(tmp_path / "model.zip", tau=2)
        with pytest.raises(ValueError, match="`learning_rat` cannot be replaced at loading: allowed are learning_rate"):
            SoftAC.load(tmp_path / "model.zip", learning_rat=1e-3)
        with pytest.raises(ValueError, match=r"`policy_kwargs` is \{'net_arch': \[8\]\}, but the saved model needs"):
            SoftAC.load(tmp_path / "model.zip", policy_kwargs={"net_arch": [8]})

    def test_the_saved_policy_kwargs_may_be_repeated(self, tmp_path: Path) -> None:
        cases: list[dict[str, Any]] = [{}, {"use_sde": True}, {"value_network": True}]
        for kwargs in cases:
            for net_arch in ([16, 16], (16, 16)):
                make_model(policy_kwargs={"net_arch": net_arch}, **kwargs).save(tmp_path / "model.zip")
                loaded = SoftAC.load(tmp_path / "model.zip", policy_kwargs={"net_arch": net_arch})
                assert loaded.actor.net_arch == [16, 16]

    def test_the_users_dicts(self, tmp_path: Path) -> None:
        make_model(n_steps=3).save(tmp_path / "model.zip")
        given: dict[str, Any] = {"handle_timeout_termination": True}
        SoftAC.load(tmp_path / "model.zip", env=RandomEnv(), replay_buffer_kwargs=given)
        assert given == {"handle_timeout_termination": True}
        SoftAC.load(tmp_path / "model.zip", env=RandomEnv(), replay_buffer_kwargs=None)
        with pytest.raises(ValueError, match=r"`replay_buffer_kwargs` is .* both are arguments of SoftAC"):
            SoftAC.load(tmp_path / "model.zip", env=RandomEnv(), replay_buffer_kwargs={"n_steps": 5, "gamma": 0.5})
        with pytest.raises(ValueError, match=r"`policy_kwargs` is \{\}, but the saved model needs"):
            SoftAC.load(tmp_path / "model.zip", policy_kwargs=None)

    def test_a_subclass_and_its_arguments(self, tmp_path: Path) -> None:
        class Mine(SoftAC):
            def __init__(self, *args: Any, mine: int = 1, **kwargs: Any) -> None:
                self.mine = mine
                super().__init__(*args, **kwargs)

        Mine("MlpPolicy", RandomEnv(), mine=2, buffer_size=10).save(tmp_path / "model.zip")
        assert Mine.load(tmp_path / "model.zip").mine == 2
        assert Mine.load(tmp_path / "model.zip", mine=3, gamma=0.9).mine == 3
        with pytest.raises(ValueError, match="`yours` cannot be replaced"):
            Mine.load(tmp_path / "model.zip", yours=3)

    def test_a_policy_class_of_ones_own(self, tmp_path: Path) -> None:
        """With no more arguments than it needs."""

        class Mine(SoftACPolicy):
            def __init__(self, observation_space: Any, action_space: Any, lr_schedule: Any, use_sde: bool = False) -> None:
                super().__init__(observation_space, action_space, lr_schedule, net_arch=[8], use_sde=use_sde)

        with pytest.warns(UserWarning, match="`policy_class` is saved with what loading refuses unless"):
            SoftAC(Mine, RandomEnv(), buffer_size=10).save(tmp_path / "model.zip")
        with pytest.raises(UntrustedFileError, match="in its attribute `policy_class` holds code"):
            SoftAC.load(tmp_path / "model.zip")
        assert type(SoftAC.load(tmp_path / "model.zip", trusted=True).policy) is Mine
        assert type(SoftAC.load(tmp_path / "model.zip", custom_objects={"policy_class": Mine}).policy) is Mine

    def test_statistics_window(self, tmp_path: Path) -> None:
        make_model().save(tmp_path / "model.zip")
        loaded = SoftAC.load(tmp_path / "model.zip", env=RandomEnv(), stats_window_size=3)
        loaded.learn(40, reset_num_timesteps=False)
        assert loaded.ep_info_buffer is not None
        assert len(loaded.ep_info_buffer) == 3

    def test_a_buffer_class_among_the_custom_objects(self, tmp_path: Path) -> None:
        class Mine(ReplayBuffer):
            pass

        make_model().save(tmp_path / "model.zip")
        loaded = SoftAC.load(tmp_path / "model.zip", env=RandomEnv(), custom_objects={"replay_buffer_class": Mine})
        assert type(loaded.replay_buffer) is Mine

    def test_custom_objects_as_rl_zoo_passes_them(self, tmp_path: Path) -> None:
        make_model(learning_rate="lin_1e-3").save(tmp_path / "model.zip")
        custom = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
        assert SoftAC.load(tmp_path / "model.zip", custom_objects=custom, buffer_size=1).lr_schedule(1.0) == 0.0


class TestRandomState:
    def test_loading_does_not_start_the_random_numbers_again(self, tmp_path: Path) -> None:
        """The three generators that SB3 seeds go on from where they were; PyTorch's also draws the weights to be replaced."""
        make_model(seed=3).save(tmp_path / "model.zip")
        seed_everything()
        expected = state_of_generators()
        SoftAC.load(tmp_path / "model.zip", env=RandomEnv())
        assert state_of_generators() == expected
        make_model(seed=3)  # the constructor does restart them
        assert all(after != before for after, before in zip(state_of_generators(), expected, strict=True))

    def test_unless_a_seed_is_passed(self, tmp_path: Path) -> None:
        make_model(seed=3).save(tmp_path / "model.zip")
        draws = []
        for _ in range(2):
            loaded = SoftAC.load(tmp_path / "model.zip", env=RandomEnv(), seed=5)
            draws.append(np.random.rand())  # noqa: NPY002
            assert loaded.seed == 5
        assert draws[0] == draws[1]

    def test_the_seed_itself_is_kept(self, tmp_path: Path) -> None:
        make_model(seed=3).save(tmp_path / "model.zip")
        assert SoftAC.load(tmp_path / "model.zip").seed == 3


def test_a_file_of_sb3_is_pointed_to_from_sb3(tmp_path: Path) -> None:
    SAC("MlpPolicy", RandomEnv(), policy_kwargs=dict(SMALL), buffer_size=10).save(tmp_path / "sac.zip")
    with pytest.raises(ValueError, match=r"saved by SB3's SAC: SoftAC\.from_sb3\(SAC\.load\(path\)\)"):
        SoftAC.load(tmp_path / "sac.zip")


@pytest.mark.parametrize("kwargs", [{}, *OPTIONS])
def test_a_deep_copy_trains_on_its_own(kwargs: dict[str, Any]) -> None:
    model = make_model(**kwargs)
    fill_buffer(model)
    model.train(2, batch_size=16)
    before = {name: value.clone() for name, value in parameters_of(model)}
    duplicate = copy.deepcopy(model)
    assert duplicate.actor is duplicate.policy.actor
    seed_everything()
    duplicate.train(2, batch_size=16)
    for name, value in parameters_of(model):
        assert th.equal(value, before[name])
    name = "policy/critic.q_networks.output.weight"
    assert not th.equal(dict(parameters_of(duplicate))[name], before[name])
    seed_everything()
    model.train(2, batch_size=16)
    assert_same_parameters(model, duplicate)


def test_action_noise_and_counters_are_saved(tmp_path: Path) -> None:
    model = make_model(action_noise=NormalActionNoise(np.zeros(2), np.ones(2)), learning_starts=10, batch_size=8).learn(23)
    model.save(tmp_path / "model.zip")
    loaded = SoftAC.load(tmp_path / "model.zip", env=RandomEnv())
    assert (loaded.num_timesteps, loaded._n_updates, loaded._episode_num) == (23, 13, 4)
    assert isinstance(loaded.action_noise, NormalActionNoise)
    loaded.replay_buffer = model.replay_buffer
    loaded.learn(7, reset_num_timesteps=False)
    assert loaded.num_timesteps == 30


def test_a_copy_with_hindsight_trains() -> None:
    env = CountingEnv(10, goals=True)
    model = quick_model(env, "MultiInputPolicy", learning_starts=20, replay_buffer_class=HerReplayBuffer).learn(30)
    copied = copy.deepcopy(model).learn(30, reset_num_timesteps=False)
    assert copied._n_updates == 40


def test_an_empty_buffer_of_a_trained_model_is_warned_of(tmp_path: Path) -> None:
    quick_model(RandomEnv()).learn(20).save(tmp_path / "model.zip")
    loaded = SoftAC.load(tmp_path / "model.zip", env=RandomEnv())
    with pytest.warns(UserWarning, match="replay buffer of this trained model is empty"):
        loaded.learn(5, reset_num_timesteps=False)


@pytest.mark.parametrize("wanted", ["target", "joint", "joint_target"])
@pytest.mark.parametrize("saved", ["target", "joint", "joint_target"])
def test_another_bootstrap_needs_the_same_networks(saved: str, wanted: str, tmp_path: Path) -> None:
    """A file is whole, and the message names the option, not what it is made of."""
    make_model(bootstrap=saved, compile=False, **net(normalization="batch")).save(tmp_path / "model.zip")
    if (saved == "joint") == (wanted == "joint"):
        loaded = SoftAC.load(tmp_path / "model.zip", env=RandomEnv(), bootstrap=wanted, compile=False)
        fill_buffer(loaded)
        loaded.set_logger(Logger(None, []))
        loaded.train(2, batch_size=8)
        assert loaded.bootstrap == wanted
        return
    needs = "bootstrap 'joint', which has no target networks" if saved == "joint" else "bootstrap 'target' or 'joint_target'"
    with pytest.raises(ValueError, match=f"`bootstrap` is '{wanted}', but the saved model needs {needs}"):
        SoftAC.load(tmp_path / "model.zip", env=RandomEnv(), bootstrap=wanted)

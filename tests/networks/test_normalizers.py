"""Observations normalised inside the policy: against NumPy over everything that was seen, and against policies without it."""

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_softac import SoftAC, SoftACPolicy, SoftQL
from sb3_softac.checkpoint import ExactCheckpointCallback
from sb3_softac.collect import CapturedActor, DirectActor
from sb3_softac.export import ExportedPolicy
from sb3_softac.files.model_state import check_parameters
from sb3_softac.files.unpickling import Damage
from sb3_softac.networks import Normalized, ObservationNormalizer
from sb3_softac.networks.normalizers import RunningMoments
from tests import graph_standin
from tests.helpers import (
    DICT,
    SMALL,
    CountingEnv,
    RandomDiscreteEnv,
    RandomEnv,
    SampledEnv,
    SpaceEnv,
    assert_close,
    assert_same_parameters,
    fill_buffer,
    make_model,
    net,
    quick_model,
    restart_generators,
)

SCALE, SHIFT = np.array([1e3, 1e-2, 1.0, 5.0]), np.array([1e4, 3.0, 0.0, -7.0])
SMALL_IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)


class FarEnv(RandomEnv):
    """Features on scales of their own; it remembers all that it has returned."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.seen: list[np.ndarray[Any, Any]] = []

    def _observe(self) -> np.ndarray[Any, Any]:
        self.seen.append((super()._observe() * SCALE + SHIFT).astype(np.float32))
        return self.seen[-1]


class FarDiscreteEnv(FarEnv, RandomDiscreteEnv):
    pass


def moments_of(model: SoftAC, index: int = 0) -> Any:
    assert model.policy.normalizer is not None
    return model.policy.normalizer.moments[index]


def assert_moments(moments: Any, values: Any) -> None:
    """Those of all ``values``, (n, ...), in float64."""
    values = np.asarray(values, np.float64)
    assert moments.count.item() == len(values)
    np.testing.assert_allclose(moments.mean.numpy(), values.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.var.numpy(), values.var(axis=0), rtol=1e-9, atol=1e-14)


def normalized(model: SoftAC, obs: Any) -> Any:
    """What the networks should see, by NumPy."""
    moments = moments_of(model)
    return ((obs - moments.mean.numpy()) / np.sqrt(moments.var.numpy() + 1e-8)).astype(np.float32)


def twin_of(model: SoftAC, **kwargs: Any) -> SoftAC:
    """A model with the same weights that takes observations as they are."""
    twin = make_model(env=model.env, **kwargs)
    weights = {name: value for name, value in model.policy.state_dict().items() if not name.startswith("normalizer.")}
    twin.policy.load_state_dict(weights)
    return twin


class TestStatistics:
    @pytest.mark.parametrize("sizes", [[1], [1, 1], [3, 1, 4, 1, 5], [7, 200, 1]])
    def test_they_are_those_of_numpy(self, sizes: list[int]) -> None:
        """Also where the mean is a million times the deviation."""
        rng = np.random.default_rng(0)
        values = rng.normal(size=(sum(sizes), 2, 3)) * 1e-2 + 1e4
        moments = RunningMoments((2, 3))
        for part in np.split(values, np.cumsum(sizes)[:-1]):
            moments.update(part)
        assert_moments(moments, values)

    def test_before_the_first_observation_nothing_changes(self) -> None:
        moments, values = RunningMoments((3,)), th.tensor([[1.0, -2.0, 300.0]])
        th.testing.assert_close(moments(values), values)
        moments.update(np.full((1, 3), 5.0))
        assert moments.var.tolist() == [0.0] * 3
        assert moments(th.full((1, 3), 5.0)).tolist() == [[0.0] * 3]  # and not NaN

    @pytest.mark.parametrize("n_envs", [1, 3])
    @pytest.mark.parametrize("terminates", [True, False])
    def test_each_observation_of_the_environments_counts_once(self, n_envs: int, terminates: bool) -> None:
        """The first ones of each `learn`, and the last ones of episodes; those in the replay buffer stay as they were."""
        env = DummyVecEnv([lambda: FarEnv(terminates=terminates)] * n_envs)
        model = quick_model(env, normalize_observations=True, seed=0)
        for n_steps, resets in ((20, True), (17, False), (8, True)):
            model.learn(n_steps * n_envs, reset_num_timesteps=resets)
        seen = [obs for each in env.envs for obs in each.seen]  # type: ignore[attr-defined]
        assert len(seen) == n_envs * (45 + 8 + 2)  # steps, resets in between, and two by `learn`
        assert_moments(moments_of(model), seen)
        assert model.replay_buffer is not None
        stored = model.replay_buffer.next_observations[:45].reshape(-1, 4)
        assert {tuple(row) for row in stored} <= {tuple(obs) for obs in seen}

    def test_neither_evaluation_nor_gradient_steps_count(self) -> None:
        model = quick_model(FarEnv(), normalize_observations=True)
        callback = EvalCallback(FarEnv(), eval_freq=5, verbose=0, warn=False)
        model.learn(30, callback=callback)
        assert moments_of(model).count == 31 + 6
        before = copy.deepcopy(model.policy.normalizer)
        evaluate_policy(model, make_vec_env(FarEnv), 2)
        model.train(5, batch_size=8)
        assert before is not None
        for name, buffer in before.named_buffers():
            assert th.equal(model.policy.normalizer.state_dict()[name], buffer)  # type: ignore[union-attr]

    def test_a_stop_by_a_callback_loses_no_observation(self) -> None:
        env = FarEnv()
        model = quick_model(env, normalize_observations=True, train_freq=10)
        model.learn(50, callback=lambda *_: model.num_timesteps < 13)
        assert model.num_timesteps == 13
        assert_moments(moments_of(model), env.seen)

    def test_vec_normalize_of_rewards_may_stay(self) -> None:
        vec = VecNormalize(DummyVecEnv([FarEnv]), norm_obs=False)
        model = quick_model(vec, normalize_observations=True).learn(20)
        assert_moments(moments_of(model), vec.unwrapped.envs[0].seen)  # type: ignore[attr-defined]


NETWORKS: dict[str, dict[str, Any]] = {
    "default": {},
    "value network": {"value_network": True},
    "discrete": {"env": FarDiscreteEnv},
    "quantiles": net(critic_head="quantile", n_quantiles=5),
    "shared extractor": net(share_features_extractor=True),
    "gsde": {"use_sde": True},
    "joint": {"bootstrap": "joint", **net(normalization="batch_renorm")},
}


class TestNetworks:
    @pytest.mark.parametrize("case", NETWORKS)
    def test_all_of_them_see_normalised_observations(self, case: str) -> None:
        options = dict(NETWORKS[case])
        env = options.pop("env", FarEnv)
        model = make_model(env=env(), normalize_observations=True, learning_starts=10, **options).learn(20)
        twin = twin_of(model, **options)
        assert model.replay_buffer is not None
        obs = model.replay_buffer.observations[:9, 0]
        raw, expected = th.as_tensor(obs), th.as_tensor(normalized(model, obs))
        actions = th.zeros(9, 2)
        n_networks = 0
        for network, other in zip(model.policy.networks(), twin.policy.networks(), strict=True):
            if network is not None and other is not None:
                n_networks += 1
                called = (actions,) if "critic" in type(network).__name__.lower() and case != "discrete" else ()
                more = {"deterministic": True} if network is model.actor else {}
                th.testing.assert_close(network(raw, *called, **more), other(expected, *called, **more))
        assert n_networks >= 2
        seen, theirs = (each.predict(part, deterministic=True)[0] for each, part in ((model, obs), (twin, expected.numpy())))
        np.testing.assert_allclose(seen, theirs, atol=1e-5)

    @pytest.mark.parametrize("options", [{}, {"value_network": True}, {"n_steps": 3, "soft_n_step": True}], ids=str)
    def test_gradient_steps_equal_those_on_normalised_data(self, options: dict[str, Any]) -> None:
        model = make_model(env=FarEnv(), normalize_observations=True, learning_starts=40, compile=False, **options).learn(40)
        twin = twin_of(model, compile=False, **options)
        twin.replay_buffer = copy.deepcopy(model.replay_buffer)
        for name in ("observations", "next_observations"):
            array = getattr(twin.replay_buffer, name)
            array[:] = normalized(model, array)
        for each in (model, twin):
            restart_generators()
            each.train(4, batch_size=16)
        weights = twin.policy.state_dict()
        assert model._n_updates == 4
        for name, value in model.policy.state_dict().items():
            if not name.startswith("normalizer."):
                th.testing.assert_close(value, weights[name], rtol=1e-4, atol=1e-5)

    def test_one_normalizer_for_all_networks(self) -> None:
        model = make_model(normalize_observations=True)
        copied = copy.deepcopy(model)
        for each in (model, copied):
            users = [network.preprocess.normalizer for network in (each.actor, each.critic, each.critic_target)]  # type: ignore[union-attr]
            assert all(user is each.policy.normalizer for user in users)
        assert copied.policy.normalizer is not model.policy.normalizer
        copied.learn(10)
        assert moments_of(model).count == 0

    def test_a_network_that_is_put_in_the_place_of_another_uses_it_too(self) -> None:
        model = make_model(normalize_observations=True, learning_starts=5, batch_size=8)
        model.critic = copy.deepcopy(model.critic)
        model.policy.actor = copy.deepcopy(model.actor)
        model.learn(10)
        for network in (model.actor, model.critic):
            preprocess = network.preprocess
            assert isinstance(preprocess, Normalized)
            assert preprocess.normalizer is model.policy.normalizer

    def test_a_network_that_cannot_is_refused(self) -> None:
        model = make_model(normalize_observations=True)
        with pytest.raises(ValueError, match="`normalize_observations` is True, but a Linear has no `preprocess`"):
            model.actor = th.nn.Linear(4, 2)


class TestFastWays:
    def changed(self, model: SoftAC) -> SoftAC:
        """Gradient steps on one batch after another, and in between statistics that change."""
        fill_buffer(model)
        restart_generators()
        assert model.policy.normalizer is not None
        for factor in (1.0, 30.0, 0.2):
            model.policy.normalizer.update(np.random.default_rng(1).normal(size=(50, 4)) * factor + factor)
            model.train(2, batch_size=32)
        return model

    @pytest.mark.traced
    @pytest.mark.parametrize("value_network", [False, True])
    def test_compiled_steps_read_the_statistics(self, value_network: bool) -> None:
        options: dict[str, Any] = {"normalize_observations": True, "value_network": value_network}
        compiled, eager = (self.changed(make_model(compile=way, **options)) for way in (True, False))
        assert compiled._engine.n_builds == 1
        assert_close(compiled, eager)
        constant = make_model(compile=False, **options)
        fill_buffer(constant)
        restart_generators()
        constant.train(6, batch_size=32)
        assert not th.allclose(constant.actor.mu.weight, eager.actor.mu.weight, atol=1e-5)

    def test_captured_steps_read_the_statistics(self, monkeypatch: pytest.MonkeyPatch) -> None:
        eager = self.changed(make_model(compile=False, normalize_observations=True))
        graph_standin.install(monkeypatch)
        captured = self.changed(make_model(compile="auto", normalize_observations=True))
        assert captured._engine.captures
        assert_close(captured, eager)

    @pytest.mark.parametrize("discrete", [False, True])
    @pytest.mark.parametrize("captured", [False, True])
    def test_acting_reads_the_statistics(self, captured: bool, discrete: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """The actions of `learn` are those of `predict`."""
        if captured:
            graph_standin.install(monkeypatch)
        env = make_vec_env(FarDiscreteEnv if discrete else FarEnv, 3)
        model = make_model(env=env, normalize_observations=True, learning_starts=6, batch_size=8)
        model.learn(30)
        assert isinstance(model._runtime.actor, CapturedActor if captured else DirectActor)
        for _ in range(2):
            actions = []
            for method in (SoftAC._sample_action, OffPolicyAlgorithm._sample_action):
                th.manual_seed(0)
                actions.append(method(model, 0, None, 3)[0])
            np.testing.assert_allclose(actions[0], actions[1], atol=2e-6)
            assert model.policy.normalizer is not None
            model.policy.normalizer.update(np.random.default_rng(1).normal(size=(50, 4)) * 1e5)
        assert isinstance(model._runtime.actor, CapturedActor if captured else DirectActor)  # it has stayed

    def test_acting_falls_back_where_the_normalizer_is_changed(self) -> None:
        model = make_model(normalize_observations=True, learning_starts=5, batch_size=8).learn(20)
        assert isinstance(model._runtime.actor, DirectActor)
        moments_of(model).register_forward_hook(lambda *_: th.zeros(1, 4))
        assert model._last_obs is not None
        model._sample_action(0, None, 1)
        assert model._runtime.actor is None


MIXED = spaces.Dict(
    {
        "far": spaces.Box(-np.inf, np.inf, (3,), np.float32),
        "near": spaces.Box(-1.0, 1.0, (2, 2), np.float64),
        "choice": spaces.Discrete(3),
        "counts": spaces.Box(0, 9, (2,), np.int64),
        "image": SMALL_IMAGE,
    }
)


class TestDicts:
    def test_boxes_of_floats_are_normalised_and_the_rest_is_not(self) -> None:
        env = SampledEnv(observation_space=MIXED)
        model = quick_model(env, "MultiInputPolicy", normalize_observations=True).learn(15)
        normalizer = model.policy.normalizer
        assert isinstance(normalizer, ObservationNormalizer)
        assert normalizer.names == ("far", "near")
        assert [moments.count.item() for moments in normalizer.moments] == [16 + 3] * 2  # type: ignore[operator]
        sample: Any = env.observation_space.sample()
        obs = {key: th.as_tensor(np.asarray(part)[None]) for key, part in sample.items()}
        seen = model.critic.preprocess(obs)
        raw = quick_model(env, "MultiInputPolicy").critic.preprocess(obs)
        for key in ("choice", "counts", "image"):
            assert th.equal(seen[key], raw[key])
        for key, moments in zip(normalizer.names, normalizer.moments, strict=True):
            expected = (raw[key].double() - moments.mean) / (moments.var + 1e-8).sqrt()  # type: ignore[operator, union-attr]
            th.testing.assert_close(seen[key], expected.float())
            assert not th.allclose(seen[key], raw[key], atol=1e-2)

    def test_hindsight(self) -> None:
        """Observation and both goals; what is relabelled does not count."""
        env = CountingEnv(5, goals=True)
        model = quick_model(
            env, "MultiInputPolicy", normalize_observations=True, normalize_rewards=5.0, replay_buffer_class=HerReplayBuffer
        ).learn(30)
        assert model.policy.normalizer is not None
        assert model.policy.normalizer.names == ("achieved_goal", "desired_goal", "observation")
        seen = [[episode, time] for episode in range(6) for time in range(6)] + [[6, 0]]
        assert_moments(moments_of(model, 0), seen)
        assert_moments(moments_of(model, 1), np.full((37, 2), -1.0))
        assert_moments(moments_of(model, 2), seen)

    @pytest.mark.parametrize("format", ["onnx", "torchscript"])
    @pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
    def test_export(self, format: Any, tmp_path: Path) -> None:
        env = CountingEnv(5, goals=True)
        model = quick_model(env, "MultiInputPolicy", normalize_observations=True).learn(30)
        policy = ExportedPolicy(model.export(tmp_path / "policy", format))
        assert policy.metadata["normalised"] == ["achieved_goal", "desired_goal", "observation"]
        obs = env.reset()[0]
        np.testing.assert_allclose(policy.predict(obs)[0], model.predict(obs, deterministic=True)[0], atol=1e-5)


class TestFiles:
    def trained(self, **kwargs: Any) -> SoftAC:
        kwargs = {"env": FarEnv(), "learning_starts": 10, "batch_size": 8, "normalize_observations": True} | kwargs
        return make_model(**kwargs).learn(25)

    def through_a_file(self, model: SoftAC, **kwargs: Any) -> SoftAC:
        stream = io.BytesIO()
        model.save(stream)
        stream.seek(0)
        return SoftAC.load(stream, device="cpu", **kwargs)

    def test_a_loaded_model_has_them(self) -> None:
        model = self.trained()
        loaded = self.through_a_file(model)
        assert_same_parameters(model, loaded)
        obs = np.stack(model.env.envs[0].unwrapped.seen)  # type: ignore[union-attr]
        np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
        loaded.set_env(FarEnv())
        loaded.learning_starts = 100
        loaded.learn(10, reset_num_timesteps=False)
        assert moments_of(loaded).count == moments_of(model).count + 1 + 10 + 2

    def test_a_policy_that_is_saved_alone_has_them(self, tmp_path: Path) -> None:
        model = self.trained()
        model.policy.save(str(tmp_path / "policy"))
        loaded = SoftACPolicy.load(str(tmp_path / "policy"), device="cpu")
        assert model._last_obs is not None
        ours, theirs = (each.predict(model._last_obs, deterministic=True)[0] for each in (model, loaded))
        np.testing.assert_array_equal(ours, theirs)

    @pytest.mark.parametrize("format", ["onnx", "torchscript"])
    @pytest.mark.parametrize("discrete", [False, True])
    @pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
    def test_an_exported_policy_has_them(self, format: Any, discrete: bool, tmp_path: Path) -> None:
        model = self.trained(env=FarDiscreteEnv() if discrete else FarEnv())
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        policy = ExportedPolicy(model.export(tmp_path / "policy", format))
        assert policy.metadata["normalised"] == ["observation"]
        obs = np.stack(model.env.envs[0].unwrapped.seen)  # type: ignore[union-attr]
        np.testing.assert_allclose(policy.predict(obs)[0], model.predict(obs, deterministic=True)[0], atol=1e-5)
        model.learn(10)  # it has its own
        assert not th.equal(moments_of(model).mean, before["normalizer.moments.0.mean"])
        with pytest.raises(ValueError, match="`vec_normalize` normalises observations, but it must be None"):
            model.export(tmp_path / "twice", format, vec_normalize=VecNormalize(DummyVecEnv([FarEnv])))

    def test_a_warm_start_takes_them_over(self) -> None:
        model = self.trained()
        other = make_model(env=FarEnv(), normalize_observations=True).warm_start(model)
        for name, value in model.policy.state_dict().items():
            assert th.equal(other.policy.state_dict()[name], value)
        assert moments_of(other) is not moments_of(model)
        plain = make_model(env=FarEnv())
        with pytest.raises(ValueError, match="its normalize_observations is True, here it is False"):
            plain.warm_start(model)
        with pytest.raises(ValueError, match="its normalize_observations is False, here it is True"):
            model.warm_start(plain)
        with pytest.raises(ValueError, match="its normalize_observations is False, here it is True"):
            model.warm_start(SAC("MlpPolicy", FarEnv(), buffer_size=10, policy_kwargs=dict(SMALL), device="cpu"))

    def test_a_file_without_them_cannot_get_them(self) -> None:
        plain = make_model()
        assert not self.through_a_file(plain, normalize_observations=False).normalize_observations
        with pytest.raises(ValueError, match="`normalize_observations` is True, but the saved model needs"):
            self.through_a_file(plain, normalize_observations=True)
        with pytest.raises(ValueError, match="`normalize_observations` is False, but the saved model needs"):
            self.through_a_file(self.trained(), normalize_observations=False)
        plain._built_for.pop("normalize_observations")  # type: ignore[union-attr]  # as in files before it
        assert self.through_a_file(plain).policy.normalizer is None
        with pytest.raises(ValueError, match="`normalize_observations` is True, but the saved model needs"):
            self.through_a_file(plain, normalize_observations=True)

    def test_a_checkpoint_holds_no_others(self) -> None:
        model = self.trained()
        check_parameters(model, model.get_parameters())
        for name, value in (("var", -1.0), ("count", -1.0), ("mean", np.inf), ("var", np.inf), ("mean", np.nan)):
            parameters = copy.deepcopy(model.get_parameters())
            parameters["policy"][f"normalizer.moments.0.{name}"].fill_(value)
            with pytest.raises(Damage, match=f"`normalizer.moments.0.{name}` of `policy` is"):
                check_parameters(model, parameters)

    def test_a_run_goes_on_without_vec_normalize_of_observations(self, tmp_path: Path) -> None:
        def env(**kwargs: Any) -> VecNormalize:
            return VecNormalize(DummyVecEnv([RandomEnv]), **({"norm_obs": False, "norm_reward": False} | kwargs))

        options: dict[str, Any] = {"normalize_observations": True, "normalize_rewards": 5.0}
        model = quick_model(env(), **options)
        model.learn(20, callback=ExactCheckpointCallback(10, tmp_path))
        with pytest.raises(ValueError, match="VecNormalize in `env` normalises observations, too"):
            SoftAC.resume(tmp_path, env(norm_obs=True))
        with pytest.raises(ValueError, match="VecNormalize in `env` normalises rewards, too"):
            SoftAC.resume(tmp_path, env(norm_reward=True))
        assert moments_of(SoftAC.resume(tmp_path, env(), **options)).count > 10

    def test_sb3_has_none(self) -> None:
        with pytest.raises(ValueError, match="`normalize_observations` is True and would have to be False"):
            self.trained(ent_coef_update="log").to_sb3()
        sac = SAC("MlpPolicy", RandomEnv(), buffer_size=10, policy_kwargs=dict(SMALL), device="cpu")
        with pytest.raises(ValueError, match="`normalize_observations` is True, but it must be False: the networks of `sac`"):
            SoftAC.from_sb3(sac, normalize_observations=True)


REFUSED: dict[str, tuple[Any, str]] = {
    "discrete": (spaces.Discrete(5), "labels"),
    "multi-discrete": (spaces.MultiDiscrete([2, 3]), "labels"),
    "multi-binary": (spaces.MultiBinary(3), "labels"),
    "integers": (spaces.Box(0, 9, (4,), np.int64), "may be labels"),
    "image": (SMALL_IMAGE, "images"),
    "image of floats": (spaces.Box(0.0, 1.0, (3, 36, 36)), "images"),
    "dict": (spaces.Dict({"a": spaces.Discrete(3), "b": SMALL_IMAGE}), "labels.*; images"),
}


class TestRefusals:
    @pytest.mark.parametrize("case", REFUSED)
    def test_spaces_without_a_mean(self, case: str) -> None:
        space, why = REFUSED[case]
        policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
        with pytest.raises(ValueError, match=f"`normalize_observations` is True, but it must be False with .*{why}"):
            quick_model(SpaceEnv(observation_space=space), policy, normalize_observations=True)

    @pytest.mark.parametrize("value", [1, "yes", None])
    def test_values(self, value: Any) -> None:
        with pytest.raises(ValueError, match=r"`normalize_observations` is .*, but it must be True or False"):
            make_model(normalize_observations=value)

    def test_other_places(self) -> None:
        with pytest.raises(ValueError, match="`policy_kwargs` contains normalize_observations, but it must be an argument"):
            make_model(policy_kwargs={**SMALL, "normalize_observations": True})
        with pytest.raises(TypeError, match="normalize_observations"):
            SoftQL("MlpPolicy", RandomEnv(), normalize_observations=True)  # type: ignore[call-arg]
        model = make_model()
        model.normalize_observations = True
        with pytest.raises(ValueError, match="`normalize_observations` was set to True, but it must stay False"):
            model.learn(5)

    def test_vec_normalize_of_observations(self) -> None:
        both = VecNormalize(DummyVecEnv([RandomEnv]), norm_reward=False)
        message = r"`normalize_observations` is on, but VecNormalize in `env` normalises observations, too: .*norm_obs=False"
        with pytest.raises(ValueError, match=message):
            make_model(env=both, normalize_observations=True)
        model, stream = make_model(normalize_observations=True), io.BytesIO()
        with pytest.raises(ValueError, match=message):
            model.set_env(both)
        model.save(stream)
        with pytest.raises(ValueError, match=message):
            SoftAC.load(stream, env=both)
        switched = VecNormalize(DummyVecEnv([RandomEnv]), norm_obs=False, norm_reward=False)
        model.set_env(switched)
        model.learn(5)
        switched.norm_obs = True
        with pytest.raises(ValueError, match=message):
            model.learn(5)

    def test_dicts_as_a_whole(self) -> None:
        """One key with a mean is enough."""
        model = quick_model(SampledEnv(observation_space=DICT), "MultiInputPolicy", normalize_observations=True)
        assert model.policy.normalizer is not None
        assert model.policy.normalizer.names == ("a",)

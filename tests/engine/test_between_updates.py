"""What else a GPU captures or does not wait for: acting between two updates, and the metrics of a ``train()``."""

import copy

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.logger import Logger

from sb3_softac import TrainingDivergedError
from sb3_softac.collect import CapturedActor
from tests.graph_standin import GraphStandIn
from tests.helpers import RandomDiscreteEnv, RandomEnv, build, make_model, restart_generators


class TestMetricsStayOnTheDevice:
    def test_they_are_read_at_the_next_train(self, standin: type[GraphStandIn]) -> None:
        """Those of one `train()` appear at the next one, with the values that eager steps log at once."""
        model, eager = build("auto"), build(False)
        logged: list[float] = []
        for n_steps in (8, 3):
            for each in (model, eager):
                restart_generators()
                each.train(n_steps, batch_size=32)
            logged.append(eager.logger.name_to_value["train/critic_loss"])
            if n_steps == 8:
                assert "train/critic_loss" not in model.logger.name_to_value
        assert model._engine.captures
        assert logged[1] != pytest.approx(logged[0], rel=1e-3)
        assert model.logger.name_to_value["train/critic_loss"] == pytest.approx(logged[0], rel=1e-4)
        model.train(0, batch_size=32)
        assert model.logger.name_to_value["train/critic_loss"] == pytest.approx(logged[1], rel=1e-4)

    def test_they_are_there_when_logs_are_dumped(self, standin: type[GraphStandIn], monkeypatch: pytest.MonkeyPatch) -> None:
        """By the model, and by a callback that evaluates."""
        for log_interval, callback in ((1, None), (None, EvalCallback(RandomEnv(), eval_freq=9, verbose=0, warn=False))):
            model = make_model(learning_starts=10)
            seen: list[bool] = []

            def dump(logger: Logger, step: int = 0, seen: list[bool] = seen) -> None:
                seen.append("train/critic_loss" in logger.name_to_value)

            with monkeypatch.context() as context:
                context.setattr(Logger, "dump", dump)
                model.learn(60, callback=callback, log_interval=log_interval)
            assert True in seen
            assert seen == sorted(seen)  # none is missing once training has begun

    def test_without_graphs_they_are_there_at_once(self, standin: type[GraphStandIn]) -> None:
        model = build(False)
        model.train(1, batch_size=32)
        assert model.logger.name_to_value["train/critic_loss"] > 0.0

    def test_divergence_is_noticed_at_the_next_train(self, standin: type[GraphStandIn]) -> None:
        model = build("auto", reward_scale=1e38)
        model.train(8, batch_size=32)
        with pytest.raises(TrainingDivergedError, match="Training has diverged after"):
            model.train(1, batch_size=32)

    def test_divergence_ends_the_training(self, standin: type[GraphStandIn]) -> None:
        model = make_model(learning_starts=10, reward_scale=1e38)
        with pytest.raises(TrainingDivergedError, match="diverged"):
            model.learn(30, log_interval=None)
        assert model.num_timesteps < 20


class TestCapturedActing:
    @pytest.mark.parametrize("discrete", [False, True])
    def test_acts_as_the_policy_does(self, discrete: bool, standin: type[GraphStandIn]) -> None:
        model = make_model(env=RandomDiscreteEnv(3, start=2) if discrete else RandomEnv(), learning_starts=5, batch_size=8)
        model.learn(20)
        actor = model._runtime.actor
        assert isinstance(actor, CapturedActor)
        assert isinstance(model._last_obs, np.ndarray)
        th.manual_seed(3)
        actions = actor(model._last_obs)
        th.manual_seed(3)
        with th.no_grad():
            expected = model.actor(th.as_tensor(model._last_obs))
        np.testing.assert_array_equal(actions, expected.numpy())
        again = actor(model._last_obs)
        assert discrete or not np.array_equal(actions, again)  # another draw

    def test_a_copy_does_not_act_for_the_original(self, standin: type[GraphStandIn]) -> None:
        model = make_model(learning_starts=5, batch_size=8).learn(20)
        duplicate = copy.deepcopy(model)
        assert duplicate._runtime.actor is None
        duplicate.learn(10)
        assert isinstance(duplicate._runtime.actor, CapturedActor)
        assert duplicate._runtime.actor.policy is duplicate.policy

    def test_not_without_graphs(self, standin: type[GraphStandIn]) -> None:
        assert not isinstance(make_model(learning_starts=5, compile=False).learn(6)._runtime.actor, CapturedActor)

    @pytest.mark.gpu
    def test_on_a_gpu(self) -> None:
        model = make_model(learning_starts=20, device="cuda").learn(60)
        assert isinstance(model._runtime.actor, CapturedActor)
        assert model._engine.captures
        assert np.isfinite(model.predict(np.zeros(4, np.float32))[0]).all()

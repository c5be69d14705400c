"""What bootstraps, scales, clips and is logged in gradient steps."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_softac import SoftAC, TrainingDivergedError
from sb3_softac.update.actor_critic import DRAWN_INSIDE
from tests.helpers import RandomEnv, assert_same_parameters, fill_buffer, logged, make_model, update_of


class CostEnv(RandomEnv):
    """``RandomEnv`` that returns the cost, −r, instead of the reward."""

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, -reward, *rest


@pytest.mark.parametrize("kwargs", [{}, {"value_network": True}, {"n_steps": 3}, {"ent_coef": 0.1}])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_negative_scale_turns_a_cost_into_a_reward_exactly(kwargs: dict[str, Any], normalize: bool) -> None:
    models = []
    for env_class, scale in ((RandomEnv, 1.0), (CostEnv, -1.0)):
        env: Any = make_vec_env(env_class, n_envs=1, seed=0)
        env = VecNormalize(env) if normalize else env
        model = make_model(env=env, reward_scale=scale, learning_starts=20, **kwargs)
        model.learn(60)
        models.append(model)
    assert models[0]._n_updates == 40
    assert_same_parameters(*models)


class TestBootstrapping:
    """y against the formula, for transitions that the environments made."""

    GAMMA = 0.9

    def collected(self, terminates: bool, n_envs: int, normalize: bool, n_steps: int) -> SoftAC:
        env: Any = make_vec_env(RandomEnv, n_envs=n_envs, seed=0, env_kwargs={"terminates": terminates})
        if normalize:
            env = VecNormalize(env)
        model = make_model(env=env, gamma=self.GAMMA, learning_starts=1000, n_steps=n_steps, ent_coef=0.0)
        model.learn(40 * n_envs)
        return model

    @pytest.mark.parametrize("n_steps", [1, 3])
    @pytest.mark.parametrize("normalize", [False, True])
    @pytest.mark.parametrize("n_envs", [1, 3])
    @pytest.mark.parametrize("terminates", [False, True])
    def test_time_outs_bootstrap_and_terminations_do_not(
        self, terminates: bool, n_envs: int, normalize: bool, n_steps: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With V(s') = 1 everywhere, y − (discounted rewards) is γ^n after a time-out and 0 after a termination."""
        model = self.collected(terminates, n_envs, normalize, n_steps)
        buffer = model.replay_buffer
        assert buffer is not None
        assert isinstance(buffer, NStepReplayBuffer) == (n_steps > 1)
        ends = np.argwhere(buffer.dones[: buffer.pos])
        assert len(ends) == 8 * n_envs
        assert buffer.timeouts[: buffer.pos].sum() == (0 if terminates else len(ends))
        update = update_of(model)
        monkeypatch.setattr(model.critic_target, "q_values", lambda obs, actions, indices: th.ones(2, len(actions)))
        for row, column in ends:
            with monkeypatch.context() as patch:
                patch.setattr(np.random, "randint", lambda *_, size, column=column, **__: np.full(size, column))
                samples = buffer._get_samples(np.full(4, row), env=model._vec_normalize_env)
                patch.setattr(buffer, "sample", lambda *_, samples=samples, **__: samples)
                batch = model._sample_batch(4)
            y = update.bellman_target(batch, model.temperature.value, DRAWN_INSIDE, update.numbers())
            expected = 0.0 if terminates else self.GAMMA
            np.testing.assert_allclose((y - batch.rewards).numpy(), expected, atol=1e-6)

    def test_n_step_discounts_reach_the_target(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = self.collected(terminates=True, n_envs=1, normalize=False, n_steps=3)
        assert model.replay_buffer is not None
        samples = model.replay_buffer._get_samples(np.array([0, 1, 2, 3, 4]))
        monkeypatch.setattr(model.replay_buffer, "sample", lambda *_, **__: samples)
        batch = model._sample_batch(5)
        # Episodes last five steps: from step 2 on the third step is the terminal one.
        np.testing.assert_allclose(batch.discounts.numpy(), [0.9**3, 0.9**3, 0.9**3, 0.9**2, 0.9], rtol=1e-6)
        assert batch.dones.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]


class TestOptionsOfAStep:
    def test_gradients_are_clipped_per_network(self) -> None:
        kwargs = {"policy_kwargs": {"net_arch": [16], "optimizer_class": th.optim.SGD}, "learning_rate": 1.0, "tau": 0.0}
        model = make_model(max_grad_norm=0.01, value_network=True, ent_coef=0.2, **kwargs)
        fill_buffer(model)
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        model.train(1, batch_size=16)
        for network in ("actor", "critic", "value_net"):
            steps = [v - before[k] for k, v in model.policy.state_dict().items() if k.startswith(f"{network}.")]
            assert math.sqrt(sum(float(step.square().sum()) for step in steps)) == pytest.approx(0.01, rel=1e-3)
        assert logged(model, "grad_norm_critic") > 0.01
        assert logged(model, "grad_norm_actor") > 0.01

    def test_each_network_has_its_own_rate(self) -> None:
        rates = {"actor": "lin_1e-3", "critic": 2e-3, "value": "exp_1e-3_1e-5", "ent_coef": "lin_1e-2_1e-4"}
        model = make_model(value_network=True, **{f"{name}_learning_rate": rate for name, rate in rates.items()})
        fill_buffer(model)
        model._current_progress_remaining = 0.5
        model.train(1, batch_size=16)
        assert model.value_net is not None
        optimizers: Any = {
            "actor": model.actor.optimizer,
            "critic": model.critic.optimizer,
            "value": model.value_net.optimizer,
            "ent_coef": model.temperature.optimizer,
        }
        expected = {"actor": 5e-4, "critic": 2e-3, "value": 1e-4, "ent_coef": 5.05e-3}
        for name, rate in expected.items():
            assert optimizers[name].param_groups[0]["lr"] == pytest.approx(rate)
            assert logged(model, f"{name}_learning_rate") == pytest.approx(rate)
        assert logged(model, "learning_rate") == pytest.approx(3e-4)

    def test_one_rate_for_all_by_default(self) -> None:
        model = make_model(learning_rate="lin_1e-3")
        fill_buffer(model)
        model._current_progress_remaining = 0.25
        model.train(1, batch_size=16)
        assert model.actor.optimizer.param_groups[0]["lr"] == model.critic.optimizer.param_groups[0]["lr"] == 2.5e-4
        assert "train/actor_learning_rate" not in model.logger.name_to_value

    def test_rates_stop_at_the_planned_end(self) -> None:
        """Eight environments overshoot the last step: a linear rate must not turn negative there."""
        model = make_model(learning_rate=lambda progress: 1e-3 * progress)
        fill_buffer(model)
        model._current_progress_remaining = -0.01
        model.train(1, batch_size=16)
        assert model.actor.optimizer.param_groups[0]["lr"] == 0.0

    def test_a_schedule_that_turns_negative_is_refused(self) -> None:
        model = make_model(actor_learning_rate=lambda progress: progress - 0.5)
        fill_buffer(model)
        model._current_progress_remaining = 0.1
        with pytest.raises(ValueError, match=r"`actor_learning_rate` is -0\.4"):
            model.train(1, batch_size=16)

    def test_the_logged_temperature_is_the_one_that_the_losses_used(self) -> None:
        model = make_model(learning_rate=0.1)
        fill_buffer(model)
        model.train(1, batch_size=16)
        assert logged(model, "ent_coef") == 1.0
        assert model.temperature.value.item() < 0.95

    def test_a_scheduled_temperature_reaches_the_losses(self) -> None:
        model = make_model(ent_coef="lin_0.4_0.2")
        fill_buffer(model)
        model._current_progress_remaining = 0.5
        model.train(1, batch_size=16)
        assert logged(model, "ent_coef") == pytest.approx(0.3)
        assert "train/ent_coef_loss" not in model.logger.name_to_value
        assert "train/target_entropy" not in model.logger.name_to_value

    def test_batch_normalisation_statistics_reach_the_targets(self) -> None:
        class BatchNormExtractor(BaseFeaturesExtractor):
            def __init__(self, observation_space: Any) -> None:
                super().__init__(observation_space, features_dim=4)
                self.norm = th.nn.BatchNorm1d(4)

            def forward(self, observations: th.Tensor) -> th.Tensor:
                normalised: th.Tensor = self.norm(observations)
                return normalised

        model = make_model(policy_kwargs={"net_arch": [8], "features_extractor_class": BatchNormExtractor}, tau=0.0)
        fill_buffer(model)
        model.train(3, batch_size=16)
        assert model.critic_target is not None
        online: Any = model.critic.features_extractor
        target: Any = model.critic_target.features_extractor
        assert online.norm.running_mean.abs().max() > 0.0
        assert th.equal(online.norm.running_mean, target.norm.running_mean)

    def test_divergence_stops_the_training(self) -> None:
        model = make_model()
        fill_buffer(model)
        model.actor.mu.register_parameter("bias", th.nn.Parameter(th.full((2,), math.nan)))
        with pytest.raises(TrainingDivergedError, match=r"diverged after 1 gradient steps: .*'actor_loss': nan"):
            model.train(1, batch_size=16)

    def test_logged_metrics(self) -> None:
        model = make_model(value_network=True)
        fill_buffer(model)
        model.train(2, batch_size=16)
        names = (
            "actor_loss critic_loss value_loss ent_coef ent_coef_loss learning_rate n_updates entropy target_entropy "
            "q_value log_std grad_norm_actor grad_norm_critic"
        )
        assert set(model.logger.name_to_value) == {f"train/{name}" for name in names.split()}
        assert logged(model, "n_updates") == 2
        assert logged(model, "target_entropy") == -2.0

    def test_the_target_entropy_is_minus_the_action_dimension(self) -> None:
        assert make_model().target_entropy == -2.0
        assert make_model(target_entropy=-0.7).target_entropy == -0.7
        assert make_model(target_entropy="-0.7").target_entropy == -0.7

    def test_metrics_are_means_over_the_call(self) -> None:
        single, double = make_model(), make_model()
        values = []
        for model, calls in ((single, [1, 1]), (double, [2])):
            fill_buffer(model)
            th.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002  # the generator that SB3's buffers draw from
            for gradient_steps in calls:
                model.train(gradient_steps, batch_size=16)
                values.append(logged(model, "critic_loss"))
        assert values[2] == pytest.approx((values[0] + values[1]) / 2, rel=1e-5)

"""Networks, optimizers and the temperature start again after given gradient steps; the rest of the training goes on."""

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import FakeImageEnv
from torch import nn

from sb3_softac import SoftAC, SoftACPolicy
from sb3_softac.checkpoint import ExactCheckpointCallback
from sb3_softac.engine.engine import MOST_BUILDS
from tests import graph_standin
from tests.files.resume_runs import Stop, Stopped
from tests.helpers import (
    DICT,
    SMALL,
    SampledEnv,
    assert_close,
    assert_same_parameters,
    build,
    logged,
    make_model,
    net,
    quick_model,
    restart_generators,
)
from tests.helpers import RandomEnv as Env


def weights(policy: nn.Module) -> dict[str, th.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


def begin(policy: Any, model: SoftAC) -> SoftACPolicy:
    """A policy as the model's, built from the random generator as it is now."""
    made: SoftACPolicy = type(policy)(model.observation_space, model.action_space, lambda _: 3e-4, **model.policy_kwargs)
    return made


CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "value network": {"value_network": True},
    "discrete": {"discrete": True},
    "gSDE": {"use_sde": True},
    "joint": {"bootstrap": "joint", **net(normalization="batch_renorm")},
    "joint through targets": {"bootstrap": "joint_target", **net(encoder="flash", net_arch=[16, 16])},
    "hypersphere": {**net(encoder="simba_v2", net_arch=[16], critic_head="categorical", value_range=(-90.0, 90.0))},
    "quantiles": {**net(critic_head="quantile", n_critics=3)},
    "shared": {**net(share_features_extractor=True)},
    "orthogonal": {**net(weight_init="orthogonal", layer_norm=True, dropout_rate=0.1)},
}


@pytest.mark.parametrize("case", CASES)
def test_all_is_as_in_a_new_policy_from_the_same_generator(case: str) -> None:
    """Weights, buffers and targets; averages of optimizers are 0, and α is back at its start."""
    model = build(False, ent_coef="auto_0.7", ent_coef_update="log", **CASES[case])
    model.train(5, batch_size=16)
    old = weights(model.policy)
    th.manual_seed(7)
    expected = weights(begin(model.policy, model))
    th.manual_seed(7)
    model._start_again()
    new = weights(model.policy)
    assert new.keys() == expected.keys()
    for name, value in new.items():
        assert th.equal(value, expected[name]), name
    assert sum(not th.equal(new[name], old[name]) for name in new) > len(new) / 2
    optimizers = [network.optimizer for network in model.policy.trained_networks().values()]
    for optimizer in [*optimizers, model.temperature.optimizer]:
        assert len(optimizer.state) > 0
        assert all(not value.any() for state in optimizer.state.values() for value in state.values())
    assert model.temperature.value.item() == pytest.approx(0.7)


def test_it_happens_after_exactly_so_many_updates() -> None:
    """The n-th update is of the old networks; what a reset does between it and the next one is done by hand here."""
    model, expected = (build(False, seed=3, resets=resets) for resets in ((3, 5), None))
    for n_steps in (3, 2, 4):  # also where a call of `train` begins
        restart_generators()
        model.train(n_steps, batch_size=16)
    for number, n_steps in enumerate((3, 2, 4)):
        restart_generators()
        if number:
            expected._start_again()
        expected.train(n_steps, batch_size=16)
    assert_same_parameters(model, expected)
    assert (model._n_resets, model._n_updates) == (2, 9)


def count(model: SoftAC, n_updates: int, size: int = 1) -> list[int]:
    """After how many updates the networks were new."""
    found = []
    original = model._start_again

    def spy() -> None:
        found.append(model._n_updates)
        original()

    model._start_again = spy  # type: ignore[method-assign]
    for _ in range(n_updates // size):
        model.train(size, batch_size=4)
    del model._start_again
    return found


def test_every_nth_and_a_tuple() -> None:
    assert count(build(False, resets=4), 13) == [4, 8, 12]
    assert count(build(False, resets=4), 12, size=6) == [4, 8]  # the one after 12 is due before the 13th
    assert count(build(False, resets=(1, 2, 7)), 10, size=5) == [1, 2, 7]
    assert count(build(False, resets=1), 3) == [1, 2]
    assert count(build(False), 5) == []


def test_buffer_counters_and_schedules_go_on() -> None:
    model = quick_model(Env(), learning_rate="lin_1e-3", resets=(20,)).learn(50)
    assert (model._n_updates, model.num_timesteps) == (40, 50)
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() == 50
    assert model.critic.optimizer.param_groups[0]["lr"] == 0.0  # where the schedule ends
    assert logged(model, "n_resets") == 1
    assert "train/n_resets" not in quick_model(Env()).learn(30).logger.name_to_value


def test_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    quick_model(Env(), resets=10, verbose=1).learn(35)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Reset")]
    assert lines == [f"Reset {n} after {10 * n} gradient steps: networks and optimizers start again" for n in (1, 2)]
    quick_model(Env(), resets=10).learn(35)
    assert "Reset" not in capsys.readouterr().out


def test_features_extractors_and_dict_observations() -> None:
    env: Any = SampledEnv(observation_space=DICT)
    model = quick_model(env, "MultiInputPolicy", resets=(5,))
    model.learn(20)
    assert model._n_resets == 1
    images: Any = FakeImageEnv(36, 36, discrete=False)
    model = SoftAC("CnnPolicy", images, buffer_size=50, learning_starts=5, batch_size=4, device="cpu", **net())
    before = weights(model.actor.features_extractor)
    model._start_again()
    assert not any(th.equal(value, before[name]) for name, value in weights(model.actor.features_extractor).items())


class Statistics(SoftACPolicy):
    """A policy with a module beside its networks, which its actor has, too."""

    def _build(self, lr_schedule: Any) -> None:
        self.statistics = nn.BatchNorm1d(3)
        super()._build(lr_schedule)
        self.actor.statistics = self.statistics


def test_what_else_a_policy_has_stays() -> None:
    model = SoftAC(Statistics, Env(), device="cpu", buffer_size=100, policy_kwargs=dict(SMALL))
    policy: Any = model.policy
    with th.no_grad():
        policy.statistics.running_mean.fill_(5.0)
        policy.statistics.weight.fill_(2.0)
    before, actor = weights(policy.statistics), weights(model.actor)
    model._start_again()
    assert all(th.equal(value, before[name]) for name, value in weights(policy.statistics).items())
    assert not th.equal(weights(model.actor)["mu.weight"], actor["mu.weight"])


def test_statistics_of_observations_and_returns_stay() -> None:
    model = quick_model(Env(), normalize_observations=True, normalize_rewards=5.0, resets=(30,), noise_repeat=4).learn(35)
    assert model.policy.normalizer is not None
    statistics, returns = weights(model.policy.normalizer), np.array(model._return_moments)
    model._start_again()
    assert all(th.equal(value, statistics[name]) for name, value in weights(model.policy.normalizer).items())
    np.testing.assert_array_equal(returns, np.array(model._return_moments))
    assert model.actor.preprocess.normalizer is model.policy.normalizer
    model.learn(20, reset_num_timesteps=False)
    assert model._n_resets == 2


def test_what_is_frozen_stays() -> None:
    model = build(False)
    model.critic.q_networks.hidden[0].weight.requires_grad_(False)
    next(model.temperature.parameters()).requires_grad_(False)
    model.temperature.set_value(0.3)  # type: ignore[operator]
    before = weights(model.critic)
    model._start_again()
    after = weights(model.critic)
    assert th.equal(after["q_networks.hidden.0.weight"], before["q_networks.hidden.0.weight"])
    assert not th.equal(after["q_networks.hidden.0.bias"], before["q_networks.hidden.0.bias"])
    assert_targets_follow(model)
    assert model.temperature.value.item() == pytest.approx(0.3)


def assert_targets_follow(model: SoftAC) -> None:
    for online, target in model.policy.targets():
        for left, right in zip(online.parameters(), target.parameters(), strict=True):
            assert th.equal(left, right)


def test_a_fixed_temperature_stays_and_a_learned_one_returns() -> None:
    model = quick_model(Env(), ent_coef="lin_0.4_0.2", resets=(30,)).learn(50)
    assert model.temperature.value.item() == pytest.approx(0.2 + 0.2 / 50, rel=0.1)
    model = build(False, ent_coef="auto_0.5", ent_coef_max=0.6, ent_coef_learning_rate=0.1)
    model.train(10, batch_size=16)
    assert abs(model.temperature.value.item() - 0.5) > 0.05
    model.ent_coef_max = 0.2  # lower than where it began
    model._follow_options()
    model._start_again()
    assert model.temperature.value.item() == pytest.approx(0.2)


@pytest.mark.parametrize("kind", [th.optim.SGD, th.optim.NAdam, th.optim.Adam])
def test_optimizers_of_any_kind_start_again(kind: Any) -> None:
    """As new ones: two trainings from equal weights, one of them with the optimizers of a training that was before."""
    options = net(optimizer_class=kind, **({"optimizer_kwargs": {"momentum": 0.9}} if kind is th.optim.SGD else {}))
    used, new = (build(False, ent_coef_update="log", **options) for _ in range(2))
    used.train(5, batch_size=16)
    for model in (used, new):
        th.manual_seed(3)
        model._start_again()
        model._n_updates = 0
        restart_generators()
        model.train(5, batch_size=16)
    assert_same_parameters(used, new)


# --- compiled, captured ------------------------------------------------------------------------------------------------


@pytest.mark.traced
def test_a_compiled_step_goes_on() -> None:
    """More resets than builds are allowed, and one build."""
    models = [build(compile, resets=3, value_network=True, ent_coef_update="log") for compile in (True, False)]
    for model in models:
        restart_generators()
        for _ in range(13):
            model.train(2, batch_size=16)
    compiled, eager = models
    assert compiled._n_resets == eager._n_resets == 8 > MOST_BUILDS
    assert compiled._engine.compiles
    assert compiled._engine.n_builds == 1
    assert_close(compiled, eager)


def test_a_captured_step_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit the eager one, on the memory that it was captured with."""
    eager = build(False, resets=4)
    restart_generators()
    eager.train(20, batch_size=16)
    graph_standin.install(monkeypatch)
    monkeypatch.setattr("sb3_softac.engine.engine.missing_for_compilation", lambda device: "a compiler")
    captured = build("auto", resets=4)
    restart_generators()
    captured.train(20, batch_size=16)
    assert captured._engine.captures
    assert captured._engine.n_builds == 1
    assert_close(captured, eager, 1e-6)


# --- files and copies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resets", [13, (9, 31, 40)])
def test_resumed_bit_for_bit(resets: Any, tmp_path: Path) -> None:
    """Stopped after one reset and before the next."""
    options: dict[str, Any] = {"seed": 0, "resets": resets, "gradient_steps": 2, "train_freq": 2}
    expected = quick_model(Env(), **options).learn(70)
    with pytest.raises(Stopped):
        quick_model(Env(), **options).learn(70, callback=[ExactCheckpointCallback(10, tmp_path), Stop(33)])
    model = SoftAC.resume(tmp_path, Env(), resets=resets).learn()
    assert_same_parameters(model, expected)
    assert (model._n_resets, model._n_updates) == (expected._n_resets, expected._n_updates)
    assert model._n_resets >= 3
    with pytest.raises(ValueError, match="`resets` is 7"):
        SoftAC.resume(tmp_path, Env(), resets=7)


def test_loaded_and_copied_models_go_on_with_their_schedule() -> None:
    model = quick_model(Env(), seed=0, resets=(15, 30)).learn(30)
    assert model._n_resets == 1
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    loaded = SoftAC.load(stream, Env())
    assert loaded.resets == (15, 30)
    for other in (loaded, copy.deepcopy(model)):
        other.learn(30)
        assert (other._n_updates, other._n_resets) == (40, 2)


def test_set_during_training() -> None:
    model: Any = build(False)
    model.train(3, batch_size=8)
    model.resets = np.array([2, 5])  # the first of them has passed
    model.train(4, batch_size=8)
    assert (model.resets, model._n_resets) == ((2, 5), 1)
    model.resets = 0
    with pytest.raises(ValueError, match="`resets` is 0"):
        model.train(1, batch_size=8)
    assert model.resets == (2, 5)


def test_a_network_of_the_users_own_cannot_start_again() -> None:
    model = build(False, resets=(2,))
    other = make_model(policy_kwargs={"net_arch": [5]})
    model.actor = other.actor
    model.train(2, batch_size=8)
    before = weights(model.policy)
    with pytest.raises(ValueError, match=r"a new actor, but it has been replaced .* latent_pi.0.weight is \(5, 4\) there"):
        model.train(1, batch_size=8)
    assert all(th.equal(value, before[name]) for name, value in weights(model.policy).items())
    model.resets = None
    model.train(1, batch_size=8)


def test_conversion() -> None:
    model = make_model(ent_coef_update="log", resets=100)
    with pytest.raises(ValueError, match="`resets` is 100 and would have to be None"):
        model.to_sb3()
    model.resets = None
    assert SoftAC.from_sb3(model.to_sb3(), resets=[5, 9]).resets == (5, 9)
    assert make_model(resets=50).warm_start(model).resets == 50


@pytest.mark.parametrize(
    "resets",
    [0, -5, 2.5, True, "100", (), (5, 5), (7, 3), (0, 4), (1, True), (1, 2.5), [None], {}, np.array(5.5), np.zeros(0)],
)
def test_refusals(resets: Any) -> None:
    with pytest.raises(ValueError, match=r"`resets` is .* but it must be"):
        make_model(resets=resets)


@pytest.mark.parametrize(
    ("resets", "normal"), [(1e4, 10_000), (range(5, 20, 5), (5, 10, 15)), ([3], (3,)), (np.array([1, 4]), (1, 4))]
)
def test_normal_forms(resets: Any, normal: Any) -> None:
    assert make_model(resets=resets).resets == normal


def test_spaces_with_images_in_a_dict() -> None:
    """The extractor of a Dict is rebuilt with its parts."""
    space = spaces.Dict({"image": spaces.Box(0, 255, (3, 36, 36), np.uint8), "vector": spaces.Box(-1, 1, (2,))})
    env: Any = SampledEnv(observation_space=space)
    model = quick_model(env, "MultiInputPolicy")
    fill = weights(model.actor.features_extractor)
    model._start_again()
    assert not th.equal(
        weights(model.actor.features_extractor)["extractors.image.cnn.0.weight"], fill["extractors.image.cnn.0.weight"]
    )

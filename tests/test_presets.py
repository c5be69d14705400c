"""Presets: exactly the listed values, and one update against each system's own equations in float64.

The equations stand in ``SYSTEMS`` as their papers, pages and codes write them; they share nothing with the package but the
networks of ``tests.reference``.
"""

import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger

from sb3_softac import SoftAC, presets
from sb3_softac.update.temperature import DualTemperature, ExpTemperature, FixedTemperature, LogTemperature
from sb3_softac.zoo import expand_preset
from tests import test_presets_modern
from tests.helpers import InjectedNoise, RandomDiscreteEnv, RandomEnv, fill_buffer
from tests.reference import Networks, Tensors

ACTION_DIM = 2
DROPOUT_RATE = 0.01  # of DroQ


def make(preset: str, env: Any = None, **overrides: Any) -> SoftAC:
    """The preset on a small environment, with a filled replay buffer."""
    arguments = presets.get(preset, buffer_size=300, seed=0, device="cpu", **overrides)
    model = SoftAC("MlpPolicy", env or RandomEnv(), **arguments)
    model.set_logger(Logger(None, []))
    fill_buffer(model)
    return model


LISTED: dict[str, dict[str, Any]] = {
    "sb3": {"learning_rate": 3e-4, "learning_starts": 100, "ent_coef": "auto", "ent_coef_update": "log", "actor_q": "min"},
    "haarnoja2018": {
        "value_network": True,
        "actor_q": "first",
        "target_q": "min",
        "ent_coef": 1.0,
        "reward_scale": 5.0,
        "learning_rate": 3e-4,
        "batch_size": 256,
        "tau": 0.005,
        "random_steps": 10_000,
        "gradient_steps": 1,
    },
    "haarnoja2018_hard": {
        "value_network": True,
        "actor_q": "first",
        "target_q": "min",
        "ent_coef": 1.0,
        "reward_scale": 5.0,
        "tau": 1.0,
        "target_update_interval": 1000,
        "gradient_steps": 4,
    },
    "haarnoja2019": {
        "value_network": False,
        "actor_q": "min",
        "target_q": "min",
        "ent_coef": "auto",
        "ent_coef_update": "exp",
        "learning_rate": 3e-4,
        "target_entropy": -2.0,
        "batch_size": 256,
    },
    "spinningup_v1": {
        "value_network": True,
        "actor_q": "first",
        "ent_coef": 0.2,
        "learning_rate": 1e-3,
        "batch_size": 100,
        "random_steps": 10_000,
        "gradient_steps": -1,
        "tau": 0.005,
    },
    "spinningup": {
        "value_network": False,
        "actor_q": "min",
        "ent_coef": 0.2,
        "learning_rate": 1e-3,
        "batch_size": 100,
        "random_steps": 10_000,
        "learning_starts": 1000,
        "gradient_steps": 50,
    },
    "slc": {
        "actor_learning_rate": "lin_1e-4_1e-10",
        "critic_learning_rate": "lin_3e-4_1e-10",
        "ent_coef_learning_rate": "lin_1e-4_1e-10",
        "ent_coef": "auto_0.99",
        "ent_coef_update": "dual",
        "random_steps": 0,
        "learning_starts": 1000,
        "gradient_steps": 100,
        "batch_size": 256,
        "target_entropy": -2.0,
    },
    "slc_code": {"ent_coef": "auto_0.99", "ent_coef_update": "exp", "gradient_steps": 100, "learning_starts": 1000},
    "softlearning": {"actor_q": "mean", "target_q": "min", "ent_coef_update": "exp", "learning_rate": 3e-4},
    "sigaud": {"actor_q": "target_min", "learning_rate": 3e-4, "target_entropy": -2.0, "actor_learning_rate": None},
    "redq": {"target_subset": 2, "actor_q": "mean", "gradient_steps": 20, "learning_starts": 5000, "policy_delay": 20},
    "droq": {"target_subset": None, "actor_q": "mean", "gradient_steps": 20, "learning_starts": 5000, "policy_delay": 20},
    "tqc": {
        "actor_q": "mean",
        "target_q": "min",
        "top_quantiles_to_drop_per_net": 2,
        "ent_coef_update": "log",
        "learning_rate": 3e-4,
        "batch_size": 256,
        "learning_starts": 100,
        "gradient_steps": 1,
    },
    "crossq": {"bootstrap": "joint", "policy_delay": 3, "learning_rate": 1e-3, "actor_q": "min", "ent_coef_update": "log"},
    "crossq_small": {"bootstrap": "joint", "policy_delay": 3, "learning_rate": 1e-3, "actor_q": "min", "batch_size": 256},
    "crossq_paper": {"bootstrap": "joint", "policy_delay": 3, "learning_rate": 1e-3, "learning_starts": 5000},
}
HIDDEN = {"spinningup_v1": [400, 300], "sigaud": [256]}
N_CRITICS = {"redq": 10}
N_OUTPUTS = {"tqc": 25}
OF_CRITICS = {"crossq": [1024, 1024], "crossq_paper": [2048, 2048]}
TRAIN_FREQ = {"spinningup_v1": (1, "episode"), "spinningup": (50, "step"), "slc": (100, "step"), "slc_code": (100, "step")}


class TestListedValues:
    def test_every_preset_has_a_constant(self) -> None:
        assert list(presets.PRESETS) == [*LISTED, *test_presets_modern.LISTED]
        for name, preset in presets.PRESETS.items():
            assert getattr(presets, name.upper()) is preset

    @pytest.mark.parametrize("name", LISTED)
    def test_construction(self, name: str) -> None:
        preset = presets.PRESETS[name]
        model = SoftAC("MlpPolicy", RandomEnv(), **{**preset, "buffer_size": 10})
        assert {key: getattr(model, key) for key in LISTED[name]} == LISTED[name]
        train_freq: Any = model.train_freq  # SB3 makes it a pair
        assert (train_freq.frequency, train_freq.unit.value) == TRAIN_FREQ.get(name, (1, "step"))
        hidden = HIDDEN.get(name, [256, 256])
        layers = [layer.out_features for layer in model.actor.latent_pi if isinstance(layer, th.nn.Linear)]
        assert layers == hidden
        shapes = [tuple(p.shape) for n, p in model.critic.named_parameters() if n.endswith("weight") and p.ndim == 3]
        n_critics = N_CRITICS.get(name, 2)
        assert [shape[0] for shape in shapes] == [n_critics] * len(shapes)
        assert [shape[2] for shape in shapes if shape[1] != 1] == [*OF_CRITICS.get(name, hidden), N_OUTPUTS.get(name, 1)]
        assert preset["buffer_size"] == 1_000_000
        assert preset["gamma"] == 0.99

    def test_temperatures(self) -> None:
        kinds = {
            FixedTemperature: {"haarnoja2018", "haarnoja2018_hard", "spinningup_v1", "spinningup"},
            DualTemperature: {"slc"},
            LogTemperature: {"sb3", "redq", "droq", "tqc", "crossq", "crossq_small"},
            ExpTemperature: {"haarnoja2019", "slc_code", "softlearning", "sigaud", "crossq_paper"},
        }
        assert {kind: {name for name in LISTED if type(make(name).temperature) is kind} for kind in kinds} == kinds

    def test_sb3_is_what_sb3_constructs(self) -> None:
        sac = SAC("MlpPolicy", RandomEnv(), buffer_size=10)
        for name, value in presets.SB3.items():
            if hasattr(sac, name) and name not in ("buffer_size", "policy_kwargs", "target_entropy"):
                assert (getattr(sac, name) if name != "train_freq" else sac.train_freq.frequency) == value, name  # type: ignore[union-attr]

    def test_spinning_up_starts_near_the_lower_half_of_its_bounds(self) -> None:
        """Its head starts near tanh(0): lo + ½(hi − lo) = −9."""
        model = make("spinningup_v1")
        log_std = model.actor.get_action_dist_params(th.rand(5, 4))[1]
        th.testing.assert_close(log_std, th.full_like(log_std, -9.0))
        assert model.actor.log_std_bounding == "tanh"

    def test_droq_regularises_its_critics(self) -> None:
        kinds = [type(layer).__name__ for layer in make("droq").critic.q_networks.hidden]
        assert kinds == ["EnsembleLinear", "Dropout", "EnsembleLayerNorm", "ReLU"] * 2
        assert presets.DROQ["policy_kwargs"]["dropout_rate"] == 0.01

    def test_sigaud_with_discrete_actions(self) -> None:
        model = SoftAC("MlpPolicy", RandomDiscreteEnv(5), **presets.get("sigaud", buffer_size=10))
        assert model.target_entropy == pytest.approx(0.98 * math.log(5))

    def test_rates_of_slc_over_the_training(self) -> None:
        model = make("slc")
        for progress, share in ((1.0, 1.0), (0.5, 0.5), (0.0, 0.0)):
            model._current_progress_remaining = progress
            model._update_schedules()
            rates: list[Any] = [model.actor.optimizer, model.critic.optimizer, model.temperature.optimizer]
            for optimizer, start in zip(rates, (1e-4, 3e-4, 1e-4), strict=True):
                rate = optimizer.param_groups[0]["lr"]
                assert rate == pytest.approx(share * start + (1 - share) * 1e-10, rel=1e-9)


class System(Networks):
    """What the systems share: SB3's names, Polyak averaging, and one forward pass of each network."""

    def __init__(self, model: SoftAC) -> None:
        super().__init__(model)
        self.before = dict(self.weights)
        self.gradients: Tensors = {}
        self.rates = {"actor": 3e-4, "critic": 3e-4, "value_net": 3e-4}
        self.gamma = 0.99

    def observe(self, batch: Any, noises: list[th.Tensor]) -> None:
        self.s, self.a, self.s2 = batch.observations.double(), batch.actions.double(), batch.next_observations.double()
        self.r, self.d = batch.rewards.double().squeeze(1), batch.dones.double().squeeze(1)
        self.eps = [noise.double() for noise in noises]

    def adam(self, loss: th.Tensor, weights: Tensors, net: str) -> None:
        """Adam's first step, −λ g / (|g| + 1e-8)."""
        names = [name for name in weights if name.startswith(f"{net}.")]
        for name, gradient in zip(names, th.autograd.grad(loss, [weights[name] for name in names]), strict=True):
            self.gradients[name] = gradient
            self.weights[name] = self.weights[name] - self.rates[net] * gradient / (gradient.abs() + 1e-8)

    def adam_on_log_alpha(self, gradient: float, rate: float = 3e-4) -> None:
        self.alpha = th.tensor(math.exp(math.log(self.alpha) - rate * gradient / (abs(gradient) + 1e-8)), dtype=th.float64)

    def min_q(self, net: str, s: th.Tensor, a: th.Tensor, w: Tensors) -> th.Tensor:
        return th.stack(self.q(net, s, a, w)).min(0).values

    def entropy_gap(self) -> float:
        """Ĥ − H̄ with H̄ = −A, at the policy of before."""
        _, log_prob = self.pi(self.s, self.eps[0], self.before)
        return float(-log_prob.mean()) + ACTION_DIM

    def soft_target(self, w: Tensors, reduce: Callable[[list[th.Tensor]], th.Tensor]) -> th.Tensor:
        """r + γ(1 − d)(R Q̄(s', ã') − α log π(ã'|s'))."""
        a2, log_prob = self.pi(self.s2, self.eps[1], w)
        q = reduce(self.q("critic_target", self.s2, a2, w))
        target: th.Tensor = self.r + self.gamma * (1 - self.d) * (q - self.alpha * log_prob)
        return target.detach()

    def minimum(self, qs: list[th.Tensor]) -> th.Tensor:
        return th.stack(qs).min(0).values

    def with_value_network(self, reward_scale: float, tau: float) -> None:
        """1801.01290: V, Q and π; the actor follows Q_1."""
        w, alpha = self.trainable(), self.alpha
        a, log_prob = self.pi(self.s, self.eps[0], w)
        v_target = (self.min_q("critic", self.s, a, w) - alpha * log_prob).detach()
        q_target = (reward_scale * self.r + self.gamma * (1 - self.d) * self.v("value_net_target", self.s2, w)).detach()
        self.adam(0.5 * ((self.v("value_net", self.s, w) - v_target) ** 2).mean(), w, "value_net")
        q1, q2 = self.q("critic", self.s, self.a, w)
        self.adam(0.5 * ((q1 - q_target) ** 2).mean() + 0.5 * ((q2 - q_target) ** 2).mean(), w, "critic")
        w = self.trainable()
        a, log_prob = self.pi(self.s, self.eps[0], w)
        self.adam((alpha * log_prob - self.q("critic", self.s, a, w)[0]).mean(), w, "actor")
        self.track("value_net", "value_net_target", tau)

    def with_target_critics(
        self,
        critic_loss: Callable[[list[th.Tensor], th.Tensor], th.Tensor],
        q_of_actor: Callable[["System", th.Tensor, Tensors], th.Tensor],
        reduce: Callable[[list[th.Tensor]], th.Tensor],
        actor: bool = True,
    ) -> None:
        """1812.05905 without the temperature."""
        w = self.trainable()
        target = self.soft_target(w, reduce)
        self.adam(critic_loss(self.q("critic", self.s, self.a, w), target), w, "critic")
        if actor:
            w = self.trainable()
            a, log_prob = self.pi(self.s, self.eps[0], w)
            self.adam((self.alpha * log_prob - q_of_actor(self, a, w)).mean(), w, "actor")
        self.track("critic", "critic_target", 0.005)


def half_squared_errors(qs: list[th.Tensor], y: th.Tensor) -> th.Tensor:
    return th.stack([0.5 * ((q - y) ** 2).mean() for q in qs]).sum()


def squared_errors(qs: list[th.Tensor], y: th.Tensor) -> th.Tensor:
    """Spinning Up's code and REDQ's: no ½, which Adam's first step does not see."""
    return th.stack([((q - y) ** 2).mean() for q in qs]).sum()


def min_of_critics(system: System, a: th.Tensor, w: Tensors) -> th.Tensor:
    return system.min_q("critic", system.s, a, w)


def mean_of_critics(system: System, a: th.Tensor, w: Tensors) -> th.Tensor:
    return th.stack(system.q("critic", system.s, a, w)).mean(0)


def min_of_targets(system: System, a: th.Tensor, w: Tensors) -> th.Tensor:
    return system.min_q("critic_target", system.s, a, w)


def sb3(x: System) -> None:
    x.alpha = th.tensor(1.0, dtype=th.float64)
    gap = x.entropy_gap()
    x.with_target_critics(half_squared_errors, min_of_critics, x.minimum)
    x.adam_on_log_alpha(gap)  # of −log α · mean(log π + H̄)


def haarnoja2018(x: System) -> None:
    x.alpha = th.tensor(1.0, dtype=th.float64)
    x.with_value_network(reward_scale=5.0, tau=0.005)


def haarnoja2018_hard(x: System) -> None:
    x.alpha = th.tensor(1.0, dtype=th.float64)
    x.with_value_network(reward_scale=5.0, tau=1.0)


def haarnoja2019(x: System) -> None:
    x.alpha = th.tensor(1.0, dtype=th.float64)
    gap, alpha = x.entropy_gap(), float(x.alpha)
    x.with_target_critics(half_squared_errors, min_of_critics, x.minimum)
    x.adam_on_log_alpha(alpha * gap)  # of −α · mean(log π + H̄)


def spinningup_v1(x: System) -> None:
    x.alpha = th.tensor(0.2, dtype=th.float64)
    x.rates = dict.fromkeys(x.rates, 1e-3)
    x.raw_log_std_to_log_std = lambda raw: -20 + 0.5 * (2 - -20) * (th.tanh(raw) + 1)  # type: ignore[method-assign]
    x.with_value_network(reward_scale=1.0, tau=0.005)


def spinningup(x: System) -> None:
    x.alpha = th.tensor(0.2, dtype=th.float64)
    x.rates = dict.fromkeys(x.rates, 1e-3)
    x.with_target_critics(squared_errors, min_of_critics, x.minimum)


def slc(x: System) -> None:
    x.alpha = th.tensor(0.99, dtype=th.float64)
    x.rates = {"actor": 1e-4, "critic": 3e-4}
    gap = x.entropy_gap()
    x.with_target_critics(half_squared_errors, min_of_critics, x.minimum)
    x.alpha = (x.alpha - 1e-4 * gap).clamp(min=0)  # its page: α ← max(0, α + δ∇J)


def slc_code(x: System) -> None:
    x.alpha = th.tensor(0.99, dtype=th.float64)
    x.rates = {"actor": 1e-4, "critic": 3e-4}
    gap, alpha = x.entropy_gap(), float(x.alpha)
    x.with_target_critics(half_squared_errors, min_of_critics, x.minimum)
    x.adam_on_log_alpha(alpha * gap, rate=1e-4)


def softlearning(x: System) -> None:
    x.alpha = th.tensor(1.0, dtype=th.float64)
    gap, alpha = x.entropy_gap(), float(x.alpha)
    x.with_target_critics(half_squared_errors, mean_of_critics, x.minimum)
    x.adam_on_log_alpha(alpha * gap)


def sigaud(x: System) -> None:
    x.alpha = th.tensor(1.0, dtype=th.float64)
    gap, alpha = x.entropy_gap(), float(x.alpha)
    x.with_target_critics(half_squared_errors, min_of_targets, x.minimum)
    x.adam_on_log_alpha(alpha * gap)


SYSTEMS = [sb3, haarnoja2018, haarnoja2018_hard, haarnoja2019, spinningup_v1, spinningup, slc, slc_code, softlearning, sigaud]


def one_update(model: SoftAC, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[th.Tensor]]:
    """Do one gradient step of the preset's batch size; return its batch and the normal noise that it drew."""
    assert model.replay_buffer is not None
    batch, noise = model.replay_buffer.sample(model.batch_size), InjectedNoise(1)
    monkeypatch.setattr(model.replay_buffer, "sample", lambda *_, **__: batch)
    noise.install(monkeypatch)
    model.train(1, batch_size=model.batch_size)
    return batch, noise.drawn


def first_gradients(model: SoftAC) -> Tensors:
    """The gradients that the optimizers saw: Adam's first moment is 0.1 g after its first step."""
    gradients = {}
    for network in ("actor", "critic", "value_net"):
        module: Any = getattr(model, network)
        for name, parameter in [] if module is None else module.named_parameters():
            if parameter in module.optimizer.state:
                gradients[f"{network}.{name}"] = module.optimizer.state[parameter]["exp_avg"].double() / 0.1
    return gradients


def assert_updated(model: SoftAC, system: System, critic_scale: float = 1.0) -> None:
    """Every gradient, every weight, and α.

    Adam's first step hides the size of a gradient, so both are compared: gradients in full, weights where a gradient is so
    clear that rounding does not decide the step. ``critic_scale`` is the factor between the two critic losses.
    """
    gradients, n_compared = first_gradients(model), 0
    assert gradients.keys() == system.gradients.keys()
    for name, gradient in gradients.items():
        expected = system.gradients[name] * (critic_scale if name.startswith("critic.") else 1.0)
        th.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()), msg=name)
    for name, weight in model.policy.state_dict().items():
        if name in system.gradients:
            rate = system.rates[name.split(".")[0]]
            step, expected = weight.double() - system.before[name], system.weights[name] - system.before[name]
            clear = system.gradients[name].abs() > 1e-4
            n_compared += int(clear.sum())
            th.testing.assert_close(step[clear], expected[clear], rtol=0.02, atol=0.01 * rate, msg=name)
            assert step.abs().max() <= 1.01 * rate
        else:
            moved = (system.weights[name] - system.before[name]).abs().max()
            tolerance = 1e-6 + 0.01 * float(moved)
            th.testing.assert_close(weight.double(), system.weights[name], rtol=0.0, atol=tolerance, msg=name)
    assert n_compared > 500
    assert model.temperature.value.item() == pytest.approx(float(system.alpha), rel=1e-5)


def separate_targets(model: SoftAC) -> None:
    """Targets that differ from their networks, so that it shows which of them is used, and how they follow."""
    with th.no_grad():
        for target in (model.critic_target, model.value_net_target):
            for parameter in [] if target is None else target.parameters():
                parameter.add_(0.02 * th.randn_like(parameter))


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.__name__)
def test_one_update_follows_the_systems_own_equations(
    system: Callable[[System], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(system.__name__)
    if system is haarnoja2018_hard:
        model._n_updates = 999  # the thousandth copies the value network
    if system is spinningup_v1:
        th.nn.init.normal_(model.actor.log_std.weight, std=0.1)  # zero by log_std_init: then no noise would be seen
        th.nn.init.zeros_(model.actor.log_std.bias)
        model.actor.log_std.bias.data += 1.0
    separate_targets(model)
    own = System(model)
    own.observe(*one_update(model, monkeypatch))
    system(own)
    assert_updated(model, own, critic_scale=0.5 if system is spinningup else 1.0)  # its loss has no 1/2


class Ensemble(System):
    """REDQ and DroQ (their common code): a subset of the targets, the mean of all critics in the actor."""

    def __init__(self, model: SoftAC) -> None:
        super().__init__(model)
        self.masks: list[th.Tensor] = []  # of dropout, in the order of the layers that use them
        self.subset: list[int] = []

    def stacked(self, prefix: str, index: int, x: th.Tensor, weights: Tensors) -> th.Tensor:
        """DroQ: linear, dropout, layer normalisation, ReLU. Each pass of the ensemble uses two masks."""
        if not self.masks:
            return super().stacked(prefix, index, x, weights)
        for mask, (linear, norm) in zip(self.masks[:2], ((0, 2), (4, 6)), strict=True):
            name = f"{prefix}.hidden.{linear}"
            x = (x @ weights[f"{name}.weight"][index] + weights[f"{name}.bias"][index]) * mask[index].double()
            x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            name = f"{prefix}.hidden.{norm}"
            x = (x * weights[f"{name}.weight"][index] + weights[f"{name}.bias"][index]).clamp(min=0)
        name = f"{prefix}.output"
        return (x @ weights[f"{name}.weight"][index] + weights[f"{name}.bias"][index]).squeeze(1)

    def q(self, net: str, s: th.Tensor, a: th.Tensor | None, weights: Tensors) -> list[th.Tensor]:
        values = super().q(net, s, a, weights)
        self.masks = self.masks[2:]
        return values

    def minimum(self, qs: list[th.Tensor]) -> th.Tensor:
        return th.stack([qs[i] for i in self.subset]).min(0).values


@pytest.mark.parametrize("actor", [False, True])
@pytest.mark.parametrize("preset", ["redq", "droq"])
def test_one_update_of_the_ensembles(preset: str, actor: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The subset and the dropout masks that were drawn are put into the equations; the actor learns in each 20th update."""
    model = make(preset)
    model._n_updates = 19 if actor else 7
    separate_targets(model)
    own = Ensemble(model)
    own.alpha = th.ones((), dtype=th.float64)
    masks, subsets, randperm = [], [], th.randperm

    def uniform(like: th.Tensor) -> th.Tensor:
        drawn = th.rand(like.shape)
        masks.append((drawn >= DROPOUT_RATE).float() / (1 - DROPOUT_RATE))
        return drawn

    def permutation(n: int, **kwargs: Any) -> th.Tensor:
        subsets.append(randperm(n, **kwargs))
        return subsets[-1]

    monkeypatch.setattr(th, "rand_like", uniform)  # dropout keeps what is not below its rate
    monkeypatch.setattr(th, "randperm", permutation)
    batch, noises = one_update(model, monkeypatch)
    own.observe(batch, noises if actor else [noises[0], noises[0]])  # without the actor's turn, noise for s' alone
    if masks and masks[0].ndim == 2:  # the critics were evaluated one by one
        masks = [th.stack(masks[i : i + 2]) for i in range(0, len(masks), 2)]
    own.masks = masks
    own.subset = subsets[0][:2].tolist() if preset == "redq" else [0, 1]
    assert len(masks) == (0 if preset == "redq" else 6 if actor else 4)
    gap = own.entropy_gap()
    own.with_target_critics(squared_errors, mean_of_critics, own.minimum, actor)
    if actor:
        own.adam_on_log_alpha(gap)
    assert_updated(model, own, critic_scale=0.5)  # their loss has no 1/2


class TestOverrides:
    def test_arguments_and_policy_arguments(self) -> None:
        arguments = presets.get("droq", learning_rate=1e-3, policy_kwargs={"dropout_rate": 0.1})
        assert arguments["learning_rate"] == 1e-3
        assert arguments["policy_kwargs"] == {**presets.DROQ["policy_kwargs"], "dropout_rate": 0.1}
        assert presets.DROQ["policy_kwargs"]["dropout_rate"] == DROPOUT_RATE

    def test_presets_cannot_be_changed_by_accident(self) -> None:
        with pytest.raises(TypeError):
            presets.SLC["tau"] = 1.0  # type: ignore[index]  # on purpose
        SoftAC("MlpPolicy", RandomEnv(), **{**presets.SB3, "buffer_size": 10})
        assert presets.SB3["policy_kwargs"] == {"net_arch": [256, 256]}

    def test_presets_share_no_dict(self) -> None:
        shared = [preset["policy_kwargs"] for preset in (presets.SB3, presets.SOFTLEARNING)]
        assert shared[0] is not shared[1]
        shared[0]["net_arch"].append(3)
        assert presets.SB3["policy_kwargs"] == {"net_arch": [256, 256]}

    def test_unknown_names_list_the_known_ones(self) -> None:
        with pytest.raises(ValueError, match=r"`preset` is 'spinning', but it must be one of 'sb3', 'haarnoja2018', .*'droq'"):
            presets.get("spinning")

    @pytest.mark.parametrize(
        ("name", "override", "message"),
        [
            ("haarnoja2018", {"actor_q": "target_min"}, "`actor_q` is 'target_min'"),
            ("spinningup", {"ent_coef_update": "log"}, "`ent_coef_update` is 'log', but it must be 'dual' with a fixed"),
            ("redq", {"policy_kwargs": {"n_critics": 1}}, "`target_subset` is 2, but it must be at most `n_critics`=1"),
            ("sigaud", {"value_network": True}, "`actor_q` is 'target_min'"),
            (
                "slc",
                {"learning_rate": 1.0},
                "`learning_rate` is 1.0, but it must be left out where all have their own",
            ),
            ("slc", {"ent_coef": 0.1}, "`ent_coef_learning_rate` is 'lin_1e-4_1e-10'"),
        ],
    )
    def test_contradictions_are_refused_as_ever(self, name: str, override: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make(name, **override)

    def test_what_discrete_actions_cannot_have(self) -> None:
        with pytest.raises(ValueError, match=r"`log_std_init` is -9\.0, .* with discrete actions"):
            make("spinningup_v1", env=RandomDiscreteEnv())

    def test_the_page_names_the_presets_that_discrete_actions_refuse(self) -> None:
        text = (Path(__file__).parents[1] / "docs" / "presets.md").read_text().replace("\n", " ")
        (sentence,) = re.findall(r"With discrete actions ([^.]*) are refused as they stand", text)
        refused = []
        for name in presets.PRESETS:
            try:
                SoftAC("MlpPolicy", RandomDiscreteEnv(), **presets.get(name, buffer_size=10, device="cpu", compile=False))
            except ValueError:
                refused.append(name)
        assert re.findall(r"`(\w+)`", sentence) == refused

    @pytest.mark.parametrize("name", presets.PRESETS)
    def test_every_preset_can_have_discrete_actions(self, name: str) -> None:
        small = {} if "encoder" not in presets.PRESETS[name]["policy_kwargs"] else {"net_arch": [8, 8]}
        arguments = presets.get(name, discrete_actions=True, buffer_size=300, batch_size=8, policy_kwargs=small)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = SoftAC("MlpPolicy", RandomDiscreteEnv(), device="cpu", compile=False, **arguments)
            fill_buffer(model)
            model.set_logger(Logger(None, []))
            model.train(1)
        assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())


class TestInRLZoo:
    def test_policy_arguments_with_the_names_that_rl_zoo_has(self) -> None:
        expanded = expand_preset(None, {"preset": "sb3", "policy_kwargs": "dict(activation_fn=nn.Tanh)"})
        assert expanded["policy_kwargs"] == {"net_arch": [256, 256], "activation_fn": th.nn.Tanh}

    FILE: dict[str, Any] = {"n_timesteps": 100, "policy": "MlpPolicy", "n_envs": 1, "gamma": 0.9, "normalize": True}  # noqa: RUF012

    def test_from_the_file_its_other_keys_win(self) -> None:
        file = {**self.FILE, "preset": "redq", "policy_kwargs": "dict(n_critics=5)"}
        assert expand_preset(None, file) == {
            **presets.REDQ,
            **self.FILE,
            "policy_kwargs": {"net_arch": [256, 256], "n_critics": 5},
        }

    def test_from_the_command_line_it_replaces_what_the_file_tunes(self) -> None:
        given = {"preset": "redq", "gradient_steps": 5}
        file = {**self.FILE, "use_sde": True, "policy_kwargs": "dict(net_arch=[64])", **given}
        expanded = expand_preset(given, file)
        assert expanded == {
            **presets.REDQ,
            "n_timesteps": 100,
            "policy": "MlpPolicy",
            "n_envs": 1,
            "normalize": True,
            "gradient_steps": 5,
        }

    def test_without_one_nothing_changes(self) -> None:
        assert expand_preset({"gamma": 0.9}, dict(self.FILE)) == self.FILE

    def test_unknown_names(self) -> None:
        with pytest.raises(ValueError, match="`preset` is 'x', but it must be one of 'sb3'"):
            expand_preset({"preset": "x"}, {**self.FILE, "preset": "x"})

"""Encoders and critic heads of a user's own train, save and load, without a change of the package."""

import io
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_softac import SoftAC, SoftACPolicy
from sb3_softac.networks import MLP, CriticHead, Encoder
from sb3_softac.networks.ensemble import CriticIndices, apply_layer, make_linear
from tests.helpers import (
    BOTH_WAYS,
    OBS_DIM,
    RandomDiscreteEnv,
    RandomEnv,
    assert_same_parameters,
    fill_buffer,
    make_model,
)


class Toy(Encoder):
    """One residual block: x = W₀ f, then x + W₂ φ(W₁ x)."""

    def build(self, in_features: int, net_arch: list[int], activation_fn: Any, **options: Any) -> int:
        (width,) = net_arch
        self.append(make_linear(in_features, width, self.n_networks))
        self.append(make_linear(width, width, self.n_networks))
        self.append(activation_fn())
        self.append(make_linear(width, width, self.n_networks))
        return width

    def forward(self, inputs: th.Tensor, indices: CriticIndices = None) -> th.Tensor:
        values = apply_layer(self[0], self.expand(inputs, indices), indices)
        hidden = apply_layer(self[2], apply_layer(self[1], values, indices), indices)
        return values + apply_layer(self[3], hidden, indices)


class TwoNumbers(CriticHead):
    """Two estimates for each state and action, of which Q is the mean."""

    n_numbers = 2

    def expected_value(self, outputs: th.Tensor) -> th.Tensor:
        return outputs.mean(dim=-1)

    def loss(self, outputs: th.Tensor, target: th.Tensor) -> th.Tensor:
        return 0.5 * (outputs - target.detach().unsqueeze(-1)).square().mean(dim=(1, 2)).sum()


CASES: dict[str, dict[str, Any]] = {
    "encoder": {"encoder": Toy},
    "encoder of the actor": {"encoder": {"pi": Toy}},
    "encoder of the critics": {"encoder": {"qf": Toy}},
    "one for each": {"encoder": {"pi": "mlp", "qf": Toy}},
    "head": {"critic_head": TwoNumbers},
    "both": {"encoder": Toy, "critic_head": TwoNumbers},
    "both, many critics": {"encoder": Toy, "critic_head": TwoNumbers, "n_critics": 5, "weight_init": "orthogonal"},
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "target critics": {},
    "target critics of the actor": {"actor_q": "target_min"},
    "a subset of the critics": {"target_subset": 1, "actor_q": "first"},
    "a value network": {"value_network": True},
}


def seed_everything() -> None:
    th.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002  # the generator that SB3's buffers draw from


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("case", CASES)
def test_they_train_save_and_load(case: str, architecture: str, discrete: bool) -> None:
    env = RandomDiscreteEnv() if discrete else RandomEnv()
    policy_kwargs = {"net_arch": [16], **CASES[case]}
    model = make_model(env=env, policy_kwargs=policy_kwargs, compile=False, **ARCHITECTURES[architecture])
    fill_buffer(model)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.train(3, batch_size=16)
    unchanged = {name for name, value in model.policy.state_dict().items() if th.equal(value, before[name])}
    assert unchanged == set()
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    loaded = SoftAC.load(stream, env=env, device="cpu")
    assert_same_parameters(model, loaded)
    loaded.replay_buffer = model.replay_buffer
    loaded.set_logger(model.logger)
    for either in (model, loaded):
        seed_everything()
        either.train(3, batch_size=16)
    assert_same_parameters(model, loaded)


@pytest.mark.parametrize("compile", BOTH_WAYS)
def test_the_engine_runs_them_as_it_runs_ours(compile: bool) -> None:
    """Compiled and in eager mode the same numbers."""
    policy_kwargs = {"net_arch": [16], "encoder": Toy, "critic_head": TwoNumbers}
    models = [make_model(policy_kwargs=policy_kwargs, compile=how) for how in (False, compile)]
    for model in models:
        fill_buffer(model)
        seed_everything()
        model.train(4, batch_size=16)
    assert models[1]._engine.compiles is compile
    for name, value in models[0].policy.state_dict().items():
        th.testing.assert_close(models[1].policy.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_which_network_has_which_encoder() -> None:
    kinds = {}
    for encoder in (Toy, {"pi": Toy}, {"qf": Toy}):
        model = make_model(policy_kwargs={"net_arch": [16], "encoder": encoder}, value_network=True)
        assert model.value_net is not None
        networks = (model.actor.latent_pi, model.critic.q_networks.hidden, model.value_net.v_network.hidden)
        kinds[str(encoder)] = [type(network) for network in networks]
    assert list(kinds.values()) == [[Toy, Toy, Toy], [Toy, MLP, MLP], [MLP, Toy, Toy]]


def test_an_ensemble_of_encoders_is_as_many_single_ones() -> None:
    ensemble, inputs = Toy(6, [5], nn.Tanh, n_networks=3), th.randn(7, 6)
    for index in range(3):
        single = Toy(6, [5], nn.Tanh)
        with th.no_grad():
            for one, many in zip(single.parameters(), ensemble.parameters(), strict=True):
                one.copy_(many[index].T if one.ndim == 2 else many[index, 0])
        th.testing.assert_close(ensemble(inputs)[index], single(inputs))
        th.testing.assert_close(ensemble(inputs, th.tensor([index]))[0], single(inputs))


@pytest.mark.parametrize("discrete", [False, True])
def test_the_values_of_a_head_are_those_of_its_outputs(discrete: bool) -> None:
    """``critic()`` returns expected values; the critics' loss is the head's own."""
    env = RandomDiscreteEnv(3) if discrete else RandomEnv()
    model = make_model(env=env, policy_kwargs={"net_arch": [16], "critic_head": TwoNumbers})
    obs = th.randn(6, OBS_DIM)
    actions = th.randint(0, 3, (6,)) if discrete else th.rand(6, 2)
    outputs = model.critic.outputs(obs, actions)
    assert outputs.shape == (2, 6, 2)
    values = model.critic(obs, actions)
    assert [tuple(value.shape) for value in values] == [(6, 1)] * 2
    th.testing.assert_close(th.stack(values).squeeze(2), (outputs[..., 0] + outputs[..., 1]) / 2)
    if discrete:
        every = model.critic.outputs(obs)
        assert every.shape == (2, 6, 3, 2)
        for row, action in enumerate(actions.tolist()):
            th.testing.assert_close(outputs[:, row], every[:, row, action])
            assert th.equal(every[:, row, action, 0], model.critic.q_networks(obs)[:, row, 2 * action])


def test_a_policy_without_targets() -> None:
    space = spaces.Box(-1.0, 1.0, (OBS_DIM,))
    for value_network in (False, True):
        policy = SoftACPolicy(
            space,
            spaces.Box(-1.0, 1.0, (2,)),
            lambda _: 1e-3,
            net_arch=[8],
            value_network=value_network,
            target_networks=False,
        )
        assert policy.critic_target is None
        assert policy.value_net_target is None
        assert (policy.value_net is not None) == value_network
        assert list(policy.targets()) == []
        assert not any("target" in name for name in policy.state_dict())
        assert policy.predict(np.zeros(OBS_DIM, np.float32), deterministic=True)[0].shape == (2,)

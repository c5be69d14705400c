"""Every policy option: what it changes, compared with a formula or with SB3."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from sb3_softac import CnnPolicy, MultiInputPolicy, SoftACPolicy
from sb3_softac.networks.ensemble import Dropout, EnsembleLayerNorm, EnsembleLinear
from sb3_softac.networks.normalization import BatchRenorm
from tests.helpers import fill_buffer, make_model, net

OBSERVATIONS = spaces.Box(-1.0, 1.0, (5,))
ACTIONS = spaces.Box(-1.0, 1.0, (2,))
BATCH = th.linspace(-1.0, 1.0, 30).reshape(6, 5)


def make_policy(**kwargs: Any) -> SoftACPolicy:
    th.manual_seed(0)  # one start in a thousand has a mean log σ further from its middle than a test allows
    kwargs.setdefault("net_arch", [16, 16])
    return SoftACPolicy(OBSERVATIONS, ACTIONS, lambda _: 1e-3, **kwargs)


def log_std_of(policy: SoftACPolicy) -> th.Tensor:
    log_std: th.Tensor = policy.actor.get_action_dist_params(BATCH)[1]
    return log_std.detach()


def test_shapes_as_in_sb3() -> None:
    policy = make_policy(n_critics=3, value_network=True)
    actions, log_prob = policy.actor.action_log_prob(BATCH)
    q_values = policy.critic(BATCH, actions)
    assert actions.shape == (6, 2)
    assert log_prob.shape == (6,)
    assert [q.shape for q in q_values] == [(6, 1)] * 3
    assert policy.value_net is not None
    assert policy.value_net(BATCH).shape == (6, 1)


@pytest.mark.parametrize("n_critics", [1, 2, 5])
def test_parameter_count_equals_sb3(n_critics: int) -> None:
    sb3 = SACPolicy(OBSERVATIONS, ACTIONS, lambda _: 1e-3, net_arch=[16, 8], n_critics=n_critics)
    ours = make_policy(net_arch=[16, 8], n_critics=n_critics)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in sb3.parameters())
    assert ours.actor.state_dict().keys() == sb3.actor.state_dict().keys()


def test_either_target_critics_or_a_value_network() -> None:
    plain, with_value = make_policy(), make_policy(value_network=True)
    assert plain.value_net is None
    assert plain.value_net_target is None
    assert plain.critic_target is not None
    assert with_value.critic_target is None
    assert with_value.value_net is not None
    assert with_value.value_net_target is not None
    assert th.equal(with_value.value_net(BATCH), with_value.value_net_target(BATCH))
    assert th.equal(plain.critic(BATCH, BATCH[:, :2])[0], plain.critic_target(BATCH, BATCH[:, :2])[0])


def test_free_log_std_is_one_learned_vector() -> None:
    actor = make_policy(log_std_mode="free", log_std_init=-0.5).actor
    assert isinstance(actor.log_std, nn.Parameter)
    assert actor.log_std.tolist() == [-0.5, -0.5]
    actor.action_log_prob(BATCH)[1].sum().backward()
    assert actor.log_std.grad is not None


def test_state_dependent_log_std_depends_on_the_state() -> None:
    assert log_std_of(make_policy()).std(dim=0).min() > 0.0


@pytest.mark.parametrize("mode", ["state", "free"])
@pytest.mark.parametrize("bounding", ["clamp", "tanh"])
def test_log_std_init_is_the_initial_log_std(mode: str, bounding: str) -> None:
    policy = make_policy(log_std_mode=mode, log_std_bounding=bounding, log_std_bounds=(-5.0, 1.0), log_std_init=-1.25)
    th.testing.assert_close(log_std_of(policy), th.full_like(log_std_of(policy), -1.25))


@pytest.mark.parametrize("mode", ["state", "free"])
def test_bounds_are_kept(mode: str) -> None:
    for raw in (-100.0, 100.0):
        for bounding, expected in (("clamp", (-4.0, 1.5)), ("tanh", (-4.0, 1.5))):
            policy = make_policy(log_std_mode=mode, log_std_bounding=bounding, log_std_bounds=expected)
            nn.init.constant_(policy.actor.log_std if mode == "free" else policy.actor.log_std.bias, raw)
            bound = expected[0] if raw < 0 else expected[1]
            th.testing.assert_close(log_std_of(policy), th.full_like(log_std_of(policy), bound))


def test_tanh_bounding_formula() -> None:
    policy = make_policy(log_std_mode="free", log_std_bounding="tanh", log_std_bounds=(-4.0, 2.0))
    nn.init.constant_(policy.actor.log_std, 0.3)
    assert log_std_of(policy)[0].item() == pytest.approx(-4.0 + 0.5 * 6.0 * (1.0 + np.tanh(0.3)), abs=1e-5)


@pytest.mark.parametrize("mode", ["state", "free"])
@pytest.mark.parametrize("bounding", ["clamp", "tanh"])
@pytest.mark.parametrize(("bounds", "start"), [((-20.0, 2.0), 0.0), ((-3.0, -1.0), -2.0)])
def test_log_std_starts_near_0_or_in_the_middle(mode: str, bounding: str, bounds: Any, start: float) -> None:
    """A clamped log σ that starts outside of its bounds would never get a gradient; a tanh head near 0 means e^−9."""
    log_std = log_std_of(make_policy(log_std_mode=mode, log_std_bounding=bounding, log_std_bounds=bounds))
    assert log_std.mean().item() == pytest.approx(start, abs=0.7)
    assert (mode == "free") == (log_std.std().item() < 1e-6)


def test_gsde_starts_at_log_std_init() -> None:
    assert make_policy(use_sde=True).actor.log_std.unique().tolist() == [-3.0]
    assert make_policy(use_sde=True, log_std_init=-1.0).actor.log_std.unique().tolist() == [-1.0]


def linear_sizes(module: nn.Module) -> list[int]:
    return [layer.weight.shape[-1] for layer in module.modules() if isinstance(layer, EnsembleLinear)]


def test_net_arch() -> None:
    policy = make_policy(net_arch={"pi": [4], "qf": [8, 16], "vf": [32]}, value_network=True)
    assert policy.actor.latent_pi[0].out_features == 4
    assert linear_sizes(policy.critic) == [8, 16, 1]
    assert policy.value_net is not None
    assert linear_sizes(policy.value_net) == [32, 1]


def test_the_value_network_has_the_critics_architecture_by_default() -> None:
    for net_arch in ([12], {"pi": [4], "qf": [12]}):
        policy = make_policy(net_arch=net_arch, value_network=True)
        assert policy.value_net is not None
        assert linear_sizes(policy.value_net) == [12, 1]


def test_layer_norm_and_dropout_are_in_the_critics_only() -> None:
    policy = make_policy(layer_norm=True, dropout_rate=0.3, value_network=True)
    kinds = [type(layer) for layer in policy.critic.q_networks.hidden]
    assert kinds == [EnsembleLinear, Dropout, EnsembleLayerNorm, nn.ReLU] * 2
    assert policy.critic.q_networks.hidden[1].p == 0.3
    others = [*policy.actor.modules(), *(policy.value_net or policy.actor).modules()]
    assert not any(isinstance(layer, nn.Dropout | EnsembleLayerNorm) for layer in others)


def test_target_critics_keep_their_dropout() -> None:
    """As in DroQ, and also after the policy went to evaluation and back."""
    policy = make_policy(dropout_rate=0.5)
    assert policy.critic_target is not None
    for mode in (True, False):
        policy.set_training_mode(mode)
        first, second = policy.critic_target(BATCH, BATCH[:, :2])[0], policy.critic_target(BATCH, BATCH[:, :2])[0]
        assert not th.equal(first, second)
    assert th.equal(policy.critic(BATCH, BATCH[:, :2])[0], policy.critic(BATCH, BATCH[:, :2])[0])


def test_the_mode_reaches_all_networks_but_the_targets() -> None:
    """Also a part that a user has replaced since, and that was in another mode than the rest."""
    policy = make_policy(value_network=True, dropout_rate=0.5)
    assert policy.value_net is not None
    assert policy.value_net_target is not None
    networks = [policy.actor, policy.critic, policy.value_net]
    for mode in (False, True, True, False):
        policy.set_training_mode(mode)
        assert policy.training is mode
        assert all(module.training is mode for network in networks for module in network.modules())
        assert not policy.value_net_target.training
    policy.critic.q_networks.train()
    policy.actor.latent_pi = nn.Sequential(nn.Linear(3, 16), nn.Dropout())
    policy.set_training_mode(False)
    assert not any(module.training for network in networks for module in network.modules())


@pytest.mark.parametrize(
    ("actions", "value_network", "n_layers"),
    # three layers, and a fourth for the log σ of an actor with Box actions; two critics and their targets, or V and its target
    [(ACTIONS, False, 4 + 6 + 6), (ACTIONS, True, 4 + 6 + 3 + 3), (spaces.Discrete(3), True, 3 + 6 + 3 + 3)],
    ids=["target critics", "value network", "discrete"],
)
@pytest.mark.parametrize("weight_init", ["orthogonal", "xavier"])
def test_weight_init_reaches_every_linear_layer(weight_init: Any, actions: Any, value_network: bool, n_layers: int) -> None:
    """W Wᵀ = g² I (1312.6120), or |W| up to g √(6 / (in + out)) (Glorot and Bengio, 2010), beyond PyTorch's 1/√in.

    The gain g is √2 in front of a ReLU, and 1 in output layers. Biases are 0.
    """
    th.manual_seed(0)
    policy = SoftACPolicy(
        OBSERVATIONS, actions, lambda _: 1e-3, net_arch=[16, 16], weight_init=weight_init, value_network=value_network
    )
    checked = 0
    for name, layer in policy.named_modules():
        if not isinstance(layer, nn.Linear | EnsembleLinear):
            continue
        assert layer.bias.abs().max() == 0.0, name
        gain = 1.0 if name.rpartition(".")[2] in ("mu", "log_std", "logits", "output") else math.sqrt(2.0)
        # a stacked weight is (N, in, out), that of `nn.Linear` (out, in)
        for weight in layer.weight.detach() if isinstance(layer, EnsembleLinear) else [layer.weight.detach().T]:
            checked += 1
            if weight_init == "xavier":
                assert 1.0 / math.sqrt(len(weight)) < weight.abs().max() <= gain * math.sqrt(6.0 / sum(weight.shape)), name
            else:
                product = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
                th.testing.assert_close(product, gain**2 * th.eye(len(product)), atol=1e-5, rtol=0.0, msg=name)
    assert checked == n_layers


def test_orthogonal_hidden_layers_have_the_gain_of_relu() -> None:
    weight: Any = make_policy(weight_init="orthogonal").actor.latent_pi[2].weight
    th.testing.assert_close(weight @ weight.T, 2.0 * th.eye(16), atol=1e-5, rtol=0.0)


def test_final_init_scale_shrinks_all_outputs() -> None:
    policy = make_policy(final_init_scale=1e-6, value_network=True)
    mean, log_std, _ = policy.actor.get_action_dist_params(BATCH)
    assert policy.value_net is not None
    outputs = [mean, log_std, policy.critic(BATCH, BATCH[:, :2])[0], policy.value_net(BATCH)]
    assert all(0.0 < output.abs().max() < 1e-5 for output in outputs)


class TestSharedFeaturesExtractor:
    image = spaces.Box(0, 255, (3, 36, 36), np.uint8)

    def make(self, share: bool) -> CnnPolicy:
        kwargs: dict[str, Any] = {
            "features_extractor_kwargs": {"features_dim": 8},
            "net_arch": [8],
            "share_features_extractor": share,
        }
        return CnnPolicy(self.image, ACTIONS, lambda _: 1e-3, **kwargs, value_network=True)

    def test_it_belongs_to_the_actor(self) -> None:
        policy = self.make(share=True)
        assert policy.value_net is not None
        assert policy.value_net_target is not None
        extractor = policy.actor.features_extractor
        assert policy.critic.features_extractor is extractor
        assert policy.value_net.features_extractor is extractor
        assert policy.value_net_target.features_extractor is not extractor
        trained = {id(p) for group in policy.critic.optimizer.param_groups for p in group["params"]}
        assert trained == {id(p) for p in policy.critic.q_networks.parameters()}

    def test_critics_and_value_network_do_not_train_it(self) -> None:
        policy = self.make(share=True)
        assert policy.value_net is not None
        observations = th.randint(0, 255, (2, *self.image.shape), dtype=th.uint8)
        (policy.critic(observations, th.zeros(2, 2))[0] + policy.value_net(observations)).sum().backward()
        assert all(p.grad is None for p in policy.actor.features_extractor.parameters())

    def test_not_shared(self) -> None:
        policy = self.make(share=False)
        assert policy.critic.features_extractor is not policy.actor.features_extractor
        observations = th.randint(0, 255, (2, *self.image.shape), dtype=th.uint8)
        policy.critic(observations, th.zeros(2, 2))[0].sum().backward()
        assert all(p.grad is not None for p in policy.critic.features_extractor.parameters())


def test_dict_observations() -> None:
    space = spaces.Dict({"position": spaces.Box(-1, 1, (3,)), "speed": spaces.Box(-1, 1, (2,))})
    policy = MultiInputPolicy(space, ACTIONS, lambda _: 1e-3, net_arch=[8])
    action, _ = policy.predict({"position": np.zeros(3, np.float32), "speed": np.zeros(2, np.float32)}, deterministic=True)
    assert action.shape == (2,)


def test_deterministic_prediction_is_the_rescaled_mean() -> None:
    space = spaces.Box(np.array([-3.0, 0.0], np.float32), np.array([1.0, 10.0], np.float32))
    policy = SoftACPolicy(OBSERVATIONS, space, lambda _: 1e-3, net_arch=[8])
    mean = policy.actor.get_action_dist_params(BATCH)[0].detach().numpy()
    expected = space.low + 0.5 * (np.tanh(mean) + 1.0) * (space.high - space.low)
    np.testing.assert_allclose(policy.predict(BATCH.numpy(), deterministic=True)[0], expected, rtol=1e-5, atol=1e-5)


def test_users_arguments_are_not_mutated() -> None:
    kwargs: dict[str, Any] = {"features_dim": 8}
    CnnPolicy(
        spaces.Box(0.0, 1.0, (3, 36, 36)),
        ACTIONS,
        lambda _: 1e-3,
        features_extractor_kwargs=kwargs,
        normalize_images=False,
    )
    assert kwargs == {"features_dim": 8}


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"use_sde": True, "log_std_init": -1.0, "use_expln": True},
        {"log_std_mode": "free", "log_std_bounding": "tanh", "log_std_bounds": (-5.0, 1.0)},
        {"value_network": True, "n_critics": 3, "layer_norm": True, "share_features_extractor": True},
    ],
)
def test_save_and_load_of_the_policy_alone(kwargs: dict[str, Any], tmp_path: Path) -> None:
    policy = make_policy(**kwargs)
    policy.save(str(tmp_path / "policy.pt"))
    loaded = SoftACPolicy.load(str(tmp_path / "policy.pt"), device="cpu")
    assert loaded.state_dict().keys() == policy.state_dict().keys()
    np.testing.assert_array_equal(
        loaded.predict(BATCH.numpy(), deterministic=True)[0], policy.predict(BATCH.numpy(), deterministic=True)[0]
    )


@pytest.mark.parametrize("normalization", ["layer", "batch", "batch_renorm", {"vf": "layer"}])
def test_normalization_is_of_the_value_network_too(normalization: Any) -> None:
    """Of V and of its target, which takes over its statistics; a dict names the networks that have one."""
    model = make_model(value_network=True, compile=False, **net(normalization=normalization))
    networks = {"actor": model.actor, "critic": model.critic, "V": model.value_net, "target V": model.value_net_target}
    has_norms = {
        name: any(isinstance(part, nn.LayerNorm | EnsembleLayerNorm | BatchRenorm) for part in network.modules())
        for name, network in networks.items()
    }
    every = not isinstance(normalization, dict)
    assert has_norms == {"actor": every, "critic": every, "V": True, "target V": True}
    fill_buffer(model)
    model.train(3, batch_size=8)
    for part in model.value_net.modules() if model.value_net is not None else ():
        if isinstance(part, BatchRenorm):
            assert int(part.running_steps) == 3
    buffers = (dict(network.named_buffers()) for network in (model.value_net, model.value_net_target) if network is not None)
    first, second = buffers
    assert all(th.equal(first[name], second[name]) for name in first)


def test_the_log_std_of_gsde_is_that_of_the_noise_matrix_whatever_the_batch() -> None:
    """F rows for features, of which half are as many as there are states."""
    model = make_model(use_sde=True, bootstrap="joint_target", compile=False, **net(net_arch=[16, 16], normalization="batch"))
    with th.no_grad():
        model.actor.log_std[:8], model.actor.log_std[8:] = 0.5, -0.5
    fill_buffer(model)
    model.actor.optimizer.param_groups[0]["lr"] = 0.0
    model.lr_schedule = lambda _: 0.0
    model.train(1, batch_size=8)
    assert model.logger.name_to_value["train/log_std"] == pytest.approx(0.0, abs=1e-2)

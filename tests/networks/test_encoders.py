"""What is always true of the encoders of SimBa, SimbaV2, BRO and FlashSAC, and what they have no place for."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_softac import SoftAC
from sb3_softac.engine import UpdateFlags
from sb3_softac.networks.catalogue import ENCODERS
from sb3_softac.networks.hypersphere import Embedding, LerpBlock, Scaler, UnitLinear
from sb3_softac.networks.normalization import BatchRenorm
from sb3_softac.update.actor_critic import Noise
from tests.helpers import ACTION_DIM, build, fill_buffer, make_model, net, update_of
from tests.networks.spheres import assert_on_spheres, lengths

PUBLISHED = ["simba", "simba_v2", "bro", "flash"]
FLASH: dict[str, Any] = {
    "bootstrap": "joint_target",
    **net(encoder="flash", critic_head="categorical", n_atoms=61, value_range=(-30, 30)),
}
ON_SPHERES: dict[str, dict[str, Any]] = {
    "simba_v2": net(encoder="simba_v2", critic_head="categorical", n_atoms=61, value_range=(-30, 30)),
    "flash": FLASH,
    "flash, delayed": {**FLASH, "policy_delay": 2},
    "simba_v2, discrete": {**net(encoder="simba_v2"), "discrete": True},
    "simba_v2, clipped": {**net(encoder="simba_v2", optimizer_class=th.optim.AdamW), "max_grad_norm": 0.1},
}


class TestSpheres:
    @pytest.mark.parametrize("case", ON_SPHERES)
    def test_at_the_start_and_after_each_update(self, case: str) -> None:
        model, encoder = build(False, learning_rate=1e-2, ent_coef=0.01, **ON_SPHERES[case]), case.partition(",")[0]
        assert_on_spheres(model, encoder)
        before = [value.clone() for value in model.actor.parameters()]
        for _ in range(5):
            model.train(1, batch_size=16)
            assert_on_spheres(model, encoder)
        assert all((old - new).abs().max() > 1e-3 for old, new in zip(before, model.actor.parameters(), strict=True))
        assert model.critic_target is not None
        inside = [length.min() for length in lengths(model.critic_target, encoder).values()]
        assert min(inside) < 1.0 - 1e-6  # a mean of points of a sphere

    def test_free_parameters_are_left_alone(self) -> None:
        """Biases of output layers and learned factors: a projection changes none of them."""
        for case in ("simba_v2", "flash"):
            model = build(False, **ON_SPHERES[case])
            free = {name: value for name, value in model.critic.named_parameters() if name.endswith("output.bias")}
            free |= {f"{name}.weight": m.weight for name, m in model.critic.named_modules() if isinstance(m, Scaler)}
            free |= {name: value for name, value in model.critic.named_parameters() if name.endswith("output.2.bias")}
            assert free
            with th.no_grad():
                for value in free.values():
                    value.uniform_(1.0, 2.0)
            expected = {name: value.clone() for name, value in free.items()}
            for layer in update_of(model).projected_layers(model.critic):
                layer.project()
            assert all(th.equal(value, expected[name]) for name, value in free.items())

    @pytest.mark.parametrize("n_networks", [None, 3])
    def test_features_of_length_1(self, n_networks: int | None) -> None:
        """Those of the embedding and of each block of SimbaV2."""
        encoder = ENCODERS["simba_v2"](5, [8, 8, 8], n_networks=n_networks)
        seen: list[th.Tensor] = []
        for module in encoder:
            assert isinstance(module, Embedding | LerpBlock)
            module.register_forward_hook(lambda _, __, output: seen.append(output))
        encoder(th.cat([100.0 * th.randn(6, 5), 0.01 * th.randn(6, 5), th.zeros(1, 5)]))
        assert len(seen) == 4
        for features in seen:
            th.testing.assert_close(features.norm(dim=-1), th.ones(features.shape[:-1]), atol=1e-6, rtol=0.0)

    def test_features_of_flash_have_a_mean_square_of_1(self) -> None:
        features = ENCODERS["flash"](5, [8, 8], n_networks=2)(10.0 * th.randn(6, 5))
        th.testing.assert_close(features.square().mean(dim=-1), th.ones(2, 6), atol=1e-4, rtol=0.0)


class TestBatchStatistics:
    """Those of the first layer, whose inputs are known, after one gradient step."""

    @pytest.mark.parametrize("bootstrap", ["joint", "joint_target"])
    def test_the_mixture_of_current_and_next_pairs(self, bootstrap: str) -> None:
        model = build(False, bootstrap=bootstrap, **net(encoder="flash"))
        update, batch = update_of(model), model._sample_batch(16)
        epsilon = th.randn(2, 16, ACTION_DIM)
        with th.no_grad():
            following = model.actor.action_distribution(batch.next_observations, epsilon[1]).actions
        update(batch, Noise(epsilon[0], epsilon[1]), UpdateFlags(actor=True, targets=True), update.numbers())
        observations: Any = [batch.observations, batch.next_observations]
        pairs = th.cat([th.cat([observations[0], batch.actions], dim=1), th.cat([observations[1], following], dim=1)])
        networks = [model.critic] if model.critic_target is None else [model.critic, model.critic_target]
        assert len(networks) == (1 if bootstrap == "joint" else 2)
        for network in networks:
            for index in range(2):
                self.check(network.q_networks.hidden[0], pairs, index)
        # The actor's own pass is over both halves in FlashSAC, over the current states in CrossQ.
        self.check(model.actor.latent_pi[0], observations[0] if bootstrap == "joint" else th.cat(observations), None)

    def check(self, layer: Any, inputs: th.Tensor, index: int | None) -> None:
        mean, var = (
            value if index is None else value[index, 0] for value in (layer.running_mean, layer.running_var)
        )  # start at 0 and 1
        th.testing.assert_close(mean, 0.01 * inputs.mean(dim=0), atol=1e-6, rtol=1e-5)
        th.testing.assert_close(var, 0.99 + 0.01 * inputs.var(dim=0, unbiased=True), atol=1e-6, rtol=1e-5)
        assert layer.running_steps == 1

    def test_targets_without_a_joint_pass_copy_them(self) -> None:
        model = build(False, **net(encoder="flash"))
        model.train(3, batch_size=16)
        assert model.critic_target is not None
        target = model.critic_target.state_dict()
        statistics = [name for name in target if "running_" in name]
        assert len(statistics) == 15
        assert all(th.equal(target[name], model.critic.state_dict()[name]) for name in statistics)

    def test_the_value_network_has_its_own(self) -> None:
        """Its updates move them, by the states of the batch."""
        model = build(False, value_network=True, **net(encoder="flash"))
        update, batch = update_of(model), model._sample_batch(16)
        epsilon = th.randn(16, ACTION_DIM)
        update(batch, Noise(epsilon), UpdateFlags(actor=True, targets=True), update.numbers())
        for network in (model.value_net, model.value_net_target):
            assert network is not None
            observations: Any = batch.observations
            self.check(network.v_network.hidden[0], observations, 0)


class TestEnsembles:
    """N networks in one are N single ones with the same weights."""

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_each_network(self, name: str) -> None:
        ensemble, inputs = ENCODERS[name](6, [5, 5], n_networks=3), th.randn(7, 6)
        output: Any = ensemble.make_output(4)
        self.shake(ensemble, output)
        with th.no_grad():
            features = ensemble(inputs)
            outputs = output(features, None)
            chosen = {"tensor": th.tensor([2, 0]), "slice": slice(1, 3)}
            for index in range(3):
                single = ENCODERS[name](6, [5, 5])
                alone: Any = single.make_output(4)
                self.copy(single, ensemble, index)
                self.copy(alone, output, index)
                th.testing.assert_close(features[index], single(inputs))
                th.testing.assert_close(outputs[index], alone(single(inputs)))
                for indices in chosen.values():
                    of_chosen = ensemble(inputs, indices)
                    assert of_chosen.shape == (2, 7, 5)
                    place = list(range(3))[indices].index(index) if isinstance(indices, slice) and index else None
                    if isinstance(indices, th.Tensor) and index in indices:
                        place = indices.tolist().index(index)
                    if place is not None:
                        th.testing.assert_close(of_chosen[place], single(inputs))
                        th.testing.assert_close(output(of_chosen, indices)[place], alone(single(inputs)))

    def test_batch_statistics_of_each_network(self) -> None:
        ensemble, inputs = ENCODERS["flash"](6, [5, 5], n_networks=3), th.randn(7, 6)
        self.shake(ensemble)
        singles = [ENCODERS["flash"](6, [5, 5]) for _ in range(3)]
        for index, single in enumerate(singles):
            self.copy(single, ensemble, index)
        for module in (m for network in (ensemble, *singles) for m in network.modules()):
            if isinstance(module, BatchRenorm):
                module.uses_batch = True
        features = ensemble(inputs)
        for index, single in enumerate(singles):
            th.testing.assert_close(features[index], single(inputs))
            for (name, mine), theirs in zip(single.named_buffers(), ensemble.buffers(), strict=True):
                assert mine.ndim == 0 or th.allclose(mine, theirs[index, 0], atol=1e-6), name

    @th.no_grad()
    def shake(self, *networks: nn.Module) -> None:
        for network in networks:
            for value in [*network.parameters(), *network.buffers()]:
                if value.is_floating_point():
                    value.add_(0.2 * th.rand_like(value))

    @th.no_grad()
    def copy(self, single: nn.Module, ensemble: nn.Module, index: int) -> None:
        for one, many in zip(single.modules(), ensemble.modules(), strict=True):
            mine = {**one._parameters, **one._buffers}
            for name, value in {**many._parameters, **many._buffers}.items():
                place = mine[name]
                if value is None or place is None or value.ndim == 0:
                    assert value is place is None or name == "running_steps"
                    continue
                of_one = value[index, 0] if place.ndim == 1 else value[index]
                place.copy_(of_one.T if isinstance(one, nn.Linear) and place.ndim == 2 else of_one)


class TestInitialWeights:
    def model(self, encoder: str, **kwargs: Any) -> SoftAC:
        policy_kwargs = {"encoder": encoder, "net_arch": {"pi": [32], "qf": [48, 48]}}
        return make_model(policy_kwargs=policy_kwargs, compile=False, **kwargs)

    def orthogonal(self, weight: th.Tensor, gain: float) -> None:
        """All singular values of each matrix are the gain."""
        values = th.linalg.svdvals(weight)
        th.testing.assert_close(values, th.full_like(values, gain), atol=1e-5, rtol=0.0)

    def biases(self, model: SoftAC) -> list[th.Tensor]:
        return [value for name, value in model.policy.named_parameters() if name.endswith("bias")]

    def test_simba(self) -> None:
        model = self.model("simba", value_network=True)
        assert model.value_net is not None
        hidden: list[Any] = [model.actor.latent_pi, model.critic.q_networks.hidden, model.value_net.v_network.hidden]
        outputs: list[Any] = [model.actor.mu, model.actor.log_std, model.critic.q_networks.output]
        outputs.append(model.value_net.v_network.output)
        for layer in (*outputs, *(encoder[0] for encoder in hidden)):
            self.orthogonal(layer.weight, 1.0)
        for encoder in hidden[:2]:
            for block in list(encoder)[1:-1]:
                for layer in (block[1], block[3]):
                    fan_in = layer.in_features if isinstance(layer, nn.Linear) else layer.weight.shape[1]
                    variance, n = layer.weight.var().item(), layer.weight.numel()
                    assert variance * fan_in / 2 == pytest.approx(1.0, abs=5 * math.sqrt(2.0 / n))
                    assert layer.weight.mean().item() == pytest.approx(0.0, abs=5 * math.sqrt(2.0 / fan_in / n))
        assert self.biases(model)
        assert all((bias == 0.0).all() for bias in self.biases(model))

    def test_bro(self) -> None:
        model = self.model("bro")
        linear = [value for name, value in model.actor.named_parameters() if value.ndim == 2]
        linear += [value for value in model.critic.parameters() if value.ndim == 3 and value.shape[1] > 1]
        assert len(linear) == 5 + 6
        for weight in linear:
            self.orthogonal(weight, math.sqrt(2.0))
        assert all((bias == 0.0).all() for bias in self.biases(model))

    @pytest.mark.parametrize("encoder", ["simba_v2", "flash"])
    def test_linear_layers_on_spheres(self, encoder: str) -> None:
        """Rows that start orthogonal, where there are no more outputs than inputs; biases at 0."""
        model = self.model(encoder)
        for module in model.policy.modules():
            if isinstance(module, UnitLinear) and module.weight.shape[-1] <= module.weight.shape[-2]:
                self.orthogonal(module.weight, 1.0)
        assert all((bias == 0.0).all() for bias in self.biases(model))

    def test_factors_of_simba_v2(self) -> None:
        """(what the parameter starts at, what it does at first) for an actor of 32 and one block, critics of 48 and two."""
        model = self.model("simba_v2")
        networks: list[tuple[Any, Any, int, int]] = [
            (model.actor.latent_pi, model.actor.mu, 32, 1),
            (model.critic.q_networks.hidden, model.critic.q_networks.output, 48, 2),
        ]
        for encoder, output, d, n_blocks in networks:
            expected = {encoder[0][1]: (math.sqrt(2 / d),) * 2, output[1]: (1.0, 1.0)}
            for block in list(encoder)[1:]:
                expected[block.scaler] = (math.sqrt(2 / (4 * d)),) * 2
                expected[block.step] = (1 / math.sqrt(d), 1 / (n_blocks + 1))
            assert len(expected) == 2 + 2 * n_blocks
            for scaler, (parameter, factor) in expected.items():
                np.testing.assert_allclose(scaler.weight.detach(), parameter, rtol=1e-6)
                np.testing.assert_allclose(scaler(th.ones_like(scaler.weight)).detach(), factor, rtol=1e-6)

    @pytest.mark.parametrize("bounds", [(-5.0, -1.0), (0.5, 4.5)])
    @pytest.mark.parametrize("encoder", ["mlp", *PUBLISHED])
    def test_log_std_starts_inside_of_its_bounds(self, encoder: str, bounds: tuple[float, float]) -> None:
        """At a bound that cuts it, it would get no gradient, and stay there."""
        model = make_model(compile=False, **net(encoder=encoder, log_std_bounds=bounds))
        log_std = model.actor.get_action_dist_params(th.randn(200, 4))[1]
        assert ((log_std > bounds[0]) & (log_std < bounds[1])).float().mean() > 0.6
        assert log_std.mean().item() == pytest.approx(sum(bounds) / 2, abs=0.5)

    @pytest.mark.parametrize("encoder", PUBLISHED)
    def test_a_smooth_log_std_starts_where_the_papers_have_it(self, encoder: str) -> None:
        """−10 + 6·(1 + tanh raw) with a raw value around 0, so about −4."""
        model = make_model(compile=False, **net(encoder=encoder, log_std_bounds=(-10, 2), log_std_bounding="tanh"))
        log_std = model.actor.get_action_dist_params(th.randn(200, 4))[1]
        assert log_std.mean().item() == pytest.approx(-4.0, abs=2.0)

    @pytest.mark.parametrize("encoder", PUBLISHED)
    def test_critics_start_apart_and_targets_as_they_are(self, encoder: str) -> None:
        model = self.model(encoder)
        weights = [value for value in model.critic.parameters() if value.ndim == 3 and value.shape[1] > 1]
        assert not any(th.equal(weight[0], weight[1]) for weight in weights)
        assert model.critic_target is not None
        target = model.critic_target.state_dict()
        assert all(th.equal(target[name], value) for name, value in model.critic.state_dict().items())


REFUSED: list[tuple[str, str, dict[str, Any]]] = []
for name in PUBLISHED:
    REFUSED += [
        ("net_arch", r"\[8, 16\].*all equal", net(encoder=name, net_arch=[8, 16])),
        ("net_arch", r"\[\].*all equal", net(encoder=name, net_arch=[])),
        ("net_arch", "'qf'.*all equal", net(encoder=name, net_arch={"pi": [8], "qf": [8, 9]})),
        ("net_arch", "'pi'.*all equal", net(encoder={"pi": name}, net_arch={"pi": [], "qf": []})),
        ("normalization", f"'layer'.*None with `encoder`='{name}'", net(encoder=name, normalization="layer")),
        ("normalization", f"'batch'.*None with `encoder`='{name}'", net(encoder={"qf": name}, normalization={"qf": "batch"})),
        ("layer_norm", f"True.*False with `encoder`='{name}'", net(encoder=name, layer_norm=True)),
        ("dropout_rate", rf"0\.1.*0\.0 with `encoder`='{name}'", net(encoder=name, dropout_rate=0.1)),
    ]
for name in ("simba_v2", "flash"):
    REFUSED += [
        ("weight_init", f"'xavier'.*'default' with `encoder`='{name}'", net(encoder=name, weight_init="xavier")),
        ("final_init_scale", rf"0\.01.*None with `encoder`='{name}'", net(encoder={"qf": name}, final_init_scale=0.01)),
        ("log_std_init", rf"-1\.0.*None with `encoder`='{name}'", net(encoder={"pi": name}, log_std_init=-1.0)),
        ("use_sde", f"True.*False with `encoder`='{name}'", {"use_sde": True, **net(encoder=name)}),
    ]
OTHERS: list[tuple[str, str, dict[str, Any]]] = [
    ("batch_size", "1, but it must be at least 2 with `encoder`='flash'", {"batch_size": 1, **net(encoder="flash")}),
    ("batch_size", "1, but it must be at least 2 with `encoder`=", {"batch_size": 1, **net(encoder={"pi": "flash"})}),
    ("value_network", "True.*False with `bootstrap='joint'`", {"bootstrap": "joint", "value_network": True}),
    ("value_network", "True.*False with `bootstrap='joint_target'`", {"bootstrap": "joint_target", "value_network": True}),
    ("tau", r"0\.01.*0\.005 with `bootstrap='joint'`", {"bootstrap": "joint", "tau": 0.01}),
    ("target_update_interval", "2.*1 with `bootstrap='joint'`", {"bootstrap": "joint", "target_update_interval": 2}),
    ("actor_q", "'target_min'.*'min', 'mean' or 'first'", {"bootstrap": "joint", "actor_q": "target_min"}),
    ("bootstrap", "'both'.*'target', 'joint', 'joint_target'", {"bootstrap": "both"}),
    ("encoder", "'simba2'.*'mlp', 'simba', 'simba_v2', 'bro', 'flash'", net(encoder="simba2")),
    ("encoder", "'flashsac'.*'mlp', 'simba', 'simba_v2', 'bro', 'flash'", net(encoder={"qf": "flashsac"})),
]


@pytest.mark.parametrize(("option", "message", "kwargs"), [*REFUSED, *OTHERS])
def test_refused(option: str, message: str, kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{option}` is .*{message}"):
        make_model(**kwargs)


ALLOWED: list[dict[str, Any]] = [
    net(encoder={"pi": "mlp", "qf": "simba"}, net_arch={"pi": [8, 16], "qf": [8, 8]}),
    net(encoder={"pi": "flash"}, net_arch={"pi": [8, 8], "qf": [8]}, layer_norm=True, dropout_rate=0.1),
    net(encoder={"qf": "bro"}, normalization={"pi": "layer"}),
    {"use_sde": True, **net(encoder={"pi": "simba", "qf": "simba_v2"}, log_std_init=-2.0)},
    net(encoder="bro", weight_init="xavier", final_init_scale=0.1, log_std_init=-2.0),
    net(encoder="flash", log_std_mode="free"),
    {"bootstrap": "joint_target", "tau": 0.01, "actor_q": "target_min", "target_update_interval": 2, **net(encoder="flash")},
    {"value_network": True, **net(encoder="simba_v2", net_arch={"pi": [4], "qf": [8, 8], "vf": [6, 6]})},
]


@pytest.mark.parametrize("kwargs", ALLOWED)
def test_allowed(kwargs: dict[str, Any]) -> None:
    """Encoders and options of networks that do not meet."""
    model = make_model(compile=False, **kwargs)
    fill_buffer(model, 50)
    model.train(3, batch_size=8)
    assert np.isfinite(model.predict(np.zeros(4, np.float32))[0]).all()

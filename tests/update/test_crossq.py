"""Critics that bootstrap from themselves against sb3-contrib's CrossQ: the same weights, batches and noise."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from sb3_contrib import CrossQ
from sb3_contrib.common.torch_layers import BatchRenorm1d
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger

from sb3_softac import SoftAC
from sb3_softac.engine import UpdateFlags
from sb3_softac.networks.normalization import BatchRenorm
from sb3_softac.update.actor_critic import Noise
from tests.helpers import InjectedNoise, RandomEnv, fill_buffer

#: training passes that have been done when a run of 50 updates starts; renormalisation begins after 100,000
PASSES = {"before": 0, "across": 99_980, "after": 100_001}


def make_theirs(passes: int = 0, policy_delay: int = 3, arch: dict[str, Any] | None = None, **kwargs: Any) -> CrossQ:
    """A model with transitions, and as if it had trained for a while.

    Normalisation takes away what a bias adds where all of a batch is above 0: there gradients are rounding errors, of which
    Adam with its own ε would make whole steps.
    """
    policy_kwargs = {
        "net_arch": {"pi": [16, 16], "qf": [24, 24]},
        "optimizer_kwargs": {"betas": (0.5, 0.999), "eps": 1e-4},
        **(arch or {}),
    }
    options: dict[str, Any] = {"buffer_size": 500, "device": "cpu", "seed": 0, "policy_delay": policy_delay, **kwargs}
    theirs = CrossQ("MlpPolicy", make_vec_env(RandomEnv, options.pop("n_envs", 1)), policy_kwargs=policy_kwargs, **options)
    theirs.set_logger(Logger(None, []))
    fill_buffer(theirs)
    for module in theirs.policy.modules():
        if isinstance(module, BatchRenorm1d):
            module.get_buffer("steps").fill_(passes)
    return theirs


def make_pair(passes: int, policy_delay: int) -> tuple[CrossQ, SoftAC]:
    """The same model twice."""
    theirs = make_theirs(passes, policy_delay)
    return theirs, SoftAC.from_sb3(theirs, compile=False)


def renamed(state: dict[str, th.Tensor], prefix: str) -> dict[str, th.Tensor]:
    """Parameters and statistics of a network of theirs, by our names."""
    names = {"scale": "weight", "ra_mean": "running_mean", "ra_var": "running_var", "steps": "running_steps"}
    result = {}
    for name, value in state.items():
        if name.startswith(prefix):
            *place, last = name[len(prefix) :].split(".")
            result[".".join([*place, names.get(last, last)])] = value
    return result


def critics_of(theirs: CrossQ) -> dict[str, th.Tensor]:
    """Their critics as one stacked network."""
    each = [renamed(theirs.critic.state_dict(), f"qf{i}.") for i in range(theirs.critic.n_critics)]
    last = max(int(name.partition(".")[0]) for name in each[0])
    linear = {name for name, value in each[0].items() if name.endswith(".weight") and value.ndim == 2}
    stacked = {}
    for name in each[0]:
        place, _, kind = name.partition(".")
        ours = f"q_networks.output.{kind}" if int(place) == last else f"q_networks.hidden.{name}"
        parts = [state[name] for state in each]
        if kind == "running_steps":
            stacked[ours] = parts[0]
        else:
            stacked[ours] = th.stack([part.t() if name in linear else part.unsqueeze(0) for part in parts])
    return stacked


def actor_of(theirs: CrossQ) -> dict[str, th.Tensor]:
    heads = {name: value for name, value in theirs.actor.state_dict().items() if name.startswith(("mu", "log_std"))}
    hidden = renamed(theirs.actor.state_dict(), "latent_pi.")
    return heads | {f"latent_pi.{name}": value for name, value in hidden.items()}


def step_of_theirs(theirs: CrossQ, seed: int) -> list[th.Tensor]:
    """One gradient step; the noise that it has drawn."""
    with pytest.MonkeyPatch.context() as patch:
        noise = InjectedNoise(seed)
        noise.install(patch)
        np.random.seed(seed)  # noqa: NPY002  # the generator that SB3's buffers draw from
        theirs.train(1, batch_size=32)
    return noise.drawn


def step_of_ours(ours: SoftAC, seed: int, drawn: list[th.Tensor]) -> None:
    """The same step, on the same noise: theirs draws that of the next action first."""
    ours.policy.set_training_mode(True)
    np.random.seed(seed)  # noqa: NPY002
    batch = ours._sample_batch(32)
    ours._n_updates += 1
    update = ours._current_update()
    flags = UpdateFlags(actor=ours._n_updates % ours.policy_delay == 0, targets=True)
    assert len(drawn) == 1 + flags.actor
    update(batch, Noise(drawn[1] if flags.actor else None, drawn[0]), flags, update.numbers())


def assert_same(theirs: CrossQ, ours: SoftAC, tolerance: float = 1e-4) -> None:
    """Weights, statistics, counters and temperature."""
    for network, state in ((ours.critic, critics_of(theirs)), (ours.actor, actor_of(theirs))):
        present = network.state_dict()
        assert present.keys() == state.keys()
        for name, value in state.items():
            th.testing.assert_close(present[name], value, atol=tolerance, rtol=tolerance, msg=name)
    alpha = theirs.ent_coef_tensor if theirs.log_ent_coef is None else theirs.log_ent_coef.exp()
    assert ours.temperature.value.item() == pytest.approx(alpha.item(), abs=tolerance)


@pytest.mark.parametrize("warm_up", PASSES)
@pytest.mark.parametrize("policy_delay", [1, 3])
def test_fifty_updates(warm_up: str, policy_delay: int) -> None:
    theirs, ours = make_pair(PASSES[warm_up], policy_delay)
    before = {name: value.clone() for name, value in ours.critic.state_dict().items()}
    for seed in range(50):
        step_of_ours(ours, seed, step_of_theirs(theirs, seed))
    assert_same(theirs, ours)
    assert all(not th.equal(value, before[name]) for name, value in ours.critic.state_dict().items())


@pytest.mark.parametrize("mode", [False, True])
def test_the_mode_of_the_module_does_not_decide(mode: bool) -> None:
    """Acting, and every pass that is not asked to use its batch, uses the running statistics and moves none."""
    _, ours = make_pair(0, 1)
    ours.policy.set_training_mode(mode)
    before = {name: value.clone() for name, value in ours.policy.state_dict().items()}
    single = ours.critic(th.rand(1, 4), th.rand(1, 2))
    assert all(value.isfinite().all() for value in single)
    ours.actor(th.rand(3, 4))
    assert all(th.equal(before[name], value) for name, value in ours.policy.state_dict().items())


def test_layers_equal_theirs_single_and_stacked() -> None:
    theirs = [BatchRenorm1d(5, warmup_steps=3) for _ in range(3)]
    ours, single = BatchRenorm(5, 3, warmup_steps=3), BatchRenorm(5, warmup_steps=3)
    for _ in range(8):
        inputs = 3.0 * th.randn(3, 16, 5) + 1.0
        ours.uses_batch = single.uses_batch = True
        stacked, one = ours(inputs), single(inputs[0])
        for index, layer in enumerate(theirs):
            expected = layer(inputs[index])
            th.testing.assert_close(stacked[index], expected)
            if index == 0:
                th.testing.assert_close(one, expected)
    ours.uses_batch = False
    for index, layer in enumerate(theirs):
        layer.eval()
        th.testing.assert_close(ours(inputs)[index], layer(inputs[index]))
    th.testing.assert_close(ours(inputs[1:2], slice(1, 2)), ours(inputs)[1:2])


OBSERVATIONS = np.random.default_rng(0).uniform(-1, 1, (20, 4)).astype(np.float32)


class TestTakenOver:
    """``SoftAC.from_sb3`` of a CrossQ, in the middle of its training."""

    @pytest.mark.parametrize("through", ["model", "file", "stream"])
    @pytest.mark.parametrize("warm_up", PASSES)
    def test_it_goes_on_as_theirs(self, warm_up: str, through: str, tmp_path: Path) -> None:
        theirs = make_theirs(PASSES[warm_up])
        for seed in range(10):
            step_of_theirs(theirs, seed)
        source: Any = theirs
        if through == "file":
            source = tmp_path / "crossq.zip"
            theirs.save(source)
        elif through == "stream":
            theirs.save(source := io.BytesIO())
        ours = SoftAC.from_sb3(source, device="cpu", compile=False)
        if through != "model":
            ours.replay_buffer = theirs.replay_buffer
        assert_same(theirs, ours, tolerance=0.0)
        for seed in range(10, 30):
            step_of_ours(ours, seed, step_of_theirs(theirs, seed))
        assert_same(theirs, ours)
        assert ours._n_updates == theirs._n_updates == 30
        expected = theirs.predict(OBSERVATIONS, deterministic=True)[0]
        np.testing.assert_allclose(ours.predict(OBSERVATIONS, deterministic=True)[0], expected, atol=1e-4)

    @pytest.mark.parametrize("through_a_file", [False, True])
    def test_it_acts_as_theirs(self, through_a_file: bool, tmp_path: Path) -> None:
        theirs = make_theirs(arch={"net_arch": None, "optimizer_kwargs": None}, learning_starts=30).learn(50)
        theirs.save(tmp_path / "crossq")
        ours = SoftAC.from_sb3(tmp_path / "crossq.zip" if through_a_file else theirs, device="cpu")
        expected = theirs.predict(OBSERVATIONS, deterministic=True)[0]
        np.testing.assert_allclose(ours.predict(OBSERVATIONS, deterministic=True)[0], expected, atol=1e-6)
        assert ours.policy_kwargs["net_arch"] == {"pi": [256, 256], "qf": [1024, 1024]}
        assert [group["betas"] for group in ours.critic.optimizer.param_groups] == [(0.5, 0.999)]

    @pytest.mark.parametrize(
        "options",
        [
            {"n_steps": 3, "gamma": 0.9},
            {"ent_coef": 0.2},
            {"ent_coef": "auto_0.3", "target_entropy": -0.5, "n_envs": 3},
            {"arch": {"n_critics": 3, "activation_fn": th.nn.Tanh, "optimizer_class": th.optim.AdamW}},
            {"arch": {"net_arch": {"pi": [16], "qf": []}}},
            {"arch": {"share_features_extractor": True}},
        ],
    )
    def test_options(self, options: dict[str, Any]) -> None:
        theirs = make_theirs(learning_rate=5e-4, policy_delay=2, **options)
        for seed in range(4):
            step_of_theirs(theirs, seed)
        ours = SoftAC.from_sb3(theirs, compile=False)
        for seed in range(4, 24):
            step_of_ours(ours, seed, step_of_theirs(theirs, seed))
        assert_same(theirs, ours)

    def test_without_normalisation(self) -> None:
        theirs = make_theirs(arch={"batch_norm": False})
        with pytest.warns(UserWarning, match="`bootstrap` is 'joint' without batch normalisation"):
            ours = SoftAC.from_sb3(theirs, compile=False)
        assert ours.policy_kwargs["normalization"] is None
        for seed in range(20):
            step_of_ours(ours, seed, step_of_theirs(theirs, seed))
        assert_same(theirs, ours)

    def test_gsde(self) -> None:
        theirs = make_theirs(use_sde=True).learn(120)
        ours = SoftAC.from_sb3(theirs)
        assert_same(theirs, ours, tolerance=0.0)
        expected = theirs.predict(OBSERVATIONS, deterministic=True)[0]
        np.testing.assert_allclose(ours.predict(OBSERVATIONS, deterministic=True)[0], expected, atol=1e-6)
        ours.learn(10, reset_num_timesteps=False)

    def test_the_training_goes_on(self, tmp_path: Path) -> None:
        theirs = make_theirs(learning_starts=20, learning_rate=lambda progress: 1e-3 * progress).learn(50)
        ours = SoftAC.from_sb3(theirs, compile=False)
        assert (ours.env, ours.replay_buffer) == (theirs.env, theirs.replay_buffer)
        assert (ours.bootstrap, ours.policy_delay, ours.ent_coef_update, ours.tau) == ("joint", 3, "log", 0.005)
        assert ours.lr_schedule(0.5) == 5e-4
        assert (ours.num_timesteps, ours._n_updates, ours._episode_num) == (50, 30, theirs._episode_num)
        ours.learn(20, reset_num_timesteps=False)
        assert (ours.num_timesteps, ours._n_updates) == (70, 50)
        assert int(ours.critic.optimizer.state_dict()["state"][0]["step"]) == 50
        ours.learning_rate = 1e-3
        ours.save(tmp_path / "ours")
        again = SoftAC.load(tmp_path / "ours.zip", device="cpu")
        for name, value in ours.policy.state_dict().items():
            assert th.equal(again.policy.state_dict()[name], value)

    @pytest.mark.parametrize(
        ("arch", "ours", "message"),
        [
            ({"batch_norm_momentum": 0.1}, {}, r"`policy_kwargs\['batch_norm_momentum'\]` .* is 0\.1, but it must be 0\.01"),
            ({"batch_norm_eps": 1e-5}, {}, r"`policy_kwargs\['batch_norm_eps'\]` .* is 1e-05, but it must be 0\.001"),
            ({"renorm_warmup_steps": 5}, {}, r"`policy_kwargs\['renorm_warmup_steps'\]` .* is 5, but it must be 100000"),
            ({"net_arch": {"pi": [], "qf": [8]}}, {}, r"`policy_kwargs\['net_arch'\]` .*its actor must have hidden layers"),
            ({}, {"bootstrap": "target"}, "`bootstrap` is 'target', but it must be 'joint': CrossQ has no target networks"),
            ({}, {"value_network": True}, "`value_network` is True, but it must be False: CrossQ has no value network"),
            ({}, {"tau": 0.1}, r"`tau` is 0\.1, but it must be 0\.005"),
            ({}, {"policy_kwargs": {"net_arch": [8]}}, "`policy_kwargs` do not fit the weights of the CrossQ model"),
            ({}, {"buffer_size": 7}, "`buffer_size` is 7, but the replay buffer of `sac` is handed over"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:`bootstrap` is 'joint' without")
    def test_what_has_no_place(self, arch: dict[str, Any], ours: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            SoftAC.from_sb3(make_theirs(arch=arch), **ours)

    def test_targets_would_be_lost(self) -> None:
        sac = SAC("MlpPolicy", RandomEnv(), buffer_size=10, device="cpu")
        with pytest.raises(ValueError, match="`bootstrap` is 'joint', but it must be 'target': SAC has target networks"):
            SoftAC.from_sb3(sac, bootstrap="joint")

    def test_files_without_sb3_contrib(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_theirs().save(tmp_path / "crossq")
        monkeypatch.setitem(sys.modules, "sb3_contrib", None)
        with pytest.raises(ValueError, match=r"but it must be a file that SB3's SAC saved, or, where sb3-contrib is"):
            SoftAC.from_sb3(tmp_path / "crossq.zip")
        SAC("MlpPolicy", RandomEnv(), buffer_size=10).save(tmp_path / "sac")
        SoftAC.from_sb3(tmp_path / "sac.zip")

"""Soft actor-critic's networks in float64: what the tests derive updates with. It shares no code with the package."""

from typing import Any

import torch as th

from sb3_softac import SoftAC

Tensors = dict[str, th.Tensor]
Pairs = list[tuple[th.Tensor, th.Tensor]]


class Networks:
    """Weights of a model in float64, read by name, and what they compute: a loop over layers and critics, ReLU between."""

    def __init__(self, model: SoftAC) -> None:
        self.model = model
        self.weights: Tensors = {k: v.double().clone() for k, v in model.policy.state_dict().items()}
        self.alpha = model.temperature.value.double().clone()

    def trainable(self) -> Tensors:
        """A copy of the weights that gradients are taken with respect to."""
        return {name: value.clone().requires_grad_() for name, value in self.weights.items()}

    def mlp(self, x: th.Tensor, layers: Pairs) -> th.Tensor:
        for i, (weight, bias) in enumerate(layers):
            x = x @ weight + bias
            x = x.clamp(min=0) if i < len(layers) - 1 else x
        return x

    def stacked_layers(self, prefix: str, index: int, weights: Tensors) -> Pairs:
        names = [name.removesuffix(".weight") for name in weights if name.startswith(f"{prefix}.") and "weight" in name]
        return [(weights[f"{name}.weight"][index], weights[f"{name}.bias"][index]) for name in names]

    def stacked(self, prefix: str, index: int, x: th.Tensor, weights: Tensors) -> th.Tensor:
        return self.mlp(x, self.stacked_layers(prefix, index, weights)).squeeze(1)

    def q(self, net: str, s: th.Tensor, a: th.Tensor | None, weights: Tensors) -> list[th.Tensor]:
        """One value per critic: (B,), or (B, A) of all discrete actions."""
        inputs = s if a is None else th.cat([s, a], 1)
        n_critics = weights[f"{net}.q_networks.output.weight"].shape[0]
        return [self.stacked(f"{net}.q_networks", i, inputs, weights) for i in range(n_critics)]

    def v(self, net: str, s: th.Tensor, weights: Tensors) -> th.Tensor:
        return self.stacked(f"{net}.v_network", 0, s, weights)

    def head(self, name: str, s: th.Tensor, weights: Tensors) -> th.Tensor:
        """An output layer of the actor, on top of its hidden layers."""
        names = [n.removesuffix(".weight") for n in weights if n.startswith("actor.latent_pi.") and n.endswith("weight")]
        layers = [(weights[f"{n}.weight"].T, weights[f"{n}.bias"]) for n in [*names, f"actor.{name}"]]
        return self.mlp(s, layers)

    def raw_log_std_to_log_std(self, raw: th.Tensor) -> th.Tensor:
        return raw.clamp(-20, 2)

    def pi(self, s: th.Tensor, noise: th.Tensor, weights: Tensors) -> tuple[th.Tensor, th.Tensor]:
        mean = self.head("mu", s, weights)
        spread = self.raw_log_std_to_log_std(self.head("log_std", s, weights)).exp()
        action = th.tanh(mean + spread * noise)
        normal = th.distributions.Normal(mean, spread)
        log_prob: Any = normal.log_prob(mean + spread * noise)  # type: ignore[no-untyped-call]  # torch's own
        return action, (log_prob - (1 - action**2).log()).sum(1)

    def track(self, online: str, target: str, tau: float) -> None:
        """θ̄ ← τθ + (1 − τ)θ̄."""
        for name in [name for name in self.weights if name.startswith(f"{target}.")]:
            self.weights[name] = tau * self.weights[name.replace(target, online, 1)] + (1 - tau) * self.weights[name]

"""SimBa, SimbaV2, BRO and FlashSAC once more: in float64, network by network, from the papers' equations.

Nothing here is shared with the package but the names of its weights. Matrices are (out, in), as in the papers.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch as th

Weights = dict[str, th.Tensor]
UNIT = ("simba_v2", "flash")


# --- networks ---------------------------------------------------------------------------------------------------------


@dataclass
class Net:
    """One network, with what Adam knows of it."""

    encoder: str
    weights: Weights
    statistics: Weights
    moments: dict[str, tuple[th.Tensor, th.Tensor]] = field(default_factory=dict)
    n_steps: int = 0

    @property
    def n_blocks(self) -> int:
        inner = {"simba": "1", "simba_v2": "first", "bro": "3", "flash": "3"}[self.encoder]
        return sum(name.endswith(f".{inner}.weight") and name.count(".") == 2 for name in self.weights)

    def linear(self, name: str, x: th.Tensor) -> th.Tensor:
        y = x @ self.weights[f"{name}.weight"].T
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def layer_norm(self, name: str, x: th.Tensor) -> th.Tensor:
        centred = x - x.mean(1, keepdim=True)
        normal = centred / (centred**2).mean(1, keepdim=True).add(1e-6).sqrt()
        return normal * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def batch_norm(self, name: str, x: th.Tensor, train: bool) -> th.Tensor:
        mean, var = self.statistics[f"{name}.running_mean"], self.statistics[f"{name}.running_var"]
        if train:
            batch_mean = x.sum(0) / len(x)
            squares = ((x - batch_mean) ** 2).sum(0)
            self.statistics[f"{name}.running_mean"] = 0.99 * mean + 0.01 * batch_mean.detach()
            self.statistics[f"{name}.running_var"] = 0.99 * var + 0.01 * squares.detach() / (len(x) - 1)
            mean, var = batch_mean, squares / len(x)
        return (x - mean) / (var + 1e-5).sqrt() * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def features(self, x: Any, train: bool = False) -> th.Tensor:
        """(B, in) → (B, width); ``train``: batch normalisation by the statistics of these rows."""
        return {"simba": simba, "simba_v2": simba_v2, "bro": bro, "flash": flash}[self.encoder](self, x, train)

    def head(self, name: str, x: th.Tensor) -> th.Tensor:
        if self.encoder != "simba_v2":
            return self.linear(name, x)
        return self.linear(f"{name}.2", self.weights[f"{name}.1.weight"] * self.linear(f"{name}.0", x))


def length_one(x: th.Tensor) -> th.Tensor:
    return x / (x**2).sum(1, keepdim=True).sqrt().clamp(min=1e-8)


def simba(net: Net, x: th.Tensor, train: bool) -> th.Tensor:
    x = net.linear("0", x)
    for i in range(1, net.n_blocks + 1):
        x = x + net.linear(f"{i}.3", net.linear(f"{i}.1", net.layer_norm(f"{i}.0", x)).clamp(min=0))
    return net.layer_norm(str(net.n_blocks + 1), x)


def bro(net: Net, x: th.Tensor, train: bool) -> th.Tensor:
    x = net.layer_norm("1", net.linear("0", x)).clamp(min=0)
    for i in range(3, net.n_blocks + 3):
        inner = net.layer_norm(f"{i}.1", net.linear(f"{i}.0", x)).clamp(min=0)
        x = x + net.layer_norm(f"{i}.4", net.linear(f"{i}.3", inner))
    return x


def simba_v2(net: Net, x: th.Tensor, train: bool) -> th.Tensor:
    w, n_blocks = net.weights, net.n_blocks
    x = length_one(th.cat([x, th.full_like(x[:, :1], 3.0)], dim=1))
    x = length_one(w["0.1.weight"] * net.linear("0.0", x))
    for i in range(1, n_blocks + 1):
        inner = (w[f"{i}.scaler.weight"] * net.linear(f"{i}.first", x)).clamp(min=0) + 1e-8
        aim = length_one(net.linear(f"{i}.second", inner))
        alpha = w[f"{i}.step.weight"] * math.sqrt(x.shape[1]) / (n_blocks + 1)
        x = length_one(x + alpha * (aim - x))
    return x


def flash(net: Net, x: th.Tensor, train: bool) -> th.Tensor:
    x = net.linear("1", net.batch_norm("0", x, train))
    for i in range(2, net.n_blocks + 2):
        inner = net.batch_norm(f"{i}.1", net.linear(f"{i}.0", x), train).clamp(min=0)
        x = x + net.batch_norm(f"{i}.4", net.linear(f"{i}.3", inner), train).clamp(min=0)
    return x / ((x**2).mean(1, keepdim=True) + 1e-6).sqrt() * net.weights[f"{net.n_blocks + 2}.weight"]


@th.no_grad()
def project(net: Net) -> None:
    """Rows of matrices to length 1, (scale, shift) of batch normalisation and the scales of the RMS norm to √n."""
    w = net.weights
    if net.encoder not in UNIT:
        return
    for weight in w.values():
        if weight.ndim == 2:
            for row in weight:
                row /= max(float((row**2).sum()) ** 0.5, 1e-8)
    if net.encoder == "flash":
        groups = [[name.replace("running_mean", kind) for kind in ("weight", "bias")] for name in net.statistics]
        for names in [*(group for group in groups if group[0] in w), [f"{net.n_blocks + 2}.weight"]]:
            square = sum(float((w[name] ** 2).sum()) for name in names)
            for name in names:
                w[name] *= math.sqrt(len(w[name]) / (square + 1e-8))


@dataclass
class Adam:
    """Adam, or AdamW with a decay that every parameter gets."""

    learning_rate: float
    decay: float = 0.0

    @th.no_grad()
    def step(self, nets: list[Net], loss: th.Tensor) -> None:
        """One step down ``loss``, and the projection after it."""
        leaves = [weight for net in nets for weight in net.weights.values()]
        with th.enable_grad():
            gradients = iter(th.autograd.grad(loss, leaves))
        for net in nets:
            net.n_steps += 1
            for name, weight in net.weights.items():
                gradient, zeros = next(gradients), th.zeros_like(weight)
                first, second = net.moments.get(name, (zeros, zeros))
                first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
                net.moments[name] = first, second
                size = (second / (1 - 0.999**net.n_steps)).sqrt() + 1e-8
                weight *= 1 - self.learning_rate * self.decay
                weight -= self.learning_rate * first / (1 - 0.9**net.n_steps) / size
            project(net)


# --- what critics put out ---------------------------------------------------------------------------------------------


@dataclass
class Head:
    """Of critics: ``"scalar"``, ``"quantile"`` or ``"categorical"``, with K numbers."""

    kind: str
    n_numbers: int = 1
    low: float = -5.0
    high: float = 5.0

    @property
    def atoms(self) -> th.Tensor:
        return th.linspace(self.low, self.high, self.n_numbers, dtype=th.float64)

    def value(self, outputs: th.Tensor) -> th.Tensor:
        """(..., K) → (...)."""
        if self.kind == "categorical":
            return th.softmax(outputs, -1) @ self.atoms
        return outputs.mean(-1)

    def target(self, outputs: list[th.Tensor], reward: th.Tensor, discount: th.Tensor, bonus: th.Tensor) -> th.Tensor:
        """y of r + γ(1 − d)·(Q̄ + bonus) for one action: (B,), quantiles (B, K), or probabilities (B, K).

        :param outputs: of each target critic, (B, K)
        :param bonus: −α log π, (B,)
        """
        if self.kind == "scalar":
            return reward + discount * (th.minimum(*outputs)[:, 0] + bonus)
        if self.kind == "quantile":
            mean = sum(outputs[1:], outputs[0]) / len(outputs)
            return reward[:, None] + discount[:, None] * (mean + bonus[:, None])
        smaller = self.value(outputs[1]) < self.value(outputs[0])
        probabilities = th.softmax(th.where(smaller[:, None], outputs[1], outputs[0]), 1)
        moved = reward[:, None] + discount[:, None] * (self.atoms + bonus[:, None])
        spacing = (self.high - self.low) / (self.n_numbers - 1)
        distance = (moved.clamp(self.low, self.high)[:, :, None] - self.atoms).abs()
        return (probabilities[:, :, None] * (1 - distance / spacing).clamp(min=0)).sum(1)

    def loss(self, outputs: list[th.Tensor], target: th.Tensor) -> th.Tensor:
        """Of all critics, (B, K) each."""
        if self.kind == "scalar":
            return th.stack([0.5 * ((q[:, 0] - target) ** 2).mean() for q in outputs]).sum()
        if self.kind == "categorical":
            return th.stack([-(target * th.log_softmax(logits, 1)).sum(1).mean() for logits in outputs]).mean()
        total = th.zeros((), dtype=th.float64)
        for quantiles in outputs:
            for i in range(self.n_numbers):
                error = target - quantiles[:, i : i + 1]
                huber = th.where(error.abs() <= 1, error**2 / 2, error.abs() - 0.5)
                side = ((i + 0.5) / self.n_numbers - (error < 0).double()).abs()
                total = total + (side * huber).mean() / (len(outputs) * self.n_numbers)
        return total


# --- a gradient step --------------------------------------------------------------------------------------------------


@dataclass
class Learner:
    """Everything that training changes, and one gradient step of it."""

    head: Head
    actor: Net
    critics: list[Net]
    targets: list[Net]
    value: Net | None
    value_target: Net | None
    log_alpha: Net
    optimizer: Adam
    tau: float
    target_entropy: float
    n_actions: int | None = None
    joint: bool = False

    def step(self, batch: Any, noise: Any, with_actor: bool) -> None:
        """Critics, actor, temperature, targets; all with the actor and α from before the step."""
        alpha = self.log_alpha.weights["log"].detach().exp()
        discount = batch.discounts * (1 - batch.dones)
        if self.value is not None:
            self.fit_value(batch, noise, alpha)
        with th.no_grad():
            following = self.policy(batch.next_observations, noise.next_observations)
        if self.joint:
            outputs, after = self.joint_outputs(batch, following[0])
        else:
            outputs = [self.outputs(net, batch.observations, batch.actions) for net in self.critics]
            with th.no_grad():
                after = [self.outputs(net, batch.next_observations, following[0]) for net in self.targets]
        if self.value_target is not None:
            with th.no_grad():
                value = self.value_target.head("output", self.value_target.features(batch.next_observations))[:, 0]
            target = batch.rewards + discount * value
        else:
            target = self.target(after, batch.rewards, discount, following[1], alpha)
        if self.n_actions is not None:
            rows = th.arange(len(batch.rewards))
            outputs = [each[rows, batch.actions] for each in outputs]
        self.optimizer.step(self.critics, self.head.loss(outputs, target))
        if with_actor:
            self.improve_actor(batch, noise, alpha)
        for nets, targets in ((self.critics, self.targets), ([self.value], [self.value_target])):
            for net, net_target in zip(nets, targets, strict=True) if targets and targets[0] is not None else ():
                assert net is not None
                assert net_target is not None
                for name, weight in net.weights.items():
                    net_target.weights[name] = (1 - self.tau) * net_target.weights[name] + self.tau * weight.detach()

    def policy(self, observations: Any, noise: th.Tensor | None, train: bool = False) -> tuple[Any, th.Tensor]:
        """ã and log π(ã|s), (B,); of discrete actions None and (B, |A|)."""
        features = self.actor.features(observations, train)
        if self.n_actions is not None:
            return None, th.log(th.softmax(self.actor.head("logits", features), 1))
        assert noise is not None
        mean = self.actor.head("mu", features)
        std = th.exp(-10 + 0.5 * (2 - -10) * (1 + th.tanh(self.actor.head("log_std", features))))
        before = mean + std * noise
        actions = th.tanh(before)
        normal = -(((before - mean) / std) ** 2) / 2 - th.log(std) - math.log(2 * math.pi) / 2
        return actions, (normal - th.log(1 - actions**2)).sum(1)

    def outputs(self, net: Net, observations: Any, actions: th.Tensor | None, train: bool = False) -> th.Tensor:
        """(B, K), or (B, |A|, K) of discrete actions."""
        if self.n_actions is not None:
            return net.head("output", net.features(observations, train)).view(-1, self.n_actions, self.head.n_numbers)
        assert actions is not None
        return net.head("output", net.features(th.cat([observations, actions], 1), train))

    def joint_outputs(self, batch: Any, following: Any) -> tuple[list[th.Tensor], list[th.Tensor]]:
        """Critics at (s, a) and targets at (s', ã'), normalised by the mixture of both."""
        size = len(batch.rewards)
        observations = th.cat([batch.observations, batch.next_observations])
        actions = None if self.n_actions is not None else th.cat([batch.actions, following])
        outputs = [self.outputs(net, observations, actions, True)[:size] for net in self.critics]
        with th.no_grad():
            after = [self.outputs(net, observations, actions, True)[size:] for net in self.targets]
        return outputs, after

    def target(
        self, after: list[th.Tensor], reward: th.Tensor, discount: th.Tensor, log_prob: th.Tensor, alpha: th.Tensor
    ) -> th.Tensor:
        if self.n_actions is None:
            return self.head.target(after, reward, discount, -alpha * log_prob)
        parts = [
            self.head.target([each[:, a] for each in after], reward, discount, -alpha * log_prob[:, a])
            for a in range(self.n_actions)
        ]  # y is the mixture of them over π
        shape = (-1,) if parts[0].ndim == 1 else (-1, 1)
        return th.stack([log_prob[:, a].exp().view(shape) * parts[a] for a in range(len(parts))]).sum(0)

    def fit_value(self, batch: Any, noise: Any, alpha: th.Tensor) -> None:
        assert self.value is not None
        with th.no_grad():
            actions, log_prob = self.policy(batch.observations, noise.observations)
            q = th.stack([self.head.value(self.outputs(net, batch.observations, actions)) for net in self.critics]).amin(0)
            target = q - alpha * log_prob
        values = self.value.head("output", self.value.features(batch.observations))[:, 0]
        self.optimizer.step([self.value], 0.5 * ((values - target) ** 2).mean())

    def improve_actor(self, batch: Any, noise: Any, alpha: th.Tensor) -> None:
        """Actor, on the critics after their update with their running statistics, and temperature."""
        size, observations, epsilon = len(batch.rewards), batch.observations, noise.observations
        if self.joint:
            observations = th.cat([observations, batch.next_observations])
            epsilon = None if epsilon is None else th.cat([epsilon, epsilon])  # the second half has no part in the loss
        actions, log_prob = self.policy(observations, epsilon, self.joint)
        actions, log_prob = None if actions is None else actions[:size], log_prob[:size]
        q = th.stack([self.head.value(self.outputs(net, batch.observations, actions)) for net in self.critics])
        q = q.mean(0) if self.head.kind == "quantile" else q.amin(0)
        if self.n_actions is None:
            loss, entropy = (alpha * log_prob - q).mean(), -log_prob.mean()
        else:
            chances = log_prob.exp()
            loss, entropy = (chances * (alpha * log_prob - q.detach())).sum(1).mean(), -(chances * log_prob).sum(1).mean()
        self.optimizer.step([self.actor], loss)
        gap = entropy.detach() - self.target_entropy
        Adam(self.optimizer.learning_rate).step([self.log_alpha], self.log_alpha.weights["log"].exp() * gap)


def everything(learner: Learner) -> dict[str, th.Tensor]:
    """All weights and running statistics, by name."""
    found: dict[str, th.Tensor] = {}
    for part in fields(learner):
        nets = getattr(learner, part.name)
        for i, net in enumerate(nets if isinstance(nets, list) else [nets]):
            if isinstance(net, Net):
                found |= {f"{part.name}.{i}.{name}": value for name, value in (net.weights | net.statistics).items()}
    return found

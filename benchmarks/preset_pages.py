"""The generated parts of the guides: what a preset sets, what it costs, and which returns are known.

    python benchmarks/preset_pages.py

writes them into docs/presets/*.md and docs/choosing.md, between a line ``<!-- NAME -->`` and the next ``<!-- end -->``; all
else on these pages is written by hand. tests/test_guides.py fails where a page is not as this script would write it.

Parameters and memory are those of a model with the spaces of HalfCheetah-v5 (17 observations, 6 actions). Floating-point
operations are counted while a gradient step runs (flops.py), on a small batch, since those of all matmuls are proportional to
it. Returns are read from docs/returns*.csv (ours) and docs/published-returns.csv.
"""

import csv
import functools
import inspect
import json
import re
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from flops import gradient_step_flops  # benchmarks/flops.py
from harness.variants import VARIANTS
from stable_baselines3.common.logger import Logger

from sb3_softac import SoftAC, SoftQL, presets

DOCS = Path(__file__).parent.parent / "docs"
NAMES = (*presets.PRESETS, *presets.SOFTQL_PRESETS)
#: what the published runs of a name are configured as
PUBLISHED = {
    "crossq_paper": "CrossQ",
    "droq": "DroQ UTD 20",
    "redq": "REDQ UTD 20",
    "simba_v2": "SimbaV2 UTD 2",
    "bro": "BRO UTD 2",
    "flashsac": "FlashSAC UTD 1",
}
#: our variants, as benchmarks/returns.py names them
OURS = {
    "sb3": "sb3",
    "tqc": "TQC",
    "crossq": "CROSSQ",
    "crossq_small": "CROSSQ_SMALL",
    "crossq_paper": "crossq_paper",
    "softqlearning": "SoftQL published",
}
STEPS = (100_000, 1_000_000)
FIGURES = "[published-returns.csv](../published-returns.csv)"
N_TRANSITIONS, BATCH = 64, 4
BLOCK = re.compile(r"<!-- (\w+) -->\n.*?<!-- end -->", re.DOTALL)


class Cheetah(gym.Env[Any, Any]):
    """Nothing but the spaces of HalfCheetah-v5."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (17,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (6,), np.float32)


def owner(name: str) -> Any:
    """The class that takes the preset."""
    return SoftQL if name in presets.SOFTQL_PRESETS else SoftAC


def make_model(name: str, **overrides: Any) -> Any:
    """The preset with a small replay buffer."""
    return owner(name)(
        "MlpPolicy", Cheetah(), device="cpu", seed=0, **presets.get(name, buffer_size=N_TRANSITIONS, **overrides)
    )


def fill(model: Any) -> None:
    """Random transitions, so that ``train()`` can be called."""
    generator = np.random.default_rng(0)
    model.set_logger(Logger(None, []))
    for _ in range(N_TRANSITIONS):
        obs, next_obs = generator.normal(size=(2, 1, 17))
        model.replay_buffer.add(obs, next_obs, generator.uniform(-1, 1, (1, 6)), np.ones(1), np.zeros(1), [{}])


def n_parameters(network: Any) -> int:
    """Numbers that an optimizer moves, in a network or none."""
    return 0 if network is None else sum(parameter.numel() for parameter in network.parameters())


@functools.cache
def cost(name: str) -> dict[str, float]:
    """Parameters by network, bytes of a full replay buffer, gradient steps for each call, millions of operations of one."""
    model = make_model(name, compile=False, batch_size=BATCH)
    fill(model)
    buffer = model.replay_buffer
    arrays = [value for value in vars(buffer).values() if isinstance(value, np.ndarray)]
    transition = sum(array.nbytes for array in arrays) / N_TRANSITIONS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # values of untrained categorical critics may lie outside of their range
        flops = gradient_step_flops(model)
    networks = {
        "actor": model.actor,
        "critics": model.critic,
        "value": getattr(model, "value_net", None),
        "targets": getattr(model, "value_net_target", None) or model.critic_target,
    }
    return {
        **{part: n_parameters(network) for part, network in networks.items()},
        "replay": transition * presets.get(name)["buffer_size"],
        "mflop": flops * presets.get(name)["batch_size"] / BATCH / 1e6,
    }


def updates_per_step(name: str) -> float:
    """Gradient steps for each environment step, with one environment."""
    every, steps = presets.get(name)["train_freq"], presets.get(name)["gradient_steps"]
    return 1.0 if steps == -1 else steps / every


def text(value: float) -> str:
    """A number for readers."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def configuration(name: str) -> str:
    """What the preset sets to something else than its class, as a table."""
    model = owner(name)("MlpPolicy", Cheetah(), device="cpu", buffer_size=10)
    rows = []
    for option, value in presets.get(name).items():
        if option == "policy_kwargs":
            rows += [(f'policy_kwargs["{inner}"]', part, None) for inner, part in value.items()]
        else:
            rows.append((option, value, default_of(model, option)))
    width = "| option | value | default |\n|---|---|---|\n"
    return width + "\n".join(f"| `{option}` | `{value!r}` | {shown(default)} |" for option, value, default in rows)


def default_of(model: Any, option: str) -> Any:
    """The default of an option in the signature of its class."""
    return inspect.signature(type(model).__init__).parameters[option].default


def shown(default: Any) -> str:
    return "" if default is None else f"`{default!r}`"


def command(name: str) -> str:
    """How to train with it, from Python and with RL Zoo."""
    kind, algo = owner(name).__name__, owner(name).__name__.lower()
    return f"""```python
from sb3_softac import {kind}, presets

model = {kind}("MlpPolicy", "Pendulum-v1", **presets.get("{name}", buffer_size=100_000)).learn(20_000)
```

```sh
python -m rl_zoo3.train --algo {algo} --env Pendulum-v1 -params preset:{name}
```"""


def not_reproduced(name: str) -> str:
    """The row of docs/presets.md."""
    table = (DOCS / "presets.md").read_text().split("## What is not reproduced")[1]
    rows = [line.split(" | ", 1) for line in table.splitlines() if line.startswith("| `")]
    known = " ".join(content.rstrip(" |") for names, content in rows if f"`{name}`" in names)
    known = re.sub(r"(?<=\[)([\d.]+)\]", r"\1](https://arxiv.org/abs/\1)", known).replace("../", "../../")
    own = f"{known[0].upper()}{known[1:]}." if known else "Nothing else is known."
    row_above = "“As above” is the row before it in [the table](../presets.md#what-is-not-reproduced). "
    everywhere = "What no preset reproduces is [there](../presets.md#what-is-not-reproduced), too."
    return f"{own} {row_above if 'as above' in known.lower() else ''}{everywhere}"


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def published(label: str, step: int) -> dict[str, str]:
    """Mean and deviation by task of a published algorithm at one step."""
    rows = read(DOCS / "published-returns.csv")
    return {
        row["task"]: f"{float(row['mean']):,.0f} ± {float(row['std over seeds']):,.0f}"
        for row in rows
        if row["algorithm"] == label and int(row["steps"]) == step
    }


def has_settings_of(variant: str, settings: dict[str, Any]) -> bool:
    """Whether a run has nothing but its variant's settings, a number of random steps, a learning rate and a reward scale."""
    own = json.loads(json.dumps(VARIANTS[variant][1]))
    others = {name for name in {*own, *settings} if name not in settings or own.get(name) != settings[name]}
    return others <= {"learning_starts", "learning_rate", "reward_scale"}


@functools.cache
def ours(variant: str) -> dict[tuple[str, int], list[float]]:
    """Our measured returns of a variant as it is: one for each seed, by task and steps."""
    found: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
    for path in sorted(DOCS.glob("returns*.csv")):
        for row in read(path):
            if row["variant"] == variant and "settings" in row and has_settings_of(variant, json.loads(row["settings"])):
                found[row["env"], int(row["steps"])].setdefault(int(row["seed"]), float(row["return"]))
    return {key: list(by_seed.values()) for key, by_seed in found.items()}


def seeds_of(returns: list[float]) -> str:
    mean = f"{np.mean(returns):,.0f}"
    return f"{mean} (1 seed)" if len(returns) == 1 else f"{mean} ± {np.std(returns, ddof=1):,.0f} ({len(returns)} seeds)"


def returns(name: str) -> str:
    """What is published, and what is measured here."""
    lines = []
    if name in PUBLISHED:
        tasks = list(published(PUBLISHED[name], STEPS[0]))
        n_seeds = next(row["seeds"] for row in read(DOCS / "published-returns.csv") if row["algorithm"] == PUBLISHED[name])
        lines += [
            f"Published, as `{PUBLISHED[name]}` in {FIGURES}, {n_seeds} seeds:",
            "",
        ]
        lines += ["| steps | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
        for step in STEPS:
            by_task = published(PUBLISHED[name], step)
            lines.append(f"| {step:,} | " + " | ".join(by_task[task] for task in tasks) + " |")
        lines.append("")
    else:
        lines += [
            f"Published: no figures that were computed in the way of {FIGURES}.",
            "",
        ]
    measured = ours(OURS[name]) if name in OURS else {}
    each = [f"{env} after {steps:,} steps: {seeds_of(found)}" for (env, steps), found in sorted(measured.items())]
    lines.append("Measured here: " + ("; ".join(each) + "." if each else "not measured."))
    return "\n".join(lines)


def page_cost(name: str) -> str:
    """One line: operations, parameters, memory."""
    of = cost(name)
    parts = ", ".join(f"{part} {of[part]:,.0f}" for part in ("actor", "critics", "value", "targets") if of[part])
    often = updates_per_step(name)
    steps = "1 gradient step" if often == 1 else f"{text(often)} gradient steps"
    operations = f"{text(of['mflop'])} MFLOP in the matmuls of a gradient step"
    return (
        f"With the spaces of HalfCheetah-v5: {operations}, {steps} per environment step. "
        f"Parameters: {parts}. A full replay buffer takes {of['replay'] / 1e6:,.0f} MB."
    )


def costs() -> str:
    """All presets beside each other."""
    lines = [
        "| preset | MFLOP per gradient step | gradient steps per step | MFLOP per step | parameters, thousands "
        "| replay buffer, MB |",
        "|---" * 6 + "|",
    ]
    for name in NAMES:
        of, often = cost(name), updates_per_step(name)
        parameters = sum(of[part] for part in ("actor", "critics", "value", "targets")) / 1e3
        cells = [text(of["mflop"]), text(often), text(of["mflop"] * often), f"{parameters:,.0f}", f"{of['replay'] / 1e6:,.0f}"]
        lines.append(f"| [`{name}`](presets/{name}.md) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def returns_by_preset() -> str:
    """Published returns at the last step, and ours, marked."""
    tasks = list(published("SAC", STEPS[-1]))
    lines = ["| preset | what | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 2) + "|"]
    for label, by in [("SAC", "SAC"), *((f"`{n}`", p) for n, p in PUBLISHED.items())]:
        for step in STEPS:
            found = published(by, step)
            lines.append(
                f"| {label} | published as {by}, {step:,} steps | " + " | ".join(found[task] for task in tasks) + " |"
            )
    of_ours = {"the default": "SoftAC"} | {f"`{name}`": OURS[name] for name in presets.PRESETS if name in OURS}
    for label, variant in of_ours.items():
        measured = {env: each for (env, steps), each in ours(variant).items() if steps == STEPS[0]}
        found = {env.replace("-v5", "-v4"): seeds_of(each) for env, each in measured.items()}
        if found:
            cells = " | ".join(found.get(task, "not measured") for task in tasks)
            lines.append(f"| {label} | measured here on v5, {STEPS[0]:,} steps | {cells} |")
    return "\n".join(lines)


BLOCKS = {
    "configuration": configuration,
    "command": command,
    "not_reproduced": not_reproduced,
    "returns": returns,
    "cost": page_cost,
}


def written(page: Path) -> str:
    """The page with its generated parts as they should be."""

    def block(found: re.Match[str]) -> str:
        kind = found[1]
        content = BLOCKS[kind](page.stem) if kind in BLOCKS else {"costs": costs, "all_returns": returns_by_preset}[kind]()
        return f"<!-- {kind} -->\n\n{content}\n\n<!-- end -->"

    return BLOCK.sub(block, page.read_text())


def pages() -> list[Path]:
    return [*(DOCS / "presets" / f"{name}.md" for name in NAMES), DOCS / "choosing.md"]


if __name__ == "__main__":
    for path in pages():
        path.write_text(written(path))

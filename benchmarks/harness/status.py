"""What of a plan is done, running, begun and missing."""

from pathlib import Path

from harness import rows
from harness.plans import Run
from harness.runs import folder_of


def steps_done(run: Run, checkpoints: Path | None) -> int:
    """Where a run that was killed would go on."""
    found = checkpoints and [int(path.name.split("-")[1]) for path in folder_of(run, checkpoints).glob("checkpoint-*")]
    return max(found or [0])


def status(runs: list[Run], output: Path, checkpoints: Path | None) -> str:
    """A table of variants and tasks, then a line for each run that is under way, and a total."""
    undone = rows.missing(runs, rows.read(output, repair=True))
    envs, variants = (list(dict.fromkeys(getattr(run, name) for run in runs)) for name in ("env", "variant"))
    lines = [f"| done of all in {output} | {' | '.join(envs)} |", "|---" * (len(envs) + 1) + "|"]
    for variant in variants:
        cells = []
        for env in envs:
            own = [run for run in runs if (run.variant, run.env) == (variant, env)]
            seeds = [run.seed for run in own if run in undone]
            lacking = f", missing seed {', '.join(map(str, seeds))}" if 0 < len(seeds) < len(own) else ""
            cells.append(f"{len(own) - len(seeds)} of {len(own)}{lacking}" if own else "")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    lines.append("")
    for run in undone:
        done, is_running = steps_done(run, checkpoints), rows.is_claimed(output, run)
        if is_running or done:
            state = "running" if is_running else "stopped"
            lines.append(f"{run}: {state}, checkpoint at {done:,} of {run.steps:,} steps")
    steps = sum(run.steps for run in undone)
    lines.append(f"{len(runs) - len(undone)} of {len(runs)} runs are done, {steps:,} steps are missing.")
    return "\n".join(lines)

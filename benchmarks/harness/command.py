"""The command line of benchmarks/returns.py."""

import argparse
import sys
from pathlib import Path

import torch as th
import yaml

from harness import references, rows, scores, tables
from harness.plans import Plan, Run, preflight, read_plan
from harness.status import status
from harness.variants import OURS, VARIANTS, check_variant
from sb3_softac.arguments.checks import check_count, check_real, refuse

#: what a plan says itself
OF_PLANS = ("steps", "zoo", "set", "points", "episodes")
#: what an option is where neither the command line nor a plan says it
DEFAULTS = {
    "env": ["HalfCheetah-v5"],
    "variants": ["SoftAC dual", "SB3 SAC"],
    "seeds": [0, 1, 2],
    "steps": 30_000,
    "set": [],
    "points": 10,
    "episodes": 10,
}


def make_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--plan", type=Path, metavar="YAML", help="runs of a file; --env, --variants and --seeds choose among them")
    add("--env", nargs="+", help="tasks")
    add("--steps", type=int)
    add("--zoo", action="store_true", help="tuned settings from the hyperparameter files")
    add("--set", nargs="*", metavar="NAME=VALUE", help="other settings of ours")
    add("--seeds", type=int, nargs="+")
    add("--variants", nargs="+", metavar="NAME", help=f"of {', '.join(VARIANTS)}")
    add("--points", type=int, help="evaluations during training")
    add("--episodes", type=int, help="episodes of the last evaluation")
    add("--processes", type=int, default=2, help="runs side by side")
    add("--device", default="cpu", help="where networks are: cpu (the default), or cuda, cuda:1")
    add("--output", type=Path, metavar="CSV")
    add("--checkpoints", type=Path, metavar="FOLDER", help="go on with runs that were killed")
    add("--status", action="store_true", help="say what is done and what is missing, and do nothing")
    add("--worker", metavar="STORAGE", help="take runs from a storage of Optuna: a journal file, or the URL of a database")
    add("--study", help="with --worker: the name under which the runs are stored (returns)")
    add("--patience", type=float, help="with --worker: seconds without a sign of life until others take a run (600)")
    add("--table", type=Path, nargs="+", metavar="CSV", help="print the returns of files, seed by seed")
    add("--at", type=int, metavar="STEP", help="with --table: the evaluations at a step, in place of the last policies")
    add("--evidence", type=Path, nargs="+", metavar="CSV", help="print means with intervals, beside published ones")
    add("--reference", metavar="NAME", help="with --evidence: the variant whose mean has the score 1, or 'published SAC'")
    add("--plot", type=Path, metavar="PNG", help="with --table or --evidence: draw its files, too")
    add("--random", action="store_true", help="measure the returns of random actions on --env")
    return parser


def refuse_contradictions(args: argparse.Namespace) -> None:
    """:raises ValueError: options that would be ignored"""
    shows = args.table or args.evidence
    modes = [name for name in ("status", "worker", "table", "evidence", "random") if getattr(args, name)]
    if len(modes) > 1:
        raise ValueError(f"--{modes[0]} and --{modes[1]} are different commands: choose one.")
    if args.plan or shows or args.random:
        what = "--plan" if args.plan else f"--{modes[0]}"
        allowed = ("steps",) if shows else ()
        for name in OF_PLANS:
            if getattr(args, name) and (args.plan or name not in allowed):
                raise ValueError(f"--{name} has no meaning with {what}{', which says it itself' if args.plan else ''}.")
    if (args.plan or args.checkpoints or args.output) and (shows or args.random):
        name = next(name for name in ("plan", "checkpoints", "output") if getattr(args, name))
        raise ValueError(f"--{name} has no meaning with --{modes[0]}.")
    if args.random and (args.variants or args.seeds):
        raise ValueError("--variants and --seeds have no meaning with --random.")
    if args.plot and not shows:
        raise ValueError("--plot needs --table or --evidence.")
    for name, mode in (("at", "table"), ("reference", "evidence"), ("study", "worker"), ("patience", "worker")):
        if getattr(args, name) is not None and not getattr(args, mode):
            raise ValueError(f"--{name} needs --{mode}.")
    check_count("--processes", args.processes, 1)
    check_real("--patience", 600.0 if args.patience is None else args.patience, above=0.0)
    if args.device != "cpu" and (shows or args.random or args.status):
        raise ValueError("--device has no meaning where nothing is trained.")
    check_device(args.device)


def check_device(name: str) -> None:
    """:raises ValueError: it is not there, or of another kind"""
    try:
        if th.device(name).type not in ("cpu", "cuda"):
            raise RuntimeError("nothing else has been tried")
        th.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        refuse("--device", name, f"'cpu', or one that is there ({str(error).splitlines()[0]})")


def settings(pairs: list[str]) -> dict[str, object]:
    """:raises ValueError: not NAME=VALUE"""
    found = {}
    for pair in pairs:
        name, is_there, value = pair.partition("=")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            is_there = ""
        if not is_there:
            refuse("--set", pair, "NAME=VALUE, with the value as YAML has it")
    return found


def plan_of(args: argparse.Namespace) -> Plan:
    """What the command line asks for."""
    if args.plan:
        plan = read_plan(args.plan).chosen(args.env, args.variants, args.seeds)
        return Plan(plan.runs, args.output or plan.output)
    given = argparse.Namespace(**{name: DEFAULTS.get(name) if value is None else value for name, value in vars(args).items()})
    for variant in given.variants:
        check_variant(variant)
    options, points = settings(given.set), check_count("--points", given.points, 1)
    steps, episodes = check_count("--steps", given.steps, 1), check_count("--episodes", given.episodes, 1)
    if options and not any(VARIANTS[variant][0] in OURS for variant in given.variants):
        raise ValueError(f"--set has no meaning for {', '.join(given.variants)}: it is for the algorithms of this package.")
    runs = [
        Run(variant, variant, env, check_count("--seeds", seed, 0), steps, options, given.zoo, points, episodes)
        for seed in given.seeds
        for env in given.env
        for variant in given.variants
    ]
    return Plan(list({run.key: run for run in runs}.values()), args.output)


def show(args: argparse.Namespace) -> None:
    """--table, and --evidence."""
    if args.plot:
        from harness.figures import check_plot

        check_plot(args.plot)
    chosen = tables.load(args.table or args.evidence, args.env, args.variants, args.seeds, args.steps)
    if args.table:
        print(tables.table(chosen if args.at is None else tables.at(chosen, args.at)))
        if args.plot:
            from harness.figures import draw_runs

            draw_runs(chosen, args.plot)
        return
    from harness import evidence, figures  # rliable is not always installed

    tasks = scores.tasks_of(chosen)
    reference = scores.reference_of(tasks, args.reference)
    print(evidence.report(tasks, reference))
    if args.plot:
        figures.draw_curves(tasks, reference, args.plot)
        if reference is not None:
            figures.draw_profiles(tasks, reference, args.plot.with_name(f"{args.plot.stem}-profiles{args.plot.suffix}"))


def perform(args: argparse.Namespace) -> int:
    """Train what is missing; the exit status."""
    asks = args.plan or any(getattr(args, name) for name in ("env", "variants", "seeds", *OF_PLANS))
    plan = plan_of(args) if asks or not args.worker else Plan([], args.output)
    if plan.output is None and not args.worker:
        raise ValueError("--output is needed: the CSV file of finished runs.")
    if args.status:
        assert plan.output is not None
        print(status(plan.runs, plan.output, args.checkpoints))
        return 0
    if plan.output is not None:
        rows.check_writable(plan.output)
    if args.checkpoints is not None:
        rows.check_place("--checkpoints", args.checkpoints, is_folder=True)
    if args.worker:
        from harness import worker

        preflight(plan.runs)
        name, patience = args.study or "returns", args.patience or 600.0
        text, is_complete = worker.work(
            args.worker, name, plan.runs, plan.output, args.checkpoints, patience, args.processes, args.device
        )
        print(text)
        return 0 if is_complete else 1
    assert plan.output is not None
    present = rows.read(plan.output, repair=True)
    missing, others = rows.missing(plan.runs, present), rows.of_other_episodes(plan.runs, present)
    if others:
        print(
            f"{len(others)} runs are done, but with returns over another number of episodes than asked for; remove their rows "
            f"to do them again: {'; '.join(map(str, others))}.",
            file=sys.stderr,
        )
    preflight(missing)
    from harness.pool import Pool

    pool = Pool(args.processes, plan.output, args.checkpoints, args.device)
    pool.perform(missing)
    if pool.taken:
        print(f"{len(pool.taken)} runs are with another process.")
    if pool.failed:
        print(f"{len(pool.failed)} runs have failed: {'; '.join(map(str, pool.failed))}.", file=sys.stderr)
    return 1 if pool.failed else 0


def main(description: str | None = None) -> None:
    parser = make_parser(description)
    args = parser.parse_args()
    try:
        refuse_contradictions(args)
        if args.random:
            references.measure_random(args.env or DEFAULTS["env"])  # type: ignore[arg-type]  # a list
        elif args.table or args.evidence:
            show(args)
        else:
            sys.exit(perform(args))
    except ValueError as error:
        parser.error(str(error))

"""Train SoftAC, SoftQL and their peers with the same number of environment steps, and evaluate the deterministic policy.

    python benchmarks/returns.py --env HalfCheetah-v5 --steps 30000 --seeds 0 1 2 --output logs/returns.csv
    python benchmarks/returns.py --plan benchmarks/plans/mujoco-100k.yml --checkpoints logs/returns

Each row of the CSV is one run; everything that a run depends on stands in it. Learning starts after 1,000 random steps, at a
learning rate of 3e-4; all else has the defaults of the classes. With --zoo the settings come from the hyperparameter files:
hyperparams/softac.yml for SoftAC, softql.yml for SoftQL, RL Zoo's own tuned file for a peer; --set overrides those of ours.
--plan takes variants, tasks, seeds and steps from a file (benchmarks/plans), whose keys harness/plans.py lists. Presets are
variants by their names.

Runs that stand in the CSV already are not done again: the same command goes on with those that are missing, and --status says
which they are. With --checkpoints FOLDER a run that was killed goes on from its newest checkpoint. Several processes may share
a CSV and a folder of checkpoints; --worker shares runs among machines.

--table prints CSV files as a Markdown table, --evidence prints interquartile means with 95 % intervals; --plot draws either.
"""

from harness.command import main

if __name__ == "__main__":
    main(__doc__)

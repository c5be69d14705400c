"""How fast SoftAC trains, next to SB3's SAC and SBX's, and how far that is from the limit of the arithmetic; and SoftQL.

    pip install -e ".[mujoco,plots,sbx]"
    python benchmarks/speed.py --output docs/speed

Every peer has a process of its own, with as many CPUs as the case has threads. The peers take turns: in each round each of
them works for a while, and the others wait. Figures are medians over the rounds; what counts are the ratios of one run, since
machines are noisy. Cases of the kind "updates" call `train()` on a filled replay buffer; "learn" and "act" call `learn()` on
HalfCheetah-v5, "act" with policy actions and without updates. Compilers start with empty caches. Writes OUTPUT.csv and
OUTPUT.png; --report prints the tables of a CSV file, --plot draws it again, --only runs the cases whose names contain one of
the given words, and keeps the others of a file that is there. --device cuda runs cases of its own on a GPU, where compiled
steps are captured in a CUDA graph, too; there the peers start at the same time, and take turns from then on. SoftQL has no
peer: its cases, called "SoftQL ...", compare compiled steps with eager ones. Cases called "TQC ..." and "CrossQ ..." compare
presets of ours with the classes of sb3-contrib and SBX, at the same sizes. --profile shows where the time of SoftAC goes in
one case.

    python benchmarks/speed.py --flops --only tqc crossq --peers "SoftAC eager"

--flops counts the floating-point operations of a gradient step for each preset, and prints how many times longer it takes
than they would at the speed of a matmul of two 1024 x 1024 matrices. --only and --peers choose presets, and eager or compiled
steps.
"""

from timing.command import main

if __name__ == "__main__":
    main(__doc__)

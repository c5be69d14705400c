"""The harness is importable as it is for benchmarks/returns.py."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

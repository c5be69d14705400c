"""``python -m sb3_softac.report``."""

import sys

from sb3_softac.report.command import main

if __name__ == "__main__":
    sys.exit(main())

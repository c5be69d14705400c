"""``python -m sb3_softac.report``."""

import sys

from sb3_softac.report.command import main

sys.exit(main())

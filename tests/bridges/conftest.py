"""This folder's own modules and those of the evaluation's tests, importable."""

import sys
from pathlib import Path

for folder in ("bridges", "evaluation", "runs"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))

"""This folder's own modules and those of the evaluation's tests, importable."""

import sys
from pathlib import Path

for folder in (Path(__file__).parent, Path(__file__).parents[1] / "evaluation"):
    sys.path.insert(0, str(folder))

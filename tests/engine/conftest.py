"""Lets the tests of this folder, and the processes they start, import their toy and each other."""

from __future__ import annotations

import sys
from pathlib import Path

# A started process finds its task by module name, which pytest counts from the project root.
for folder in (Path(__file__).parents[2], Path(__file__).parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

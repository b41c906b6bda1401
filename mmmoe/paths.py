"""Where declarations live: the project root in a checkout, the packaged copy in an installed wheel."""

from __future__ import annotations

import difflib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
DECLARED = PACKAGE / "_declared"


def project_root() -> Path:
    """Returns the folder that holds `models/`, `data/`, `stages/`, `kernels/` and `configs/`."""
    checkout = PACKAGE.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "configs").is_dir():
        return checkout
    return DECLARED


def near(path: Path) -> Path | None:
    """Returns the entry of a path's folder that nearly has its name, None where there is none."""
    try:
        entries = sorted(path.parent.iterdir())
    except OSError:
        return None
    names = {entry.stem: entry for entry in entries if entry.suffix == path.suffix and entry != path}
    close = difflib.get_close_matches(path.stem, names, n=1)
    return names[close[0]] if close else None


def resolve(path: str | Path, beside: Path | None = None) -> Path:
    """Returns the place a declared path means.

    Tried in turn: an absolute path, the folder of the file that names it (`beside`), the working
    folder, the project root. A path that exists nowhere is returned as seen from the working
    folder, so that the error about it names something a user can look at.
    """
    path = Path(path).expanduser()
    if path.is_absolute():
        return path
    for folder in (beside, Path.cwd(), project_root()):
        if folder is not None and (folder / path).exists():
            return (folder / path).resolve()
    return Path.cwd() / path

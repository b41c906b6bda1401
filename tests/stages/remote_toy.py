"""Nodes that are all this machine: an `ssh` that leaves its host out and runs the line here."""

from __future__ import annotations

from pathlib import Path


def make_ssh(folder: Path) -> None:
    """Writes the program `ssh` into a folder, to be put first on PATH; a host called `off` cannot be reached."""
    lines = [
        "#!/bin/sh",
        'while [ "$1" = -o ]; do shift 2; done',
        'if [ "${1##*@}" = off ]; then echo "ssh: connect to host off port 22: No route to host" >&2; exit 255; fi',
        'exec sh -c "$2"',
    ]
    (folder / "ssh").write_text("\n".join(lines) + "\n")
    (folder / "ssh").chmod(0o755)

"""Asks the public database of weaknesses (osv.dev) about every pinned version; without a network it says so.

Usage: python .ci/audit.py constraints.txt [ADDRESS]. Exit status 1 where a pin has a known weakness that
`.ci/accepted.txt` does not name (a line each: its id, then why it does not concern us), 0 otherwise.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

ADDRESS = "https://api.osv.dev/v1/querybatch"
PATIENCE_S = 15
ACCEPTED = Path(__file__).with_name("accepted.txt")


def pins(path: Path) -> list[tuple[str, str]]:
    """Returns (package, version) of each line."""
    lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [(name, version) for name, _, version in (line.partition("==") for line in lines if line)]


def weaknesses(wanted: list[tuple[str, str]], address: str) -> dict[str, list[str]]:
    """Returns the ids of known weaknesses by `package version`; a package without any is left out.

    Raises:
        OSError: The database cannot be reached.
        ValueError: It answers something else.
    """
    queries = [{"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in wanted]
    request = urllib.request.Request(
        address, json.dumps({"queries": queries}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        results = json.loads(answer.read())["results"]
    if len(results) != len(wanted):
        raise ValueError(f"{len(results)} answers to {len(wanted)} questions")
    found = {}
    for (name, version), result in zip(wanted, results, strict=True):
        if ids := sorted(entry["id"] for entry in result.get("vulns") or []):
            found[f"{name} {version}"] = ids
    return found


def main(arguments: list[str]) -> int:
    """Prints what is known; returns the exit status."""
    wanted = pins(Path(arguments[0]))
    address = arguments[1] if len(arguments) > 1 else ADDRESS
    accepted = {
        line.split()[0] for line in ACCEPTED.read_text(encoding="utf-8").splitlines() if line[:1] not in ("", "#")
    }
    try:
        found = weaknesses(wanted, address)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        sys.stdout.write(
            f"audit: {address} cannot be asked ({error}); the pins were NOT compared with known weaknesses\n"
        )
        return 0
    new = {pin: [one for one in ids if one not in accepted] for pin, ids in found.items()}
    new = {pin: ids for pin, ids in new.items() if ids}
    for pin, ids in new.items():
        sys.stdout.write(f"audit: {pin}: " + ", ".join(f"https://osv.dev/vulnerability/{one}" for one in ids) + "\n")
    number = sum(len(ids) for ids in new.values())
    sys.stdout.write(f"audit: {len(wanted)} pins, {number} known weaknesses that {ACCEPTED.name} does not accept\n")
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

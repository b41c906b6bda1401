"""Another attempt at a run from its last checkpoint, after something that a user can do nothing about."""

from __future__ import annotations

from collections.abc import Callable

from mmmoe.log import console
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.status import FINAL


def with_restarts(
    restarts: int, folder: RunFolder, attempt: Callable[[], int], may_go_on: Callable[[], bool] | None = None
) -> int:
    """Makes an attempt and up to `restarts` more; returns the last one's exit status.

    Args:
        restarts: Further attempts.
        folder: The run's; its ledger keeps each of them.
        attempt: Carries the run out as far as it gets; returns its exit status.
        may_go_on: Prepares for another attempt; says whether there can be one.
    """
    status = attempt()
    for number in range(1, restarts + 1):
        if status in FINAL or (may_go_on is not None and not may_go_on()):
            return status
        folder.record("restarted", attempt=number, status=status)
        console.print(
            f"the run stopped with status {status}; restart {number} of {restarts} from its last checkpoint",
            soft_wrap=True,
        )
        status = attempt()
    return status

"""Exit statuses of a run, and which of them another attempt may mend."""

from __future__ import annotations

LOST_PEER = 1
"""Another process, a device or the network failed, or something that nobody foresaw happened."""
USER_MISTAKE = 2
"""Something to correct."""
DIVERGED = 3
"""A loss that is not finite."""
NO_ROOM = 4
"""The disk is full or read-only."""
NO_MEMORY = 5
"""Memory is too small for what was asked."""
STOPPED = 75
"""Stopped on request, to be resumed."""

UNSAVED = 76
"""Stopped on request, and died before its state was saved: to be resumed from the checkpoint before."""

FINAL = (0, USER_MISTAKE, DIVERGED, NO_ROOM, NO_MEMORY, STOPPED, UNSAVED)
"""Statuses after which the same run would end the same way, or was not to go on."""

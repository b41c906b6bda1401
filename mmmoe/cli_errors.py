"""What a command that fails says, and the exit status that it ends with."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress

from mmmoe import env
from mmmoe.conceal import conceal
from mmmoe.engine.memory import MemoryFullError, is_out_of_memory
from mmmoe.log import console, place
from mmmoe.stages.status import DIVERGED, LOST_PEER, NO_MEMORY, NO_ROOM, STOPPED, USER_MISTAKE

_CURES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room within the quota",
    errno.EIO: "have the disk looked at, which fails",
    errno.EROFS: "have the disk mounted so that it can be written",
    errno.EACCES: "give this user the right to it",
    errno.EPERM: "give this user the right to it",
}
"""What to do about a place that cannot be written, by the system's number of the error."""

_DEVICE, _NETWORK = "have the disk or its server looked at if it comes again", "look at the network if it comes again"
_PASSING = dict.fromkeys((errno.EREMOTEIO, errno.ENODEV, errno.ESTALE), _DEVICE) | dict.fromkeys(
    (errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN), _NETWORK
)
"""What to do about a device or network that may work again in another attempt, like the cures."""


def guarded(call: Callable[[], None]) -> int:
    """Makes the call; returns the exit status of the mistake it met, after telling it."""
    from mmmoe.stages.ledger import Stopped

    try:
        call()
    except ValueError as error:
        _tell(str(error))
        return USER_MISTAKE
    except FloatingPointError as error:
        _tell(str(error))
        return DIVERGED
    except Stopped as stopped:
        _tell(str(stopped), label="")
        return STOPPED
    except OSError as error:
        return _tell_system(error)
    except MemoryError as error:
        return _tell_memory(error)
    except RuntimeError as error:
        if is_out_of_memory(error):
            return _tell_memory(error)
        from mmmoe import dist

        if env.world_size() == 1 or not dist.lost_peer(error):
            raise
        _tell(
            f"another process of this run stopped, or did not come to where this one waits ({place()}); its message "
            f"says why, and what was saved is intact ({str(error).splitlines()[0]})"
        )
        return LOST_PEER
    return 0


def _tell_system(error: OSError) -> int:
    cure, status = _CURES.get(error.errno or 0), NO_ROOM
    if cure is None:
        # ETIMEDOUT, ECONNRESET, EPIPE and their like are classes of their own.
        is_passing = isinstance(error, ConnectionError | TimeoutError)
        cure, status = _PASSING.get(error.errno or 0, _NETWORK if is_passing else None), LOST_PEER
    if cure is None:
        _tell(str(error))
        return USER_MISTAKE
    where = f"{error.filename}: " if error.filename else ""
    _tell(f"{where}{error.strerror or error}; what was saved before is intact: {cure}, then resume")
    return status


def _tell_memory(error: BaseException) -> int:
    told = str(error)
    if not isinstance(error, MemoryFullError):
        told = f"out of memory: {told.strip()}\n`mmmoe plan` shows what takes the memory"
    _tell(told)
    return NO_MEMORY


def _tell(text: str, label: str = "[bold red]error[/bold red]: ") -> None:
    prefix = "" if env.world_size() == 1 else f"{env.who()}: "
    with suppress(OSError):  # the log may be on the disk that is full
        console.print(f"{label}{prefix}", end="")
        console.print(conceal(text), markup=False, highlight=False, soft_wrap=True)

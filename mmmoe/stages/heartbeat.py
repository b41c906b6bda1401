"""Ends this process in time when another one is dead, frozen or out of reach, whatever this one hangs in."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from mmmoe import dist, env, log
from mmmoe.stages.ledger import Stopped
from mmmoe.stages.roll_call import Answerer, Caller, Rhythm
from mmmoe.stages.status import LOST_PEER


@contextmanager
def heartbeat(deadline_s: float, again: str) -> Iterator[None]:
    """Watches over the processes that work together inside its block; collective. One process alone is not watched.

    A thread beats while the block works, so a block that takes hours alone raises no alarm. Leaving the block says
    goodbye, and all processes leave it together. A process that leaves by an exception says none, and the others end,
    since they would wait for it.

    Args:
        deadline_s: Seconds within which this process ends after another one was lost; its exit status is 1 then.
        again: The command that goes on, for the message.

    Raises:
        ValueError: The first process cannot be reached.
    """
    if env.world_size() == 1:
        yield
        return
    rhythm = Rhythm.of(deadline_s)
    watch = _join(rhythm, again)
    says_goodbye = True
    try:
        yield
    except Stopped as stopped:
        says_goodbye = stopped.stage is not None  # in the evaluation the others may have not been asked
        raise
    except BaseException as error:
        says_goodbye = False
        if isinstance(error, RuntimeError) and dist.lost_peer(error):
            watch.hurry()
            watch.join(rhythm.limit + 2 * rhythm.interval)  # it knows which process is lost, and ends this one
        raise
    finally:
        watch.leave(goodbye=says_goodbye)


def _join(rhythm: Rhythm, again: str) -> Caller | Answerer:
    hosts = [str(host) for host in dist.gather_objects(env.host())]

    def end(reason: str) -> None:
        _end(reason, again)

    token = secrets.token_hex(16)
    caller = Caller(hosts, token, rhythm, end) if env.rank() == 0 else None
    port, token = dist.as_on_first((caller.port if caller else 0, token))
    first = f"process 0 on {hosts[0]}"
    address = (env.master_address(), port)
    watch = caller or Answerer(env.rank(), address, first, token, rhythm, end)
    watch.start()
    dist.allow(dist.COLLECTIVE_S)  # whoever is lost is found by its silence
    return watch


def _end(reason: str, again: str) -> None:
    """Says why and ends this process at once; nothing here may wait for another thread, or for a disk."""
    text = (
        f"\nerror: {env.who()}: {reason}. This process stops in {log.place()}; what was saved before is intact. "
        f"Go on with `{again}`; fewer processes are fine (engine.processes=N, or a hostfile without "
        "the lost node)\n"
    )
    os.write(2, text.encode())
    os._exit(LOST_PEER)

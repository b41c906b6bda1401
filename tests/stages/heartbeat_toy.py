"""One process of a run that only waits for the others, in a collective: `python heartbeat_toy.py DEADLINE HOW`."""

from __future__ import annotations

import sys
import time

from mmmoe import dist, env, log
from mmmoe.stages.heartbeat import heartbeat


def main(deadline_s: float, how: str) -> None:
    dist.start(10, 10)  # shorter than the work of one process alone, so the heartbeats must allow for that
    with heartbeat(deadline_s, "mmmoe resume runs/toy"):
        log.enter("stage mole")
        log.reach(7)
        dist.barrier()
        sys.stdout.write(f"ready {env.rank()}\n")
        sys.stdout.flush()
        if env.rank() == 1:
            if how == "mistake":
                raise ValueError("a mistake of process 1 alone")
            time.sleep(2 * deadline_s if how == "busy" else 3600)
        dist.barrier()
    dist.stop()


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2])

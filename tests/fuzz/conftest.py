"""Feeds a reader thousands of damaged inputs: each is read, or refused with a message, in seconds and in bounds."""

from __future__ import annotations

import logging
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings

sys.path.insert(0, str(Path(__file__).parent))

LONGEST_S = 10.0
"""For one input; a hang, not a slow machine."""
MOST_GROWTH_KB = 500_000
"""Of this process over all inputs."""


class HangError(BaseException):
    """Not an Exception, so that no reader takes it for a mistake in its input."""


def _hangs(number: int, frame: Any) -> None:
    raise HangError(f"an input took more than {LONGEST_S} s")


@pytest.fixture
def fuzz(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Callable[..., Counter[str]]:
    """Returns fuzz(strategy, read): `read(input)` says what came of an input in a word; ValueError is "refused"."""
    count, number = request.config.getoption("--inputs"), request.config.getoption("--fuzz-seed")

    def run(strategy: Any, read: Callable[[Any], str]) -> Counter[str]:
        seen: Counter[str] = Counter()

        @seed(number)
        @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(strategy)
        def one(given_input: Any) -> None:
            signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
            try:
                seen[read(given_input)] += 1
            except ValueError as error:
                seen["refused" if str(error) else "refused without a reason"] += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)

        logging.disable(logging.ERROR)  # a line an input would cost more than reading it
        before = signal.signal(signal.SIGALRM, _hangs)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            one()
        finally:
            signal.signal(signal.SIGALRM, before)
            logging.disable(logging.NOTSET)
        assert not seen["refused without a reason"]
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown
        assert grown < MOST_GROWTH_KB, f"reading took {grown} KB more"
        with capsys.disabled():
            if count > 1000:
                sys.stdout.write(f"\n{request.node.name}: {dict(seen)}\n")
        return seen

    return run

"""The roll call: who is silent is named to everyone in time, who leaves or works long raises no alarm."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time

import pytest

from mmmoe.stages.roll_call import Answerer, Caller, Rhythm

RHYTHM = Rhythm(interval=0.05, limit=0.6, grace=0.1)
TOKEN = "secret"


class Ends:
    """Collects what each process would have said last."""

    def __init__(self):
        self.said, self.all_said = {}, threading.Event()

    def of(self, rank, expected):
        def end(reason):
            self.said[rank] = reason
            if len(self.said) == expected:
                self.all_said.set()

        return end


@pytest.fixture
def ends():
    return Ends()


def begin(ends, world=3, expected=2, rhythm=RHYTHM):
    """Starts a roll call of `world` members in this process; the reasons of `expected` of them are waited for."""
    caller = Caller([f"node{r}" for r in range(world)], TOKEN, rhythm, ends.of(0, expected))
    caller.start()
    others = [answerer(caller, rank, ends, expected, rhythm) for rank in range(1, world)]
    for other in others:
        other.start()
    return caller, others


def answerer(caller, rank, ends, expected=2, rhythm=RHYTHM, token=TOKEN):
    address = ("127.0.0.1", caller.port)
    return Answerer(rank, address, "process 0 on node0", token, rhythm, ends.of(rank, expected))


def freeze(member, monkeypatch):
    """Makes a member fall silent without closing its connection."""
    monkeypatch.setattr(member, "_wake", threading.Event())
    member._wake.wait = lambda seconds: time.sleep(30)


def test_a_deadline_leaves_time_to_tell_the_others():
    for deadline in (2.0, 10.0, 120.0, 3600.0):
        rhythm = Rhythm.of(deadline)
        assert rhythm.limit + 2 * rhythm.interval + rhythm.grace < deadline
        assert rhythm.interval * 5 < rhythm.limit


def test_a_long_quiet_run_raises_no_alarm_and_ends_without_delay(ends):
    caller, others = begin(ends)
    time.sleep(3 * RHYTHM.limit)
    began = time.monotonic()
    for member in (*others, caller):
        member.leave()
    assert time.monotonic() - began < 0.4
    time.sleep(2 * RHYTHM.grace)
    assert ends.said == {}


def test_members_may_leave_before_the_first_and_after_it(ends):
    caller, (one, two) = begin(ends)
    one.leave()
    time.sleep(2 * RHYTHM.limit)  # the first works on alone, with the other
    assert ends.said == {}
    leaving = threading.Thread(target=caller.leave)
    leaving.start()
    time.sleep(3 * RHYTHM.grace)
    two.leave()
    leaving.join(RHYTHM.grace)
    assert not leaving.is_alive()
    time.sleep(2 * RHYTHM.grace)
    assert ends.said == {}


def test_a_member_that_never_leaves_holds_the_first_for_a_limit_only(ends):
    caller, _ = begin(ends, world=2, expected=1)
    time.sleep(0.2)
    began = time.monotonic()
    caller.leave()
    assert RHYTHM.limit < time.monotonic() - began < 2 * RHYTHM.limit
    assert ends.all_said.wait(1)
    assert "process 0 on node0 has been gone for" in ends.said[1]


def test_a_silent_member_is_named_to_everyone_else(ends, monkeypatch):
    _, (one, _) = begin(ends)
    time.sleep(0.2)
    freeze(one, monkeypatch)
    assert ends.all_said.wait(2 * RHYTHM.limit + 1)
    assert set(ends.said) == {0, 2}
    for reason in ends.said.values():
        assert "process 1 on node1 has been silent for" in reason
        assert "last heard in" in reason


def test_a_member_that_ends_without_a_goodbye_is_named_at_once(ends):
    began = time.monotonic()
    _, (_, two) = begin(ends)
    two.leave(goodbye=False)
    assert ends.all_said.wait(RHYTHM.limit)
    assert time.monotonic() - began < RHYTHM.limit
    assert set(ends.said) == {0, 1}
    assert "process 2 on node2 ended" in ends.said[1]
    assert "without a goodbye" in ends.said[0]


def test_a_first_process_that_does_not_answer_is_named(ends, monkeypatch):
    caller, _ = begin(ends)
    time.sleep(0.2)
    monkeypatch.setattr(caller, "_read", lambda connection, line: time.sleep(3))
    assert ends.all_said.wait(2 * RHYTHM.limit + 1)
    assert all("process 0 on node0 has not answered for" in ends.said[rank] for rank in (1, 2))


def test_a_first_process_that_is_gone_is_named(ends):
    caller, _ = begin(ends)
    time.sleep(0.2)
    caller.leave(goodbye=False)
    assert ends.all_said.wait(1)
    assert all("process 0 on node0 has been gone for" in ends.said[rank] for rank in (1, 2))


def test_a_hurried_member_hears_the_verdict_long_before_its_next_beat(ends):
    slow = Rhythm(interval=20, limit=60, grace=0.1)
    _, (one, two) = begin(ends, rhythm=slow)
    time.sleep(0.2)
    one.leave(goodbye=False)
    two.hurry()
    time.sleep(1)
    assert "process 1" in ends.said[2]


def test_a_first_process_that_was_frozen_itself_blames_nobody(ends, monkeypatch):
    caller, others = begin(ends, world=2)
    time.sleep(0.2)
    late = time.monotonic
    monkeypatch.setattr("mmmoe.stages.roll_call.time.monotonic", lambda: late() + 100)
    time.sleep(RHYTHM.limit)
    assert ends.said == {}
    for member in (*others, caller):
        member.leave()


def test_strangers_are_turned_away_and_change_nothing(ends):
    caller = Caller(["node0", "node1"], TOKEN, RHYTHM, ends.of(0, 2))
    caller.start()
    for said in (
        b'{"token": "guess", "rank": 1, "place": "x", "has_left": true}\n',
        b'{"token": "secret", "rank": 7, "place": "x", "has_left": true}\n',
        b"GET / HTTP/1.1\r\n\r\n",
        b"[" * 3000 + b"\n",
        b"\xff\x00\n",
        b"x" * 100_000,
    ):
        with socket.create_connection(("127.0.0.1", caller.port), timeout=5) as stranger:
            stranger.sendall(said)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(100) == b""
    other = answerer(caller, 1, ends)
    other.start()
    time.sleep(2 * RHYTHM.limit)
    assert caller.is_alive()
    assert ends.said == {}
    for member in (other, caller):
        member.leave()


def test_when_all_are_here_nobody_else_is_let_in_and_silent_strangers_are_dropped(ends):
    caller = Caller(["node0", "node1"], TOKEN, RHYTHM, ends.of(0, 2))
    caller.start()
    with socket.create_connection(("127.0.0.1", caller.port), timeout=5) as stranger:
        other = answerer(caller, 1, ends)
        other.start()
        assert stranger.recv(100) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", caller.port), timeout=5)
    for member in (other, caller):
        member.leave()
    assert ends.said == {}


def test_a_connection_that_cannot_be_accepted_ends_nothing(ends, monkeypatch):
    refusals = [OSError(errno.EMFILE, "Too many open files")] * 3
    caller = Caller(["node0", "node1"], TOKEN, RHYTHM, ends.of(0, 2))
    listener = caller._listener

    class Full:
        def accept(self):
            if refusals:
                raise refusals.pop()
            return listener.accept()

    monkeypatch.setattr(caller, "_listener", Full())
    monkeypatch.setattr(Full, "fileno", lambda self: -1, raising=False)
    caller.start()
    other = answerer(caller, 1, ends)
    other.start()
    time.sleep(2 * RHYTHM.limit)
    assert (refusals, ends.said) == ([], {})
    for member in (other, caller):
        member.leave()


def test_a_watch_that_fails_says_so(ends, monkeypatch):
    caller, _ = begin(ends, world=2, expected=1)
    monkeypatch.setattr(caller, "_silent", lambda now: 1 / 0)
    assert ends.all_said.wait(RHYTHM.limit)
    assert "its watch over the others failed: ZeroDivisionError" in ends.said[0]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this system has no IPv6")
def test_the_first_process_is_reached_by_both_kinds_of_addresses(ends):
    caller = Caller(["node0", "node1", "node2"], TOKEN, RHYTHM, ends.of(0, 2))
    try:
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, caller.port), timeout=5).close()
    finally:
        caller.start()
        caller.leave(goodbye=False)


def test_a_first_process_out_of_reach_is_a_message(ends):
    port = socket.create_server(("127.0.0.1", 0)).getsockname()[1]
    with pytest.raises(ValueError, match=r"heartbeats do not reach process 0 on a at 127.0.0.1, port"):
        Answerer(1, ("127.0.0.1", port), "process 0 on a", TOKEN, RHYTHM, ends.of(1, 1))

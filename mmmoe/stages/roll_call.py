"""Who is still there: every process says so to the first one, which tells all of them when one has fallen silent.

Plain sockets rather than a store of torch's, whose client waits without a limit for an answer that is cut off, and
hears nothing when a process ends. Each process measures time by its own clock alone.
"""

from __future__ import annotations

import hmac
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from mmmoe import log

LIMIT = 0.75
"""Share of the deadline after which silence counts; the rest is for telling the others."""
GRACE_S = 2.0
"""Seconds that a closed connection is given before it counts: a mistake that all processes meet ends all of them."""


@dataclass(frozen=True)
class Rhythm:
    """Times of the roll call, in seconds."""

    interval: float
    """From one beat to the next."""
    limit: float
    """Of silence, before it counts."""
    grace: float

    @classmethod
    def of(cls, deadline_s: float) -> Rhythm:
        """Returns the times that keep a deadline."""
        return cls(min(5.0, deadline_s / 20), LIMIT * deadline_s, min(GRACE_S, deadline_s / 10))


@dataclass
class _Member:
    """What the first process knows of another one."""

    name: str
    heard: float
    place: str = "the start"
    closed: float | None = None
    is_told: bool = False
    has_left: bool = False


@dataclass
class _Line:
    """A connection, and whose it is once it has said so."""

    rank: int | None = None
    rest: bytes = field(default=b"")


class Caller(threading.Thread):
    """The first process's side: hears the beats, finds who is silent, tells the others and then its own process."""

    def __init__(self, hosts: list[str], token: str, rhythm: Rhythm, end: Callable[[str], None]) -> None:
        super().__init__(name="roll call", daemon=True)
        self._token, self._rhythm, self._end = token, rhythm, end
        self._listener = _listen(len(hosts))
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        now = time.monotonic()
        self._members = {r: _Member(f"process {r} on {h}", now) for r, h in enumerate(hosts) if r}
        self._waiting = set(self._members)
        self._leaving, self._says_goodbye = threading.Event(), True
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._verdict: str | None = None

    def leave(self, *, goodbye: bool = True) -> None:
        """Ends the roll call when the others have left or a limit has passed; without a goodbye at once.

        Those who have not left by then have lost this process.
        """
        self._says_goodbye = goodbye
        self._leaving.set()
        self.join()

    def hurry(self) -> None:
        """Does nothing: who listens is never late."""

    def run(self) -> None:
        """Listens until the end."""
        try:
            self._watch()
            self._let_others_leave()
            for key in list(self._selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]
            self._selector.close()
        except Exception as error:  # the others would take this process for lost, and nobody would know why
            self._end(f"its watch over the others failed: {error!r}")

    def _watch(self) -> None:
        last, found_at = time.monotonic(), 0.0
        while not self._leaving.is_set():
            self._answer()
            now = time.monotonic()
            if now - last > self._rhythm.limit / 2:
                self._forgive(now)  # this process itself was frozen, perhaps with the others
            last = now
            if self._verdict is None:
                self._verdict, found_at = self._silent(now), now
            elif self._all_told() or now - found_at > 2 * self._rhythm.interval + 0.5:
                self._end(self._verdict)
                return

    def _let_others_leave(self) -> None:
        """Answers those who come to their end a little later."""
        until = time.monotonic() + self._rhythm.limit
        while self._says_goodbye and self._verdict is None and time.monotonic() < until:
            if all(member.has_left or member.closed is not None for member in self._members.values()):
                return
            self._answer()

    def _answer(self) -> None:
        for key, _ in self._selector.select(min(0.1, self._rhythm.interval / 4)):
            if key.data is None:
                self._accept()
            elif key.fileobj.fileno() >= 0:  # type: ignore[union-attr]  # not dropped a moment ago
                self._read(key.fileobj, key.data)  # type: ignore[arg-type]  # only sockets are registered

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # mostly: too many files are open
            self._drop_strangers()
            time.sleep(0.01)
            return
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, _Line())

    def _drop_strangers(self) -> None:
        for key in list(self._selector.get_map().values()):
            if key.data is not None and key.data.rank is None:
                self._drop(key.fileobj)  # type: ignore[arg-type]  # only sockets are registered

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()

    def _read(self, connection: socket.socket, line: _Line) -> None:
        try:
            received = connection.recv(4096)
            *whole, line.rest = (line.rest + received).split(b"\n")
            for text in whole:
                self._hear(connection, line, json.loads(text))
            if not received or len(line.rest) > 4096:
                raise ConnectionError
        except BlockingIOError:
            return
        except Exception:  # gone, or a stranger who may say anything
            self._drop(connection)
            if line.rank is not None and not self._members[line.rank].has_left:
                self._members[line.rank].closed = time.monotonic()

    def _hear(self, connection: socket.socket, line: _Line, said: dict[str, object]) -> None:
        if line.rank is None:
            if not hmac.compare_digest(str(said["token"]), self._token) or said["rank"] not in self._members:
                raise ConnectionError
            line.rank = int(str(said["rank"]))
            self._waiting.discard(line.rank)
            if not self._waiting and self._listener.fileno() >= 0:  # all are here: nobody else is to come
                self._drop(self._listener)
                self._drop_strangers()
        member = self._members[line.rank]
        member.heard, member.place = time.monotonic(), str(said["place"])
        member.has_left = bool(said["has_left"])
        if not member.has_left:
            connection.send(json.dumps({"verdict": self._verdict}).encode() + b"\n")
            member.is_told = self._verdict is not None

    def _forgive(self, now: float) -> None:
        for member in self._members.values():
            member.heard = now
            member.closed = None if member.closed is None else now

    def _silent(self, now: float) -> str | None:
        for member in self._members.values():
            if member.has_left:
                continue
            last = f"last heard in {member.place}"
            if member.closed is not None and now - member.closed > self._rhythm.grace:
                return f"{member.name} ended {now - member.closed:.0f} s ago without a goodbye ({last})"
            if now - member.heard > self._rhythm.limit:
                since = f"has been silent for {now - member.heard:.0f} s ({last})"
                return f"{member.name} {since}: dead, frozen or out of reach"
        return None

    def _all_told(self) -> bool:
        now = time.monotonic()
        beating = [m for m in self._members.values() if m.closed is None and not m.has_left]
        return all(m.is_told or now - m.heard > self._rhythm.limit for m in beating)


def _listen(backlog: int) -> socket.socket:
    """Listens on every address of this node, of both kinds where the system has them."""
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # known and switched off
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog)
    return socket.create_server(("", 0), backlog=backlog)


class Answerer(threading.Thread):
    """Another process's side: beats, and ends its process on a verdict, or when the first process does not answer."""

    def __init__(
        self,
        rank: int,
        address: tuple[str, int],
        first: str,
        token: str,
        rhythm: Rhythm,
        end: Callable[[str], None],
    ) -> None:
        """Connects.

        Args:
            rank: This process's.
            address: Where the first process listens.
            first: Its name, for messages.
            token: What tells the processes of this run from strangers.
            rhythm: Times.
            end: Called with what is wrong.

        Raises:
            ValueError: The first process cannot be reached.
        """
        super().__init__(name="heartbeat", daemon=True)
        self._rhythm, self._end, self._first = rhythm, end, first
        self._who: dict[str, object] = {"rank": rank, "token": token}
        self._leaving, self._wake = threading.Event(), threading.Event()
        self._is_hurried, self._says_goodbye = False, True
        try:
            self._socket = socket.create_connection(address, timeout=rhythm.limit)
        except OSError as error:
            where = f"{first} at {address[0]}, port {address[1]}"
            raise ValueError(
                f"heartbeats do not reach {where}: {error}; let the nodes connect on all ports, and see "
                "`mmmoe doctor --hostfile`"
            ) from None

    def leave(self, *, goodbye: bool = True) -> None:
        """Ends the beats; without a goodbye the others take this process for lost."""
        self._says_goodbye = goodbye
        self._leaving.set()
        self._wake.set()
        self.join(self._rhythm.grace)

    def hurry(self) -> None:
        """Asks for the verdict at once: this process knows that another one is gone, not which."""
        self._is_hurried = True
        self._wake.set()

    def run(self) -> None:
        """Beats until the end."""
        heard = time.monotonic()
        try:
            with self._socket, self._socket.makefile("rb") as answers:
                while True:
                    has_left = self._leaving.is_set()
                    if has_left and not self._says_goodbye:
                        return
                    said = {**self._who, "place": log.place(), "has_left": has_left}
                    self._socket.sendall(json.dumps(said).encode() + b"\n")
                    if has_left:
                        return
                    answer = answers.readline()
                    if not answer:
                        raise ConnectionError
                    heard = time.monotonic()
                    verdict = json.loads(answer)["verdict"]
                    if verdict is not None:
                        self._end(verdict)
                        return
                    self._wake.wait(min(0.1, self._rhythm.interval) if self._is_hurried else self._rhythm.interval)
                    if not self._leaving.is_set():
                        self._wake.clear()
        except Exception as error:
            if not self._leaving.wait(self._rhythm.grace):
                seconds = f"{time.monotonic() - heard:.0f} s"
                how = "has not answered for" if isinstance(error, TimeoutError) else "has been gone for"
                if not isinstance(error, OSError):
                    how = f"has given no answer that can be read ({error!r}) for"
                self._end(f"{self._first} {how} {seconds}: it is dead, frozen or out of reach")

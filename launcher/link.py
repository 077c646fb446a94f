"""How the agents of several nodes talk: each keeps one TCP connection to the agent of node 0, JSON line by line.

Node 0 listens on one address and a free port, and leaves both in ``link.json`` in the launch's folder, with a token
that whoever connects must send first, and a number that grows while it lives. The folder lies on the file system that
all nodes share and only its owner can read, so that whoever can read the token could start ranks anyway. Lines are
data: nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import queue
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.errors import LaunchError
from launcher import network
from launcher.job import write_private

Message = dict[str, Any]
MAX_LINE = 1 << 20
GREETING_SECONDS = 5.0
STALE_SECONDS = 30.0
BEAT_SECONDS = 1.0
FILE = "link.json"


class Line:
    """One connection. Reading happens in a thread, so that a peer that is silent holds nobody up."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lock = threading.Lock()
        self._rest = b""

    def send(self, message: Message) -> bool:
        """False when the other side is gone, or does not read."""
        data = json.dumps(message, ensure_ascii=False).encode() + b"\n"
        try:
            with self._lock:
                self._socket.sendall(data)
            return True
        except OSError:
            return False

    def receive(self, seconds: float | None) -> Message | None:
        """The next message; None at the end of the connection, after ``seconds``, and for what is no message."""
        try:
            self._socket.settimeout(seconds)
            while b"\n" not in self._rest:
                data = self._socket.recv(65536)
                if not data or len(self._rest) > MAX_LINE:
                    return None
                self._rest += data
            line, self._rest = self._rest.split(b"\n", 1)
            message = json.loads(line)
        except (OSError, ValueError, RecursionError):
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Sign:
    """``link.json``, written again and again: for the launcher, which may have no other way to this node."""

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self._path, self._facts = path, facts
        write_private(path, json.dumps(facts))
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True, name="beat")
        self._beating.start()

    def _beat(self) -> None:
        number = 0
        while not self._ended.wait(BEAT_SECONDS):
            number += 1
            with contextlib.suppress(OSError):  # a full disk: the ranks will say so
                write_private(self._path, json.dumps({**self._facts, "beat": number}))

    def close(self) -> None:
        self._ended.set()
        self._beating.join()
        self._path.unlink(missing_ok=True)


class Hub:
    """Node 0's side: listens, and knows the line of each node."""

    def __init__(self, place: Path, address: str, warning: str | None = None) -> None:
        """``warning``: for whoever has started this, if it stays."""
        self.inbox: queue.Queue[tuple[int, Message]] = queue.Queue()
        self.lines: dict[int, Line] = {}
        self.address = address
        self._token = secrets.token_hex(32)
        self._server = network.listen(address)
        where = {"address": address, "port": self._server.getsockname()[1], "token": self._token}
        self._sign = Sign(place / FILE, where | ({"warning": warning} if warning else {}))
        threading.Thread(target=self._accept, daemon=True, name="hub").start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True, name="line").start()

    def _serve(self, connection: socket.socket) -> None:
        line = Line(connection)
        hello = line.receive(GREETING_SECONDS)
        if hello is None or not hmac.compare_digest(str(hello.get("token")).encode(), self._token.encode()):
            line.close()
            return
        node = int(hello["node"])
        self.lines[node] = line
        self.inbox.put((node, {"host": hello.get("host", "?")}))
        while (message := line.receive(None)) is not None:
            self.inbox.put((node, message))
        self.inbox.put((node, {"gone": True}))

    def send_all(self, message: Message) -> None:
        for line in list(self.lines.values()):
            line.send(message)

    def close(self) -> None:
        self._server.close()
        self._sign.close()
        for line in self.lines.values():
            line.close()


class Spoke:
    """Another node's side."""

    def __init__(self, place: Path, node: int, host: str, seconds: float) -> None:
        self.inbox: queue.Queue[Message | None] = queue.Queue()
        facts, connection = _connect(place / FILE, host, seconds)
        self.address: str = connection.getsockname()[0]
        self.line = Line(connection)
        self.line.send({"token": facts["token"], "node": node, "host": host})
        threading.Thread(target=self._listen, daemon=True, name="spoke").start()

    def _listen(self) -> None:
        while (message := self.line.receive(None)) is not None:
            self.inbox.put(message)
        self.inbox.put(None)

    def close(self) -> None:
        self.line.close()


def _connect(path: Path, host: str, seconds: float) -> tuple[Message, socket.socket]:
    """The line to the first node.

    Where a scheduler starts nodes again, the first one may have left a file that leads nowhere: it has
    ``STALE_SECONDS`` to write another.
    """
    facts = _wait_for(path, seconds)
    deadline = time.monotonic() + min(seconds, STALE_SECONDS)
    while True:
        where = (facts["address"], facts["port"])
        try:
            return facts, socket.create_connection(where, timeout=min(seconds, STALE_SECONDS))
        except OSError as error:
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"{host} cannot reach the first node at {where[0]} port {where[1]} ({error.strerror or error}). Is "
                    "there a firewall between the nodes? `interface` in the cluster file chooses another network."
                ) from None
        time.sleep(0.1)
        again = _wait_for(path, seconds)
        if again["token"] != facts["token"]:
            facts, deadline = again, time.monotonic() + min(seconds, STALE_SECONDS)


def _wait_for(path: Path, seconds: float) -> Message:
    """What node 0 has written. The folder is listed each time, which makes NFS look again."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            list(path.parent.iterdir())
            facts: Message = json.loads(path.read_text(encoding="utf-8"))
            return facts
        time.sleep(0.1)
    raise LaunchError(
        f"{socket.gethostname()}: the agent of the first node has not appeared within {seconds:.0f} s ({path} is not "
        "there). Did it start? Does the run folder lie on a file system that all nodes share?"
    )

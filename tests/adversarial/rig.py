"""A gate between a pict-rs that stores what it parsed and a classifier that notes what it saw."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from proxy.media import recognise
from tests import pictrs
from tests.adversarial.case import NO_ANSWER, Case, fill, tiny
from tests.adversarial.wire import exchange
from tests.client import get
from tests.fake import SEEN, Asked, Fake, Reply, classifier, json_reply
from tests.gate import Gate


@dataclass(frozen=True)
class Outcome:
    """What came of one connection.

    Attributes:
        statuses: of the answers.
        stored: files that pict-rs has stored because of it.
        unseen: those of them that nobody has looked at, as they are. There must be none.
    """

    statuses: Sequence[int]
    stored: Sequence[bytes] = field(repr=False)
    unseen: Sequence[bytes]

    @property
    def status(self) -> int:
        """Of the first answer."""
        return self.statuses[0] if self.statuses else NO_ANSWER


class Looker:
    """A classifier that takes everything for harmless and keeps the SHA-256 of all that it was shown."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.server = classifier(self._look)

    def _look(self, asked: Asked) -> Reply:
        self.seen.add(hashlib.sha256(asked.body).digest())
        media = recognise(asked.body)
        assert media is not None, "the gate asks about media only"
        return json_reply(200, {**SEEN, "media": {**SEEN["media"], "format": media.name}})


class Store:
    """A pict-rs in its dummy mode: whatever it makes of a body, it stores byte for byte."""

    def __init__(self, folder: Path, *, patience_s: float = 1.0) -> None:
        """
        Args:
            patience_s: how long a file is read again that nobody has looked at, lest it is half written.
        """
        self.running = pictrs.Pictrs(folder, real=pictrs.find(), dummy=True)
        self._patience_s = patience_s

    def take(self, seen: Collection[bytes]) -> list[bytes]:
        """The files that it has stored since the last call. They are removed, to keep each call cheap.

        Args:
            seen: SHA-256 of what was looked at. Another file may be one that is just being written, as
                backgrounded uploads are, so it is read again for a while.
        """
        taken = []
        for folder, _, names in os.walk(self.running.store):  # which takes a folder that vanishes for empty
            for name in names:
                try:
                    taken.append(_whole(Path(folder, name), seen, self._patience_s))
                except FileNotFoundError:
                    continue  # it had that one already, and has removed it
        if taken:
            for path in self.running.store.iterdir():
                shutil.rmtree(path, ignore_errors=True)
        return taken


def _whole(path: Path, seen: Collection[bytes], patience_s: float) -> bytes:
    content, end = path.read_bytes(), time.monotonic() + patience_s
    while hashlib.sha256(content).digest() not in seen and time.monotonic() < end:
        time.sleep(0.02)
        content = path.read_bytes()
    return content


class Rig:
    """Sends cases to a port and says what was stored, and what of it unseen."""

    def __init__(
        self, store: Store, seen: set[bytes], port: int, *, settle: Callable[[], None] = lambda: None
    ) -> None:
        """
        Args:
            seen: SHA-256 of everything that was looked at; grows by itself.
            port: where cases are sent to.
            settle: waits until what is behind the port has done with requests that got no answer.
        """
        self.store, self.seen, self.port = store, seen, port
        self._settle = settle
        self._served: dict[str, bytes] = {}
        self._origin = Fake(self._serve)
        self._name, self._sent = secrets.token_hex(4), 0

    def attack(self, case: Case) -> Outcome:
        """Sends one case, with pictures that nobody has sent before."""
        self._sent += 1
        own = [tiny(f"{self._name} {self._sent} {number}") for number in range(1, 6)]
        path = f"/{self._sent}.png"
        self._served[path] = own[4]
        url = self._origin.url.replace("://", "%3A//") + path
        name = f"{self._name}-{self._sent}"
        sent = fill(case.request, own, name=name, key=self.store.running.api_key, url=url)
        return self.send(sent, answers=1 + len(case.then), ends=case.ends)

    def send(self, sent: bytes, *, answers: int = 1, ends: bool = False) -> Outcome:
        """Sends bytes as they are."""
        statuses = exchange(self.port, sent, answers=answers, ends=ends)
        if len(statuses) < answers:
            self._settle()
        stored = self.store.take(self.seen)
        for _ in range(50):  # what is backgrounded comes a little later
            if stored or 202 not in statuses:
                break
            time.sleep(0.02)
            stored = self.store.take(self.seen)
        unseen = [content for content in stored if hashlib.sha256(content).digest() not in self.seen]
        return Outcome(statuses, stored, unseen)

    def close(self) -> None:
        """Ends what it has started itself."""
        self._origin.close()

    def _serve(self, asked: Asked) -> Reply:
        content = self._served.get(asked.target)
        return Reply(200, content, {"Content-Type": "image/png"}) if content else Reply(404)


def gate_between(folder: Path, store: Store, looker: Looker) -> Gate:
    """A gate as the documentation configures it."""
    return Gate(
        folder,
        pictrs_url=store.running.url,
        api_key=store.running.api_key,
        classifier_url=looker.server.url,
    )


def wait_until_idle(gate: Gate, within_s: float = 20.0) -> None:
    """Waits until no upload is in progress in the gate any more."""
    end = time.monotonic() + within_s
    while b"\npictrs_gate_uploads_in_progress 0.0\n" not in get(gate.internal_url, "/metrics").body:
        assert time.monotonic() < end, "an upload never ends"
        time.sleep(0.05)

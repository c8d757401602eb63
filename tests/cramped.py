"""A gate whose cases and database have a small disk each, so that these can be full."""

from __future__ import annotations

import itertools
import signal
import sqlite3
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select, update

from proxy.cases.sealing import open_sealed, read_identities
from proxy.database import Case, CaseState, UnseenUpload, cases, ledger
from tests import migrated
from tests.client import Answer, get, metric, until_gone
from tests.crashes import Scene
from tests.disks import fill
from tests.pictrs import Pictrs
from tests.processes import Program, answers

REFUSED, DONE = "refused", "done"
_SAID = ("No space left on device", "make room on the disk", "disk is nearly full", "disk is not full")
_HELD = (CaseState.DEFERRED, CaseState.PENDING, CaseState.CONFIRMED)


@dataclass(frozen=True, slots=True)
class Round:
    """
    Attributes:
        act: what is done.
        disk: which one is full, `cases` or `database`.
        since: the point from which on it is; None for before it begins.
        then: what comes of it, or the point at which it is killed.
    """

    act: Callable[[Cramped, Round], None]
    disk: str
    since: str | None
    then: str

    def __str__(self) -> str:
        since = f" since {self.since}" if self.since else ""
        then = self.then if self.then in (REFUSED, DONE) else f"killed at {self.then}"
        return f"{self.act.__name__.strip('_')}, disk of {self.disk} full{since}: {then}"

    @property
    def is_killed(self) -> bool:
        return self.then not in (REFUSED, DONE)

    @property
    def fault(self) -> str:
        """As `PICTRS_GATE_FAULT` names it."""
        points = [f"{self.since}:stop"] if self.since else []
        return ">".join(points + [self.then] * self.is_killed)


class Cramped(Scene):
    """A scene whose cases and database have a small disk each."""

    refusals = (400, 503)

    def __init__(self, folder: Path, pictrs: Pictrs, disks: Mapping[str, Path], *, seed: int) -> None:
        self._disks, self._file = disks, disks["database"] / "gate.db"
        super().__init__(
            *(folder, pictrs),
            seed=seed,
            database_url=migrated.new(self._file),
            cases={"folder": str(disks["cases"] / "cases"), "keep_free_mb": 0},
        )
        self._commands = 0

    # --- full disks ---

    def fill(self, disk: str) -> None:
        """Leaves nothing on a disk, and in the database's log nothing that could be written over."""
        fill(self._disks[disk])

    def take_names(self, disk: str) -> None:
        """Leaves no room for one more file, however small."""
        with suppress(OSError):
            for number in itertools.count():
                (self._disks[disk] / f"filler-{number}").touch()

    def make_room(self) -> None:
        """On all disks; a gate that could not start without is started."""
        for disk in self._disks.values():
            for path in disk.glob("filler*"):
                path.unlink()
        if not self.is_running:
            self.start()

    def goes_on(self) -> None:
        """With room, and by itself. What was sealed and not recorded is a case in a minute, here at once."""
        self.make_room()
        self.until(self._is_at_rest, "everything has been looked at")
        self.kill()
        self.start()

    def meets(self, one: Round, program: Program) -> None:
        """What was started stands still where the disk is to be full, and goes on when it is."""
        if one.since is None:
            return
        self.until(lambda: _is_stopped(program), f"it has come to {one.since}")
        self.fill(one.disk)
        program.process.send_signal(signal.SIGCONT)

    def before(self, one: Round) -> None:
        """Whatever is to be done has not begun."""
        self._empty_log()
        if one.since is None:
            self.fill(one.disk)

    def _empty_log(self) -> None:
        """What the database's log has room for already would be written on a full disk, too."""

        def is_empty() -> bool:
            connection = sqlite3.connect(self._file)
            try:
                return connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
            finally:
                connection.close()

        self.until(is_empty, "the database's log is empty")

    # --- what is done ---

    def does(self, one: Round, *words: str) -> str:
        """A reviewer's command that meets a full disk, and what comes of it; what it has printed."""
        self.before(one)
        return self.commands(one, *words, "--reviewer", "ann")

    def commands(self, one: Round, *words: str) -> str:
        """A command while a disk is full already, or about to be."""
        self._commands += 1
        log = f"command-{self._commands}.log"
        words = ("--log-level", "warning", *words, "--config", str(self.gate.config))
        program = self._program(words, log, one.fault)
        self.meets(one, program)
        status, said = program.process.wait(60), program.output()
        assert status == {DONE: 0, REFUSED: 1}.get(one.then, -9), said
        assert "Traceback" not in said
        assert one.then != REFUSED or any(
            line.startswith("pictrs-gate: ") and _tells(line) for line in said.splitlines()
        ), said
        return said

    def sends(self, one: Round, *contents: bytes) -> Answer | None:
        """An upload that meets a full disk; None where the gate was killed."""
        self.kill()
        self.start(one.fault or None)
        self.before(one)
        got: list[Answer | None] = []
        sending = threading.Thread(target=lambda: got.append(self._send(contents)))
        sending.start()
        self.meets(one, self.running)
        sending.join()
        return got[0]

    def works_by_itself(self, one: Round) -> None:
        """A gate that is killed, and begins anew when somebody can look again, meets a full disk."""
        self.before(one)
        self.kill()
        self.is_away = False
        was = len(self._whole_log())
        self.start(one.fault or None, dies_at_once=True)
        self.meets(one, self.running)
        if one.is_killed:
            self.goes_on_although_full(one)
        elif one.then == REFUSED:
            self._starts_or_says_why_not(was)
            self.until(lambda: _tells(self._whole_log()[was:]), "it says that the disk is full")

    def goes_on_although_full(self, one: Round) -> None:
        """What was killed is started again before there is room: it runs, or says why not."""
        if one.is_killed:
            self.has_died()
        was = len(self._whole_log())
        self.start(dies_at_once=True)
        self._starts_or_says_why_not(was)

    def _starts_or_says_why_not(self, was: int) -> None:
        process = self.running.process
        self.until(lambda: process.poll() is not None or answers(f"{self.gate.url}/healthz"), "it starts")
        if process.poll() is not None:
            assert process.returncode == 1 and _tells(self._whole_log()[was:]), self._log()
            self._running = None

    def alarms(self) -> float:
        """What the gate's metrics tell of cases that could not be kept."""
        failures = metric(self.gate.internal_url, "pictrs_gate_sealing_failures_total")
        return failures + metric(self.gate.internal_url, "pictrs_gate_quota_refusals_total", limit="disk")

    @property
    def is_running(self) -> bool:
        """Whether there is a gate."""
        return self._running is not None

    @property
    def running(self) -> Program:
        """The gate."""
        assert self._running is not None
        return self._running

    def sends_hit(self) -> Answer | None:
        """An upload of its own, that has to be held."""
        return self._send((self.hit(),))

    def sends_clean(self) -> Answer | None:
        """One that needs no room."""
        return self._send((self.chance.choice(self._clean),))

    # --- what is left ---

    def check_while_full(self) -> None:
        """Nothing is lost, and nothing both stored and held, although nothing can be written."""
        with self.gate.database() as database:
            known = cases.listed(database, limit=100_000)
            assert ledger.first_broken(database) is None
            with database.reading() as session:
                waits = select(UnseenUpload.case_id).where(UnseenUpload.done_at.is_(None))
                still_public = set(session.scalars(waits))  # sealed; taken away as soon as that can be noted
        promised = {promise.alias: case for case in known for promise in case.promises}
        identities = read_identities(self.gate.key)
        for case in known:
            if case.state is not CaseState.EXPIRED:
                opened = open_sealed(self.gate.cases_folder / case.file, identities)
                assert opened.facts["case"] == case.id
            if case.state in _HELD and case.id not in still_public | self._looked_at:
                assert all(until_gone(self.pictrs.url, one.alias) for one in case.promises), case.id
        for alias in self.told.promised:
            assert alias in promised, f"{alias} was promised"
        if self.is_running:
            for alias in list(self.told.promised)[-5:]:
                assert get(self.gate.url, f"/image/original/{alias}").status == 200
        for alias in self.told.stored:
            assert get(self.pictrs.url, f"/image/original/{alias}").status == 200
        assert "Traceback" not in self._whole_log()

    def _is_at_rest(self) -> bool:
        """What a full disk has kept waiting is tried again in half a minute, or three; here at once."""
        with self.gate.database() as database, database.writing() as session:
            for model in (Case, UnseenUpload):
                session.execute(update(model).where(model.again_at.is_not(None)).values(again_at=None))
        return super()._is_at_rest()

    def _whole_log(self) -> str:
        path = self.gate.folder / "gate.log"
        return path.read_text() if path.exists() else ""


def _tells(said: str) -> bool:
    """Whether somebody who reads this knows what to do."""
    return any(words in said for words in _SAID)


def _is_stopped(program: Program) -> bool:
    assert program.process.poll() is None, program.output()[-2000:]
    return Path(f"/proc/{program.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

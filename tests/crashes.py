"""Kills gates at named points and at random moments, starts them again, and looks what is left.

Every point of `proxy.faults` is at the end of a line of `_AT`; a new one needs a line there.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path

from sqlalchemy import and_, func, select

from proxy.cases.life import RELEASE_S
from proxy.cases.sealing import open_sealed, read_identities, recipients_in, write_new_identity
from proxy.database import Case, CaseState, UnseenUpload, cases, decisions, ledger, memory
from proxy.database.memory import Remembered
from tests import pictures
from tests.client import Answer, get, until_gone, upload
from tests.fake import SEEN, Asked, Reply, classifier, json_reply
from tests.gate import Gate
from tests.looker import pixels
from tests.pictrs import Pictrs
from tests.processes import Program, answers

_GATE = Path(sys.executable).parent / "pictrs-gate"
_WITHIN_S = 60.0
_AT_REST_S = 300.0  # what pict-rs gave no answer about is tried again after minutes
_ALLOW = 'on_unavailable = "allow"\n'
_TOO_WIDE = (10_001, 8)  # pict-rs takes 10 000
_PICTRS_S = 2.0  # more than an import of a small picture takes
_HELD = (CaseState.DEFERRED, CaseState.PENDING, CaseState.CONFIRMED)


@dataclass
class Told:
    """What clients were told by gates that then died.

    Attributes:
        promised: alias → content of what is held; the alias shows a placeholder.
        stored: aliases of what passed.
        unseen: alias → content of what passed although nobody could look.
    """

    promised: dict[str, bytes] = field(default_factory=dict)
    stored: set[str] = field(default_factory=set)
    unseen: dict[str, bytes] = field(default_factory=dict)


class Scene:
    """A pict-rs, a classifier that does as it is told, and gates that die."""

    refusals: Collection[int] = (400,)  # the statuses that an upload may get beside 201

    def __init__(self, folder: Path, pictrs: Pictrs, *, seed: int, **gate: object) -> None:
        self.pictrs, self.chance = pictrs, random.Random(seed)
        self.told, self.is_away, self.is_allowing = Told(), False, False
        self._sent: dict[str, bytes] = {}  # by SHA-256
        self._drawn: set[str] = set()
        self._hits: set[str] = set()  # both by their pixels: pict-rs writes files anew
        self._seed, self._clean = 100_000 * seed, [pictures.png((48, 32), seed=n) for n in range(4)]
        self._classifier = classifier(self._look)
        self.gate = Gate(
            *(folder,),
            pictrs_url=pictrs.url,
            api_key=pictrs.api_key,
            classifier_url=self._classifier.url,
            log_level="warning",
            start=False,
            **gate,  # type: ignore[arg-type]
        )
        self._running: Program | None = None
        self._looked_at: set[str] = set()

    def close(self) -> None:
        """Ends what it has started."""
        self.kill()
        self._classifier.close()

    # --- gates and commands ---

    def start(self, fault: str | None = None, *, dies_at_once: bool = False) -> None:
        """A gate that is to die at `fault`; files of its forerunner count as old."""
        long_ago = time.time() - 600
        for path in self.gate.cases_folder.glob("*"):
            os.utime(path, (long_ago, long_ago))
        words = ["--log-level", "warning", "serve", "--config", self.gate.config]
        self._running = self._program(words, "gate.log", fault)
        if dies_at_once:
            return
        self.until(lambda: answers(f"{self.gate.url}/healthz"), "the gate answers")
        self.until(self._is_adopted, "every sealed file has a case")

    def kill(self) -> None:
        """kill -9, whatever it is doing."""
        if self._running is not None:
            self._running.kill()
            self._running = None

    def has_died(self) -> None:
        """Waits until it has."""
        assert self._running is not None
        assert self._running.process.wait(_WITHIN_S) == -9, "the gate did not get to its fault point"
        self._running = None

    def review(self, decision: str, case_id: str, *, fault: str | None = None, after_s: float = 0) -> int:
        """A reviewer's command; its exit status. It dies at `fault`, or is killed after some seconds."""
        words = ["--log-level", "warning", "review", decision, case_id, "--config", self.gate.config]
        return self._command([*words, "--reviewer", "ann"], fault, after_s)

    def _command(self, words: Sequence[str | Path], fault: str | None, after_s: float) -> int:
        program = self._program(words, "review.log", fault)
        if after_s:
            time.sleep(after_s)
            program.kill()
        return program.process.wait(_WITHIN_S)

    def _program(self, words: Sequence[str | Path], log: str, fault: str | None) -> Program:
        env = {"PICTRS_GATE_FAULT": fault or ""}
        return Program([_GATE, *words], self.gate.folder / log, env=env)

    def rotate(self, fault: str | None = None, *, after_s: float = 0) -> int:
        """`keys rotate`, like `review`."""
        words = ["--log-level", "warning", "keys", "rotate", "--config", self.gate.config]
        return self._command([*words, "--reviewer", "ann"], fault, after_s)

    def allow_unseen(self, is_allowing: bool) -> None:
        """Whether the next gate lets pass what nobody can look at."""
        text = self.gate.config.read_text().replace(_ALLOW, "")
        assert "[policy]\n" in text
        self.gate.config.write_text(
            text.replace("[policy]\n", f"[policy]\n{_ALLOW}") if is_allowing else text
        )
        self.is_allowing = is_allowing

    def one_more_or_less_can_open(self) -> None:
        """Puts a second recipient into the configuration, or takes it out again."""
        more = self.gate.folder / "second.key"
        second = write_new_identity(more) if not more.exists() else str(read_identities(more)[0].to_public())
        alone, both = f'["{self.gate.recipient}"]', f'["{self.gate.recipient}", "{second}"]'
        text = self.gate.config.read_text()
        assert alone in text or both in text
        new = text.replace(alone, both) if alone in text else text.replace(both, alone)
        self.gate.config.write_text(new)

    def expire(self, fault: str | None = None, *, after_s: float = 0) -> int:
        """`retention run`, like `review`."""
        words = ["--log-level", "warning", "retention", "run", "--config", self.gate.config]
        return self._command([*words, "--reviewer", "ann"], fault, after_s)

    def let_period_pass(self, case_id: str) -> None:
        """The case was decided ten years ago."""
        with self.gate.database() as database, database.writing() as session:
            session.get_one(Case, case_id).decided_at = datetime.now(UTC) - timedelta(days=3650)

    # --- clients ---

    def upload(self, *, then_kill_after_s: float | None = None, refused: bool = False) -> None:
        """Some uploads at once, of which the gate is to die.

        Args:
            then_kill_after_s: where it does not die by itself.
            refused: whether pict-rs is to refuse one of the files beside a held one.
        """
        beside = pictures.blank_png(_TOO_WIDE) if refused else self.chance.choice(self._clean)
        requests = [(self.hit(),), (self.hit(), beside), (self.chance.choice(self._clean),)]
        threads = [threading.Thread(target=self._send, args=(request,)) for request in requests]
        for thread in threads:
            thread.start()
        if then_kill_after_s is not None:
            time.sleep(then_kill_after_s)
            self.kill()
        for thread in threads:
            thread.join()

    def hit(self, size: tuple[int, int] = (64, 48)) -> bytes:
        """A picture that the classifier takes for one that has to be held."""
        self._seed += 1
        content = pictures.png(size, seed=self._seed)
        self._hits.add(pixels(content))
        return content

    def held(self, *, too_wide: bool = False) -> str:
        """A new case, its alias promised."""
        content = self.hit(_TOO_WIDE if too_wide else (64, 48))
        self._send((content,))
        sha256 = hashlib.sha256(content).hexdigest()
        return next(case["id"] for case in self.gate.cases() if case["sha256"] == sha256)

    def let_time_pass(self, case_id: str) -> None:
        """A release that was begun must have ended by now.

        pict-rs goes on with an import whose client is gone. The two minutes that are skipped here are for
        that, so it gets a moment: else it stores the picture after a confirmation has taken it away.
        """
        time.sleep(_PICTRS_S)
        with self.gate.database() as database, database.writing() as session:
            session.get_one(Case, case_id).decided_at = datetime.now(UTC) - timedelta(seconds=RELEASE_S)

    def _send(self, contents: Sequence[bytes]) -> Answer | None:
        """The gate's answer; None where it has died meanwhile."""
        self._sent.update((hashlib.sha256(content).hexdigest(), content) for content in contents)
        self._drawn.update(map(pixels, contents))
        try:
            answer = upload(self.gate.url, *contents)
        except (HTTPException, OSError):
            return None
        if answer.status != 201:
            assert answer.status in self.refusals, answer
            return answer
        for content, entry in zip(contents, answer.json()["files"], strict=True):
            if self.is_away and self.is_allowing:
                self.told.unseen[entry["file"]] = content
            elif self.is_away or pixels(content) in self._hits:
                self.told.promised[entry["file"]] = content
            else:
                self.told.stored.add(entry["file"])
        return answer

    def _look(self, asked: Asked) -> Reply:
        if self.is_away:
            return Reply(503)
        sha256 = hashlib.sha256(asked.body).hexdigest()
        signals = {"sexual": 0.9, "minor": 0.8} if pixels(asked.body) in self._hits else SEEN["signals"]
        frames = [{"index": 0, "signals": signals}]
        about = {"sha256": sha256, "pdq": None, "pdq_quality": None}
        return json_reply(200, {**SEEN, "signals": signals, "frames": frames, "hashes": about})

    # --- what is left ---

    def check(self, *, everything: bool = False) -> None:
        """Whatever was promised is there, and nothing is both stored and held; the gate runs.

        Args:
            everything: also what an earlier check has looked at.
        """
        if not self.is_away:
            self.until(self._is_at_rest, "everything has been looked at", within_s=_AT_REST_S)
            self._check_unseen()
        with self.gate.database() as database:
            known = {case.id: case for case in cases.listed(database, limit=100_000)}
            entries = ledger.entries(database)
            assert ledger.first_broken(database) is None
            # That of an adopted case stands in its sealed file only.
            hashes = {case.sha256 for case in known.values() if case.sha256} | self._sent.keys()
            verdicts = {sha256: memory.exactly(database, sha256) for sha256 in hashes}
        kept = {case.file for case in known.values() if case.state is not CaseState.EXPIRED}
        self.until(
            lambda: self._files() == kept,  # a gate may just be sealing one of them anew
            "a file has its case, and a case its file",
            odd=lambda: sorted(self._files() ^ kept),
        )
        acts: dict[str, list[str]] = {}
        for entry in entries:
            if entry.case_id is not None and entry.act in set(CaseState):
                acts.setdefault(entry.case_id, []).append(entry.act)
        by_alias = {promise.alias: case for case in known.values() for promise in case.promises}
        for alias in self.told.promised:
            assert alias in by_alias, f"{alias} was promised"
        for case_id, case in known.items():
            history = acts[case_id]
            begins = (CaseState.DEFERRED, CaseState.PENDING)
            assert history[0] in begins and history[-1] == case.state, f"{case_id}: {history}, {case.state}"
            if everything or case_id not in self._looked_at:
                self._check_case(case, verdicts)
        for alias in self.told.stored:
            assert get(self.pictrs.url, f"/image/original/{alias}").status == 200
        self.told.stored.clear()

    def _check_case(self, case: Case, verdicts: Mapping[str, Remembered | None]) -> None:
        if case.state is CaseState.EXPIRED:
            self._check_expired(case, verdicts)
            return
        opened = open_sealed(self.gate.cases_folder / case.file, read_identities(self.gate.key))
        sha256 = hashlib.sha256(opened.original).hexdigest()
        shows = pixels(opened.original)  # the very bytes, or what pict-rs has made of them
        assert self._sent.get(sha256) == opened.original or "passed_unseen" in opened.facts
        assert shows in self._drawn
        assert opened.facts["sha256"] == sha256 and opened.facts["case"] == case.id
        assert recipients_in(self.gate.cases_folder / case.file) <= 2 + case.gate_reads
        by_gate = case.decided_by == decisions.GATE  # nobody's word: it is looked at again
        decided = {CaseState.RELEASED: None if by_gate else "allow", CaseState.CONFIRMED: "block"}
        wanted = decided.get(case.state)
        verdict = verdicts[sha256]
        assert (verdict and verdict.verdict) == wanted, f"{case.id}: {case.state}, remembered as {verdict}"
        for promise in case.promises:
            told = self.told.promised.get(promise.alias)
            assert told is None or pixels(told) == shows, f"{promise.alias} was promised for something else"
            target = f"/image/original/{promise.alias}"
            if case.state in _HELD:
                assert until_gone(self.pictrs.url, promise.alias), f"{case.id}: stored and {case.state}"
            shown = get(self.gate.url, target)
            if promise.removed_at is not None:
                assert shown.status == 404 and promise.alias not in self.told.promised
            elif case.state is CaseState.RELEASED:
                assert shown.status == 200 and shown.headers["cache-control"].startswith("public")
                assert get(self.pictrs.url, target).status == 200
            else:
                assert shown.status == 200 and shown.headers["cache-control"] == "no-store"
        if case.state is not CaseState.RELEASING:
            self._looked_at.add(case.id)

    def _check_unseen(self) -> None:
        """What had passed unseen is in one place: in pict-rs, or held."""
        for alias, content in self.told.unseen.items():
            if pixels(content) in self._hits:
                assert until_gone(self.pictrs.url, alias), f"{alias}: passed unseen, and is there still"
                self.told.promised[alias] = content
            else:
                self.told.stored.add(alias)
        self.told.unseen.clear()

    def _check_expired(self, case: Case, verdicts: Mapping[str, Remembered | None]) -> None:
        assert case.sha256 is not None and case.expired_at is not None
        assert verdicts[case.sha256] is not None, f"{case.id}: forgotten"
        for promise in case.promises:
            assert get(self.gate.url, f"/image/original/{promise.alias}").status == 200
        self._looked_at.add(case.id)

    def decided(self, case_id: str) -> None:
        """The case may be another one now: the next check looks again."""
        self._looked_at.discard(case_id)

    def state(self, case_id: str) -> CaseState:
        """Of a case."""
        with self.gate.database() as database:
            return cases.get(database, case_id).state

    def _is_adopted(self) -> bool:
        with self.gate.database() as database:
            present = self._files()
            known = cases.listed(database, limit=100_000)
            return present == {case.file for case in known if case.state is not CaseState.EXPIRED}

    def _is_at_rest(self) -> bool:
        """Whether the gate has nothing to look at, to store or to seal anew."""
        by_human = and_(Case.state == CaseState.RELEASING, Case.decided_by != decisions.GATE)
        with self.gate.database() as database, database.reading() as session:
            waits = select(Case.id).where(Case.gate_reads, ~func.coalesce(by_human, False)).limit(1)
            unseen = select(UnseenUpload.number).where(UnseenUpload.done_at.is_(None)).limit(1)
            return session.scalar(waits) is None and session.scalar(unseen) is None

    def _files(self) -> set[str]:
        return {path.name for path in self.gate.cases_folder.iterdir()}

    def until(
        self,
        holds: Callable[[], bool],
        what: str,
        *,
        within_s: float = _WITHIN_S,
        odd: Callable[[], object] = lambda: "",
    ) -> None:
        end = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < end, f"not in time: {what} {odd()}\n{self._log()}"
            time.sleep(0.05)

    def _log(self) -> str:
        return (self.gate.folder / "gate.log").read_text()[-2000:]


def _hold(scene: Scene, fault: str | None) -> None:
    refused = fault is not None and fault.startswith("withdraw")
    scene.is_away = not refused and scene.chance.random() < 0.4
    scene.kill()
    scene.start(fault)
    after_s = scene.chance.uniform(0.0, 0.25) if fault is None else None
    scene.upload(then_kill_after_s=after_s, refused=refused)
    if fault is not None:
        scene.has_died()
    scene.start()


def _look_later(scene: Scene, fault: str | None) -> None:
    scene.is_away = True
    scene.kill()
    scene.start()
    scene.upload()
    scene.is_away = False
    _dies_by_itself(scene, fault)


def _pass_unseen(scene: Scene, fault: str | None) -> None:
    scene.is_away = True
    scene.allow_unseen(True)
    scene.kill()
    is_upload = fault == "unseen-stored"
    scene.start(fault if is_upload else None)
    scene.upload()
    if is_upload:
        scene.has_died()
    scene.is_away = False
    _dies_by_itself(scene, None if is_upload else fault)
    scene.check()
    scene.allow_unseen(False)
    scene.kill()
    scene.start()


def _dies_by_itself(scene: Scene, fault: str | None) -> None:
    """A gate dies at what it does without being asked; and another one goes on."""
    scene.kill()
    scene.start(fault, dies_at_once=fault is not None)
    if fault is None:
        time.sleep(scene.chance.uniform(0.0, 2.0))
        scene.kill()
    else:
        scene.has_died()
    scene.start()


def _release(scene: Scene, fault: str | None) -> None:
    too_wide = fault is not None and fault.startswith(("release-refused", "release-taken-back"))
    case_id = scene.held(too_wide=too_wide)
    _dies(scene, "release", case_id, fault)
    scene.check()
    if too_wide:
        assert scene.review("release", case_id) == 1
        assert scene.state(case_id) is CaseState.PENDING
    elif scene.chance.random() < 0.5:
        is_open = scene.state(case_id) is not CaseState.RELEASED
        assert scene.review("release", case_id) == (0 if is_open else 1)
    elif scene.state(case_id) is not CaseState.RELEASED:
        _confirm_at_last(scene, case_id)
    scene.decided(case_id)


def _confirm(scene: Scene, fault: str | None) -> None:
    case_id = scene.held()
    if fault is None or "tak" in fault:  # what is taken back has been stored before
        assert scene.review("release", case_id, fault="imported") == -9
        scene.let_time_pass(case_id)
    _dies(scene, "confirm", case_id, fault)
    scene.check()
    if scene.state(case_id) is not CaseState.CONFIRMED:
        if scene.chance.random() < 0.3:
            assert scene.review("release", case_id) == 0
        else:
            _confirm_at_last(scene, case_id)
    scene.decided(case_id)


def _rotate(scene: Scene, fault: str | None) -> None:
    scene.held()
    scene.one_more_or_less_can_open()
    killed = scene.rotate(fault, after_s=scene.chance.uniform(0.3, 0.8) if fault is None else 0)
    assert fault is None or killed == -9
    assert scene.rotate() == 0
    scene.kill()
    scene.start()  # what a killed command has not finished writing is the gate's to clear away


def _expire(scene: Scene, fault: str | None) -> None:
    case_id = scene.held()
    assert scene.review(scene.chance.choice(("release", "confirm")), case_id) == 0
    scene.let_period_pass(case_id)
    killed = scene.expire(fault, after_s=scene.chance.uniform(0.3, 0.8) if fault is None else 0)
    assert fault is None or killed == -9
    assert scene.expire() == 0
    assert scene.state(case_id) is CaseState.EXPIRED
    scene.decided(case_id)


def _confirm_at_last(scene: Scene, case_id: str) -> None:
    if scene.state(case_id) is CaseState.RELEASING:
        scene.let_time_pass(case_id)
    assert scene.review("confirm", case_id) == 0
    assert scene.state(case_id) is CaseState.CONFIRMED


def _dies(scene: Scene, decision: str, case_id: str, fault: str | None) -> None:
    if fault is not None:
        assert scene.review(decision, case_id, fault=fault) == -9
    elif scene.review(decision, case_id, after_s=scene.chance.uniform(0.02, 0.5)) == 0:
        scene.decided(case_id)  # it was quicker


# The last name of each is where it dies; what is written to the database is told apart by what was before.
_AT: Sequence[tuple[Callable[[Scene, str | None], None], Sequence[str | None]]] = (
    (
        _hold,
        (
            *("case-begun", "case-written", "case-named", "case-sealed", "case-sealed>uncommitted"),
            *("case-sealed>committed", "case-recorded", "kept", "forwarded", "withdrawing"),
            *("withdrawing>uncommitted", "withdrawn", None, None, None),
        ),
    ),
    (
        _look_later,
        (
            *("backlog-looked", "backlog-looked>uncommitted", "backlog-looked>importing"),
            *("backlog-looked>imported", "backlog-looked>import-noted>uncommitted", "backlog-settled"),
            *(
                "backlog-settled>case-written",
                "backlog-resealed",
                "case-replaced",
                "case-replaced>uncommitted",
            ),
            None,
        ),
    ),
    (
        _pass_unseen,
        (
            *("unseen-stored", "unseen-looked", "unseen-looked>case-sealed", "unseen-looked>uncommitted"),
            *("unseen-held", "all-taken", "all-taken>uncommitted", None),
        ),
    ),
    (
        _release,
        (
            *("release-opened", "release-opened>uncommitted", "release-begun", "release-begun>uncommitted"),
            *("importing", "imported", "imported>uncommitted", "import-noted", "import-noted>uncommitted"),
            *("import-noted>committed", "released", "release-refused", "release-refused>uncommitted"),
            *("release-taken-back", None, None),
        ),
    ),
    (
        _confirm,
        (
            *("confirming", "confirming>uncommitted", "confirming>committed", "taking-back", "taken-back"),
            *("taken-back>uncommitted", "confirmed", None),
        ),
    ),
    (
        _rotate,
        ("case-resealed", "case-swapped", "case-swapped>uncommitted", "case-reseal-noted", None),
    ),
    (_expire, ("uncommitted", "expired", "bytes-deleted", "bytes-deleted>uncommitted", None)),
)
ROUNDS = [(play, fault) for play, faults in _AT for fault in faults]


def run(scene: Scene, kills: int) -> Iterator[str]:
    """Kills so many gates and commands, at each point in turn; what was done, one by one.

    Few kills are spread over all of them, others for another seed.
    """
    step = max(1, len(ROUNDS) // kills) if kills < len(ROUNDS) else 1
    first = scene.chance.randrange(step)
    scene.start()
    scene.held()
    for number in range(kills):
        play, fault = ROUNDS[(first + number * step) % len(ROUNDS)]
        play(scene, fault)
        scene.check()
        yield f"{play.__name__.strip('_')} at {fault or 'a random moment'}"
    scene.check(everything=True)

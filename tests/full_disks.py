"""Disks that are full before something is done, or from a named point of it on; and kills while they are.

A round is one line of `_AT`. What is done is refused in words, done all the same, or killed. Then, with the
disk still full, nothing may be lost; and as soon as there is room everything has to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from proxy.database import CaseState
from tests.client import metric
from tests.cramped import DONE, REFUSED, Cramped, Round


def _start(scene: Cramped, one: Round) -> None:
    """Of a gate that was stopped: it has left nothing of its own on the disk that it could use again."""
    assert scene.running.stop() == 0
    scene.fill(one.disk)
    scene.take_names(one.disk)
    scene.goes_on_although_full(one)
    assert scene.is_running == (one.then == DONE)
    if scene.is_running:
        scene.check_while_full()
        answer = scene.sends_hit()
        assert answer is not None and answer.status == 503 and scene.alarms() >= 1, answer
    else:
        scene.commands(one, "review", "list")
    scene.make_room()
    answer = scene.sends_hit()
    assert answer is not None and answer.status == 201, answer


def _upload(scene: Cramped, one: Round) -> None:
    scene.is_away = scene.chance.random() < 0.4
    content = scene.hit()
    answer = scene.sends(one, content)
    if one.is_killed:
        assert answer is None
        scene.goes_on_although_full(one)
    else:
        assert answer is not None and answer.status == (503 if one.then == REFUSED else 201), answer
        if answer.status == 503:
            assert answer.json()["code"] == "scan-unavailable" and "retry-after" in answer.headers
            assert scene.alarms() >= 1
        if not scene.is_away:
            clean = scene.sends_clean()  # it needs no room
            assert clean is not None and clean.status == 201, clean
    scene.check_while_full()
    scene.make_room()
    if not one.is_killed:
        again = scene.sends_hit()
        assert again is not None and again.status == 201, again
    scene.is_away = False
    scene.goes_on()


def _look_later(scene: Cramped, one: Round) -> None:
    scene.is_away = True
    scene.kill()
    scene.start()
    scene.upload()
    scene.works_by_itself(one)
    if (one.disk, one.then) == ("cases", REFUSED):
        assert metric(scene.gate.internal_url, "pictrs_gate_sealing_failures_total") >= 1
    scene.check_while_full()
    scene.goes_on()


def _pass_unseen(scene: Cramped, one: Round) -> None:
    scene.is_away = True
    scene.allow_unseen(True)
    if one.since == "unseen-stored":
        stored = len(scene.pictrs.stored_files())
        answer = scene.sends(one, scene.hit())
        assert answer is not None and answer.status == 503, answer
        scene.until(lambda: len(scene.pictrs.stored_files()) == stored, "pict-rs has none of it")
    else:
        scene.kill()
        scene.start()
        scene.upload()
        scene.works_by_itself(one)
    if (one.disk, one.then) == ("cases", REFUSED):
        assert metric(scene.gate.internal_url, "pictrs_gate_quota_refusals_total", limit="disk") >= 1
        scene.until(lambda: metric(scene.gate.internal_url, "pictrs_gate_public_hits") >= 1, "it is counted")
    scene.check_while_full()
    scene.is_away = False
    scene.allow_unseen(False)
    scene.goes_on()


def _release(scene: Cramped, one: Round) -> None:
    too_wide = bool(one.since) and str(one.since).startswith(("release-refused", "release-taken-back"))
    case_id = scene.held(too_wide=too_wide)
    scene.does(one, "review", "release", case_id)
    scene.check_while_full()
    scene.make_room()
    if too_wide:
        assert scene.review("release", case_id) == 1
        assert scene.state(case_id) is CaseState.PENDING
    else:
        was_open = scene.state(case_id) is not CaseState.RELEASED
        assert scene.review("release", case_id) == (0 if was_open else 1)
        assert was_open or one.then in (DONE, "released")
        assert scene.state(case_id) is CaseState.RELEASED
    scene.decided(case_id)


def _confirm(scene: Cramped, one: Round) -> None:
    case_id = scene.held()
    assert scene.review("release", case_id, fault="imported") == -9
    scene.let_time_pass(case_id)
    scene.does(one, "review", "confirm", case_id)
    scene.check_while_full()
    scene.make_room()
    if scene.state(case_id) is CaseState.RELEASING:
        scene.let_time_pass(case_id)
    assert scene.review("confirm", case_id) == (1 if one.then == DONE else 0)
    assert scene.state(case_id) is CaseState.CONFIRMED
    scene.decided(case_id)


def _rotate(scene: Cramped, one: Round) -> None:
    scene.held()
    scene.one_more_or_less_can_open()
    scene.does(one, "keys", "rotate")
    scene.check_while_full()
    scene.make_room()
    assert scene.rotate() == 0
    scene.kill()
    scene.start()


def _expire(scene: Cramped, one: Round) -> None:
    case_id = scene.held()
    assert scene.review(scene.chance.choice(("release", "confirm")), case_id) == 0
    scene.let_period_pass(case_id)
    scene.does(one, "retention", "run")
    scene.check_while_full()
    scene.make_room()
    assert scene.expire() == 0
    assert scene.state(case_id) is CaseState.EXPIRED
    scene.decided(case_id)


_Ends = Sequence[tuple[str | None, Sequence[str]]]
_AT: Sequence[tuple[Callable[[Cramped, Round], None], str, _Ends]] = (
    (_start, "cases", [(None, [DONE])]),
    (_start, "database", [(None, [REFUSED])]),
    (_upload, "cases", [(None, [REFUSED]), ("case-sealed", [DONE, "case-recorded", "kept"])]),
    (
        _upload,
        "database",
        [
            (None, [REFUSED, "case-begun", "case-written", "case-named", "case-sealed>uncommitted"]),
            ("case-sealed", [REFUSED, "uncommitted"]),
            ("case-recorded", [DONE, "kept", "forwarded"]),
        ],
    ),
    (
        _look_later,
        "cases",
        [(None, [REFUSED]), ("backlog-looked", [REFUSED, "backlog-settled"]), ("backlog-resealed", [DONE])],
    ),
    (
        _look_later,
        "database",
        [
            (None, [REFUSED]),
            ("backlog-looked", [REFUSED, "uncommitted"]),
            ("imported", [REFUSED, "uncommitted"]),
            ("backlog-settled", [REFUSED, "backlog-resealed"]),
            ("backlog-resealed", [REFUSED, "uncommitted"]),
            ("case-replaced", [REFUSED, "uncommitted"]),
        ],
    ),
    (_pass_unseen, "cases", [(None, [REFUSED]), ("unseen-looked", [REFUSED]), ("unseen-held", [DONE])]),
    (
        _pass_unseen,
        "database",
        [
            ("unseen-stored", [REFUSED]),
            ("unseen-looked", [REFUSED, "case-sealed", "case-sealed>uncommitted"]),
            ("unseen-held", [REFUSED]),
            ("all-taken", [REFUSED, "uncommitted"]),
        ],
    ),
    (_release, "cases", [(None, [DONE, "imported", "released"])]),
    (
        _release,
        "database",
        [
            (None, [REFUSED, "release-opened", "release-opened>uncommitted"]),
            ("release-begun", [REFUSED, "uncommitted"]),
            ("importing", [REFUSED, "imported"]),
            ("imported", [REFUSED, "uncommitted"]),
            ("import-noted", [REFUSED, "uncommitted"]),
            ("released", [DONE]),
            ("release-refused", [REFUSED]),
            ("release-taken-back", [REFUSED, "uncommitted"]),
        ],
    ),
    (_confirm, "cases", [(None, [DONE])]),
    (
        _confirm,
        "database",
        [
            (None, [REFUSED, "confirming"]),
            ("taking-back", [REFUSED, "taken-back"]),
            ("taken-back", [REFUSED, "uncommitted"]),
            ("confirmed", [DONE]),
        ],
    ),
    (_rotate, "cases", [(None, [REFUSED]), ("case-resealed", ["case-swapped"])]),
    (
        _rotate,
        "database",
        [
            (None, [REFUSED, "case-resealed"]),
            ("case-resealed", [REFUSED]),
            ("case-swapped", [REFUSED, "uncommitted"]),
            ("case-reseal-noted", [REFUSED]),
        ],
    ),
    (_expire, "cases", [(None, [DONE, "expired", "bytes-deleted"])]),
    (
        _expire,
        "database",
        [
            (None, [REFUSED, "uncommitted"]),
            ("expired", [REFUSED]),
            ("bytes-deleted", [REFUSED, "uncommitted"]),
        ],
    ),
)
ROUNDS = [Round(act, disk, since, then) for act, disk, ends in _AT for since, thens in ends for then in thens]


def run(scene: Cramped, rounds: int) -> Iterator[str]:
    """Plays so many rounds; what was done, one by one.

    Few are spread over all of them, others for another seed.
    """
    step = max(1, len(ROUNDS) // rounds)
    first = scene.chance.randrange(step)
    scene.start()
    scene.held()
    for number in range(min(rounds, len(ROUNDS))):
        one = ROUNDS[(first + number * step) % len(ROUNDS)]
        one.act(scene, one)
        scene.check()
        yield str(one)
    scene.check(everything=True)

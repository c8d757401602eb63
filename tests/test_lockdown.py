"""Lockdown: under attack every upload is held, at once, and only what an admin has named passes."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import quote

import pytest
from multidict import CIMultiDict

from proxy.cases.clearances import Clearances, Sent
from proxy.channels.looks import Seen
from proxy.database import Database, ledger, lockdowns
from proxy.internal.hook import ValidationHook
from proxy.internal.server import HookAnswer
from proxy.lockdown import Lockdowns
from proxy.metrics import Metrics
from proxy.policy import Decision, Verdict
from proxy.server.fetches import HookWatch
from proxy.server.uploaders import Uploaders
from tests import pictrs, pictures
from tests.client import Answer, form, get, metric, send, upload
from tests.fake import Fake, Reply
from tests.gate import Classifier, Gate, scripted
from tests.processes import free_port

NewGate = Callable[..., Gate]
HARMLESS, HIT = {"sexual": 0.0, "minor": 0.0}, {"sexual": 0.9, "minor": 0.8}


def token_of(user: object) -> str:
    """A login as Lemmy signs it; nobody behind Lemmy can check the signature."""

    def part(content: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    return f"{part({'alg': 'HS256'})}.{part({'sub': user, 'iss': 'here'})}.c2lnbmF0dXJl"


# --- the row that every gate reads ---


def test_a_lockdown_holds_until_somebody_ends_it_and_the_ledger_tells_both(database: Database) -> None:
    assert lockdowns.in_force(database) is None
    lockdowns.begin(database, by="ann", reason="a flood", until=None)
    found = lockdowns.in_force(database)
    assert found is not None and (found.by, found.reason, found.until) == ("ann", "a flood", None)
    assert lockdowns.end(database, by="bob") is not None
    assert lockdowns.in_force(database) is None and lockdowns.end(database, by="bob") is None
    told = [(one.act, one.actor, one.facts.get("by itself")) for one in ledger.entries(database)]
    assert told == [("lockdown on", "ann", None), ("lockdown off", "bob", False)]


def test_its_time_ends_it_at_once_and_that_is_written_once(database: Database) -> None:
    lockdowns.begin(database, by="ann", reason=None, until=datetime.now(UTC) - timedelta(seconds=1))
    assert lockdowns.in_force(database) is None  # also where nobody has noticed it yet
    ended = lockdowns.end_due(database)
    assert ended is not None and ended.ended_at == ended.until and ended.ended_by is None
    assert lockdowns.end_due(database) is None and lockdowns.end(database, by="bob") is None
    told = [(one.act, one.actor, one.facts.get("by itself")) for one in ledger.entries(database)]
    assert told == [("lockdown on", "ann", None), ("lockdown off", "gate", True)]
    assert ledger.first_broken(database) is None


def test_a_second_one_takes_the_place_of_the_first(database: Database) -> None:
    lockdowns.begin(database, by="ann", reason="a flood", until=datetime.now(UTC) + timedelta(hours=1))
    lockdowns.begin(database, by="bob", reason="still", until=None)
    found = lockdowns.in_force(database)
    assert found is not None and (found.reason, found.until) == ("still", None)
    lockdowns.end(database, by="bob")
    assert lockdowns.in_force(database) is None
    acts = [one.act for one in ledger.entries(database)]
    assert acts == ["lockdown on", "lockdown off", "lockdown on", "lockdown off"]


async def test_only_the_users_that_are_named_are_let_past(database: Database) -> None:
    lockdown = Lockdowns(database, [2], Metrics())
    assert await lockdown.decision("3") is None and not await lockdown.is_on()
    lockdowns.begin(database, by="ann", reason="a flood", until=None)
    for user in ("3", None, "", "22"):
        decision = await lockdown.decision(user)
        assert decision is not None
        assert (decision.verdict, decision.reason) == (Verdict.DEFER, "lockdown: a flood")
    assert await lockdown.decision("2") is None and await lockdown.is_on()


# --- who is believed to be who ---


def request_of(remote: str, *headers: tuple[str, str]) -> Any:
    return SimpleNamespace(headers=CIMultiDict(headers), remote=remote)


def believed(remote: str, *headers: tuple[str, str]) -> str | None:
    from proxy.sections import ServerSection

    uploaders = Uploaders(ServerSection().trusted_proxies, wanted=True, salt=b"salt")
    return uploaders.user_id(request_of(remote, *headers))


def test_a_login_is_believed_from_trusted_proxies_only() -> None:
    bearer = ("Authorization", f"Bearer {token_of('2')}")
    assert believed("127.0.0.1", bearer) == "2"
    assert believed("::ffff:127.0.0.1", bearer) == "2"
    assert believed("127.0.0.1", ("Cookie", f"a=b; jwt={token_of(2)}")) == "2"
    assert believed("127.0.0.1", bearer, ("Cookie", f"jwt={token_of('2')}")) == "2"  # the same one
    assert believed("203.0.113.9", bearer) is None
    assert believed("127.0.0.1") is None


@pytest.mark.parametrize(
    "headers",
    [
        # Lemmy takes the first cookie of two, and the cookie where the header is not quite `Bearer`.
        [("Cookie", "jwt={mine}; jwt={forged}")],
        [("Authorization", "bearer {forged}"), ("Cookie", "jwt={mine}")],
        [("Authorization", "Bearer {mine}"), ("Authorization", "Bearer {forged}")],
        [("Cookie", "%6awt={mine}; jwt={forged}")],
        [("Cookie", "jwt={mine}"), ("Cookie", "jwt={forged}")],
        [("Authorization", "Bearer {forged}"), ("Cookie", "jwt=%65{mine_but_its_first}")],
    ],
)
def test_of_two_logins_none_is_believed(headers: list[tuple[str, str]]) -> None:
    mine, forged = token_of("7"), token_of("2")
    words = {"mine": mine, "forged": forged, "mine_but_its_first": mine[1:]}
    assert believed("127.0.0.1", *((name, value.format(**words)) for name, value in headers)) is None


def test_a_tag_is_the_same_for_one_uploader_and_tells_nobody_who_that_is() -> None:
    uploaders = Uploaders([], wanted=True, salt=b"salt")
    first, second = (uploaders.tag(request_of(address)) for address in ("203.0.113.9", "203.0.113.10"))
    assert first != second and first == uploaders.tag(request_of("203.0.113.9"))
    household = {uploaders.tag(request_of(f"2001:db8::{last}")) for last in (1, 2)}
    assert len(household) == 1  # one line has 2^64 addresses
    assert first != Uploaders([], wanted=True, salt=b"other").tag(request_of("203.0.113.9"))
    assert Uploaders([], wanted=False, salt=b"salt").tag(request_of("203.0.113.9")) is None


def test_a_proxy_of_a_container_network_that_is_not_trusted_is_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    uploaders = Uploaders([], wanted=True, salt=b"salt")
    forwarded = ("X-Forwarded-For", "8.8.8.8")
    for _ in range(2):
        assert uploaders.facts(request_of("8.8.4.4", forwarded))["address"] == "8.8.4.4"
    assert not caplog.messages  # anybody may write the header, and his address is nobody's
    for _ in range(2):
        assert uploaders.facts(request_of("172.18.0.5", forwarded))["address"] == "172.18.0.5"
    (said,) = caplog.messages
    assert said.startswith("172.18.0.5 passes on X-Forwarded-For and is not in server.trusted_proxies")


# --- what the hook knows for the gate's own ---


class Locked:
    """A judge under a lockdown, whose classifier has seen a picture of this perceptual hash."""

    def __init__(self, pdq: str | None) -> None:
        self.pdq, self.looks = pdq, 0

    async def judge(self, *_: object, despite_lockdown: bool = False, **__: object) -> tuple[Any, Decision]:
        if not despite_lockdown:
            return None, Decision(Verdict.DEFER, "lockdown: a flood", by_lockdown=True)
        self.looks += 1
        seen = Seen({}, [], "scripted", "png", 320, 200, pdq=self.pdq, pdq_quality=100)
        return seen, Decision(Verdict.ALLOW, "no rule matched")


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (None, HookAnswer.UNSEEN),
        (Sent("0" * 64, "f" * 64, 100), HookAnswer.UNSEEN),  # another picture
        (Sent("0" * 64, None, None), HookAnswer.UNSEEN),
        (Sent("0" * 64, "0" * 63 + "1", 100), HookAnswer.KEEP),  # the same one, rewritten
        (Sent(hashlib.sha256(pictures.png(seed=3_200)).hexdigest(), None, None), HookAnswer.KEEP),
    ],
)
async def test_while_the_gate_sends_one_picture_pict_rs_keeps_no_other(
    database: Database, sent: Sent | None, answer: HookAnswer
) -> None:
    judge: Any = Locked("0" * 64)
    clearances, unused = Clearances(), cast(Any, None)
    hook = ValidationHook(
        judge=judge,
        keeper=unused,
        clearances=clearances,
        watch=HookWatch(),
        database=database,
        verdict_s=1.0,
    )
    with clearances.of([], [sent] if sent else []):
        assert await hook.validate(pictures.png(seed=3_200)) is answer
    looks = judge.looks
    assert looks == (sent is not None)  # nobody is bothered where nothing can pass
    assert await hook.validate(pictures.png(seed=3_200)) is HookAnswer.UNSEEN  # it is sent no more
    assert judge.looks == looks


# --- a gate, the real hook of pict-rs, and an admin at the terminal ---


@dataclass
class Attacked:
    gate: Gate
    pictrs: pictrs.Pictrs
    hits: list[bytes]
    internal_url: str

    def as_user(self, user: str, content: bytes) -> Answer:
        content_type, body = form([("file", content)])
        headers = {"Content-Type": content_type, "Authorization": f"Bearer {token_of(user)}"}
        return send(self.gate.url, "POST", "/image", headers=headers, body=body)

    def is_stored(self, answer: Answer) -> bool:
        assert answer.status == 201
        alias = answer.json()["files"][0]["file"]
        shown = get(self.gate.url, f"/image/original/{alias}")
        is_stored = get(self.pictrs.url, f"/image/original/{alias}").status == 200
        assert is_stored == (shown.headers["cache-control"] != "no-store")
        return is_stored

    def lockdown(self, *words: str) -> str:
        return self.gate.run("lockdown", *words, "--config", str(self.gate.config)).stdout

    def looks(self) -> float:
        return metric(self.internal_url, "pictrs_gate_looks_total")


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    folder, internal = tmp_path_factory.mktemp("lockdown"), free_port()
    running = pictrs.Pictrs(
        folder / "pictrs", real=pictrs.find(), validation=f"http://127.0.0.1:{internal}/validate"
    )
    hits = [pictures.png((320, 240), seed=3_000 + number) for number in range(4)]
    looking = Classifier(folder, ensemble=scripted(folder, dict.fromkeys(hits, HIT), otherwise=HARMLESS))
    gate = Gate(
        folder / "gate",
        pictrs_url=running.url,
        api_key=running.api_key,
        classifier_url=looking.url,
        internal={"listen": f"127.0.0.1:{internal}"},
        fetching={"also_reach": ["127.0.0.0/8"], "any_port": True},
        env={"GATE__LOCKDOWN__ALLOW_USERS": "[2]"},
    )
    yield Attacked(gate, running, hits, f"http://127.0.0.1:{internal}")
    gate.stop()
    looking.stop()
    running.stop()


def test_under_a_lockdown_every_upload_is_held_unseen_and_nothing_else_changes(attacked: Attacked) -> None:
    gate = attacked.gate
    released, confirmed, hit, _ = attacked.hits
    for content, decision in ((released, "release"), (confirmed, "confirm")):
        gate.upload(content)
        gate.decide(decision)
    assert attacked.is_stored(gate.upload(pictures.png(seed=3_100)))

    said = attacked.lockdown("on", "--for", "2h", "--reason", "a flood", "--reviewer", "ann")
    assert "by ann, until" in said and "a flood" in said
    before, seen = len(gate.cases()), attacked.looks()

    for content in (pictures.png(seed=3_101), hit):  # harmless or not, nobody looks
        assert not attacked.is_stored(gate.upload(content))
        case = gate.cases()[0]
        assert (case["state"], case["reason"]) == ("deferred", "lockdown: a flood")
    assert not attacked.is_stored(attacked.as_user("3", pictures.png(seed=3_102)))
    page = Fake(lambda _: Reply(200, pictures.png(seed=3_103)))
    url = quote(f"{page.url}/x.png", safe="")
    assert not attacked.is_stored(get(gate.url, f"/image/download?url={url}"))
    page.close()
    assert attacked.looks() == seen and len(gate.cases()) == before + 4

    assert attacked.is_stored(gate.upload(released))  # its bytes were released before
    refused = gate.upload(confirmed)
    assert (refused.status, refused.json()["code"]) == (400, "failed-external-validation")
    assert attacked.looks() == seen or pictrs.find() is not None

    assert metric(attacked.internal_url, "pictrs_gate_lockdown") == 1
    status = json.loads(attacked.lockdown("status", "--json"))
    assert (status["on"], status["by"], status["reason"]) == (True, "ann", "a flood")


def test_under_a_lockdown_the_users_that_are_named_are_looked_at_as_ever(attacked: Attacked) -> None:
    for content in (pictures.png(seed=3_110), pictures.turned_jpeg(seed=3_111)):  # which pict-rs rewrites
        assert attacked.is_stored(attacked.as_user("2", content))
    assert not attacked.is_stored(attacked.as_user("2", attacked.hits[3]))
    assert attacked.gate.cases()[0]["state"] == "pending"


def test_under_a_lockdown_pict_rs_keeps_nothing_by_itself(attacked: Attacked) -> None:
    before, seen = len(attacked.gate.cases()), attacked.looks()
    refused = upload(attacked.pictrs.url, pictures.png(seed=3_120))  # as if it had fetched it
    assert (refused.status, refused.json()["code"]) == (400, "failed-external-validation")
    assert len(attacked.gate.cases()) == before and attacked.looks() == seen


def test_under_a_lockdown_a_human_s_release_is_stored(attacked: Attacked) -> None:
    answer = attacked.gate.upload(pictures.turned_jpeg(seed=3_130))
    assert not attacked.is_stored(answer)
    attacked.gate.decide("release")
    assert attacked.is_stored(answer)


def test_once_it_is_ended_uploads_are_looked_at_again(attacked: Attacked) -> None:
    assert attacked.lockdown("off", "--reviewer", "bob") == "lockdown: off\n"
    assert attacked.is_stored(attacked.gate.upload(pictures.png(seed=3_140)))
    assert metric(attacked.internal_url, "pictrs_gate_lockdown") == 0
    assert json.loads(attacked.lockdown("status", "--json")) == {"on": False}
    told = [(one.act, one.actor) for one in attacked.gate.ledger() if one.act.startswith("lockdown")]
    assert told == [("lockdown on", "ann"), ("lockdown off", "bob")]


def test_the_gate_itself_writes_down_that_the_time_is_over(attacked: Attacked) -> None:
    before = len(attacked.gate.ledger())
    with attacked.gate.database() as database:
        lockdowns.begin(database, by="ann", reason=None, until=datetime.now(UTC) + timedelta(seconds=1))
    assert metric(attacked.internal_url, "pictrs_gate_lockdown") in (0, 1)
    for _ in range(200):  # what waits is looked at at once, so the end need not be the last entry
        ended = [entry for entry in attacked.gate.ledger()[before:] if entry.act == "lockdown off"]
        if ended:
            break
        time.sleep(0.1)
    assert [(entry.actor, entry.facts["by itself"]) for entry in ended] == [("gate", True)]
    assert attacked.is_stored(attacked.gate.upload(pictures.png(seed=3_150)))


def test_without_placeholders_uploads_are_refused_and_nothing_is_kept(new_gate: NewGate) -> None:
    gate = new_gate(policy={"hold_response": "reject"})
    with gate.database() as database:
        lockdowns.begin(database, by="ann", reason=None, until=None)
    refused = gate.upload(pictures.png(seed=3_160))
    assert (refused.status, refused.json()["code"]) == (503, "scan-unavailable")
    assert int(refused.headers["retry-after"]) > 0
    assert gate.cases() == [] and list((gate.folder / "cases").iterdir()) == []
    assert gate.ledger()[-1].act == "refused: lockdown"


@pytest.mark.parametrize(
    "words", [["--for", "soon"], ["--for", "0s"], ["--reason", "a\nb"], ["--reviewer", "gate"]]
)
def test_what_is_no_time_reason_or_name_is_said(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from proxy.cli import main

    with pytest.raises(SystemExit):
        main(["lockdown", "on", *words])
    assert words[0] in capsys.readouterr().err

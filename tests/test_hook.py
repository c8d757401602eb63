"""pict-rs's validation hook for real: pict-rs asks the gate about everything that it is about to keep."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import pytest

from proxy.cases.clearances import Clearances
from proxy.cases.life import CaseState
from proxy.channels.looks import Seen
from proxy.internal.hook import ValidationHook
from proxy.internal.server import HookAnswer
from proxy.policy import Decision, Earlier, Verdict
from proxy.server.fetches import HookWatch
from tests import pictrs, pictures
from tests.client import form, get, send, upload
from tests.fake import Asked, Fake, Reply
from tests.gate import Classifier, Gate, scripted
from tests.kept import held, still_gate
from tests.processes import free_port

SIGNALS = {"sexual": 0.9, "minor": 0.8}
HARMLESS = {"sexual": 0.0, "minor": 0.0}


@pytest.fixture(scope="module")
def unseen() -> dict[str, bytes]:
    """Pictures that the classifier holds in pict-rs's own rewriting of them too."""
    return {
        "turned": pictures.turned_jpeg((320, 240), seed=1600),
        "turned, again": pictures.turned_jpeg((320, 240), seed=1601),
        "twice": pictures.png((320, 240), seed=1602),
    }


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Fake, dict[str, bytes]]]:
    pages: dict[str, bytes] = {}
    fake = Fake(lambda asked: Reply(200, pages[asked.target]) if asked.target in pages else Reply(404))
    yield fake, pages
    fake.close()


@pytest.fixture(scope="module")
def strict(
    tmp_path_factory: pytest.TempPathFactory, unseen: dict[str, bytes]
) -> Iterator[tuple[Gate, pictrs.Pictrs]]:
    """A pict-rs that asks a gate, whose classifier holds everything but one picture."""
    folder = tmp_path_factory.mktemp("hook")
    harmless = [pictures.png(seed=1610), pictures.jpeg(seed=1611), pictures.png(seed=1612)]
    internal = free_port()
    running = pictrs.Pictrs(
        folder / "pictrs",
        real=pictrs.find(),
        validation=f"http://127.0.0.1:{internal}/validate",
    )
    rules = [{"name": "nearly everything", "verdict": "hold", "at_least": {"sexual": 0.5}}]
    recipe = scripted(folder, dict.fromkeys(harmless, HARMLESS), otherwise=SIGNALS)
    looking = Classifier(folder, ensemble=recipe)
    gate = Gate(
        folder / "gate",
        pictrs_url=running.url,
        api_key=running.api_key,
        classifier_url=looking.url,
        rules=rules,
        internal={"listen": f"127.0.0.1:{internal}"},
        fetching={"downloads": "validate", "proxied": "validate", "hook_is_set": True},
    )
    yield gate, running
    gate.stop()
    looking.stop()
    running.stop()


def test_a_held_jpeg_that_pict_rs_rewrites_is_released_past_the_hook(
    strict: tuple[Gate, pictrs.Pictrs], unseen: dict[str, bytes]
) -> None:
    gate, running = strict
    content = unseen["turned"]
    alias = gate.upload(content).json()["files"][0]["file"]
    assert get(running.url, f"/image/original/{alias}").status == 404
    gate.decide("release")
    stored = get(running.url, f"/image/original/{alias}").body
    assert stored and stored != content
    passed = [entry for entry in gate.ledger() if entry.act == "allowed as released"]
    assert passed and passed[-1].facts["verdict"] == "hold"  # the model still says so
    # and the same upload passes from now on, although the model holds what pict-rs makes of it
    assert gate.upload(content).status == 201
    assert gate.upload(content, query="resize=200").status == 201
    # So does what somebody has saved from pict-rs, and sends again.
    assert gate.upload(stored).status == 201
    assert gate.upload(stored, query="resize=200").status == 201


def test_nothing_else_passes_by_the_door_of_a_release(
    strict: tuple[Gate, pictrs.Pictrs], unseen: dict[str, bytes]
) -> None:
    gate, running = strict
    gate.upload(unseen["turned, again"])
    with gate.database() as database:
        from proxy.database import cases, decisions

        case = cases.listed(database)[0]
        decisions.releasing(database, case.id, by="ann", sha256=str(case.sha256))
    refused = upload(running.url, pictures.jpeg((320, 240), seed=1699))
    assert (refused.status, refused.json()["code"]) == (400, "failed-external-validation")
    gate.decide("release", case.id)


def test_what_is_refused_twice_is_sealed_once_and_passes_after_its_release(
    strict: tuple[Gate, pictrs.Pictrs], unseen: dict[str, bytes]
) -> None:
    gate, running = strict
    before = len(gate.cases())
    for _ in range(3):  # straight to pict-rs: nobody but the hook sees it
        answer = upload(running.url, unseen["twice"])
        assert (answer.status, answer.json()["code"]) == (400, "failed-external-validation")
    assert len(gate.cases()) == before + 1
    case = gate.cases()[0]
    assert case["alias"] is None and case["sha256"] == hashlib.sha256(unseen["twice"]).hexdigest()
    told = [entry.act for entry in gate.ledger() if entry.case_id == case["id"]]
    assert told[:3] == ["pending", "held again", "held again"]
    gate.decide("release", case["id"])
    assert upload(running.url, unseen["twice"]).status == 201


def test_uploads_imports_downloads_and_proxied_pictures_pass_when_harmless(
    strict: tuple[Gate, pictrs.Pictrs], site: tuple[Fake, dict[str, bytes]]
) -> None:
    gate, running = strict
    fake, pages = site
    assert gate.upload(pictures.png(seed=1610)).status == 201
    content_type, body = form([("chosen.png", pictures.png(seed=1612))])
    headers = {"Content-Type": content_type, "X-Api-Token": running.api_key}
    assert send(gate.url, "POST", "/internal/import", headers=headers, body=body).status == 201
    pages["/harmless.png"], pages["/proxied.png"] = pictures.png(seed=1610), pictures.png(seed=1612)
    url = quote(f"{fake.url}/harmless.png", safe="")
    assert get(gate.url, f"/image/download?url={url}").status == 201
    url = quote(f"{fake.url}/proxied.png", safe="")
    assert get(gate.url, f"/image/original?proxy={url}").body == pages["/proxied.png"]


def test_a_held_download_and_a_held_proxied_picture_are_refused_and_sealed_once(
    strict: tuple[Gate, pictrs.Pictrs], site: tuple[Fake, dict[str, bytes]]
) -> None:
    gate, _ = strict
    fake, pages = site
    pages["/held.png"] = pictures.png(seed=1620)
    before = len(gate.cases())
    url = quote(f"{fake.url}/held.png", safe="")
    for target in (f"/image/download?url={url}", f"/image/original?proxy={url}"):
        for _ in range(2):
            answer = get(gate.url, target)
            assert (answer.status, answer.json()["code"]) == (400, "failed-external-validation")
    assert len(gate.cases()) == before + 1


@pytest.fixture
def unset(tmp_path: Path, running_pictrs: pictrs.Pictrs, classifier: Classifier) -> Iterator[Gate]:
    """A gate whose operator says that the hook is set, before a pict-rs where it is not."""
    gate = Gate(
        tmp_path / "gate",
        pictrs_url=running_pictrs.url,
        api_key=running_pictrs.api_key,
        classifier_url=classifier.url,
        fetching={"downloads": "validate", "proxied": "validate", "hook_is_set": True},
    )
    yield gate
    gate.stop()


@pytest.mark.parametrize("target", ["/image/download?url={}", "/image/original?proxy={}"])
def test_a_fetch_that_nobody_was_asked_about_is_noticed_and_taken_back(
    unset: Gate, running_pictrs: pictrs.Pictrs, site: tuple[Fake, dict[str, bytes]], target: str
) -> None:
    fake, pages = site
    seed = 1630 if "download" in target else 1631
    pages[f"/{seed}.png"] = pictures.png(seed=seed)
    url = quote(f"{fake.url}/{seed}.png", safe="")
    get(unset.url, target.format(url))
    for _ in range(100):  # of a proxied picture it is noticed once it has gone through
        if "not set to this gate" in unset.log():
            break
        time.sleep(0.05)
    assert "not set to this gate" in unset.log()
    for _ in range(100):  # the log is quicker
        if any(entry.act == "stored unseen" for entry in unset.ledger()):
            break
        time.sleep(0.05)
    assert any(entry.act == "stored unseen" for entry in unset.ledger())
    again = get(unset.url, target.format(url))
    assert (again.status, again.json()["code"]) == (403, "not-gated")
    assert get(running_pictrs.url, f"/image/details/original?proxy={url}").status == 404


def test_where_it_cannot_be_taken_back_one_answer_is_sent_and_no_more_is_fetched(
    tmp_path: Path, classifier: Classifier
) -> None:
    asked_before = []

    def reply(asked: Asked) -> Reply:
        if "details" in asked.target and "proxy=" in asked.target:
            asked_before.append(asked.target)
            return Reply(404) if len(asked_before) == 1 else Reply(200, b"{}" * 1000, cut=True)
        return Reply(200, b"a picture" if "proxy=" in asked.target else b"")

    upstream = Fake(reply)
    gate = Gate(
        tmp_path / "gate",
        pictrs_url=upstream.url,
        api_key="k",
        classifier_url=classifier.url,
        fetching={"proxied": "validate", "hook_is_set": True},
    )
    request = b"GET /image/original?proxy=http%3A%2F%2Fx%2Fa.png HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gate.port), timeout=20) as connection:
        first, second = b"", b""
        connection.sendall(request)
        while not first.endswith(b"a picture"):
            first += connection.recv(65536)
        connection.sendall(request)
        while not second.endswith(b"}"):
            second += connection.recv(65536)
    assert first.startswith(b"HTTP/1.1 200 ") and first.count(b"HTTP/1.1 ") == 1
    assert second.startswith(b"HTTP/1.1 403 ") and second.count(b"HTTP/1.1 ") == 1
    gate.stop()
    upstream.close()


class Seeing:
    """A judge that holds everything, and has seen a picture of this perceptual hash."""

    def __init__(self, pdq: str, earlier: Earlier | None = None) -> None:
        self.pdq, self.earlier = pdq, earlier

    async def judge(self, *_: object, **__: object) -> tuple[Any, Decision]:
        seen = Seen({}, [], "scripted", "png", 320, 200, pdq=self.pdq, pdq_quality=100)
        return seen, Decision(Verdict.HOLD, "rule: scripted", "scripted", self.earlier)


RELEASED = "ab" * 32  # the perceptual hash of whatever `held` makes a case of


def _off(bits: int) -> str:
    """A perceptual hash that differs by so many bits from that."""
    return f"{int(RELEASED, 16) ^ ((1 << bits) - 1):064x}"


@pytest.mark.parametrize(
    ("state", "seen", "is_kept"),
    [
        ("released", Seeing(_off(2)), True),  # as pict-rs rewrites it
        ("released", Seeing(_off(9)), False),  # a look-alike, while the released one is uploaded again
        ("released", Seeing(_off(2), Earlier("sha256", Verdict.HOLD, list="suspected")), False),
        ("released", Seeing(_off(2), Earlier("pdq", Verdict.BLOCK, case="another")), False),
        ("releasing", Seeing(_off(31)), True),
        ("releasing", Seeing(_off(32)), False),
        ("releasing", Seeing(_off(31), Earlier("sha256", Verdict.HOLD, list="suspected")), False),
    ],
)
def test_what_looks_like_a_released_picture_passes_only_while_that_is_released(
    tmp_path: Path, state: str, seen: Seeing, is_kept: bool
) -> None:
    gate = still_gate(tmp_path)
    content, decided = pictures.png(seed=1640), {"decided_by": "ann", "decided_at": datetime.now(UTC)}
    held(gate, content, state=CaseState(state), **decided)
    kept, clearances = _Kept(), Clearances()
    with gate.database() as database:
        judge: Any = seen
        hook = ValidationHook(
            judge=judge,
            keeper=cast(Any, kept),
            clearances=clearances,
            watch=HookWatch(),
            database=database,
            verdict_s=1.0,
        )
        uploaded = [hashlib.sha256(content).hexdigest()] if state == "released" else []
        with clearances.of(uploaded, []):
            wanted = HookAnswer.KEEP if is_kept else HookAnswer.REFUSE
            assert asyncio.run(hook.validate(pictures.png(seed=1641))) is wanted
            assert bool(kept.count) != is_kept
            # What waits for a human is nobody's rewriting, however alike.
            held(gate, pictures.png(seed=1642))
            seen.pdq, seen.earlier = _off(2 if state == "released" else 31), None
            assert asyncio.run(hook.validate(pictures.png(seed=1642))) is HookAnswer.REFUSE


class _Kept:
    """A keeper that only counts."""

    count = 0

    async def keep(self, *_: object) -> None:
        self.count += 1

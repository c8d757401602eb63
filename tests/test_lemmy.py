"""Lemmy's calls, with the headers that real Lemmys sent, of pictures allowed, held, decided, refused.

The recordings (`tests/recordings/lemmy-*.json`) are of 0.19.20 and 1.0.0-beta.1, in both image modes. A small
site stands for Lemmy where pict-rs or the gate fetch from it: it hands on what they ask for, as Lemmy does.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import http.client
import io
import json
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pytest
from PIL import Image

from proxy.cases.sealing import open_sealed, read_identities
from proxy.database import Case, cases
from tests import pictures
from tests.client import Answer, get, until_gone
from tests.fake import Asked, Fake, Reply
from tests.gate import Classifier, Gate, scripted
from tests.pictrs import Pictrs, find
from tests.processes import free_port

SIGNALS = {"sexual": 0.9, "minor": 0.8}
RECORDED_ALIAS = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.(?:jpeg|png)")
RECORDED_SITE = re.compile(r"http(?:://|%3A%2F%2F)127(?:(?:\.|%2E)[01]){3}(?::|%3A)(?:18536|18546|18599)")
SIZE = (320, 240)
Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Call:
    """One recorded request."""

    version: str
    number: int
    mode: str
    method: str
    path: str
    headers: Headers = field(repr=False)
    body_begins: str = field(repr=False)

    def __str__(self) -> str:
        agent = dict(self.headers)["user-agent"].split("/")[0].split(" ")[0]
        what = RECORDED_ALIAS.sub("ALIAS", unquote(self.path)).replace("127.0.0.1", "")
        return f"{self.version}-{self.mode}-{self.number}-{self.method} {what} by {agent}"

    @property
    def is_upload(self) -> bool:
        return self.method == "POST" and self.path.partition("?")[0] == "/image"

    @property
    def takes_away(self) -> bool:
        return "/delete" in self.path or "/purge" in self.path

    @property
    def names_an_alias(self) -> bool:
        return RECORDED_ALIAS.search(self.path) is not None

    @property
    def by_keeper(self) -> bool:
        """Whether it is pict-rs that fetches, through Lemmy, in order to keep."""
        return dict(self.headers)["user-agent"].startswith("pict-rs")


def recorded() -> list[Call]:
    calls = []
    for version in ("0.19.20", "1.0.0-beta.1"):
        content = json.loads((Path(__file__).parent / "recordings" / f"lemmy-{version}.json").read_text())
        for number, one in enumerate(content["requests"]):
            calls.append(
                Call(
                    *(version, number, one.get("image_mode", "both"), one["method"], one["path"]),
                    headers=[(name, value) for name, value in one["headers"]],
                    body_begins=one.get("body_begins", ""),
                )
            )
    return calls


CALLS = recorded()
UPLOADS = [call for call in CALLS if call.is_upload]
REMOVALS = [call for call in CALLS if call.takes_away]
READS = [call for call in CALLS if call.names_an_alias and not call.takes_away]
OTHERS = [call for call in CALLS if call not in [*UPLOADS, *REMOVALS, *READS]]


def send(url: str, method: str, path: str, headers: Headers, body: bytes = b"") -> Answer:
    """Exactly these headers, but for the length and the host."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            if name == "host":
                value = urlsplit(url).netloc
            if name == "content-length":
                value = str(len(body))
            connection.putheader(name, value)
        connection.endheaders(body or None)
        response = connection.getresponse()
        return Answer(
            response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        )
    finally:
        connection.close()


class World:
    """A pict-rs that asks the gate, the gate, and a site that stands for Lemmy and all other sites."""

    def __init__(self, folder: Path) -> None:
        self._seed = 30_000
        hits = {self._drawn(31_000 + n, kind): SIGNALS for n in range(90) for kind in ("JPEG", "PNG")}
        self._hits = {
            kind: [hit for hit in hits if (hit[:4] == b"\x89PNG") == (kind == "PNG")]
            for kind in ("JPEG", "PNG")
        }
        internal = free_port()
        self.pictrs = Pictrs(
            folder / "pictrs", real=find(), validation=f"http://127.0.0.1:{internal}/validate"
        )
        self.classifier = Classifier(folder, ensemble=scripted(folder, hits))
        self.gate = Gate(
            folder / "gate",
            pictrs_url=self.pictrs.url,
            api_key=self.pictrs.api_key,
            classifier_url=self.classifier.url,
            internal={"listen": f"127.0.0.1:{internal}"},
            fetching={
                "downloads": "fetch",
                "proxied": "validate",
                "hook_is_set": True,
                "also_reach": ["127.0.0.0/8"],
                "any_port": True,
            },
        )
        self.site = Fake(self._serve)

    def _serve(self, asked: Asked) -> Reply:
        """Lemmy's own picture routes, and a page's preview."""
        found = re.fullmatch(r"(?:/pictrs|/api/v4)/image/([^/?]+)", asked.target)
        if found:
            headers = [
                (name, value)
                for name, value in asked.headers
                if name.lower() in ("user-agent", "range", "accept")
            ]
            answer = send(self.gate.url, "GET", f"/image/original/{found[1]}", [*headers, ("host", "")])
            kept = ("content-type", "cache-control", "content-range", "retry-after")
            return Reply(answer.status, answer.body, {k: v for k, v in answer.headers.items() if k in kept})
        if asked.target.startswith("/pic-og"):
            return Reply(200, self._drawn(30_999, "PNG"), {"Content-Type": "image/png"})
        return Reply(404)

    @staticmethod
    def _drawn(seed: int, kind: str) -> bytes:
        return pictures.encode(pictures.draw(SIZE, seed), kind)

    def harmless(self, kind: str) -> bytes:
        self._seed += 1
        return self._drawn(self._seed, kind)

    def hit(self, kind: str) -> bytes:
        return self._hits[kind].pop()

    def upload(self, call: Call, content: bytes, url: str | None = None) -> Answer:
        """The recorded upload, of another picture."""
        boundary = dict(call.headers)["content-type"].partition("boundary=")[2]
        body = call.body_begins.encode() + b"\r\n\r\n" + content + f"\r\n--{boundary}--\r\n".encode()
        return send(url or self.gate.url, "POST", call.path, call.headers, body)

    def path(self, call: Call, alias: str, token: str = "") -> str:
        """The recorded path, of another alias, with the sites that are here."""
        path = RECORDED_ALIAS.sub(alias, call.path)
        path = re.sub(r"(?<=/image/delete/)[0-9a-f-]+", token, path)

        def here(match: re.Match[str]) -> str:
            return quote(self.site.url, safe="") if "%3A" in match[0] else self.site.url

        return RECORDED_SITE.sub(here, path)

    def read(self, call: Call, alias: str, url: str | None = None) -> Answer:
        headers = [
            (name, value.replace("recording-key", self.pictrs.api_key)) for name, value in call.headers
        ]
        return send(url or self.gate.url, call.method, self.path(call, alias), headers)

    def remove(self, call: Call, alias: str, token: str) -> Answer:
        headers = [
            (name, value.replace("recording-key", self.pictrs.api_key)) for name, value in call.headers
        ]
        return send(self.gate.url, call.method, self.path(call, alias, token), headers)

    def cases_of(self, content: bytes) -> list[Case]:
        sha256 = hashlib.sha256(content).hexdigest()
        with self.gate.database() as database:
            return [case for case in cases.listed(database, limit=1000) if case.sha256 == sha256]

    def close(self) -> None:
        self.gate.stop()
        self.pictrs.stop()
        self.classifier.stop()
        self.site.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("lemmy"))
    yield made
    made.close()


def shows(body: bytes, content: bytes) -> bool:
    """Whether a picture is the other one, whatever its format and size."""
    first, second = (Image.open(io.BytesIO(one)).convert("RGB").resize((24, 18)) for one in (body, content))
    pairs = zip(first.tobytes(), second.tobytes(), strict=True)
    return sum(abs(a - b) for a, b in pairs) / (24 * 18 * 3) < 12


def is_placeholder(answer: Answer) -> bool:
    return answer.headers.get("cache-control") == "no-store"


def kind_of(call: Call) -> str:
    return "PNG" if "image/png" in call.body_begins else "JPEG"


# --- uploads ---


@pytest.mark.parametrize("call", UPLOADS, ids=str)
def test_an_allowed_upload_is_answered_as_pict_rs_answers_it(world: World, call: Call) -> None:
    content = world.harmless(kind_of(call))
    through, direct = world.upload(call, content), world.upload(call, content, world.pictrs.url)
    assert (through.status, direct.status) == (201, 201)
    (ours,), (theirs,) = through.json()["files"], direct.json()["files"]
    # Their own, and the moment of each.
    for one in (ours, theirs):
        for key in ("file", "alias", "delete_token"):
            one.pop(key, None)
        one["details"].pop("created_at")
    assert ours == theirs


@pytest.mark.parametrize("call", UPLOADS, ids=str)
@pytest.mark.parametrize("decision", [None, "release", "confirm"])
def test_a_held_upload_looks_like_any_other_until_a_human_decides(
    world: World, call: Call, decision: str | None
) -> None:
    content = world.hit(kind_of(call))
    before = {path.name for path in world.pictrs.stored_files()}
    answer = world.upload(call, content)
    assert answer.status == 201
    (entry,) = answer.json()["files"]
    assert RECORDED_ALIAS.fullmatch(entry["file"]) and uuid.UUID(entry["delete_token"])
    assert (entry["details"]["width"], entry["details"]["height"]) == SIZE
    assert {path.name for path in world.pictrs.stored_files()} == before
    check_uploader(world, call, content)
    if decision is not None:
        world.gate.decide(decision)
    shown = get(world.gate.url, f"/image/original/{entry['file']}")
    assert is_placeholder(shown) == (decision != "release")
    assert shows(shown.body, content) == (decision == "release")


def check_uploader(world: World, call: Call, content: bytes) -> None:
    """The case knows who sent it, and not the token."""
    sealed = world.gate.folder / "cases" / f"{world.cases_of(content)[0].id}.age"
    facts = open_sealed(sealed, read_identities(world.gate.key)).facts
    headers = dict(reversed(call.headers))  # of two, the first: the client's own
    token = headers.get("authorization", headers.get("cookie", ""))
    claims = token.split(".")[1]
    subject = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["sub"]
    address = headers["x-forwarded-for"].partition(":")[0]
    assert facts["uploader"] == {"address": address, "user_agent": "node", "claimed_user_id": subject}
    assert claims not in json.dumps(facts) and claims not in world.gate.log()


@pytest.mark.parametrize("call", UPLOADS, ids=str)
def test_a_refused_upload_says_so_in_words_for_people(world: World, call: Call) -> None:
    content = world.hit(kind_of(call))
    world.upload(call, content)
    world.gate.decide("confirm")
    answer = world.upload(call, content)
    assert answer.status == 400 and answer.json()["code"] == "failed-external-validation"
    assert answer.json()["msg"]


# --- reads of an upload, and what Lemmy has made of it ---


class Picture:
    """An upload, what Lemmy has got of it until the moderators decided, and how it stands since."""

    def __init__(self, world: World, version: str, decision: str) -> None:
        self.content = world.harmless("JPEG") if decision == "allowed" else world.hit("JPEG")
        posted = next(call for call in UPLOADS if call.version == version)
        self.alias: str = world.upload(posted, self.content).json()["files"][0]["file"]
        self.is_shown = decision in ("allowed", "release")
        self.early: dict[int, Answer] = {}
        if decision in ("release", "confirm"):
            calls = [call for call in READS if call.version == version]
            self.early = {call.number: world.read(call, self.alias) for call in calls}
            world.gate.decide(decision, world.cases_of(self.content)[0].id)


@pytest.fixture(scope="module")
def picture(world: World) -> Callable[[str, str], Picture]:
    """The one picture of a version of Lemmy and a decision."""
    return functools.cache(functools.partial(Picture, world))


@pytest.mark.parametrize("decision", ["allowed", "held", "release", "confirm"])
@pytest.mark.parametrize("call", READS, ids=str)
def test_a_picture_shows_everywhere_or_nowhere(
    world: World, picture: Callable[[str, str], Picture], call: Call, decision: str
) -> None:
    one = picture(call.version, decision)
    early, is_part = one.early.get(call.number), "range" in dict(call.headers)
    answer = world.read(call, one.alias)
    if "&thumbnail" in call.path and "/original/" in call.path:  # no alias of anybody's
        assert answer.status == 404
    elif "/download?" in call.path:
        # What was made of it while it was held follows it, and is no case of its own.
        if decision == "confirm":
            assert answer.status == 503  # nothing new is made of it
        for made in filter(None, [early, answer if decision != "confirm" else None]):
            assert made.status == 201
            shown = get(world.gate.url, f"/image/original/{made.json()['files'][0]['file']}")
            assert shown.status == 200 and shows(shown.body, one.content) == one.is_shown
            assert is_placeholder(shown) != one.is_shown
        assert len(world.cases_of(one.content)) == (decision != "allowed")
    elif "/details/" in call.path:
        if one.is_shown:  # Lemmy has asked for the picture before
            world.read(replace(call, path=call.path.replace("details/", "")), one.alias)
            answer = world.read(call, one.alias)
        assert early is None or is_placeholder(early)
        assert answer.status == 200 and (answer.json()["width"], answer.json()["height"]) == SIZE
        assert is_placeholder(answer) != one.is_shown
    elif call.by_keeper and not one.is_shown:
        assert answer.status == 503 and answer.headers["retry-after"]
    else:
        assert answer.status == (206 if is_part else 200)
        assert answer.headers["content-type"].startswith("image/")
        assert is_placeholder(answer) != one.is_shown
        if len(answer.body) == 10:
            assert dict(call.headers)["range"] == "bytes=0-9"
        else:
            assert shows(answer.body, one.content) == one.is_shown

    if one.is_shown and "proxy" not in call.path and "/download?" not in call.path:
        direct = world.read(call, one.alias, world.pictrs.url)
        assert (answer.status, answer.body) == (direct.status, direct.body)
        for name in ("content-type", "content-length", "content-range", "etag", "last-modified"):
            assert answer.headers.get(name) == direct.headers.get(name), name


# --- deletes and purges ---


@pytest.mark.parametrize("decision", ["allowed", "held", "release", "confirm"])
@pytest.mark.parametrize("call", REMOVALS, ids=str)
def test_what_is_deleted_in_lemmy_is_gone_for_everybody_and_the_case_stays(
    world: World, call: Call, decision: str
) -> None:
    content = world.harmless("PNG") if decision == "allowed" else world.hit("PNG")
    posted = next(one for one in UPLOADS if one.version == call.version)
    entry = world.upload(posted, content).json()["files"][0]
    if decision in ("release", "confirm"):
        world.gate.decide(decision)
    answer = world.remove(call, entry["file"], entry["delete_token"])
    assert answer.status in (200, 204)
    assert until_gone(world.gate.url, entry["file"])
    cases_ = world.cases_of(content)
    assert len(cases_) == (decision != "allowed")
    if decision == "held":
        acts = [one.act for one in world.gate.ledger() if one.case_id == cases_[0].id]
        assert len(acts) == 2 and acts[0] == "pending"


# --- the rest ---


@pytest.mark.parametrize("call", OTHERS, ids=str)
def test_what_has_nothing_to_do_with_an_upload_is_answered_as_without_a_gate(
    world: World, call: Call
) -> None:
    if "details" in call.path:  # Lemmy has asked for the picture before
        world.read(replace(call, path=call.path.replace("details/", "")), "")
    through, direct = world.read(call, ""), world.read(call, "", world.pictrs.url)
    assert through.status == direct.status and through.status in (200, 201)
    if "/download?" in call.path:
        (ours,), (theirs,) = through.json()["files"], direct.json()["files"]
        assert ours["details"]["width"] == theirs["details"]["width"]
        shown = get(world.gate.url, f"/image/original/{ours['file']}")
        assert shows(shown.body, world._drawn(30_999, "PNG"))
    elif "/process" in call.path:  # 0.6 may make it twice
        assert shows(through.body, direct.body)
    else:
        assert through.body == direct.body
        assert through.headers.get("content-type") == direct.headers.get("content-type")

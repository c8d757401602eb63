"""Each route of the table through the gate answers as pict-rs answers without it, by every method."""

from __future__ import annotations

import itertools
import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from proxy.routes import TABLE, Does, Route, Treatment
from tests import pictures
from tests.client import Answer, form, get, send, upload
from tests.gate import Gate
from tests.pictrs import Pictrs

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TIME = re.compile(r"20\d\d-\d\d-\d\dT[0-9:.]+Z?")
# By which the same request, made twice, differs whoever answers it.
_OWN = frozenset({"date", "server", "connection", "transfer-encoding", "keep-alive", "last-modified", "etag"})


@dataclass(frozen=True)
class Subject:
    """What a request is about: an upload of its own, or a URL that does not matter."""

    alias: str
    token: str


@pytest.fixture(scope="module")
def subject(running_pictrs: Pictrs) -> Callable[[], Subject]:
    """Stores one more picture."""
    seeds = itertools.count(9100)

    def make() -> Subject:
        entry = upload(running_pictrs.url, pictures.png((120, 90), seed=next(seeds))).json()["files"][0]
        return Subject(entry["file"], entry["delete_token"])

    return make


@pytest.fixture(scope="module")
def read(subject: Callable[[], Subject]) -> Subject:
    """The one that everything reads."""
    return subject()


def requests(route: Route, subject: Subject, upload_id: str) -> list[str]:
    """Targets of a route: by its path, by each of its keys, and by none."""
    path = "/" + route.path.format(alias=subject.alias, token=subject.token, ext="webp")
    named = [f"{path}?{key}={subject.alias}" for key in route.alias_keys if key != "proxy"]
    if named and route.keys:
        named.append(f"{named[0]}&thumbnail=16")
        named.append(f"{named[0]}&resize=nonsense")
    if route.name == "claim":
        named = [f"{path}?upload_id={upload_id}", f"{path}?upload_id=nonsense"]
    if route.treatment is Treatment.UPLOAD:
        named = [f"{path}?max_width=10", f"{path}?allow_image=maybe", f"{path}?resize=40"]
    if route.name == "hashes":
        named = [f"{path}?limit=1"]
    return [path, *named]


def exchange(url: str, method: str, target: str, route: Route, key: str | None) -> Answer:
    headers = {} if key is None else {"X-Api-Token": key}
    body = b""
    if route.takes_body:
        headers["Content-Type"], body = "application/json", json.dumps({"alias": "nobody.png"}).encode()
    if method == "POST" and route.does is Does.INGESTS:
        content_type, body = form([("a.png", pictures.png((60, 40), seed=901))])
        if route.name == "import":  # a name can be taken once
            name = f"{uuid.uuid4()}.png"
            content_type, body = form([(name, pictures.png((60, 40), seed=901))])
        headers["Content-Type"] = content_type
    return send(url, method, target, headers=headers, body=body)


def claimed(url: str, method: str, target: str, route: Route, key: str | None) -> Answer:
    """Asks until pict-rs is done with the upload: 204 says that it was not within 10 s, and to ask again."""
    for _ in range(5):
        answer = exchange(url, method, target, route, key)
        if answer.status != 204:
            break
    return answer


def neutral(answer: Answer) -> tuple[int, object]:
    """Status and body, without what is never twice the same."""
    if "json" not in answer.headers.get("content-type", "") or not answer.body:
        return answer.status, answer.body
    return answer.status, json.loads(_TIME.sub("TIME", _UUID.sub("UUID", answer.body.decode())))


def same(direct: Answer, through: Answer) -> None:
    assert neutral(through) == neutral(direct)
    if through.status < 400:
        names = (direct.headers.keys() | through.headers.keys()) - _OWN
        if "json" in through.headers.get("content-type", ""):
            names -= {"content-length"}  # a time may be a digit shorter
        ours, theirs = ({name: one.headers.get(name) for name in names} for one in (through, direct))
        assert ours == theirs


@pytest.mark.parametrize("with_key", [True, False], ids=["key", "no key"])
@pytest.mark.parametrize("route", TABLE, ids=lambda route: route.name)
def test_a_route_answers_through_the_gate_as_without_it(
    gate: Gate,
    running_pictrs: Pictrs,
    subject: Callable[[], Subject],
    read: Subject,
    route: Route,
    with_key: bool,
) -> None:
    key = running_pictrs.api_key if with_key else None
    for method in sorted(route.methods):
        # Each side has a subject of its own where a request takes it away.
        ours, theirs = (subject() if route.does is Does.REMOVES else read for _ in "ab")
        ids = [backgrounded(running_pictrs) for _ in "ab"] if route.name == "claim" else ["", ""]
        targets = zip(requests(route, ours, ids[0]), requests(route, theirs, ids[1]), strict=True)
        for our_target, their_target in targets:
            if route.name == "download":
                continue  # the next test's: the gate fetches by itself
            ask = claimed if route.name == "claim" else exchange
            direct = ask(running_pictrs.url, method, their_target, route, key)
            through = ask(gate.url, method, our_target, route, key)
            if route.name == "prune-missing" and direct.status == 200:  # how far it has come
                assert through.json().keys() == direct.json().keys()
                continue
            same(direct, through)


def backgrounded(running: Pictrs) -> str:
    content_type, body = form([("a.png", pictures.png((60, 40), seed=902))])
    answer = send(
        running.url, "POST", "/image/backgrounded", headers={"Content-Type": content_type}, body=body
    )
    upload_id: str = answer.json()["uploads"][0]["upload_id"]
    return upload_id


@pytest.mark.parametrize("route", TABLE, ids=lambda route: route.name)
def test_a_method_that_a_route_does_not_have_is_refused_as_without_the_gate(
    gate: Gate, running_pictrs: Pictrs, read: Subject, route: Route
) -> None:
    target = requests(route, read, "")[-1]
    headers = {"X-Api-Token": running_pictrs.api_key}
    for method in sorted(set(METHODS) - route.methods):
        direct = send(running_pictrs.url, method, target, headers=headers)
        through = send(gate.url, method, target, headers=headers)
        if route.name == "limits" and not running_pictrs.is_06:
            assert (through.status, direct.status) == (405, 404)  # a route of 0.6's
            continue
        assert through.status == direct.status in (404, 405), method
        assert allowed(through) == allowed(direct), method
    assert get(running_pictrs.url, f"/image/original/{read.alias}").status == 200


def allowed(answer: Answer) -> set[str]:
    return {word.strip() for word in answer.headers.get("allow", "").split(",")}


@pytest.mark.parametrize("query", ["", "?url=", "?url=nonsense", "?url=ftp://example.org/a.png"])
def test_a_download_that_cannot_be_is_refused_with_pict_rs_s_code(
    gate: Gate, running_pictrs: Pictrs, query: str
) -> None:
    direct, through = (get(url, f"/image/download{query}") for url in (running_pictrs.url, gate.url))
    assert through.status >= 400 and direct.status >= 400
    if not running_pictrs.is_06:  # which has other codes for two of these
        assert (through.status, through.json()["code"]) == (direct.status, direct.json()["code"])


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "/image/",
            "/image/nothing",
            "/images",
            "/image/original/",
            "/image/process",
            "/image/process.",
        ),
        *("/image/details", "/image/details/process", "/image/delete/a", "/image/original/a/b", "/healthz/"),
        *("/internal", "/internal/", "/internal/nothing", "/internal/import/", "/metrics", "/validate"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_is_not_on_the_table_does_not_exist(
    gate: Gate, running_pictrs: Pictrs, method: str, path: str
) -> None:
    for headers in ({}, {"X-Api-Token": running_pictrs.api_key}):
        direct = send(running_pictrs.url, method, path, headers=headers)
        through = send(gate.url, method, path, headers=headers)
        assert through.status == direct.status and through.status in (401, 404, 405)

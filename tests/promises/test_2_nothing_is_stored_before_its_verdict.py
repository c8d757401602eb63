"""Promise 2: nothing is stored before its verdict, and there is no way in that is not on the table."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from proxy.routes import TABLE, Does
from tests import pictures
from tests.client import Answer, form, send
from tests.fake import SEEN, Asked, Fake, Reply, classifier, json_reply, pictrs_0_5
from tests.gate import Gate

HELD = {**SEEN, "signals": {"sexual": 0.9, "minor": 0.9}}
ENTERS = ("POST", "PUT", "PATCH", "DELETE", "GET", "HEAD", "OPTIONS", "CONNECT", "TRACE", "PROPFIND", "FOO")


@dataclass
class Between:
    """A gate between a pict-rs that remembers and a classifier that waits to be told."""

    gate: Gate
    pictrs: Fake
    may_answer: threading.Event
    is_asked: threading.Semaphore
    says: list[dict[str, object]] = field(default_factory=list)


@pytest.fixture(scope="module")
def between(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Between]:
    may_answer, is_asked, says = threading.Event(), threading.Semaphore(0), [dict[str, object]()]

    def wait(_: Asked) -> Reply:
        is_asked.release()
        may_answer.wait(20)
        return json_reply(200, says[0])

    upstream, looking = Fake(pictrs_0_5), classifier(wait)
    folder = tmp_path_factory.mktemp("between")
    gate = Gate(folder, pictrs_url=upstream.url, api_key="k", classifier_url=looking.url)
    yield Between(gate, upstream, may_answer, is_asked, says)
    gate.stop()
    upstream.close()
    looking.close()


@pytest.mark.parametrize(("says", "stored"), [(SEEN, 1), (HELD, 0)])
def test_pict_rs_hears_of_an_upload_only_once_it_is_allowed(
    between: Between, says: dict[str, object], stored: int
) -> None:
    between.pictrs.asked.clear()
    between.may_answer.clear()
    between.says[0] = says
    answers: list[Answer] = []
    files = [pictures.png(seed=seed) for seed in (20, 21, 22)]
    sending = threading.Thread(target=lambda: answers.append(between.gate.upload(*files)))
    sending.start()
    for _ in files:  # all files of a request are looked at at once
        assert between.is_asked.acquire(timeout=10)
    assert between.pictrs.asked == []
    between.may_answer.set()
    sending.join(20)
    assert answers[0].status == 201
    assert len([asked for asked in between.pictrs.asked if asked.method == "POST"]) == stored


def test_of_several_files_only_the_allowed_are_stored_and_the_answer_keeps_their_order(
    gate: Gate, hit: bytes
) -> None:
    first, last = pictures.png(seed=23), pictures.png((100, 50), seed=24)
    answer = gate.upload(first, hit, last)
    entries = answer.json()["files"]
    sizes = [(entry["details"]["width"], entry["details"]["height"]) for entry in entries]
    assert sizes == [(320, 200), (320, 240), (100, 50)]
    shown = [send(gate.url, "GET", f"/image/original/{entry['file']}") for entry in entries]
    assert (shown[0].body, shown[2].body) == (first, last)
    assert shown[1].headers["cache-control"] == "no-store"


def test_if_one_file_is_refused_none_is_stored(between: Between) -> None:
    between.may_answer.set()
    between.says[0] = SEEN
    between.pictrs.asked.clear()
    answer = between.gate.upload(pictures.png(seed=25), b"this is no picture")
    assert (answer.status, answer.json()["code"]) == (400, "command-failure")
    assert between.pictrs.asked == []


def spellings(path: str) -> list[str]:
    first = path.split("/")[1]
    return [
        path,
        path.replace(first, f"%{ord(first[0]):02x}{first[1:]}", 1),
        f"/{path}",
        f"{path}/",
        f"/x/..{path}",
        f"/.{path}",
        path.upper(),
        f"http://elsewhere{path}",
        f"{path}?",
        f"{path}%00",
        f"{path};a=b",
    ]


@pytest.mark.parametrize(
    "path", [f"/{route.path}" for route in TABLE if route.does in (Does.INGESTS, Does.FETCHES)]
)
def test_no_spelling_of_a_way_in_reaches_pict_rs_unseen(between: Between, path: str) -> None:
    between.pictrs.asked.clear()
    between.may_answer.set()
    between.says[0] = HELD  # so that what is looked at is not stored either
    content_type, body = form([("a.png", pictures.png(seed=26))])
    for method in ENTERS:
        for target in spellings(path):
            wanted = "url=http%3A%2F%2F127.0.0.1%3A9%2Fa.png" if "download" in path else "resize=5"
            query = "" if "?" in target else f"?{wanted}"
            headers = {"Content-Type": content_type, "X-Api-Token": "k"}
            answer = send(between.gate.url, method, target + query, headers=headers, body=body)
            assert answer.status in (201, 202, 400, 404, 405), (method, target, answer.status)
    assert {asked.method for asked in between.pictrs.asked} <= {"GET"}
    assert not [asked for asked in between.pictrs.asked if "url=" in asked.target]


@pytest.mark.parametrize(
    "target",
    [
        "/image/original?proxy=http://127.0.0.1:9/b.png",
        "/image/original?alias=b.png&proxy=http://127.0.0.1:9/b.png",
        "/image/original?%70roxy=http://127.0.0.1:9/b.png",
        "/image/process.webp?proxy=http://127.0.0.1:9/b.png&thumbnail=64",
        "/image/process.webp?src=b.png&proxy=http://127.0.0.1:9/b.png",
        "/image/blurhash?proxy=http://127.0.0.1:9/b.png",
        "/image/download?url=http://127.0.0.1:9/b.png",
        "/image/download?url=http://127.0.0.1:9/b.png&backgrounded=true",
    ],
)
def test_pict_rs_is_not_made_to_fetch_what_nobody_looks_at(between: Between, target: str) -> None:
    between.pictrs.asked.clear()
    for method in ("GET", "HEAD"):
        assert send(between.gate.url, method, target).status in (400, 403, 404, 405)
    for asked in between.pictrs.asked:  # by HEAD it never fetches
        assert asked.method == "HEAD" or not ("proxy=" in asked.target or "url=" in asked.target)


@pytest.mark.parametrize("path", ["/image/new_way_in", "/internal/new_way_in", "/upload", "/internal/image"])
def test_a_route_that_pict_rs_may_have_tomorrow_is_refused_today(between: Between, path: str) -> None:
    between.pictrs.asked.clear()
    content_type, body = form([("a.png", pictures.png(seed=27))])
    headers = {"Content-Type": content_type, "X-Api-Token": "k"}
    assert send(between.gate.url, "POST", path, headers=headers, body=body).status == 404
    assert between.pictrs.asked == []

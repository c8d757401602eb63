"""Every way by which bytes enter pict-rs is gated: backgrounded uploads, imports, downloads, proxies."""

from __future__ import annotations

import hashlib
import io
import socket
import uuid
from collections.abc import Callable, Iterator
from urllib.parse import quote

import pytest
from PIL import Image

from proxy.database import Case
from tests import pictures
from tests.client import Answer, form, get, send, until_gone, upload
from tests.fake import Fake, Reply
from tests.gate import Gate
from tests.pictrs import Pictrs

NewGate = Callable[..., Gate]


def post(url: str, target: str, *contents: tuple[str, bytes], **headers: str) -> Answer:
    content_type, body = form(contents)
    sent = {
        "Content-Type": content_type,
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    return send(url, "POST", target, headers=sent, body=body)


def size_of(content: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(content)).size


# --- backgrounded ---


def claim(gate: Gate, upload_id: str) -> Answer:
    for _ in range(10):
        answer = get(gate.url, f"/image/backgrounded/claim?upload_id={upload_id}")
        if answer.status != 204:
            break
    return answer


def test_a_backgrounded_upload_is_looked_at_and_claimed_as_ever(gate: Gate) -> None:
    answer = post(gate.url, "/image/backgrounded?resize=50", ("a.png", pictures.png(seed=1500)))
    assert answer.status == 202
    (entry,) = answer.json()["uploads"]
    claimed = claim(gate, entry["upload_id"])
    assert claimed.status == 200
    alias = claimed.json()["files"][0]["file"]
    assert size_of(get(gate.url, f"/image/original/{alias}").body)[0] == 50


def test_a_held_backgrounded_upload_gets_an_id_that_is_claimed_once(gate: Gate, hits: list[bytes]) -> None:
    harmless = pictures.png(seed=1501)
    answer = post(gate.url, "/image/backgrounded", ("a", hits.pop()), ("b", harmless), ("c", hits.pop()))
    assert answer.status == 202
    ids = [entry["upload_id"] for entry in answer.json()["uploads"]]
    assert [uuid.UUID(one).version is not None for one in ids] == [True] * 3
    claimed = [claim(gate, one.upper()) for one in ids]
    assert [one.status for one in claimed] == [200] * 3
    aliases = [one.json()["files"][0]["file"] for one in claimed]
    shown = [get(gate.url, f"/image/original/{alias}").headers["cache-control"] for alias in aliases]
    assert [control == "no-store" for control in shown] == [True, False, True]
    again = claim(gate, ids[0])
    assert again.json()["code"] == "already-claimed"


def test_a_blocked_backgrounded_upload_is_refused_at_once(gate: Gate, hit: bytes) -> None:
    gate.upload(hit)
    gate.decide("confirm")
    answer = post(gate.url, "/image/backgrounded", ("a", hit))
    assert (answer.status, answer.json()["code"]) == (400, "failed-external-validation")


# --- import ---


def test_an_import_keeps_its_name_as_the_alias(gate: Gate, running_pictrs: Pictrs) -> None:
    key = {"X_Api_Token": running_pictrs.api_key}
    names = [f"chosen-{uuid.uuid4()}.png", f"with space {uuid.uuid4()}.png", f"üml-{uuid.uuid4()}.png"]
    for number, name in enumerate(names):
        content = pictures.png(seed=1510 + number)
        answer = post(gate.url, "/internal/import", (name, content), **key)
        assert answer.status == 201, answer.body
        assert answer.json()["files"][0]["file"] == name
        assert get(gate.url, f"/image/original/{quote(name)}").body == content


def test_an_import_without_the_key_is_not_even_read(gate: Gate, hit: bytes) -> None:
    before = len(gate.cases())
    for headers in ({}, {"X_Api_Token": "wrong"}):
        answer = post(gate.url, "/internal/import", ("a.png", hit), **headers)
        assert (answer.status, answer.json()["code"]) == (401, "invalid-api-token")
    assert len(gate.cases()) == before


def test_a_held_import_is_promised_under_its_name_and_released_there(
    gate: Gate, running_pictrs: Pictrs, hit: bytes
) -> None:
    key = {"X_Api_Token": running_pictrs.api_key}
    name = f"{uuid.uuid4()}.jpeg"
    answer = post(gate.url, "/internal/import", (f"some/folder/{name}", hit), **key)
    assert answer.status == 201 and answer.json()["files"][0]["file"] == name
    assert get(gate.url, f"/image/original/{name}").headers["cache-control"] == "no-store"
    # the name is taken now, in any spelling
    other = name.upper().replace("JPEG", "jpeg")
    taken = post(gate.url, "/internal/import", (other, pictures.png(seed=1520)), **key)
    assert taken.json()["code"] == "duplicate-alias"
    gate.decide("release")
    assert size_of(get(gate.url, f"/image/original/{name}").body) == (320, 240)


def test_a_held_import_under_a_taken_name_is_refused_and_sealed(
    gate: Gate, running_pictrs: Pictrs, hit: bytes
) -> None:
    key = {"X_Api_Token": running_pictrs.api_key}
    name = f"{uuid.uuid4()}.png"
    post(gate.url, "/internal/import", (name, pictures.png(seed=1521)), **key)
    answer = post(gate.url, "/internal/import", (name, hit), **key)
    assert answer.json()["code"] == "duplicate-alias"
    assert gate.cases()[0]["sha256"] == hashlib.sha256(hit).hexdigest()


@pytest.mark.parametrize("name", ["", "a/", 'quo"te.png', "back\\slash.png", "x" * 300 + ".png"])
def test_a_name_that_can_be_read_in_two_ways_is_no_alias(
    gate: Gate, running_pictrs: Pictrs, name: str
) -> None:
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    key = {"X_Api_Token": running_pictrs.api_key}
    answer = post(gate.url, "/internal/import", (quoted, pictures.png(seed=1522)), **key)
    assert (answer.status, answer.json()["code"]) == (400, "file-upload-error")


# --- downloads ---


@pytest.fixture(scope="module")
def site(hits: list[bytes]) -> Iterator[tuple[Fake, dict[str, bytes]]]:
    """A site with some pictures."""
    pages: dict[str, bytes] = {
        "/harmless.png": pictures.png(seed=1530),
        "/hit.jpeg": hits.pop(),
        "/text": b"this is no picture",
    }
    fake = Fake(lambda asked: Reply(200, pages[asked.target]) if asked.target in pages else Reply(404))
    yield fake, pages
    fake.close()


@pytest.fixture(scope="module")
def fetching(tmp_path_factory, running_pictrs: Pictrs, classifier) -> Iterator[Gate]:  # type: ignore[no-untyped-def]
    """A gate that fetches, also from this machine."""
    running = Gate(
        tmp_path_factory.mktemp("fetching"),
        pictrs_url=running_pictrs.url,
        api_key=running_pictrs.api_key,
        classifier_url=classifier.url,
        fetching={"also_reach": ["127.0.0.0/8"], "any_port": True},
    )
    yield running
    running.stop()


def test_a_download_is_fetched_by_the_gate_and_looked_at(
    fetching: Gate, site: tuple[Fake, dict[str, bytes]]
) -> None:
    fake, pages = site
    answer = get(fetching.url, f"/image/download?url={quote(fake.url + '/harmless.png', safe='')}")
    assert answer.status == 201
    alias = answer.json()["files"][0]["file"]
    assert get(fetching.url, f"/image/original/{alias}").body == pages["/harmless.png"]
    assert [asked.header("User-Agent") for asked in fake.asked] == ["pictrs-gate"]


def test_a_held_download_is_promised_and_released_with_its_arguments(
    fetching: Gate, site: tuple[Fake, dict[str, bytes]]
) -> None:
    fake, _ = site
    answer = get(fetching.url, f"/image/download?url={quote(fake.url + '/hit.jpeg', safe='')}&resize=64")
    entry = answer.json()["files"][0]
    assert (entry["details"]["width"], entry["details"]["height"]) == (64, 48)
    shown = get(fetching.url, f"/image/original/{entry['file']}")
    assert shown.headers["cache-control"] == "no-store" and size_of(shown.body) == (64, 48)
    fetching.decide("release")
    assert size_of(get(fetching.url, f"/image/original/{entry['file']}").body) == (64, 48)
    assert get(fetching.url, f"/image/original/{entry['file']}").headers["cache-control"] != "no-store"


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("{site}/nothing", "download-file-error"),
        ("{site}/text", "command-failure"),
        ("notaurl", "download-file-error"),
        ("file:///etc/passwd", "http-client-error"),
        ("http://10.0.0.1/a.png", "download-file-error"),
    ],
)
def test_what_cannot_be_downloaded_is_refused_as_pict_rs_refuses_it(
    fetching: Gate, site: tuple[Fake, dict[str, bytes]], url: str, code: str
) -> None:
    answer = get(fetching.url, f"/image/download?url={quote(url.format(site=site[0].url), safe='')}")
    assert answer.status in (400, 500) and answer.json()["code"] == code


def test_a_backgrounded_download_is_claimed(fetching: Gate, site: tuple[Fake, dict[str, bytes]]) -> None:
    url = quote(site[0].url + "/harmless.png", safe="")
    answer = get(fetching.url, f"/image/download?backgrounded=true&url={url}")
    assert answer.status == 202
    assert claim(fetching, answer.json()["uploads"][0]["upload_id"]).status == 200


def test_downloads_and_proxied_pictures_are_refused_where_that_is_set(new_gate: NewGate) -> None:
    gate = new_gate(fetching={"downloads": "refuse"})
    for target in (
        "/image/download?url=",
        "/image/original?proxy=",
        "/image/process.webp?thumbnail=8&proxy=",
    ):
        answer = get(gate.url, f"{target}http%3A%2F%2F192.0.2.1%2Fa.png")
        assert (answer.status, answer.json()["code"]) == (403, "not-gated")


# --- a held picture comes back by other doors ---


def test_a_thumbnail_of_a_held_picture_is_a_further_alias_of_its_case(gate: Gate, hit: bytes) -> None:
    entry = gate.upload(hit, query="resize=200").json()["files"][0]
    alias, before = entry["file"], len(gate.cases())
    for path in ("pictrs/image/", "api/v4/image/", "image/original/"):
        url = quote(f"https://lemmy.example/{path}{alias.upper().replace('.JPEG', '.jpeg')}", safe="")
        thumbnail = get(gate.url, f"/image/download?url={url}&resize=100").json()["files"][0]
        assert (thumbnail["details"]["width"], thumbnail["details"]["height"]) == (100, 75)
        shown = get(gate.url, f"/image/original/{thumbnail['file']}")
        assert shown.headers["cache-control"] == "no-store" and size_of(shown.body) == (100, 75)
    assert len(gate.cases()) == before
    gate.decide("release")
    assert size_of(get(gate.url, f"/image/original/{alias}").body) == (200, 150)
    real = get(gate.url, f"/image/original/{thumbnail['file']}")
    assert size_of(real.body) == (100, 75) and real.headers["cache-control"] != "no-store"


def test_a_proxied_view_of_a_held_picture_is_answered_by_the_gate(gate: Gate, hit: bytes) -> None:
    entry = gate.upload(hit).json()["files"][0]
    url = quote(f"https://lemmy.example/pictrs/image/{entry['file']}", safe="")
    shown = get(gate.url, f"/image/original?proxy={url}")
    assert shown.headers["cache-control"] == "no-store" and size_of(shown.body) == (320, 240)
    small = get(gate.url, f"/image/process.webp?thumbnail=64&proxy={url}")
    assert small.headers["content-type"] == "image/webp" and max(size_of(small.body)) == 64
    details = get(gate.url, f"/image/details/original?proxy={url}").json()
    assert details["blurhash"] == entry["details"]["blurhash"]


def test_whoever_keeps_copies_gets_no_placeholder(gate: Gate, hit: bytes) -> None:
    alias = gate.upload(hit).json()["files"][0]["file"]
    for target in (f"/image/original/{alias}", f"/image/process.webp?src={alias}&thumbnail=64"):
        answer = get(gate.url, target, User_Agent="pict-rs v0.5.25")
        assert answer.status == 503 and answer.headers["retry-after"]
    assert get(gate.url, f"/image/original/{alias}", User_Agent="Lemmy/0.19.20").status == 200


def test_after_a_confirm_neither_post_nor_thumbnail_shows_the_picture(gate: Gate, hit: bytes) -> None:
    alias = gate.upload(hit).json()["files"][0]["file"]
    url = quote(f"https://lemmy.example/pictrs/image/{alias}", safe="")
    thumbnail = get(gate.url, f"/image/download?url={url}&resize=100").json()["files"][0]["file"]
    gate.decide("confirm")
    for one in (alias, thumbnail):
        assert get(gate.url, f"/image/original/{one}").headers["cache-control"] == "no-store"


# --- deleting what is held ---


def test_a_placeholder_is_deleted_by_its_token_and_the_case_stays(gate: Gate, hit: bytes) -> None:
    entry = gate.upload(hit).json()["files"][0]
    wrong = send(gate.url, "DELETE", f"/image/delete/{uuid.uuid4()}/{entry['file']}")
    assert (wrong.status, wrong.json()["code"]) == (403, "invalid-delete-token")
    assert get(gate.url, f"/image/original/{entry['file']}").status == 200
    for _ in range(2):
        assert (
            send(gate.url, "DELETE", f"/image/delete/{entry['delete_token']}/{entry['file']}").status == 204
        )
    assert get(gate.url, f"/image/original/{entry['file']}").status == 404
    case = gate.cases()[0]
    assert case["state"] == "pending" and case["sha256"] == hashlib.sha256(hit).hexdigest()
    told = [entry.act for entry in gate.ledger() if entry.case_id == case["id"]]
    assert told == ["pending", "alias deleted by its token"]
    gate.decide("release")  # nobody wants the alias any more; the bytes pass from now on
    assert get(gate.url, f"/image/original/{entry['file']}").status == 404
    assert gate.upload(hit).status == 201


@pytest.mark.parametrize("route", ["delete", "purge"])
def test_a_placeholder_is_deleted_by_key_and_the_case_stays(
    gate: Gate, running_pictrs: Pictrs, hit: bytes, route: str
) -> None:
    alias = gate.upload(hit).json()["files"][0]["file"]
    url = quote(f"https://lemmy.example/pictrs/image/{alias}", safe="")
    thumbnail = get(gate.url, f"/image/download?url={url}&resize=100").json()["files"][0]["file"]
    target = f"/internal/{route}?alias={alias}"
    assert send(gate.url, "POST", target).status == 401
    answer = send(gate.url, "POST", target, headers={"X-Api-Token": running_pictrs.api_key})
    assert answer.status == 200
    if route == "purge":
        assert sorted(answer.json()["aliases"]) == sorted([alias, thumbnail])
    shown = [get(gate.url, f"/image/original/{one}").status for one in (alias, thumbnail)]
    assert shown == ([404, 404] if route == "purge" else [404, 200])
    assert gate.cases()[0]["state"] == "pending"


def test_the_made_up_delete_token_keeps_working_after_the_release(
    gate: Gate, running_pictrs: Pictrs, hit: bytes
) -> None:
    entry = gate.upload(hit).json()["files"][0]
    gate.decide("release")
    assert send(gate.url, "DELETE", f"/image/delete/{uuid.uuid4()}/{entry['file']}").status == 403
    assert get(gate.url, f"/image/original/{entry['file']}").status == 200
    assert send(gate.url, "DELETE", f"/image/delete/{entry['delete_token']}/{entry['file']}").status == 204
    assert until_gone(running_pictrs.url, entry["file"])


# --- who uploaded ---


def test_the_case_says_who_uploaded_and_never_the_token(new_gate: NewGate, hits: list[bytes]) -> None:
    import base64
    import json

    from proxy.cases.sealing import open_sealed, read_identities

    claims = base64.urlsafe_b64encode(json.dumps({"sub": "42", "iss": "x"}).encode()).decode().rstrip("=")
    token = f"aGVhZA.{claims}.c2lnbmF0dXJl"
    content_type, _ = form([])
    headers = {
        "Content-Type": content_type,
        "Authorization": f"Bearer {token}",
        "User-Agent": "Jerboa",
        "X-Forwarded-For": "6.6.6.6, 203.0.113.9, 127.0.0.1:5000",
    }
    for wanted in (True, False):
        gate, hit = new_gate(server={"uploader_facts": wanted}), hits.pop()
        _, body = form([("a", hit)])
        assert send(gate.url, "POST", "/image", headers=headers, body=body).status == 201
        sealed = gate.folder / "cases" / f"{gate.cases()[0]['id']}.age"
        facts = open_sealed(sealed, read_identities(gate.key)).facts
        expected = {"address": "203.0.113.9", "user_agent": "Jerboa", "claimed_user_id": "42"}
        assert facts["uploader"] == (expected if wanted else {})
        assert token not in json.dumps(facts) and "203.0.113.9" not in gate.log()


def test_what_is_uploaded_directly_and_through_the_gate_is_answered_alike(
    gate: Gate, running_pictrs: Pictrs
) -> None:
    content = pictures.png(seed=1590)
    direct, through = upload(running_pictrs.url, content), gate.upload(content)
    assert direct.json().keys() == through.json().keys()


def test_a_header_that_is_no_text_keeps_nothing_from_being_sealed(gate: Gate, hit: bytes) -> None:
    content_type, body = form([("a", hit)])
    token = "a.eyJzdWIiOiJcdWQ4MDAifQ.c"  # the user id is half a character
    lines = (
        f"POST /image HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n"
        f"Authorization: Bearer {token}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    )
    with socket.create_connection(("127.0.0.1", gate.port), timeout=30) as connection:
        connection.sendall(lines.encode() + b"User-Agent: x\xff\r\n\r\n" + body)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 201")
    assert gate.cases()[0]["sha256"] == hashlib.sha256(hit).hexdigest()


def test_a_release_that_pict_rs_refuses_half_way_leaves_nothing_there(
    gate: Gate, running_pictrs: Pictrs, hit: bytes
) -> None:
    alias = gate.upload(hit).json()["files"][0]["file"]
    url = quote(f"https://lemmy.example/pictrs/image/{alias}", safe="")
    thumbnail = get(gate.url, f"/image/download?url={url}&resize=100").json()["files"][0]["file"]
    case = gate.cases()[0]["id"]
    with gate.database() as database, database.writing() as session:
        session.get_one(Case, case).promises[1].arguments = [["max_width", "10"]]
    refused = gate.review("release", case, check=False)
    assert refused.returncode == 1 and "validate-width" in refused.stderr
    assert gate.cases()[0]["state"] == "pending"
    for one in (alias, thumbnail):
        assert get(running_pictrs.url, f"/image/original/{one}").status == 404
        assert get(gate.url, f"/image/original/{one}").headers["cache-control"] == "no-store"


def test_an_alias_that_is_deleted_while_its_release_is_under_way_does_not_come_back(
    gate: Gate, running_pictrs: Pictrs, hit: bytes
) -> None:
    entry = gate.upload(hit).json()["files"][0]
    case = gate.cases()[0]["id"]
    killed = gate.review("release", case, check=False, env={"PICTRS_GATE_FAULT": "imported"})
    assert killed.returncode == -9
    assert get(running_pictrs.url, f"/image/original/{entry['file']}").status == 200
    target = f"/image/delete/{entry['delete_token']}/{entry['file']}"
    assert send(gate.url, "DELETE", target).status == 204
    gate.review("release", case)
    for url in (gate.url, running_pictrs.url):
        assert until_gone(url, entry["file"])


def test_one_request_does_not_import_two_files_under_one_name(
    gate: Gate, running_pictrs: Pictrs, hit: bytes
) -> None:
    name = f"{uuid.uuid4()}.png"
    key = {"X_Api_Token": running_pictrs.api_key}
    files = ((name, hit), (name.upper().replace("PNG", "png"), pictures.png(seed=1540)))
    answer = post(gate.url, "/internal/import", *files, **key)
    assert answer.json()["code"] == "duplicate-alias"
    assert get(gate.url, f"/image/original/{name}").status == 404

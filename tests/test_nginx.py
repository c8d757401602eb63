"""The example sites in front of gate and pict-rs, in a real nginx."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy.cases.sealing import open_sealed, read_identities
from tests import nginx, pictures
from tests.client import form, get, send, upload
from tests.gate import Gate, Twin
from tests.pictrs import Pictrs


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, gate: Gate, running_pictrs: Pictrs) -> Iterator[str]:
    """nginx between Lemmy and pict-rs; its URL."""
    running, port = nginx.start(
        tmp_path_factory.mktemp("nginx"), nginx.BETWEEN, gate=gate.port, pictrs=running_pictrs.port
    )
    yield f"http://127.0.0.1:{port}"
    running.stop()


@pytest.fixture
def public(tmp_path: Path, gate: Gate) -> Iterator[str]:
    """nginx directly in front of the gate; its URL."""
    running, port = nginx.start(tmp_path / "nginx", nginx.PUBLIC, gate=gate.port)
    yield f"http://127.0.0.1:{port}"
    running.stop()


def _requests(gate: Gate, route: str) -> float:
    lines = get(gate.internal_url, "/metrics").body.decode().splitlines()
    wanted = f'pictrs_gate_requests_total{{route="{route}"'
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(wanted))


def test_an_upload_goes_through_the_gate_and_its_reads_straight_to_pict_rs(front: str, gate: Gate) -> None:
    content = pictures.png(seed=301)
    answer = upload(front, content)
    assert answer.status == 201
    alias = answer.json()["files"][0]["file"]
    before = _requests(gate, "original"), _requests(gate, "process")

    shown = get(front, f"/image/original/{alias}")
    thumbnail = get(front, f"/image/process.webp?src={alias}&thumbnail=64")

    assert shown.body == content
    assert thumbnail.status == 200 and thumbnail.headers["content-type"] == "image/webp"
    assert (_requests(gate, "original"), _requests(gate, "process")) == before


def test_a_pending_alias_shows_its_placeholder_although_reads_go_to_pict_rs(
    front: str, gate: Gate, hit: bytes
) -> None:
    answer = upload(front, hit)
    assert answer.status == 201
    alias = answer.json()["files"][0]["file"]

    shown = get(front, f"/image/original/{alias}")
    thumbnail = get(front, f"/image/process.webp?src={alias}&thumbnail=64")

    assert shown.status == 200 and shown.headers["cache-control"] == "no-store"
    assert thumbnail.status == 200 and thumbnail.headers["cache-control"] == "no-store"
    gate.decide("release")
    assert get(front, f"/image/original/{alias}").headers["cache-control"].startswith("public")


def test_an_unknown_alias_is_404(front: str) -> None:
    assert get(front, "/image/original/00000000-0000-4000-8000-000000000000.png").status == 404


AROUND = [
    ("GET", "/image/original/a.png?proxy=http://127.0.0.1:9/x.png"),
    ("GET", "/image/process.webp?src=a.png&proxy=http://127.0.0.1:9/x.png"),
    ("GET", "/image/process.webp?proxy=http://127.0.0.1:9/x.png"),
    ("GET", "/image/original?proxy=http://127.0.0.1:9/x.png"),
    ("GET", "/image/original/x/../../download?url=http://127.0.0.1:9/x.png"),
    ("GET", "/image/original/..%2f..%2fdownload?url=http://127.0.0.1:9/x.png"),
    ("GET", "/image/blurhash?proxy=http://127.0.0.1:9/x.png"),
    ("GET", "/image/download?url=http://127.0.0.1:9/x.png"),
    ("POST", "/image/backgrounded"),
    ("POST", "/%69nternal/import"),
    ("POST", "//internal//import"),
    ("POST", "/image/original/../../internal/import"),
    ("POST", "/image/original/a.png"),
]


@pytest.mark.parametrize("site", ["front", "public"])
@pytest.mark.parametrize(("method", "target"), AROUND)
def test_no_spelling_reaches_the_entries_of_pict_rs_around_the_gate(
    request: pytest.FixtureRequest,
    gate: Gate,
    running_pictrs: Pictrs,
    hits: list[bytes],
    site: str,
    method: str,
    target: str,
) -> None:
    """What pict-rs would store a file for, the gate has held, or nobody has taken."""
    url, hit = request.getfixturevalue(site), hits.pop()
    stored = len(running_pictrs.stored_files())
    headers, body = {"X-Api-Token": running_pictrs.api_key}, b""
    if method == "POST":
        headers["Content-Type"], body = form([(f"{uuid.uuid4()}.jpeg", hit)])
    answer = send(url, method, target, headers=headers, body=body)
    if method == "POST" and answer.status in (201, 202):
        assert gate.cases()[0]["sha256"] == hashlib.sha256(hit).hexdigest()
    else:
        assert answer.status in (400, 403, 404, 405)
    assert len(running_pictrs.stored_files()) == stored


# --- directly in front ---


def test_the_public_site_passes_uploads_and_reads_through_the_gate(
    public: str, gate: Gate, hit: bytes
) -> None:
    content = pictures.png(seed=310)
    alias = upload(public, content).json()["files"][0]["file"]
    assert get(public, f"/image/original/{alias}").body == content
    held = upload(public, hit).json()["files"][0]["file"]
    assert get(public, f"/image/original/{held}").headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "target",
    [
        "/internal/hashes",
        "/%69nternal/hashes",
        "//internal/hashes",
        "/image/../internal/hashes",
        "/INTERNAL/hashes",
    ],
)
def test_the_public_site_has_no_administration(public: str, running_pictrs: Pictrs, target: str) -> None:
    answer = get(public, target, X_Api_Token=running_pictrs.api_key)
    assert answer.status in (400, 404)


def test_the_public_site_believes_nobody_about_his_address(public: str, gate: Gate, hit: bytes) -> None:
    content_type, body = form([("a.jpeg", hit)])
    headers = {"Content-Type": content_type, "X-Forwarded-For": "203.0.113.9"}
    assert send(public, "POST", "/image", headers=headers, body=body).status == 201
    assert "203.0.113.9" not in str(uploader_of_the_newest(gate))


def uploader_of_the_newest(gate: Gate) -> object:
    sealed = gate.folder / "cases" / f"{gate.cases()[0]['id']}.age"
    return open_sealed(sealed, read_identities(gate.key)).facts["uploader"]


def test_a_flood_of_uploads_from_one_address_is_slowed_down(public: str) -> None:
    statuses = [send(public, "POST", "/image", body=b"x").status for _ in range(15)]
    assert statuses[0] == 400 and statuses[-1] == 429


# --- several gates ---


@pytest.mark.parametrize("site", [nginx.BETWEEN, nginx.PUBLIC])
def test_of_two_gates_either_may_go_and_come_back(
    tmp_path: Path, new_gate: Callable[..., Gate], running_pictrs: Pictrs, hits: list[bytes], site: str
) -> None:
    first = new_gate()
    second = Twin(first)
    running, port = nginx.start(
        *(tmp_path / "nginx", site),
        gate=first.port,
        second_gate=second.port,
        pictrs=running_pictrs.port if site == nginx.BETWEEN else None,
    )
    front = f"http://127.0.0.1:{port}"
    try:
        aliases = [upload(front, hits.pop()).json()["files"][0]["file"] for _ in range(2)]
        for gone in (first.program, second.program):
            assert gone is not None
            gone.kill()
            assert upload(front, pictures.png(seed=320)).status == 201
            for alias in aliases:  # one promised by each
                shown = get(front, f"/image/original/{alias}")
                assert shown.status == 200 and shown.headers["cache-control"] == "no-store"
            if gone is first.program:
                first.start()
                time.sleep(6.5)  # more than 5 s, so long nginx leaves it in peace; it counts whole seconds
        first.decide("release")
        assert (
            len({get(front, f"/image/original/{alias}").headers["cache-control"] for alias in aliases}) == 2
        )
    finally:
        running.stop()
        second.program.kill()

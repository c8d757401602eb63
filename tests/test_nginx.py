"""The example site in front of gate and pict-rs, in a real nginx."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import pictures
from tests.client import get, send, upload
from tests.gate import Gate
from tests.pictrs import Pictrs
from tests.processes import Program, answers, free_port

SITE = Path(__file__).parent.parent / "nginx" / "pictrs-gate.conf"


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, gate: Gate, running_pictrs: Pictrs) -> Iterator[str]:
    """nginx with the site, its three addresses replaced; its URL."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(program).exists():
        pytest.fail("nginx is not installed: apt-get install nginx-light")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    site = SITE.read_text()
    for address, real in (
        ("127.0.0.1:8081", f"127.0.0.1:{running_pictrs.port}"),
        ("127.0.0.1:8080", f"127.0.0.1:{gate.port}"),
        ("127.0.0.1:8536", f"127.0.0.1:{port}"),
    ):
        assert address in site
        site = site.replace(address, real)
    temporary = "\n".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "site.conf").write_text(site)
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr info;\n"
        f"events {{}}\nhttp {{\n{temporary}\naccess_log {folder}/access.log;\ninclude site.conf;\n}}\n"
    )
    running = Program([program, "-c", folder / "nginx.conf", "-p", folder], folder / "log")
    running.wait_until(lambda: answers(f"http://127.0.0.1:{port}/healthz"))
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


@pytest.mark.parametrize(
    ("method", "target"),
    [
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
    ],
)
def test_no_spelling_reaches_the_entries_of_pict_rs_around_the_gate(
    front: str, running_pictrs: Pictrs, method: str, target: str
) -> None:
    stored = len(running_pictrs.stored_files())
    headers = {"X-Api-Token": running_pictrs.api_key}
    answer = send(front, method, target, headers=headers, body=b"x" if method == "POST" else b"")
    assert answer.status in (400, 403, 404, 405)
    assert len(running_pictrs.stored_files()) == stored

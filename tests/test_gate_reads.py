"""Everything but uploads: through the gate pict-rs answers as without it; a pending alias is the gate's."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests import pictrs, pictures
from tests.client import get, send
from tests.fake import Fake, Reply
from tests.gate import Classifier, Gate, scripted
from tests.pictrs import Pictrs
from tests.recordings import Replay, differences, exchanges

NewGate = Callable[..., Gate]

# What the gate answers otherwise, and means to.
_OTHERWISE = {
    "no files at all": "a body without parts is no body that can be read in one way only",
    "backgrounded, no files": "likewise",
    "backgrounded, not an image": "refused at once, rather than by its claim",
    "claim of a failed one": "likewise",
}


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Differences between the recordings and pict-rs's answers through a gate."""
    folder = tmp_path_factory.mktemp("replayed")
    running = pictrs.Pictrs(folder / "pictrs", real=pictrs.find(), max_file_size_mb=1)
    classifier = Classifier(folder / "classifier", ensemble=scripted(folder / "classifier", {}))
    gate = Gate(
        folder / "gate",
        pictrs_url=running.url,
        api_key=running.api_key,
        classifier_url=classifier.url,
        pictrs={"max_file_size_mb": 1},
        policy={"on_undecodable": "allow"},  # so that pict-rs itself says what is broken
    )
    replay, found = Replay(gate.url, running.api_key), []
    try:
        for exchange in exchanges("0.6.0-rc.6" if running.is_06 else "0.5.25"):
            got = replay.send(exchange)
            if exchange.name not in _OTHERWISE:
                found += [f"{exchange.name}: {line}" for line in differences(exchange, got)]
        yield found
    finally:  # where it takes too long, too
        gate.stop()
        classifier.stop()
        running.stop()


def test_through_the_gate_pict_rs_answers_as_it_was_recorded(replayed: list[str]) -> None:
    assert replayed == []


@pytest.fixture(scope="module")
def stored(gate: Gate) -> tuple[str, bytes]:
    """Alias and bytes of a picture that passed."""
    content = pictures.png((400, 300), seed=720)
    alias: str = gate.upload(content).json()["files"][0]["file"]
    return alias, content


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Range": "bytes=0-9"},
        {"Range": "bytes=10-"},
        {"Range": "bytes=-5"},
        {"Range": "bytes=0-1,4-5"},
        {"Range": "bytes=999999-"},
        {"If-None-Match": '"other"'},
        {"Accept-Encoding": "gzip, br"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_read_through_the_gate_is_the_read_without_it(
    gate: Gate, running_pictrs: Pictrs, stored: tuple[str, bytes], method: str, headers: dict[str, str]
) -> None:
    target = f"/image/original/{stored[0]}"
    direct, through = (send(url, method, target, headers=headers) for url in (running_pictrs.url, gate.url))
    assert (through.status, through.body) == (direct.status, direct.body)
    ours = {"date", "server", "connection", "transfer-encoding"}
    for name in (direct.headers.keys() | through.headers.keys()) - ours:
        assert through.headers.get(name) == direct.headers.get(name), name


def test_not_modified_is_passed_on(gate: Gate, stored: tuple[str, bytes]) -> None:
    target = f"/image/original/{stored[0]}"
    etag = get(gate.url, target).headers["etag"]
    answer = send(gate.url, "GET", target, headers={"If-None-Match": etag})
    assert (answer.status, answer.body) == (304, b"")


def test_many_reads_go_over_one_connection(gate: Gate, stored: tuple[str, bytes]) -> None:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", gate.port, timeout=10)
    for _ in range(5):
        connection.request("GET", f"/image/original/{stored[0]}")
        response = connection.getresponse()
        assert response.read() == stored[1]
        connection.request("HEAD", f"/image/original/{stored[0]}")
        assert connection.getresponse().read() == b""
    connection.close()


def test_without_a_key_internal_routes_say_nothing_of_themselves(gate: Gate) -> None:
    for path in ("/internal/hashes", "/internal/nothing", "/internal/aliases?alias=a.png"):
        answer = get(gate.url, path)
        assert (answer.status, answer.json()["code"]) == (401, "invalid-api-token")


@pytest.mark.parametrize(
    ("method", "target", "status", "allow"),
    [
        ("POST", "/image/original/a.png", 405, "GET, HEAD"),
        ("HEAD", "/image/details/original/a.png", 405, "GET"),
        ("POST", "/image/delete/t/a.png", 405, "DELETE, GET"),
        ("GET", "/image", 404, None),
        ("HEAD", "/healthz", 404, None),
        ("GET", "/nothing", 404, None),
    ],
)
def test_wrong_methods_and_paths_are_answered_as_pict_rs_does(
    gate: Gate, running_pictrs: Pictrs, method: str, target: str, status: int, allow: str | None
) -> None:
    for url in (gate.url, running_pictrs.url):
        answer = send(url, method, target)
        assert (answer.status, answer.headers.get("allow"), answer.body) == (status, allow, b"")


def test_an_alias_given_twice_is_refused(gate: Gate) -> None:
    answer = get(gate.url, "/image/original?alias=a.png&alias=b.png")
    assert (answer.status, answer.json()["code"]) == (400, "invalid-query")


# --- a pending alias ---


@pytest.fixture(scope="module")
def pending(gate: Gate, hits: list[bytes]) -> str:
    alias: str = gate.upload(hits.pop()).json()["files"][0]["file"]
    return alias


def shown(answer_body: bytes) -> Image.Image:
    return Image.open(io.BytesIO(answer_body))


@pytest.mark.parametrize(
    ("target", "kind", "size"),
    [
        ("/image/original/{alias}", "JPEG", (320, 240)),
        ("/image/original?alias={alias}", "JPEG", (320, 240)),
        ("/image/original/{upper}", "JPEG", (320, 240)),
        ("/image/original/{bare}", "JPEG", (320, 240)),
        ("/image/process.webp?src={alias}", "WEBP", (320, 240)),
        ("/image/process.webp?src={alias}&thumbnail=64", "WEBP", (64, 48)),
        ("/image/process.jpg?alias={alias}&resize=100", "JPEG", (100, 75)),
        ("/image/process.png?src={alias}&crop=1x1", "PNG", (240, 240)),
        ("/image/process.avif?src={alias}&thumbnail=96", "AVIF", (96, 72)),
        ("/image/process.gif?src={alias}", "GIF", (320, 240)),
    ],
)
def test_a_pending_alias_shows_a_placeholder_of_its_size_that_nobody_keeps(
    gate: Gate, running_pictrs: Pictrs, pending: str, target: str, kind: str, size: tuple[int, int]
) -> None:
    stem, extension = pending.split(".")
    names = {
        "alias": pending,
        "upper": f"{stem.upper()}.{extension}",
        "bare": f"{stem.replace('-', '')}.{extension}",
    }
    answer = get(gate.url, target.format(**names))
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store" and "etag" not in answer.headers
    picture = shown(answer.body)
    assert (picture.format, picture.size) == (kind, size)
    assert answer.headers["content-type"] == f"image/{kind.lower()}"
    assert len(picture.convert("RGB").getcolors(100_000) or []) < 200  # a drawing in grey
    head = send(gate.url, "HEAD", target.format(**names))
    assert (head.status, head.headers["content-length"]) == (200, str(len(answer.body)))


def test_the_details_of_a_pending_alias_are_those_that_were_promised(
    gate: Gate, running_pictrs: Pictrs, hits: list[bytes]
) -> None:
    entry = gate.upload(hits.pop()).json()["files"][0]
    told = get(gate.url, f"/image/details/original/{entry['file']}").json()
    assert {key: value for key, value in told.items() if key != "msg"} == entry["details"]
    assert ("msg" in told) == running_pictrs.is_06
    thumbnail = get(gate.url, f"/image/details/process.webp?src={entry['file']}&thumbnail=64").json()
    assert (thumbnail["width"], thumbnail["height"]) == (64, 48)
    blurhash = get(gate.url, f"/image/blurhash?alias={entry['file']}").json()
    assert blurhash["blurhash"] == entry["details"]["blurhash"]


def test_a_bad_step_on_a_pending_alias_is_pict_rs_s_error(gate: Gate, pending: str) -> None:
    answer = get(gate.url, f"/image/process.webp?src={pending}&thumbnail=abc")
    assert (answer.status, answer.json()["code"]) == (500, "invalid-process-path")


def test_a_pending_alias_is_refused_in_formats_that_pict_rs_does_not_write(gate: Gate, pending: str) -> None:
    for path in (f"process.svg?src={pending}", f"process_backgrounded.mp4?src={pending}"):
        answer = get(gate.url, f"/image/{path}&thumbnail=64")
        assert (answer.status, answer.json()["code"]) == (400, "invalid-file-extension")
    later = get(gate.url, f"/image/process_backgrounded.webp?src={pending}&thumbnail=64")
    assert (later.status, later.body) == (202, b"")


# --- pict-rs misbehaves ---


def test_half_a_file_never_looks_whole(new_gate: NewGate) -> None:
    upstream = Fake(lambda _: Reply(200, bytes(100_000), {"Content-Type": "image/png"}, cut=True))
    gate = new_gate(pictrs_url=upstream.url)
    with socket.create_connection(("127.0.0.1", gate.port), timeout=10) as connection:
        connection.sendall(b"GET /image/original/a.png HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        try:
            while piece := connection.recv(65536):
                received += piece
        except ConnectionResetError:
            pass
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"Content-Length: 100000" in head and len(body) < 100_000
    upstream.close()


def test_without_pict_rs_a_read_is_an_error_in_its_shape(new_gate: NewGate) -> None:
    gate = new_gate(pictrs_url="http://127.0.0.1:9")
    answer = get(gate.url, "/image/original/a.png")
    assert (answer.status, answer.json()["code"]) == (502, "pictrs-unavailable")


def test_a_pict_rs_that_hangs_is_waited_for_no_longer_than_it_may(new_gate: NewGate) -> None:
    def hang(_: object) -> Reply:
        time.sleep(3)
        return Reply(200)

    upstream = Fake(hang)
    gate = new_gate(pictrs_url=upstream.url, pictrs={"timeout_s": 0.5}, start=False)
    gate.start()
    began = time.monotonic()
    assert get(gate.url, "/image/original/a.png").status == 504
    assert time.monotonic() - began < 2
    upstream.close()


def test_the_stand_in_plays_faults(tmp_path: Path) -> None:
    for fault, seen in ((("--lie",), b"html"), (("--cut-off", "100"), b"")):
        running = Pictrs(tmp_path / fault[0], real=None, faults=fault)
        from tests.client import upload

        answer = upload(running.url, pictures.png())
        assert seen in answer.body
        if fault[0] == "--cut-off":
            import http.client

            with pytest.raises((http.client.IncompleteRead, OSError)):
                get(running.url, f"/image/original/{answer.json()['files'][0]['file']}")
        running.stop()


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=0-1048575", 206, slice(None)),  # Lemmy, to learn what it is
        ("bytes=10-", 206, slice(10, None)),
        ("bytes=-5", 206, slice(-5, None)),
        ("bytes=5-2", 200, slice(None)),
        ("bytes=abc", 200, slice(None)),
        ("bytes=999999999-", 416, slice(0)),
    ],
)
def test_a_part_of_a_placeholder_is_what_pict_rs_would_give(
    gate: Gate, held_alias: str, wanted: str, status: int, part: slice
) -> None:
    whole = get(gate.url, f"/image/original/{held_alias}")
    answer = get(gate.url, f"/image/original/{held_alias}", Range=wanted)
    assert (answer.status, answer.body) == (status, whole.body[part])
    assert answer.headers["cache-control"] == "no-store"
    if status == 206:
        assert answer.headers["content-range"].endswith(f"/{len(whole.body)}")


@pytest.fixture(scope="module")
def held_alias(gate: Gate, hits: list[bytes]) -> str:
    return str(gate.upload(hits.pop()).json()["files"][0]["file"])


def test_a_held_video_shows_a_clip(new_gate: NewGate) -> None:
    gate = new_gate(rules=[{"name": "everything", "at_least": {"sexual": 0.0}}])
    alias = gate.upload(pictures.video("mp4")).json()["files"][0]["file"]
    shown = get(gate.url, f"/image/original/{alias}")
    assert shown.headers["content-type"] == "video/mp4" and shown.body[4:8] == b"ftyp"
    assert shown.headers["cache-control"] == "no-store"
    still = get(gate.url, f"/image/process.webp?src={alias}&thumbnail=64")
    assert still.headers["content-type"] == "image/webp"

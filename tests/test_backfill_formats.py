"""Every source, with every format that pict-rs keeps: hits under all aliases, and what cannot be read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import pictrs, pictures
from tests.client import form, get, send
from tests.conftest import SIGNALS
from tests.gate import Classifier, Gate, scripted
from tests.stores import s3_server, ssh_host

NewGate = Callable[..., Gate]
BROKEN = ("cut.jpg", "empty.png", "text.gif")


PLANTED, HARMLESS = pictures.of_every_format(), pictures.of_every_format(seed=1)


@dataclass
class Shelf:
    """A pict-rs with a planted and a harmless file of every format, and what looks at them."""

    store: pictrs.Pictrs
    looking: Classifier
    stored: Mapping[str, bytes]
    copy: Path

    def names(self, kind: str) -> list[str]:
        """The aliases of the planted file of a format. pict-rs writes every WebM with a number of its own."""
        return [f"{kind}-{number}.{kind}" for number in range(1 if kind == "webm" else 2)]


def _import(store: pictrs.Pictrs, name: str, content: bytes) -> None:
    content_type, body = form([(name, content)])
    headers = {"Content-Type": content_type, "X-Api-Token": store.api_key}
    assert send(store.url, "POST", "/internal/import", headers=headers, body=body).status == 201


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    folder = tmp_path_factory.mktemp("shelf")
    store = pictrs.Pictrs(folder / "pictrs", real=pictrs.find())
    made = Shelf(store, None, {}, folder / "copy")  # type: ignore[arg-type]
    for kind, content in PLANTED.items():
        for name in made.names(kind):
            _import(store, name, content)
        _import(store, f"harmless.{kind}", HARMLESS[kind])
    # pict-rs rewrites most of what it is sent.
    made.stored = {kind: get(store.url, f"/image/original/{made.names(kind)[0]}").body for kind in PLANTED}
    _lay_out(made)
    _break_one(made)
    recipe = scripted(folder / "looking", dict.fromkeys(made.stored.values(), SIGNALS))
    made.looking = Classifier(folder / "looking", ensemble=recipe)
    yield made
    made.looking.stop()
    store.stop()


def _lay_out(shelf: Shelf) -> None:
    """The store's folder with more in it: broken files, a note, a link."""
    if shelf.store.is_real:
        shutil.copytree(shelf.store.store, shelf.copy)
    else:  # it keeps its files under other names
        others = [get(shelf.store.url, f"/image/original/harmless.{kind}").body for kind in HARMLESS]
        for number, content in enumerate([*shelf.stored.values(), *others]):
            at = shelf.copy / f"01/a2/04/52/00/5c/74/1e/a4/1c/03d2324eb{number:03}.png"
            at.parent.mkdir(parents=True, exist_ok=True)
            at.write_bytes(content)
    (shelf.copy / "ff").mkdir()
    for name, content in zip(BROKEN, (HARMLESS["jpeg"][:200], b"", b"no picture"), strict=True):
        (shelf.copy / "ff" / name).write_bytes(content)
    (shelf.copy / "ff" / "notes.txt").write_bytes(b"a note")
    (shelf.copy / "ff" / "link.png").symlink_to("/etc/passwd")


def _break_one(shelf: Shelf) -> None:
    """A file that pict-rs has lost half of on its disk."""
    _import(shelf.store, "broken.png", pictures.png(seed=77))
    content = get(shelf.store.url, "/image/original/broken.png").body
    (path,) = (path for path in shelf.store.stored_files() if path.read_bytes() == content)
    path.write_bytes(content[: len(content) // 2])


@dataclass
class Place:
    """Where a source finds a copy of the store, and what the gate has to know for it."""

    source: str
    env: Mapping[str, str]
    put: Callable[[str, bytes], None]


@pytest.fixture(scope="module")
def files(shelf: Shelf) -> Place:
    return Place(f"files:{shelf.copy}", {}, lambda name, content: _put(shelf.copy / name, content))


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def s3(shelf: Shelf) -> Iterator[Place]:
    with s3_server() as (settings, client):
        client.create_bucket(Bucket="shelf")  # moto's servers in one process have one memory

        def put(name: str, content: bytes) -> None:
            client.put_object(Bucket="shelf", Key=f"store/{name}", Body=content)

        for path in shelf.copy.rglob("*"):
            if path.is_file() and not path.is_symlink():
                put(str(path.relative_to(shelf.copy)), path.read_bytes())
        assert settings.s3_endpoint and settings.s3_secret_key
        env = {
            "GATE__BACKFILL__S3_ENDPOINT": settings.s3_endpoint,
            "GATE__BACKFILL__S3_REGION": "us-east-1",
            "GATE__BACKFILL__S3_ACCESS_KEY": "key",
            "GATE__BACKFILL__S3_SECRET_KEY": settings.s3_secret_key.get_secret_value(),
        }
        yield Place("s3://shelf/store/", env, put)


@pytest.fixture(scope="module")
def sftp(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("behind-ssh") / "store"
    shutil.copytree(shelf.copy, folder, symlinks=True)
    with ssh_host(tmp_path_factory.mktemp("ssh")) as (settings, port):
        env = {
            "GATE__BACKFILL__SFTP_KEY_FILE": str(settings.sftp_key_file),
            "GATE__BACKFILL__SFTP_KNOWN_HOSTS": str(settings.sftp_known_hosts),
        }
        source = f"sftp://root@127.0.0.1:{port}{folder}"
        yield Place(source, env, lambda name, content: _put(folder / name, content))


@pytest.mark.parametrize("kind_of_source", ["files", "s3", "sftp"])
def test_hits_of_every_format_are_found_under_all_their_aliases_and_what_is_broken_is_listed(
    new_gate: NewGate, shelf: Shelf, request: pytest.FixtureRequest, kind_of_source: str
) -> None:
    place: Place = request.getfixturevalue(kind_of_source)
    store = shelf.store
    gate = new_gate(
        pictrs_url=store.url, api_key=store.api_key, classifier_url=shelf.looking.url, start=False
    )
    words = ("backfill", "run", "--config", str(gate.config), "--json", "--source", place.source)
    report = json.loads(gate.run(*words, env=place.env).stdout)
    found = {tuple(sorted(hit["aliases"])): hit for hit in report["hits"]}
    assert found.keys() == {tuple(shelf.names(kind)) for kind in PLANTED}
    assert all(hit["signals"] == SIGNALS and hit["verdict"] == "hold" for hit in found.values())
    assert sorted(Path(file["place"]).name for file in report["unreadable_files"]) == sorted(BROKEN)
    # In the store itself is also a still picture of each film, which pict-rs has made.
    looked_at, files = report["looked_at"], len(PLANTED) + len(HARMLESS)
    assert looked_at >= files if store.is_real else looked_at == files
    assert gate.cases() == []
    again = json.loads(gate.run(*words, env=place.env).stdout)  # each was looked at, and is known by that
    assert (again["looked_at"], again["reused"], again["hit_count"]) == (0, looked_at, len(PLANTED))


def test_from_pict_rs_itself_hits_of_every_format_are_held_and_come_back_as_they_were(
    new_gate: NewGate, shelf: Shelf
) -> None:
    store = shelf.store
    gate = new_gate(pictrs_url=store.url, api_key=store.api_key, classifier_url=shelf.looking.url)
    words = ("backfill", "run", "--config", str(gate.config), "--json", "--action", "hold")
    report = json.loads(gate.run(*words).stdout)
    assert (report["looked_at"], report["held"]) == (len(PLANTED) + len(HARMLESS), len(PLANTED))
    aliases = {tuple(sorted(hit["aliases"])): hit["signals"] for hit in report["hits"]}
    assert aliases == {tuple(shelf.names(kind)): SIGNALS for kind in PLANTED}
    assert [file["aliases"] for file in report["unreadable_files"]] == [["broken.png"]]
    for kind, before in shelf.stored.items():
        for name in shelf.names(kind):
            assert get(store.url, f"/image/original/{name}").status == 404
            assert get(gate.url, f"/image/original/{name}").body not in (b"", before)
    said = gate.review("release", "--all", "--yes", "--reviewer", "ann").stdout.splitlines()
    for kind, before in shelf.stored.items():
        for name in shelf.names(kind):
            now = get(store.url, f"/image/original/{name}").body
            assert now and get(gate.url, f"/image/original/{name}").body == now
            # pict-rs gives every WebM that it writes a number of its own.
            assert (now == before) == (kind != "webm" or not store.is_real)
        (line,) = (line for line in said if shelf.names(kind)[0] in line)
        assert ("has written other bytes" in line) == (kind == "webm" and store.is_real)


@pytest.mark.parametrize("kind_of_source", ["s3", "sftp"])
def test_a_hit_behind_a_line_is_held_and_released_under_every_alias_it_had(
    new_gate: NewGate, shelf: Shelf, request: pytest.FixtureRequest, kind_of_source: str
) -> None:
    place: Place = request.getfixturevalue(kind_of_source)
    store, names = shelf.store, [f"{kind_of_source}-{number}.gif" for number in range(3)]
    for name in names:
        _import(store, name, pictures.animation("GIF", 5 + len(kind_of_source)))
    stored = get(store.url, f"/image/original/{names[0]}").body
    place.put("held/a.gif", stored)
    recipe = scripted(shelf.copy.parent / kind_of_source, {stored: SIGNALS})
    looking = Classifier(shelf.copy.parent / kind_of_source, ensemble=recipe)
    gate = new_gate(pictrs_url=store.url, api_key=store.api_key, classifier_url=looking.url)
    prefix = "store/held/" if kind_of_source == "s3" else "held/"
    words = ("backfill", "run", "--config", str(gate.config), "--json", "--source", place.source)
    ran = gate.run(*words, "--action", "hold", "--prefix", prefix, env=place.env)
    report = json.loads(ran.stdout)
    assert (report["looked_at"], report["held"]) == (1, 1)
    (case,) = gate.cases()
    assert {promise["alias"] for promise in case["promises"]} == set(names)
    for name in names:
        assert get(store.url, f"/image/original/{name}").status == 404
        held = get(gate.url, f"/image/original/{name}")
        assert held.status == 200 and held.body != stored
    gate.review("release", case["id"], "--reviewer", "ann")
    for name in names:
        for url in (gate.url, store.url):
            assert get(url, f"/image/original/{name}").body == stored
    looking.stop()

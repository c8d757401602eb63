"""A classifier behind https: the gate talks to the one it was told of and to no other, or says why not."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from proxy import parts
from proxy.cases.sealing import write_new_identity
from proxy.channels.http import HttpChannel
from proxy.channels.lookout import Lookout
from proxy.channels.looks import Look, Priority, Seen, Unseen
from proxy.channels.tls import client_context
from proxy.config import load
from proxy.errors import ConfigError
from proxy.metrics import Metrics
from tests.certificates import Authority
from tests.fake import CONTENT, INFO, NEEDED, SEEN, classifier, file, json_reply


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def ca(folder: Path) -> Authority:
    return Authority(folder, "the-ca")


@pytest.fixture(scope="module")
def other_ca(folder: Path) -> Authority:
    return Authority(folder, "another-ca")


@pytest.fixture(scope="module")
def gpu_box(ca: Authority) -> tuple[Path, Path]:
    return ca.sign("gpu-box", "IP:127.0.0.1")


@asynccontextmanager
async def serving(
    own: tuple[Path, Path], *, clients: Path | None = None, tls_1_2: bool = False
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A classifier that shows a certificate, and asks for one that `clients` has signed.

    Yields:
        Its URL, and the files that it gets.
    """
    files: list[bytes] = []

    async def classify(request: web.Request) -> web.Response:
        files.append(await request.read())
        return web.json_response(SEEN)

    async def info(_: web.Request) -> web.Response:
        return web.json_response(INFO)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*own)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)
    if tls_1_2:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    application = web.Application()
    application.add_routes([web.post("/v1/classify", classify), web.get("/v1/info", info)])
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port = runner.addresses[0][1]
    yield f"https://127.0.0.1:{port}", files
    await runner.cleanup()


async def look(
    url: str,
    *,
    ca_file: Path | None = None,
    own: tuple[Path, Path] | tuple[None, None] = (None, None),
) -> Look:
    context = client_context("classifiers.0", ca_file=ca_file, certificate_file=own[0], key_file=own[1])
    lookout = Lookout([HttpChannel(url, "t", context)], NEEDED, Metrics())
    try:
        return await lookout.look(file(), priority=Priority.LIVE, within_s=5)
    finally:
        await lookout.close()


async def test_a_classifier_that_the_given_ca_has_signed_is_asked(
    ca: Authority, gpu_box: tuple[Path, Path]
) -> None:
    async with serving(gpu_box) as (url, files):
        assert isinstance(await look(url, ca_file=ca.file), Seen)
    assert files == [CONTENT]


async def test_its_own_certificate_is_enough(ca: Authority, gpu_box: tuple[Path, Path]) -> None:
    async with serving(gpu_box) as (url, files):
        assert isinstance(await look(url, ca_file=gpu_box[0]), Seen)
    assert files == [CONTENT]


async def test_nobody_else_gets_the_file(other_ca: Authority, gpu_box: tuple[Path, Path]) -> None:
    async with serving(gpu_box) as (url, files):
        for ca_file in (other_ca.file, None):  # None: what the system trusts
            found = await look(url, ca_file=ca_file)
            assert isinstance(found, Unseen)
            assert "certificate is not trusted" in found.reason and "classifiers.ca_file" in found.reason
            assert "unable to get local issuer certificate" in found.reason
    assert not files


async def test_a_certificate_for_another_host_is_refused(ca: Authority) -> None:
    async with serving(ca.sign("elsewhere", "DNS:elsewhere.example")) as (url, files):
        found = await look(url, ca_file=ca.file)
    assert isinstance(found, Unseen) and "mismatch" in found.reason and "127.0.0.1" in found.reason
    assert not files


@pytest.mark.parametrize("tls_1_2", [False, True])
async def test_a_classifier_that_asks_for_a_certificate_gets_the_one_given(
    ca: Authority, other_ca: Authority, gpu_box: tuple[Path, Path], tls_1_2: bool
) -> None:
    gate, stranger = ca.sign("gate", "DNS:gate"), other_ca.sign("stranger", "DNS:gate")
    async with serving(gpu_box, clients=ca.file, tls_1_2=tls_1_2) as (url, files):
        assert isinstance(await look(url, ca_file=ca.file, own=gate), Seen)
        assert files == [CONTENT]
        without = await look(url, ca_file=ca.file)
        wrong = await look(url, ca_file=ca.file, own=stranger)
    for refused in (without, wrong):
        assert isinstance(refused, Unseen) and "classifiers.certificate_file" in refused.reason
    assert files == [CONTENT]


async def test_a_classifier_without_tls_is_not_asked_over_https(ca: Authority) -> None:
    plain = classifier(lambda _: json_reply(200, SEEN))
    found = await look(plain.url.replace("http:", "https:"), ca_file=ca.file)
    plain.close()
    assert isinstance(found, Unseen) and "TLS failed" in found.reason
    assert not plain.asked


async def test_the_configuration_s_files_are_used(
    tmp_path: Path, ca: Authority, gpu_box: tuple[Path, Path]
) -> None:
    certificate, key = ca.sign("gate", "DNS:gate")
    for name, path in (("ca.pem", ca.file), ("gate.pem", certificate), ("gate.key", key)):
        (tmp_path / name).write_bytes(path.read_bytes())
    async with serving(gpu_box, clients=ca.file) as (url, files):
        config = configuration(
            tmp_path, url, 'ca_file = "ca.pem"', 'certificate_file = "gate.pem"', 'key_file = "gate.key"'
        )
        async with parts.built(load(config)) as made:
            assert isinstance(await made.lookout.look(file(), priority=Priority.LIVE, within_s=5), Seen)
    assert files == [CONTENT]


def configuration(folder: Path, url: str, *lines: str) -> Path:
    """A configuration in `folder` with one classifier."""
    path = folder / "gate.toml"
    (folder / "reviewer.key").unlink(missing_ok=True)
    head = [
        "[pictrs]",
        'url = "http://127.0.0.1:9"',
        "[cases]",
        'folder = "cases"',
        f'recipients = ["{write_new_identity(folder / "reviewer.key")}"]',
        "[[classifiers]]",
        f'url = "{url}"',
    ]
    path.write_text("\n".join([*head, *lines]))
    return path


async def refusal(config: Path) -> str:
    with pytest.raises(ConfigError) as error:
        async with parts.built(load(config)):
            pass
    return str(error.value)


@pytest.mark.parametrize(
    ("url", "lines", "named"),
    [
        ("http://h", ['ca_file = "ca.pem"'], ["ca_file", "'ca.pem'", "https://", "leave the key out"]),
        ("http://h", ['key_file = "k"', 'certificate_file = "c"'], ["certificate_file", "https://"]),
        ("https://h", ['certificate_file = "gate.pem"'], ["'gate.pem'", "key_file is missing", "both"]),
        ("https://h", ['key_file = "gate.key"'], ["'gate.key'", "certificate_file is missing", "both"]),
        ("https://h", ['ca_file = "none.pem"'], ["classifiers.0.ca_file", "none.pem", "No such file"]),
        ("https://h", ['ca_file = "."'], ["classifiers.0.ca_file", "directory"]),
        ("https://h", ['ca_file = "noise.pem"'], ["classifiers.0.ca_file", "noise.pem", "PEM"]),
        ("https://h", ['ca_file = "empty.pem"'], ["classifiers.0.ca_file", "empty.pem", "PEM"]),
        ("https://h", ['ca_file = "gate.key"'], ["classifiers.0.ca_file", "gate.key", "PEM"]),
        (
            "https://h",
            ['certificate_file = "none.pem"', 'key_file = "gate.key"'],
            ["classifiers.0.certificate_file", "none.pem", "No such file"],
        ),
        (
            "https://h",
            ['certificate_file = "gate.pem"', 'key_file = "none.key"'],
            ["classifiers.0.key_file", "none.key", "No such file"],
        ),
        (
            "https://h",
            ['certificate_file = "gate.pem"', 'key_file = "noise.pem"'],
            ["classifiers.0.certificate_file", "classifiers.0.key_file", "noise.pem", "belongs to it"],
        ),
        (
            "https://h",
            ['certificate_file = "gate.pem"', 'key_file = "other.key"'],
            ["classifiers.0.key_file", "other.key", "belongs to it"],
        ),
        (
            "https://h",
            ['certificate_file = "gate.pem"', 'key_file = "locked.key"'],
            ["classifiers.0.key_file", "locked.key", "without a password"],
        ),
    ],
)
async def test_what_cannot_be_used_is_said_at_start_up(
    tmp_path: Path, ca: Authority, url: str, lines: list[str], named: list[str]
) -> None:
    certificate, key = ca.sign("gate", "DNS:gate")
    (tmp_path / "gate.pem").write_bytes(certificate.read_bytes())
    (tmp_path / "gate.key").write_bytes(key.read_bytes())
    (tmp_path / "other.key").write_bytes(ca.sign("other", "DNS:other")[1].read_bytes())
    (tmp_path / "noise.pem").write_text("-----BEGIN NOISE-----\nhush-hush\n")
    (tmp_path / "empty.pem").touch()
    lock = f"openssl ec -in {key} -aes256 -passout pass:hush -out {tmp_path / 'locked.key'}"
    subprocess.run(lock.split(), check=True, capture_output=True, timeout=60)
    said = await refusal(configuration(tmp_path, url, *lines))
    assert all(part in said for part in named), said
    assert "hush" not in said

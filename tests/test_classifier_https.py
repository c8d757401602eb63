"""HTTPS: nothing is told in the clear, nor to whom a certificate is asked of and has none."""

from __future__ import annotations

import http.client
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests import pictures
from tests.certificates import Authority
from tests.gate import scripted
from tests.processes import Program, free_port

COMMAND = Path(sys.executable).parent / "pictrs-classifier"
TOKENS = ("the-old-token-of-this-test", "the-new-token-of-this-test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("https")
    scripted(made, {})
    for name, token in zip(("old", "new"), TOKENS, strict=True):
        (made / name).write_text(token)
    return made


@pytest.fixture(scope="module")
def ca(folder: Path) -> Authority:
    return Authority(folder, "the-ca")


@pytest.fixture(scope="module")
def certificate(ca: Authority) -> tuple[Path, Path]:
    return ca.sign("gpu-box", "IP:127.0.0.1")


@pytest.fixture(scope="module")
def start(folder: Path, certificate: tuple[Path, Path]) -> Iterator[Callable[..., int]]:
    """Starts classifiers behind https, and returns their ports."""
    made: list[Program] = []

    def make(*options: str | Path) -> int:
        port = free_port()
        words = ["serve", "--ensemble", folder / "scripted.toml", "--listen", f"127.0.0.1:{port}"]
        words += ["--workers", "1", "--token-file", folder / "old", "--token-file", folder / "new"]
        words += ["--tls-certificate", certificate[0], "--tls-key", certificate[1], *options]
        program = Program([COMMAND, *words], folder / f"classifier-{port}.log")
        made.append(program)
        program.wait_until(lambda: " listens on " in program.output(), within_s=60)
        return port

    yield make
    for program in made:
        program.stop()


@pytest.fixture(scope="module")
def port(start: Callable[..., int]) -> int:
    return start()


@pytest.fixture(scope="module")
def choosy_port(start: Callable[..., int], ca: Authority) -> int:
    """Of a classifier that wants a certificate from whoever asks."""
    return start("--tls-client-ca", ca.file)


def client(ca: Authority, certificate: Sequence[Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca.file)
    if certificate is not None:
        context.load_cert_chain(*certificate)
    return context


def classify(port: int, context: ssl.SSLContext, token: str = TOKENS[0]) -> int:
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
    try:
        headers = {"Authorization": f"Bearer {token}"}
        connection.request("POST", "/v1/classify", pictures.png(seed=1), headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_file_is_looked_at_over_https(port: int, ca: Authority) -> None:
    assert classify(port, client(ca)) == 200


def test_in_the_clear_nothing_is_answered(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with pytest.raises((http.client.BadStatusLine, ConnectionError)):
        connection.request("GET", "/healthz")
        connection.getresponse()
    connection.close()


@pytest.mark.parametrize(("token", "status"), [(TOKENS[0], 200), (TOKENS[1], 200), ("another-token", 401)])
def test_every_one_of_several_tokens_is_good(port: int, ca: Authority, token: str, status: int) -> None:
    assert classify(port, client(ca), token) == status


def test_who_has_a_certificate_is_answered(choosy_port: int, ca: Authority) -> None:
    assert classify(choosy_port, client(ca, ca.sign("gate", "DNS:gate"))) == 200


def test_who_has_none_is_refused_whatever_its_token(choosy_port: int, ca: Authority) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        classify(choosy_port, client(ca))


def test_who_has_one_of_another_authority_is_refused(choosy_port: int, ca: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "another-ca").sign("gate", "DNS:gate")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        classify(choosy_port, client(ca, stranger))


def test_who_was_refused_costs_nobody_else_anything(choosy_port: int, ca: Authority) -> None:
    for _ in range(5):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            classify(choosy_port, client(ca))
    assert classify(choosy_port, client(ca, ca.sign("gate", "DNS:gate"))) == 200


def _encrypted(folder: Path, key: Path) -> Path:
    encrypted = folder / "encrypted.key"
    command = ["openssl", "ec", "-in", key, "-aes256", "-passout", "pass:a word", "-out", encrypted]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return encrypted


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tls-certificate", "nowhere.pem"], "--tls-certificate nowhere.pem: No such file"),
        (["--tls-certificate", "gpu-box.pem"], "belong together"),
        (["--tls-certificate", "gpu-box.pem", "--tls-key", "the-ca.key"], "belong together"),
        (["--tls-certificate", "text", "--tls-key", "gpu-box.key"], "PEM"),
        (["--tls-certificate", "gpu-box.pem", "--tls-key", "encrypted.key"], "pass phrase"),
        (["--tls-key", "gpu-box.key"], "--tls-certificate"),
        (["--tls-client-ca", "the-ca.pem"], "--tls-certificate"),
        (
            [*("--tls-certificate", "gpu-box.pem", "--tls-key", "gpu-box.key"), "--tls-client-ca", "text"],
            "PEM",
        ),
        (
            ["--tls-certificate", "gpu-box.pem", "--tls-key", "gpu-box.key", "--tls-client-ca", "nowhere"],
            "--tls-client-ca nowhere: No such file",
        ),
    ],
)
def test_what_is_wrong_with_the_files_is_said_in_one_line(
    folder: Path, certificate: tuple[Path, Path], options: list[str], said: str
) -> None:
    (folder / "text").write_text("this is no certificate")
    _encrypted(folder, certificate[1])
    result = subprocess.run(
        [COMMAND, "serve", "--ensemble", "scripted.toml", *options],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,  # without a terminal to ask for a pass phrase on
        check=False,
    )
    assert result.returncode == 1
    assert said in result.stderr and len(result.stderr.splitlines()) == 1

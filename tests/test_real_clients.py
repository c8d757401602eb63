"""What real clients send goes through the gate, and the real pict-rs stores it as it was sent.

Every way to write a form and every file name goes to a pict-rs in its dummy mode, which keeps what it parsed
and is quick. Each library that runs here also goes to one that processes pictures, with a PNG without
metadata: that is what pict-rs 0.5 stores unchanged.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import httpx
import pytest
import requests

from tests import pictrs, pictures
from tests.client import get, upload
from tests.gate import Classifier, Gate
from tests.pictrs import Pictrs
from tests.real_clients.browser import Lemmy, visit
from tests.real_clients.recorded import CLIENTS, Client

PythonClient = Callable[[str, str, bytes], Awaitable[tuple[int, str]]]

_INSTALL = Path(__file__).parent / "real_clients" / "install.sh"
_SEND = Path(__file__).parent / "real_clients" / "send.cjs"
# The first call on a machine downloads a browser.
_INSTALL_S = 540
_TIMEOUT_S = 60

ODD = "«Noted» ä 😀.jpg"
NAMES = ["photo.png", ODD, 'a "quoted"; name=b.png', "C:\\dir\\photo"]


@pytest.fixture(scope="module")
def node_modules() -> str:
    """The folder of the npm packages, everything installed."""
    made = subprocess.run([_INSTALL], capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    if made.returncode != 0:
        pytest.fail(f"{_INSTALL} failed:\n{made.stderr[-2000:]}")
    return made.stdout.strip()


@dataclass(frozen=True)
class Site:
    """A gate in front of a real pict-rs."""

    gate: Gate
    pictrs: Pictrs

    @property
    def url(self) -> str:
        """Where uploads go."""
        return f"{self.gate.url}/image"

    def check(self, status: int, body: str | bytes, content: bytes) -> None:
        """That an upload was answered well, and that what is stored by it is `content`."""
        assert status == 201, body
        (file,) = json.loads(body)["files"]
        assert get(self.pictrs.url, f"/image/original/{file['file']}").body == content


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, classifier: Classifier) -> Iterator[Site]:
    """One whose pict-rs stores whatever it gets."""
    folder = tmp_path_factory.mktemp("quick")
    dummy = Pictrs(folder / "pictrs", real=pictrs.find(), dummy=True)
    gate = Gate(folder / "gate", pictrs_url=dummy.url, api_key=dummy.api_key, classifier_url=classifier.url)
    yield Site(gate, dummy)
    gate.stop()
    dummy.stop()


@pytest.fixture(scope="module")
def processing(gate: Gate, running_pictrs: Pictrs) -> Site:
    """One whose pict-rs processes what it gets, as it does where it serves."""
    return Site(gate, running_pictrs)


def test_pict_rs_stores_such_a_picture_as_it_is(processing: Site) -> None:
    content = pictures.png(seed=700)
    answer = upload(processing.pictrs.url, content)
    processing.check(answer.status, answer.body, content)


# --- bytes of libraries that do not run here ---


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_recorded_bytes(quick: Site, client: Client) -> None:
    content = pictures.png(seed=710 + CLIENTS.index(client))
    body = client.body(content)
    connection = http.client.HTTPConnection("127.0.0.1", quick.gate.port, timeout=_TIMEOUT_S)
    if client.chunked:
        pieces = (body[at : at + 1000] for at in range(0, len(body), 1000))
        headers = {**client.headers(), "Transfer-Encoding": "chunked"}
        connection.request("POST", "/image", pieces, headers, encode_chunked=True)
    else:
        connection.request("POST", "/image", body, client.headers())
    answer = connection.getresponse()
    quick.check(answer.status, answer.read(), content)
    connection.close()


# --- Python ---


async def by_requests(url: str, name: str, content: bytes) -> tuple[int, str]:
    with requests.Session() as session:
        session.trust_env = False  # a proxy of the machine's is none of this
        answer = session.post(url, files={"images[]": (name, content, "image/png")}, timeout=_TIMEOUT_S)
    return answer.status_code, answer.text


async def by_requests_in_chunks(url: str, name: str, content: bytes) -> tuple[int, str]:
    whole = requests.Request("POST", url, files={"images[]": (name, content)}).prepare()
    body = whole.body
    assert isinstance(body, bytes)
    pieces = (body[at : at + 700] for at in range(0, len(body), 700))
    headers = {"Content-Type": whole.headers["Content-Type"]}
    with requests.Session() as session:
        session.trust_env = False
        answer = session.post(url, data=pieces, headers=headers, timeout=_TIMEOUT_S)
    return answer.status_code, answer.text


async def by_httpx(url: str, name: str, content: bytes) -> tuple[int, str]:
    async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as client:
        answer = await client.post(url, files={"images[]": (name, content, "image/png")})
        return answer.status_code, answer.text


async def by_aiohttp(url: str, name: str, content: bytes) -> tuple[int, str]:
    form = aiohttp.FormData()
    form.add_field("images[]", content, filename=name, content_type="image/png")
    return await _post(url, form)


async def by_aiohttp_without_quoting(url: str, name: str, content: bytes) -> tuple[int, str]:
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("images[]", content, filename=name)
    return await _post(url, form)


async def by_aiohttp_writer(url: str, name: str, content: bytes) -> tuple[int, str]:
    with aiohttp.MultipartWriter("form-data") as writer:
        part = writer.append(content, {"Content-Type": "image/png"})
        part.set_content_disposition("form-data", name="images[]", filename=name)
    return await _post(url, writer)


async def _post(url: str, data: aiohttp.FormData | aiohttp.MultipartWriter) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.post(url, data=data) as answer:
        return answer.status, await answer.text()


_PYTHON: Sequence[PythonClient] = [
    by_requests,
    by_requests_in_chunks,
    by_httpx,
    by_aiohttp,
    by_aiohttp_without_quoting,
    by_aiohttp_writer,
]


@pytest.mark.parametrize("client", _PYTHON, ids=lambda client: client.__name__)
async def test_python(quick: Site, client: PythonClient) -> None:
    for number, name in enumerate(NAMES):
        content = pictures.png(seed=760 + number)
        quick.check(*await client(quick.url, name, content), content)


@pytest.mark.parametrize("client", [by_requests, by_httpx, by_aiohttp], ids=lambda client: client.__name__)
async def test_python_and_a_processing_pict_rs(processing: Site, client: PythonClient) -> None:
    content = pictures.png(seed=765 + _PYTHON.index(client))
    processing.check(*await client(processing.url, ODD, content), content)


# --- curl ---

_CURL: Mapping[str, Sequence[str]] = {
    "as it comes": [],
    "quotes escaped by backslashes": ["--form-escape"],
    "in chunks": ["-H", "Transfer-Encoding: chunked"],
    "waiting for leave": ["-H", "Expect: 100-continue"],
    "HTTP/1.0": ["--http1.0"],
    "offering HTTP/2": ["--http2"],
}


def by_curl(site: Site, options: Sequence[str], names: Sequence[str], file: Path) -> None:
    """Uploads `file` under each name, and checks it."""
    for name in names:
        quoted = name.replace("\\", "\\\\").replace('"', '\\"')
        form = f'images[]=@{file};type=image/png;filename="{quoted}"'
        said = subprocess.run(
            ["curl", "-sS", "--noproxy", "*", *options, "-w", "\n%{http_code}", "-F", form, site.url],
            capture_output=True,
            text=True,
            check=True,
            timeout=_TIMEOUT_S,
        )
        body, _, status = said.stdout.rpartition("\n")
        site.check(int(status), body, file.read_bytes())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A picture in a file, for programs."""
    made = tmp_path / "picture.png"
    made.write_bytes(pictures.png(seed=770))
    return made


@pytest.mark.timeout(_INSTALL_S + 60)
@pytest.mark.parametrize("options", _CURL.values(), ids=_CURL)
def test_curl(quick: Site, node_modules: str, file: Path, options: Sequence[str]) -> None:
    by_curl(quick, options, NAMES, file)


@pytest.mark.timeout(_INSTALL_S + 60)
def test_curl_and_a_processing_pict_rs(processing: Site, node_modules: str, file: Path) -> None:
    by_curl(processing, [], [ODD], file)


# --- node ---


def by_node(site: Site, client: str, names: Sequence[str], file: Path, node_modules: str) -> None:
    """Uploads `file` under each name, and checks it."""
    said = subprocess.run(
        ["node", _SEND, client, site.url, file, *names],
        capture_output=True,
        text=True,
        check=True,
        timeout=_TIMEOUT_S,
        env={**os.environ, "NODE_PATH": node_modules},
    )
    answers = json.loads(said.stdout)
    assert len(answers) == len(names)
    for answer in answers:
        site.check(answer["status"], answer["body"], file.read_bytes())


@pytest.mark.timeout(_INSTALL_S + 60)
@pytest.mark.parametrize(
    "client", ["fetch", "axios_with_form_data_package", "axios_with_own_form", "form_data_package_piped"]
)
def test_node(quick: Site, node_modules: str, file: Path, client: str) -> None:
    by_node(quick, client, NAMES, file, node_modules)


@pytest.mark.timeout(_INSTALL_S + 60)
@pytest.mark.parametrize("client", ["fetch", "axios_with_form_data_package"])
def test_node_and_a_processing_pict_rs(processing: Site, node_modules: str, file: Path, client: str) -> None:
    by_node(processing, client, [ODD], file, node_modules)


# --- a browser ---


def by_chromium(site: Site, names: Sequence[str], folder: Path) -> None:
    """Uploads a picture under each name, in three ways, and checks it."""
    content = pictures.png(seed=790)
    lemmy = Lemmy(site.gate.port, content, names)
    try:
        visit(lemmy, folder)
    finally:
        lemmy.close()
    assert lemmy.answers is not None and len(lemmy.answers) == 3 * len(names)
    for answer in lemmy.answers:
        site.check(answer["status"], answer["body"], content)
    assert all("----WebKitFormBoundary" in content_type for content_type in lemmy.content_types)


@pytest.mark.timeout(_INSTALL_S + 60)
def test_chromium(quick: Site, node_modules: str, tmp_path: Path) -> None:
    by_chromium(quick, NAMES, tmp_path)


@pytest.mark.timeout(_INSTALL_S + 60)
def test_chromium_and_a_processing_pict_rs(processing: Site, node_modules: str, tmp_path: Path) -> None:
    by_chromium(processing, [ODD], tmp_path)

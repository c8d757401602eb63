"""Classifiers that dial in, with the real programs: through nginx with TLS, stopped and killed under load."""

from __future__ import annotations

import asyncio
import itertools
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import nginx, pictures
from tests.client import upload
from tests.conftest import SIGNALS
from tests.fake import Fake, pictrs_0_5
from tests.gate import TOKEN, DialledIn, Gate, scripted
from tests.looker import until
from tests.pictrs import Pictrs
from tests.processes import Program, free_port

HIT = pictures.jpeg((320, 240), seed=9_000)
SEEDS = itertools.count(910_000)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """What the workers look with."""
    return scripted(tmp_path, {HIT: SIGNALS})


@pytest.fixture
def gate(tmp_path: Path, running_pictrs: Pictrs) -> Iterator[Gate]:
    """A gate that nobody has dialled yet."""
    running = Gate(
        tmp_path / "gate", pictrs_url=running_pictrs.url, api_key=running_pictrs.api_key, classifier_url=None
    )
    yield running
    running.stop()


@pytest.fixture
def worker(tmp_path: Path, gate: Gate, recipe: Path) -> Iterator[Callable[[], DialledIn]]:
    """Starts workers that dial the gate."""
    started: list[DialledIn] = []

    def start() -> DialledIn:
        url = f"ws://127.0.0.1:{gate.internal_port}/worker"
        started.append(DialledIn(tmp_path / f"worker-{len(started)}", url, ensemble=recipe))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def verdicts(gate: Gate) -> list[str]:
    return [case["state"] for case in gate.cases()]


def test_what_is_uploaded_is_looked_at_by_whoever_has_dialled_in(
    gate: Gate, worker: Callable[[], DialledIn]
) -> None:
    assert gate.upload(pictures.png(seed=next(SEEDS))).status == 201
    assert verdicts(gate) == ["deferred"]  # nobody was there
    running = worker()
    until(lambda: verdicts(gate) == ["released"])  # it was looked at then
    assert gate.upload(pictures.png(seed=next(SEEDS))).status == 201
    assert verdicts(gate) == ["released"]  # and this one has passed
    assert gate.upload(HIT).status == 201
    assert sorted(verdicts(gate)) == ["pending", "released"]
    assert running.stop() == 0
    assert gate.upload(pictures.png(seed=next(SEEDS))).status == 201
    assert sorted(verdicts(gate)) == ["deferred", "pending", "released"]
    assert TOKEN not in gate.log() + running.program.output()


@pytest.fixture
def quick_gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate before a pict-rs that costs nothing."""
    stored = Fake(pictrs_0_5)
    running = Gate(tmp_path / "gate", pictrs_url=stored.url, api_key="k", classifier_url=None)
    yield running
    running.stop()
    stored.close()


@pytest.mark.parametrize("how", ["SIGTERM", "kill -9"])
async def test_a_worker_that_ends_under_load_costs_no_upload_its_look(
    tmp_path: Path, quick_gate: Gate, recipe: Path, how: str
) -> None:
    gate, url = quick_gate, f"ws://127.0.0.1:{quick_gate.internal_port}/worker"
    staying, ending = (DialledIn(tmp_path / name, url, ensemble=recipe) for name in ("staying", "ending"))
    statuses: list[int] = []
    uploads = iter([pictures.png(seed=next(SEEDS)) for _ in range(200)])

    def one_after_the_other() -> None:
        for content in uploads:
            statuses.append(upload(gate.url, content).status)

    clients = [asyncio.create_task(asyncio.to_thread(one_after_the_other)) for _ in range(6)]
    while len(statuses) < 50:
        await asyncio.sleep(0.01)
    before = len(statuses)
    if how == "SIGTERM":
        assert await asyncio.to_thread(ending.stop) == 0
    else:
        ending.program.kill()
    await asyncio.gather(*clients)
    assert before < 150, "it has not ended under load"
    assert statuses == [201] * 200
    assert verdicts(gate) == []
    staying.stop()


def test_a_worker_dials_through_nginx_with_tls_and_reaches_nothing_else(
    tmp_path: Path, gate: Gate, recipe: Path
) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            *kind,
            "-addext",
            "subjectAltName=DNS:localhost",
            "-keyout",
            key,
            "-out",
            certificate,
        ],
        check=True,
        capture_output=True,
    )
    port = free_port()
    text = (nginx.SITES / nginx.WORKER).read_text()
    for named, real in {
        "127.0.0.1:14051": f"127.0.0.1:{gate.internal_port}",
        "127.0.0.1:8538": f"127.0.0.1:{port}",
        r"/etc/letsencrypt/\S+fullchain.pem": str(certificate),
        r"/etc/letsencrypt/\S+privkey.pem": str(key),
    }.items():
        text, count = re.subn(named, real, text)
        assert count
    folder = tmp_path / "nginx"
    folder.mkdir()
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr info;\n"
        f"events {{}}\nhttp {{ {paths} access_log off;\n{text}\n}}\n"
    )
    front = Program([nginx.binary(), "-c", folder / "nginx.conf", "-p", folder], folder / "log")
    try:
        url = f"wss://localhost:{port}/worker"
        running = DialledIn(tmp_path / "worker", url, ensemble=recipe, options=["--ca", certificate])
        large = pictures.png((1500, 1500), seed=next(SEEDS)) + bytes(8_000_000)
        assert gate.upload(pictures.png(seed=next(SEEDS))).status == 201
        assert gate.upload(large).status == 201
        assert gate.upload(HIT).status == 201
        assert verdicts(gate) == ["pending"]
        refused = subprocess.run(
            ["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", f"https://localhost:{port}/metrics"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        assert refused.stdout == "404"
        assert running.stop() == 0
        # and one that does not know the authority is not fooled
        DialledIn(tmp_path / "stranger", url, ensemble=recipe, until="certificate is not trusted").stop()
    finally:
        front.stop()

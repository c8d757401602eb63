"""A real nginx with one of the example sites, on loopback."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.processes import Program, answers, free_port

SITES = Path(__file__).parent.parent / "nginx"
BETWEEN, PUBLIC, WORKER = "pictrs-gate.conf", "pictrs-gate-public.conf", "pictrs-gate-worker.conf"
_LISTEN = {BETWEEN: 8536, PUBLIC: 8537}
_SECOND_GATE = "# server 127.0.0.1:8082"


def binary() -> str:
    """nginx's program."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(program).exists():
        pytest.fail("nginx is not installed: apt-get install nginx-light")
    return program


def start(
    folder: Path, site: str, *, gate: int, pictrs: int | None = None, second_gate: int | None = None
) -> tuple[Program, int]:
    """nginx with the example site `site`, its addresses replaced: the program, and its port.

    Args:
        folder: for its configuration, logs and temporary files.
        gate: port; likewise the others, where the site names them.
    """
    port = free_port()
    text = (SITES / site).read_text()
    ports: Mapping[int, int | None] = {8080: gate, 8081: pictrs, 8082: second_gate, _LISTEN[site]: port}
    if second_gate is not None:
        assert _SECOND_GATE in text
        text = text.replace(_SECOND_GATE, _SECOND_GATE.removeprefix("# "))
    for named, real in ports.items():
        if real is not None:
            assert f"127.0.0.1:{named}" in text
            text = text.replace(f"127.0.0.1:{named}", f"127.0.0.1:{real}")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "site.conf").write_text(text)
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr info;\n"
        f"events {{}}\nhttp {{\n{temporary}access_log off;\ninclude site.conf;\n}}\n"
    )
    running = Program([binary(), "-c", folder / "nginx.conf", "-p", folder], folder / "log")
    running.wait_until(lambda: answers(f"http://127.0.0.1:{port}/healthz"))
    return running, port

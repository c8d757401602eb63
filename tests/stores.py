"""Stores that a backfill reads, on loopback: moto's S3 server, and Debian's OpenSSH."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from proxy.backfill.sources import Entry, Source
from proxy.sections import BackfillSection
from tests.processes import Program, free_port

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@contextmanager
def s3_server() -> Iterator[tuple[BackfillSection, S3Client]]:
    """An S3 server without buckets, and a client that may fill it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = BackfillSection(
        s3_endpoint=f"http://{host}:{port}",
        s3_region="us-east-1",
        s3_access_key="key",
        s3_secret_key=SecretStr("secret"),
    )
    client = boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    yield settings, client
    client.close()
    server.stop()


@contextmanager
def ssh_host(made: Path) -> Iterator[tuple[BackfillSection, int]]:
    """Debian's OpenSSH on a loopback port, with keys of its own in the folder `made`."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if sshd is None:
        pytest.skip("no sshd (Debian: openssh-server)")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", made / name], check=True)
    shutil.copy(made / "user.pub", made / "authorized")
    port = free_port()
    (made / "known_hosts").write_text(known_host(made, port))
    (made / "config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {made}/host\nPidFile {made}/pid\n"
        f"AuthorizedKeysFile {made}/authorized\nStrictModes no\nUsePAM no\n"
        "PermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\nSubsystem sftp internal-sftp -R\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    program = Program([sshd, "-D", "-e", "-f", made / "config"], made / "log")

    def is_there() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    program.wait_until(is_there)
    yield BackfillSection(sftp_key_file=made / "user", sftp_known_hosts=made / "known_hosts"), port
    program.stop()


def known_host(made: Path, port: int) -> str:
    """The line by which the host of `ssh_host` is known where it is reached at another port."""
    public = (made / "host.pub").read_text().split()[:2]
    return f"[127.0.0.1]:{port} {' '.join(public)}\n"


async def entries_of(source: Source) -> list[Entry]:
    """What a source lists, page by page."""
    listed: list[Entry] = []
    at = None
    while True:
        page = await source.page(at)
        listed += page.entries
        if page.next is None:
            return listed
        at = page.next


async def all_of(source: Source) -> list[str]:
    """The places of it."""
    return [entry.place for entry in await entries_of(source)]


async def until(is_so: Any) -> None:
    async with asyncio.timeout(30):
        while not is_so():
            await asyncio.sleep(0.01)

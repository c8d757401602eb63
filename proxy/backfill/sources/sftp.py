"""A store behind SSH, for which the extra `sftp` is needed. It is listed and read, nothing else.

The host has to be among the known hosts: whoever answers in its stead could say that there is nothing.
"""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.backfill.sources import Entry, Page, Unreadable
from proxy.backfill.sources.names import may_be_media, time_in
from proxy.errors import ConfigError, GateError
from proxy.sections import BackfillSection

if TYPE_CHECKING:
    from asyncssh import SFTPAttrs, SFTPClient, SSHClientConnection

_PAGE = 100
_WAIT_S = 30.0


class SftpError(GateError):
    """The host cannot be reached, is not the one that is known, or does not let the gate in."""


class SftpSource:
    """In the order of the names, which in pict-rs's own layout is that of their coming."""

    def __init__(
        self, host: str, folder: str, settings: BackfillSection, *, port: int = 22, user: str | None = None
    ) -> None:
        """
        Raises:
            ConfigError: the extra is not installed, or there are no known hosts.
        """
        try:
            import asyncssh
        except ImportError:
            raise ConfigError("--source sftp: needs asyncssh; pip install 'pictrs-gate[sftp]'") from None
        self._ssh = asyncssh
        asyncssh.set_log_level("WARNING")
        known = settings.sftp_known_hosts or Path.home() / ".ssh" / "known_hosts"
        if not known.is_file():
            raise ConfigError(
                f"backfill.sftp_known_hosts: {known}: no such file; `ssh-keyscan HOST` writes its lines, "
                "which are to be compared with the host's own"
            )
        self._known, self._key = known, settings.sftp_key_file
        self._host, self._port, self._user = host, port, user
        self._folder = folder.rstrip("/") or "/"
        self._connection: SSHClientConnection | None = None
        self._client: SFTPClient | None = None
        self._connecting = asyncio.Lock()

    async def page(self, at: str | None) -> Page:
        """See `Source.page`. `at` is the name of the last file before it.

        Raises:
            SftpError: the host cannot be asked.
        """
        entries: list[Entry] = []
        try:
            async with asyncio.timeout(10 * _WAIT_S):
                client = await self._connected()
                async for name, facts in _walk(client, self._folder, "", tuple(at.split("/")) if at else ()):
                    if len(entries) == _PAGE:
                        return Page(entries, entries[-1].place)
                    if may_be_media(name):
                        entries.append(_entry(name, facts))
        except (OSError, self._ssh.Error, TimeoutError) as error:
            raise self._gone(error) from None
        return Page(entries, None)

    async def fetch(self, entry: Entry, most: int) -> bytes | Unreadable:
        """See `Source.fetch`.

        Raises:
            SftpError: the host cannot be asked any more.
        """
        path = f"{self._folder}/{entry.place}"
        try:
            async with asyncio.timeout(4 * _WAIT_S):
                client = await self._connected()
                facts = await client.lstat(path)
                if not stat.S_ISREG(facts.permissions or 0):
                    return Unreadable("no plain file any more")
                async with client.open(path, "rb") as file:
                    content = await file.read(most + 1)
        except (self._ssh.SFTPConnectionLost, self._ssh.SFTPNoConnection) as error:
            raise self._gone(error) from None
        except (self._ssh.SFTPNoSuchFile, self._ssh.SFTPPermissionDenied) as error:
            return Unreadable(f"the host answered {type(error).__name__}")
        except self._ssh.SFTPError as error:
            return Unreadable(f"the host answered {type(error).__name__}", may_pass=True)
        except (OSError, self._ssh.Error, TimeoutError) as error:
            raise self._gone(error) from None
        if isinstance(content, str):
            raise TypeError("a file that was opened as bytes gave text")
        return content if len(content) <= most else Unreadable(f"it has more than {most} bytes now")

    async def close(self) -> None:
        """Hangs up."""
        if self._connection is not None:
            self._connection.close()
            await self._connection.wait_closed()

    async def _connected(self) -> SFTPClient:
        async with self._connecting:
            if self._client is None:
                self._connection = await self._ssh.connect(
                    self._host,
                    self._port,
                    username=self._user if self._user is not None else (),
                    known_hosts=str(self._known),
                    client_keys=[str(self._key)] if self._key else (),
                    config=None,
                    connect_timeout=_WAIT_S,
                    login_timeout=_WAIT_S,
                    keepalive_interval=10,
                )
                self._client = await self._connection.start_sftp_client()
            return self._client

    def _gone(self, error: Exception) -> SftpError:
        advice = type(error).__name__
        if isinstance(error, self._ssh.HostKeyNotVerifiable):
            advice = "its key is not among the known hosts; see backfill.sftp_known_hosts"
        elif isinstance(error, self._ssh.PermissionDenied):
            advice = "it does not let the gate in; see backfill.sftp_key_file"
        return SftpError(f"sftp://{self._host}: {advice}")


def _entry(name: str, facts: SFTPAttrs) -> Entry:
    at = time_in(name) or (datetime.fromtimestamp(facts.mtime, UTC) if facts.mtime else None)
    return Entry(name, facts.size or 0, at=at, mark=str(facts.mtime or ""))


async def _walk(
    client: SFTPClient, folder: str, prefix: str, after: tuple[str, ...]
) -> AsyncIterator[tuple[str, SFTPAttrs]]:
    """As of a folder on this machine: every plain file after `after`, no link followed."""
    found = [(str(one.filename), one.attrs) async for one in client.scandir(folder)]
    for name, facts in sorted(found, key=lambda one: one[0]):
        if name in (".", "..") or (after and name < after[0]):
            continue
        is_on_the_way = bool(after) and name == after[0]
        mode = facts.permissions or 0
        if stat.S_ISDIR(mode):
            rest = after[1:] if is_on_the_way else ()
            async for one in _walk(client, f"{folder}/{name}", f"{prefix}{name}/", rest):
                yield one
        elif stat.S_ISREG(mode) and not (is_on_the_way and len(after) == 1):
            yield prefix + name, facts

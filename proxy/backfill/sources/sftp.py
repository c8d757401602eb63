"""A store behind SSH, for which the extra `sftp` is needed. It is listed and read, nothing else.

The host has to be among the known hosts: whoever answers in its stead could say that there is nothing.
"""

from __future__ import annotations

import asyncio
import errno
import stat
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

from proxy.backfill.sources import Entry, Page, Unreadable
from proxy.backfill.sources.names import may_be_media, time_in
from proxy.backfill.sources.pages import Pages
from proxy.backfill.sources.waiting import WAIT_S, whole_s
from proxy.backfill.sources.walking import Found, walked
from proxy.errors import ConfigError, GateError
from proxy.sections import BackfillSection

if TYPE_CHECKING:
    from asyncssh import SFTPAttrs, SFTPClient, SSHClientConnection

_AT_ONCE = 128  # files
_TRIES = 3  # where the connection is lost meanwhile


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
        self._root = folder.rstrip("/")
        self._connection: SSHClientConnection | None = None
        self._client: SFTPClient | None = None
        self._lost = (
            ConnectionError,
            asyncssh.ConnectionLost,
            asyncssh.SFTPConnectionLost,
            asyncssh.SFTPNoConnection,
        )
        self._connecting = asyncio.Lock()
        self._reading = asyncio.Semaphore(_AT_ONCE)
        self._pages = Pages(self._listed)

    async def page(self, at: str | None) -> Page:
        """See `Source.page`. `at` is the name of the last file before it.

        Raises:
            SftpError: the host cannot be asked.
        """
        for _ in range(_TRIES):
            try:
                return await self._pages.page(at)
            except self._lost:  # by a line that was cut, or a file that it was given up for
                await self._look_round()
            except (OSError, self._ssh.Error, TimeoutError) as error:
                raise self._gone(error) from None
        raise SftpError(f"sftp://{self._host}: the connection is lost again and again")

    async def fetch(self, entry: Entry, most: int) -> bytes | Unreadable:
        """See `Source.fetch`.

        Raises:
            SftpError: the host cannot be asked any more.
        """
        path = f"{self._root}/{entry.place}"
        async with self._reading:
            for _ in range(_TRIES):
                try:
                    return await self._read(path, most)
                except (self._ssh.SFTPNoSuchFile, self._ssh.SFTPPermissionDenied) as error:
                    return Unreadable(f"the host answered {type(error).__name__}")
                except TimeoutError:
                    await self._look_round()  # it is gone, which this raises, or it is this one file
                    return Unreadable("the host did not give it in time", may_pass=True)
                except self._lost:
                    await self._look_round()
                except self._ssh.SFTPError as error:
                    return Unreadable(f"the host answered {type(error).__name__}", may_pass=True)
                except (OSError, self._ssh.Error) as error:
                    raise self._gone(error) from None
        return Unreadable("the connection was lost again and again", may_pass=True)

    async def close(self) -> None:
        """Hangs up."""
        if self._connection is not None:
            self._connection.abort()  # whatever waits for an answer ends here
            await self._connection.wait_closed()
        await self._pages.close()

    async def _connected(self) -> tuple[SSHClientConnection, SFTPClient]:
        async with self._connecting:
            if self._connection is None or self._client is None or self._connection.is_closed():
                self._connection = await self._ssh.connect(
                    self._host,
                    self._port,
                    username=self._user if self._user is not None else (),
                    known_hosts=str(self._known),
                    client_keys=[str(self._key)] if self._key else (),
                    config=None,
                    connect_timeout=WAIT_S,
                    login_timeout=WAIT_S,
                    keepalive_interval=10,
                )
                with _Deadline(self._connection, WAIT_S):
                    self._client = await self._connection.start_sftp_client()
            return self._connection, self._client

    async def _listed(self, after: str | None) -> AsyncGenerator[Entry]:
        async with aclosing(walked(self._scanned, after)) as files:
            async for name, found in files:
                if found is None:
                    yield Entry(name, mark="not to be read")
                elif may_be_media(name):
                    yield _entry(name, found)

    async def _scanned(self, folder: str) -> AsyncIterator[Found]:
        connection, client = await self._connected()
        path = f"{self._root}/{folder}" if folder else self._root or "/"
        try:
            with _Deadline(connection, WAIT_S) as deadline:
                async for one in client.scandir(path):
                    deadline.renew()
                    if (found := _found(str(one.filename), one.attrs)) is not None:
                        yield found
        except self._ssh.SFTPNoSuchFile:
            raise FileNotFoundError(errno.ENOENT, "no such folder") from None
        except self._ssh.SFTPPermissionDenied:
            raise PermissionError(errno.EACCES, "not to be read") from None

    async def _read(self, path: str, most: int) -> bytes | Unreadable:
        connection, client = await self._connected()
        with _Deadline(connection, whole_s(most)):
            facts = await client.lstat(path)  # `open` would follow a link
            if not stat.S_ISREG(facts.permissions or 0):
                return Unreadable("no plain file any more")
            async with client.open(path, "rb") as file:
                content = await file.read(most + 1)
        if isinstance(content, str):
            raise TypeError("a file that was opened as bytes gave text")
        return content if len(content) <= most else Unreadable(f"it has more than {most} bytes now")

    async def _look_round(self) -> None:
        """Asks for next to nothing, where something was not answered.

        Raises:
            SftpError: that is not answered either.
        """
        for is_last in (False, True):
            try:
                connection, client = await self._connected()
                with _Deadline(connection, WAIT_S):
                    await client.lstat(self._root or "/")
                return
            except (OSError, self._ssh.Error, TimeoutError) as error:
                if is_last or not isinstance(
                    error, self._lost
                ):  # at first it may be the one that is just lost
                    raise self._gone(error) from None

    def _gone(self, error: Exception) -> SftpError:
        advice = type(error).__name__
        if isinstance(error, self._ssh.HostKeyNotVerifiable):
            advice = "its key is not among the known hosts; see backfill.sftp_known_hosts"
        elif isinstance(error, self._ssh.PermissionDenied):
            advice = "it does not let the gate in; see backfill.sftp_key_file"
        return SftpError(f"sftp://{self._host}: {advice}")


class _Deadline:
    """Hangs up where the host does not answer in time, and then raises TimeoutError.

    asyncssh waits for the host even to tidy up after a request that was cancelled, so a cancel ends nothing.
    """

    def __init__(self, connection: SSHClientConnection, seconds: float) -> None:
        self._connection, self._seconds = connection, seconds
        self._loop = asyncio.get_running_loop()
        self._is_over = False

    def __enter__(self) -> Self:
        self.renew()
        self._timer = self._loop.call_at(self._until, self._look)
        return self

    def renew(self) -> None:
        """The host has answered; it has as long once more."""
        self._until = self._loop.time() + self._seconds

    def _look(self) -> None:
        if self._loop.time() < self._until:
            self._timer = self._loop.call_at(self._until, self._look)
        else:
            self._is_over = True
            self._connection.abort()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._timer.cancel()
        if self._is_over and isinstance(error, Exception):
            raise TimeoutError from None


def _found(name: str, facts: SFTPAttrs) -> Found | None:
    """What a listing tells of one thing; None of a link, a device, and the folder itself."""
    mode = facts.permissions or 0
    if name in ("", ".", "..") or "/" in name:
        return None
    if stat.S_ISDIR(mode):
        return Found(name, is_folder=True)
    return Found(name, False, facts.size or 0, facts.mtime or 0) if stat.S_ISREG(mode) else None


def _entry(name: str, found: Found) -> Entry:
    at = time_in(name) or (datetime.fromtimestamp(found.changed, UTC) if found.changed else None)
    return Entry(name, found.size, at=at, mark=str(found.changed or ""))

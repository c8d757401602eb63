"""A store behind SSH, for which the extra `sftp` is needed. It is listed and read, nothing else.

The host has to be among the known hosts: whoever answers in its stead could say that there is nothing.
"""

from __future__ import annotations

import asyncio
import errno
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from proxy.backfill.sources import Entry, Page, Unreadable
from proxy.backfill.sources.line import Deadline, Line
from proxy.backfill.sources.names import escaped, may_be_media, time_in, unescaped
from proxy.backfill.sources.pages import Pages
from proxy.backfill.sources.waiting import WAIT_S, whole_s
from proxy.backfill.sources.walking import Found, NotListed, walked
from proxy.errors import ConfigError, GateError
from proxy.sections import BackfillSection

if TYPE_CHECKING:
    from asyncssh import SFTPAttrs, SFTPClient, SSHClientConnection

_AT_ONCE = 128  # files
_TRIES = 3  # where the connection is lost meanwhile
_TIDY_S = 2.0  # for the answer to a close, which the host does without being waited for
_NOT_LISTED = "not to be read"  # the mark of a folder

_T = TypeVar("_T")


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
        # OpenSSH answers a connection in order: behind files a listing would wait for all of their bytes,
        # and one that hangs holds up those behind it.
        self._reads, self._listings, self._aside = (Line(self._dialed) for _ in range(3))
        self._one_by_one = asyncio.Lock()  # what goes over `_aside`
        self._lost = (
            ConnectionError,
            asyncssh.ConnectionLost,
            asyncssh.SFTPConnectionLost,
            asyncssh.SFTPNoConnection,
        )
        self._reading = asyncio.Semaphore(_AT_ONCE)
        self._under_way: set[asyncio.Future[Any]] = set()
        self._pages = Pages(self._listed)

    async def page(self, at: str | None) -> Page:
        """See `Source.page`. `at` is the name of the last file before it.

        Raises:
            SftpError: the host cannot be asked.
        """
        try:
            return await self._pages.page(at)
        except (OSError, self._ssh.Error, NotListed) as error:
            raise self._gone(error) from None

    async def fetch(self, entry: Entry, most: int) -> bytes | Unreadable:
        """See `Source.fetch`.

        Raises:
            SftpError: the host cannot be asked any more.
        """
        if entry.mark == _NOT_LISTED:
            return Unreadable("the host does not list this folder", may_pass=True)
        async with self._reading:
            for _ in range(_TRIES):
                try:
                    return await self._by_name(entry.place, partial(self._read, most))
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
        for line in (self._listings, self._reads, self._aside):
            await line.close()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self._pages.close()

    async def _dialed(self) -> tuple[SSHClientConnection, SFTPClient]:
        connection = await self._ssh.connect(
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
        try:
            with Deadline(connection, WAIT_S):
                return connection, await connection.start_sftp_client()
        except BaseException:
            connection.abort()
            raise

    async def _listed(self, after: str | None) -> AsyncGenerator[Entry]:
        async with aclosing(walked(self._scanned, after)) as files:
            async for name, found in files:
                if found is None:
                    yield Entry(name, mark=_NOT_LISTED)
                elif may_be_media(name):
                    yield _entry(name, found)

    async def _scanned(self, folder: str) -> AsyncIterator[Found]:
        found: dict[str, Found] = {}
        failed = await self._tried(folder, found)
        for one in found.values():
            yield one
        if failed is not None:
            raise failed

    async def _tried(self, folder: str, found: dict[str, Found]) -> Exception | None:
        """Lists a folder into `found`, and again where that fails: at last alone, for another may have hung.

        Raises:
            SftpError: the host answers nothing else either.
        """
        has_hung, reason = False, ""
        for left in reversed(range(_TRIES)):
            is_alone = has_hung or not left
            line = self._aside if is_alone else self._listings
            try:
                async with self._one_by_one if is_alone else nullcontext():
                    await self._by_name(folder, partial(self._list, line, found))
                return None
            except self._ssh.SFTPNoSuchFile:
                return FileNotFoundError(errno.ENOENT, "no such folder")
            except self._ssh.SFTPPermissionDenied:
                return PermissionError(errno.EACCES, "not to be read")
            except (TimeoutError, self._ssh.SFTPError, *self._lost) as error:
                has_hung, reason = isinstance(error, TimeoutError), type(error).__name__
                if has_hung or not left:
                    await self._look_round()
        return NotListed(f"the folder cannot be listed ({reason})")

    async def _list(self, line: Line, found: dict[str, Found], path: bytes) -> None:
        connection, client = await line.connected()
        with Deadline(connection, WAIT_S) as deadline:
            async for named in client.scandir(path):
                deadline.renew()
                assert isinstance(named.filename, bytes)  # as the path is
                if (one := _found(escaped(named.filename), named.attrs)) is not None:
                    found[one.name] = one

    async def _by_name(self, place: str, do: Callable[[bytes], Awaitable[_T]]) -> _T:
        """Does it with what is at a place, which may be written with its bytes that are no UTF-8 escaped."""
        root = self._root.encode(errors="surrogateescape")
        path = root + b"/" + place.encode() if place else root or b"/"
        try:
            return await do(path)
        except self._ssh.SFTPNoSuchFile:
            true = root + b"/" + unescaped(place)
            if not place or true == path:
                raise
            return await do(true)

    async def _read(self, most: int, path: bytes) -> bytes | Unreadable:
        connection, client = await self._reads.connected()
        with Deadline(connection, whole_s(most)):
            facts = await client.lstat(path)  # `open` would follow a link
            if not stat.S_ISREG(facts.permissions or 0):
                return Unreadable("no plain file any more")
            file = await client.open(path, "rb")
            try:
                # Cancelled itself, it would leave what it has asked for to nobody, and asyncio complain.
                reading = asyncio.ensure_future(file.read(most + 1))
                self._under_way.add(reading)
                reading.add_done_callback(self._under_way.discard)
                content = await asyncio.shield(reading)
            finally:
                with suppress(OSError, self._ssh.Error):  # whoever stops a run does not wait for a mute host
                    async with asyncio.timeout(_TIDY_S):
                        await file.close()
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
                async with self._one_by_one:
                    connection, client = await self._aside.connected()
                    with Deadline(connection, WAIT_S):
                        await client.lstat(self._root or "/")
                return
            except (OSError, self._ssh.Error, TimeoutError) as error:
                # At first it may be the one that is just lost.
                if is_last or not isinstance(error, self._lost):
                    raise self._gone(error) from None

    def _gone(self, error: Exception) -> SftpError:
        advice = type(error).__name__
        if isinstance(error, self._ssh.HostKeyNotVerifiable):
            advice = "its key is not among the known hosts; see backfill.sftp_known_hosts"
        elif isinstance(error, self._ssh.PermissionDenied):
            advice = "it does not let the gate in; see backfill.sftp_key_file"
        elif isinstance(error, NotListed):
            advice = str(error)
        return SftpError(f"sftp://{self._host}: {advice}")


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

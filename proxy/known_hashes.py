"""What is known of a file by decisions and lists: by its bytes without a look, by its looks after one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

from proxy.channels.looks import Look, Seen
from proxy.database import Database, memory
from proxy.database.memory import Remembered
from proxy.errors import ConfigError
from proxy.look_alikes import LookAlikes
from proxy.pdq import SAME_PICTURE, tells
from proxy.policy import Decision, Earlier, Verdict, decide_known

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class KnownHashes:
    """SHA-256 and PDQ hashes: those on the operator's lists, and those that reviewers have decided about."""

    def __init__(self, database: Database, lists: Iterable[Path], near_distance: int = SAME_PICTURE) -> None:
        """
        Args:
            database: where decisions and imported lists are kept.
            lists: files with one hexadecimal SHA-256 a line; `#` begins a comment.
            near_distance: bits of 256 up to which two PDQ hashes count as one picture's.

        Raises:
            ConfigError: a list cannot be read or has a line that is no hash.
        """
        self._database = database
        self._listed = frozenset(hash_ for path in lists for hash_ in _read(path))
        self._look_alikes = LookAlikes(near_distance)

    async def read_ahead(self) -> None:
        """Reads the known pictures, so that no upload waits for that.

        Raises:
            SQLAlchemyError: the database cannot be asked.
        """
        await self._database.run(self._catch_up)

    async def find(self, sha256: str) -> Decision | None:
        """The decision about a file, or None where somebody has to look at it.

        Args:
            sha256: lower-case hexadecimal.

        Raises:
            SQLAlchemyError: the database cannot be asked.
        """
        if bytes.fromhex(sha256) in self._listed:
            return decide_known(Earlier("sha256", Verdict.BLOCK, list="policy.block_lists"))
        known = await self._database.run(memory.exactly, sha256)
        return None if known is None else decide_known(_earlier("sha256", known, 0))

    async def find_near(self, look: Look) -> Earlier | None:
        """The earlier decision about a picture that looks like what was seen, the sternest there is.

        None where there is none, where nobody has seen anything, and where the picture is too flat to be told
        from others. A released picture is nobody's look-alike: that would lower a verdict.

        Raises:
            SQLAlchemyError: the database cannot be asked.
        """
        if not isinstance(look, Seen) or look.pdq is None or not tells(look.pdq, look.pdq_quality):
            return None
        pdq = bytes.fromhex(look.pdq)
        found = await self._database.run(lambda database: self._look_alikes.find(database, pdq))
        return None if found is None else _earlier("pdq", *found)

    async def among(self, sha256: Collection[str]) -> frozenset[str]:
        """Those of many files of which `find` would tell something: one question for all."""
        listed = {one for one in sha256 if bytes.fromhex(one) in self._listed}
        return frozenset(listed | await self._database.run(memory.among, sha256))

    def _catch_up(self, database: Database) -> None:
        self._look_alikes.catch_up(database)


def _earlier(kind: Literal["sha256", "pdq"], known: Remembered, distance: int) -> Earlier:
    return Earlier(kind, Verdict(known.verdict), known.case_id, known.list_name, known.by, distance)


def _read(path: Path) -> list[bytes]:
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except OSError as error:
        raise ConfigError(f"policy.block_lists: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"policy.block_lists: {path}: must be UTF-8 text, one SHA-256 a line") from None
    hashes = []
    for number, line in enumerate(lines, start=1):
        word = line.partition("#")[0].strip()
        if word and not _SHA256.fullmatch(word):
            raise ConfigError(
                f"policy.block_lists: {path}: line {number} is no SHA-256 (64 hexadecimal digits)"
            )
        if word:
            hashes.append(bytes.fromhex(word))
    return hashes

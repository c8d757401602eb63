"""Files that need no look, because a human or a list has decided about their exact bytes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from proxy.database import Database, cases
from proxy.errors import ConfigError
from proxy.policy import Decision, Verdict, decide_known

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class KnownHashes:
    """SHA-256 hashes: those on the operator's lists, and those that reviewers have decided about."""

    def __init__(self, database: Database, lists: Iterable[Path]) -> None:
        """
        Args:
            database: where decisions are kept.
            lists: files with one hexadecimal SHA-256 a line; `#` begins a comment.

        Raises:
            ConfigError: a list cannot be read or has a line that is no hash.
        """
        self._database = database
        self._listed = frozenset(hash_ for path in lists for hash_ in _read(path))

    async def find(self, sha256: str) -> Decision | None:
        """The decision about a file, or None where somebody has to look at it.

        Args:
            sha256: lower-case hexadecimal.
        """
        if bytes.fromhex(sha256) in self._listed:
            return decide_known(Verdict.BLOCK, "on a list")
        known = await self._database.run(cases.known, sha256)
        if known is None:
            return None
        verdict, added_by = known
        return decide_known(Verdict(verdict), f"decided by {added_by}")

    async def among(self, sha256: Collection[str]) -> frozenset[str]:
        """Those of many files of which `find` would tell something: one question for all."""
        listed = {one for one in sha256 if bytes.fromhex(one) in self._listed}
        return frozenset(listed | await self._database.run(cases.known_among, sha256))


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

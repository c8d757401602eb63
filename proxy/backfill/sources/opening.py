"""The source that a word of the operator's names."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from proxy.backfill.options import Options
from proxy.backfill.sources import Source
from proxy.backfill.sources.files import FilesSource
from proxy.backfill.sources.pictrs import PictrsSource
from proxy.backfill.sources.s3 import S3Source
from proxy.backfill.sources.sftp import SftpSource
from proxy.pictrs import Pictrs
from proxy.sections import BackfillSection

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")


def checked(word: str) -> str:
    """`word`, if it names a source; a relative folder becomes an absolute one, as it is kept with the run.

    Raises:
        ValueError: it does not.
    """
    if word == "pictrs":
        return word
    if word.startswith("files:") and len(word) > len("files:"):
        return f"files:{Path(word.removeprefix('files:')).absolute()}"
    parts = urlsplit(word)
    if parts.password is None and not parts.query and not parts.fragment:
        if parts.scheme == "s3" and _BUCKET.fullmatch(parts.netloc):
            return word
        if parts.scheme == "sftp" and parts.hostname and parts.path and parts.port != 0:
            return word
    raise ValueError("must be pictrs, files:/PATH, s3://BUCKET/PREFIX or sftp://[USER@]HOST[:PORT]/PATH")


def opened(options: Options, settings: BackfillSection, pictrs: Pictrs) -> Source:
    """The source of a run; to be closed.

    Args:
        options: whose `source` `checked` has passed.

    Raises:
        ConfigError: it cannot be read like this.
    """
    word = options.source
    if word == "pictrs":
        return PictrsSource(pictrs, since=options.since, until=options.until)
    if word.startswith("files:"):
        return FilesSource(Path(word.removeprefix("files:")))
    parts = urlsplit(word)
    if parts.scheme == "s3":
        below, wanted = parts.path.removeprefix("/"), options.prefix or ""
        return S3Source(parts.netloc, wanted if wanted.startswith(below) else below, settings)
    user = unquote(parts.username) if parts.username else None
    return SftpSource(parts.hostname or "", unquote(parts.path), settings, port=parts.port or 22, user=user)

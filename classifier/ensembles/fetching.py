"""Fetching what an ensemble needs, and holding every file of it to the hash that the hub gave it."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from classifier.ensembles import Ensemble, read
from classifier.errors import SetupError
from classifier.heads.weights import Source, first_line, sha256_of

_HUB_ANSWERS_S = 10.0
_BLOCK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Checked:
    """One file of a model, looked at after it was fetched.

    Attributes:
        model: as the recipe names it.
        size: in bytes.
        hash: of what is here, in hexadecimal: SHA-256, or git's SHA-1 of small files, whichever the hub gave.
        expected: what the hub gave; None where the cache keeps no word of it.
    """

    model: str
    path: Path
    size: int
    hash: str
    expected: str | None

    @property
    def is_broken(self) -> bool:
        """Whether it is not what the hub said that it would be."""
        return self.expected is not None and self.hash != self.expected


def fetch(name_or_path: str) -> tuple[Sequence[Checked], Ensemble | None]:
    """Brings what an ensemble needs, checks it, and builds the ensemble once, which embeds its phrases.

    Deletes nothing: a broken file is left for a human to look at, and the ensemble is then None.

    Raises:
        SetupError: a file cannot be brought, or the ensemble not be built.
    """
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # or the progress drowns in a line a request
    recipe = read(name_or_path)
    sources = [source for planned in recipe.heads for source in planned.sources]
    _greet({source.repository: source for source in sources if source.repository}.values())
    for source in sources:
        source.bring()
    checked = list(_check(sources, ()))
    if any(file.is_broken for file in checked):
        return checked, None
    ensemble = recipe.load()
    # Only now is known which tokenizers the models need, and they are here.
    sources = [source for planned in recipe.heads for source in planned.sources]
    checked += _check(sources, [file.path for file in checked])
    return checked, None if any(file.is_broken for file in checked) else ensemble


def _greet(sources: Iterable[Source]) -> None:
    """Asks the hub for a word about each repository: its own client would try for minutes where none comes.

    Raises:
        SetupError: it cannot be reached, does not answer in time, or has no such repository.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    if constants.is_offline_mode():
        return  # an admin's own wish: what is here is checked
    for source in sources:
        name = source.config or source.weights[0]
        try:
            url = hf_hub_url(str(source.repository), name, revision=source.revision)
            get_hf_file_metadata(url, timeout=_HUB_ANSWERS_S)
        except EntryNotFoundError:
            continue  # it was reached; bringing will say what is missing
        except Exception as error:  # noqa: BLE001 — of the hub's client, and of the HTTP client below it
            raise SetupError(
                f"{source.model}: cannot be fetched from {constants.ENDPOINT}: {first_line(error)}"
            ) from None


def _check(sources: Iterable[Source], known: Iterable[Path]) -> Iterator[Checked]:
    """Every file of the sources that is not known yet, once."""
    seen = set(known)
    for source in sources:
        if source.repository is None:
            continue  # nobody gave the files of a folder a hash; a recipe's sha256 can
        for path in source.files:
            if path not in seen:
                seen.add(path)
                yield _look(source.model, path)


def _look(model: str, path: Path) -> Checked:
    # The cache keeps a file under its etag, and a link to that under its name (huggingface_hub's guide to
    # its cache). The etag is a SHA-256 for large files and git's name for small ones.
    etag = path.readlink().name if path.is_symlink() else ""
    size = path.stat().st_size
    if re.fullmatch("[0-9a-f]{40}", etag):
        return Checked(model, path, size, _git_hash(path, size), etag)
    return Checked(model, path, size, sha256_of(path), etag if re.fullmatch("[0-9a-f]{64}", etag) else None)


def _git_hash(path: Path, size: int) -> str:
    """git's name of the content: SHA-1 after a header (git-scm.com, Git Objects)."""
    digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()

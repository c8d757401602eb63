"""Where the files of a model come from, which of them are here, and whether they are the right ones.

Nothing here needs torch. Only `Source.bring` talks to a hub, and not where `HF_HUB_OFFLINE` forbids it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classifier.errors import SetupError

_HUB, _FOLDER = "hf-hub:", "local-dir:"


class NotHere(SetupError):
    """A model's files have not been fetched. `Recipe.load` adds the command that does."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where one model's files come from: a repository of the hub, or a folder.

    Attributes:
        model: as the recipe names it.
        repository: on the hub, or None.
        revision: of the repository; None is its main branch.
        folder: of a model that is not from the hub, or None.
        config: the file that describes the model; None where its library knows that by itself.
        weights: names that the weights may have, in the order in which the library looks for them.
    """

    model: str
    repository: str | None
    revision: str | None
    folder: Path | None
    config: str | None
    weights: Sequence[str]

    @property
    def files(self) -> Sequence[Path]:
        """The model's files that are here."""
        folder = self.folder or self._snapshot()
        if folder is None or not folder.is_dir():
            return []
        return sorted(path for path in folder.rglob("*") if path.is_file())

    @property
    def config_file(self) -> Path | None:
        """The file that describes the model, if there is one and it is here."""
        folder = self.folder or self._snapshot()
        path = folder / self.config if folder and self.config else None
        return path if path and path.is_file() else None

    @property
    def weights_file(self) -> Path | None:
        """The file of weights that the library takes, if it is here."""
        folder = self.folder or self._snapshot()
        named = [folder / name for name in self.weights] if folder else []
        return next((path for path in named if path.is_file()), None)

    def bring(self) -> None:
        """Makes sure that what the model needs is here; downloads it where that is allowed.

        Raises:
            NotHere: it is not, and may not or cannot be downloaded.
            SetupError: there is no such model.
        """
        if self.folder is not None:
            if not self.folder.is_dir():
                raise SetupError(f"{self.model}: there is no such folder")
            return
        if self.config is not None and not self._download([self.config]):
            raise SetupError(f"{self.model}: has no {self.config}")
        if self.weights and not self._download(self.weights):
            raise SetupError(f"{self.model}: has none of {', '.join(self.weights)}")

    def check(self, sha256: str | None) -> None:
        """Holds the file of weights to the SHA-256 (hexadecimal) that a recipe asks for, if it does.

        Raises:
            SetupError: it has another one.
        """
        if sha256 is None:
            return
        path = self.weights_file
        if path is None:
            raise SetupError(f"{self.model}: there is no {' or '.join(self.weights)} to hold to its sha256")
        found = sha256_of(path)
        if found != sha256:
            raise SetupError(f"{path}: its SHA-256 is {found}, but the recipe asks for {sha256}")

    def __str__(self) -> str:
        """For people: whether it is here, and how large."""
        path = self.weights_file
        if path is None:
            return f"{self.model}: not here"
        return f"{self.model}: {path.name}, {path.stat().st_size / 1e6:.1f} MB, is here"

    def _download(self, names: Sequence[str]) -> bool:
        """Brings the first of the files that exists; False where none does."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        missing = False
        for name in names:
            try:
                hf_hub_download(str(self.repository), name, revision=self.revision)
            except LocalEntryNotFoundError:
                missing = True
            except EntryNotFoundError:
                continue
            except (HfHubHTTPError, ValueError) as error:
                raise SetupError(f"{self.model}: {first_line(error)}") from None
            else:
                return True
        if missing:
            raise NotHere(f"{self.model}: its files are not here")
        return False

    def _snapshot(self) -> Path | None:
        """The folder of this revision in the hub's cache."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        folder = repo_folder_name(repo_id=str(self.repository), repo_type="model")
        cache, revision = Path(constants.HF_HUB_CACHE) / folder, self.revision or "main"
        reference = cache / "refs" / revision
        commit = reference.read_text().strip() if reference.is_file() else revision
        snapshot = cache / "snapshots" / commit
        return snapshot if snapshot.is_dir() else None


def source(model: str, config: str, weights: Sequence[str], folder_weights: Sequence[str]) -> Source | None:
    """What `hf-hub:owner/name[@revision]` or `local-dir:path` stands for; None for a name without a scheme.

    Args:
        weights: names of the weights in a repository; `folder_weights` in a folder.

    Raises:
        SetupError: the scheme is neither.
    """
    if model.startswith(_FOLDER):
        folder = Path(model.removeprefix(_FOLDER))
        return Source(model, None, None, folder, config, folder_weights)
    if model.startswith(_HUB):
        repository, _, revision = model.removeprefix(_HUB).partition("@")
        return Source(model, repository, revision or None, None, config, weights)
    if ":" in model:
        raise SetupError(f"{model}: has to begin with {_HUB} or {_FOLDER}")
    return None


def pin(where: str, value: Any) -> str | None:
    """A recipe's `sha256`.

    Raises:
        SetupError: it is not one.
    """
    if value is None or (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)):
        return value
    raise SetupError(f"{where}: sha256: {value!r}: has to be 64 hexadecimal digits in lower case")


def sha256_of(path: Path) -> str:
    """Hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_line(error: BaseException) -> str:
    """What a library's error says, without the advice that follows."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

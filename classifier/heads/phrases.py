"""What a text tower makes of a recipe's phrases, remembered as safetensors, so that it is asked only once.

A remembered file is a convenience: where it is missing, broken or about something else, the phrases are
embedded anew, and where none can be written, nothing is lost but time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

log = logging.getLogger(__name__)

_ROWS, _ABOUT = "embeddings", "about"


def embeddings(
    how: Mapping[str, str], phrases: Sequence[str], make: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """Each phrase's direction, a row of length 1, (n, dimensions) float32.

    Args:
        how: everything that they depend on beside the phrases: model, weights, tokenizer, library.
        make: embeds them; called only where they are not remembered.
    """
    about = json.dumps({"phrases": list(phrases), **how}, sort_keys=True)
    path = folder() / f"{hashlib.sha256(about.encode()).hexdigest()}.safetensors"
    rows = _remembered(path, about, len(phrases))
    if rows is None:
        rows = make().contiguous()
        _remember(path, about, rows)
    return rows


def folder() -> Path:
    """`pictrs-gate/phrases` in the user's cache (`$XDG_CACHE_HOME`, by default ~/.cache)."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "pictrs-gate" / "phrases"


def _remembered(path: Path, about: str, count: int) -> torch.Tensor | None:
    try:
        with safe_open(path, framework="pt") as file:
            rows: torch.Tensor = file.get_tensor(_ROWS)
            same = (file.metadata() or {}).get(_ABOUT) == about
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        log.warning("%s is broken (%s) and is made anew", path, type(error).__name__)
        return None
    # Whatever else has happened to the bytes, a direction has length 1.
    sound = rows.ndim == 2 and len(rows) == count and rows.dtype == torch.float32
    if not same or not sound or not torch.allclose(rows.norm(dim=1), torch.ones(count), atol=1e-4):
        log.warning("%s is broken and is made anew", path)
        return None
    return rows


def _remember(path: Path, about: str, rows: torch.Tensor) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
            file.write(save({_ROWS: rows}, {_ABOUT: about}))
        Path(file.name).replace(path)  # whole or not at all, also where two start at once
    except OSError as error:
        log.warning("%s cannot be written (%s): phrases are embedded anew each time", path, error.strerror)

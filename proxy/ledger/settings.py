"""The effective configuration as flat names and values, for the ledger. No secret is ever among them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from proxy import __version__

SET, NOT_SET = "(set)", "(not set)"
# Not secrets by their type, but whoever knows them may ask the hook.
_HIDDEN = frozenset({"internal.scan_ids"})
# Of a URL: user and password, and options, which of a database may hold a password too.
_PASSWORD, _OPTIONS = re.compile(r"//.*@", re.DOTALL), re.compile(r"\?.*", re.DOTALL)


def flat(config: BaseModel) -> dict[str, Any]:
    """Name to JSON value, `gate.version` included.

    A secret is `(set)` or `(not set)`, also as a digest it could be guessed. A URL loses what stands before
    its host, and its options.
    """
    return {"gate.version": __version__, **dict(_walk("", config))}


def _walk(name: str, value: object) -> Iterator[tuple[str, Any]]:
    match value:
        case BaseModel():
            for field, info in type(value).model_fields.items():
                inner = f"{name}.{field}" if name else field
                given = getattr(value, field)
                if "SecretStr" in repr(info.annotation):
                    yield inner, NOT_SET if given is None else SET
                else:
                    yield from _walk(inner, given)
        case Mapping():
            for key, inner_value in value.items():
                yield from _walk(f"{name}.{key}", inner_value)
        case list() | tuple() if any(isinstance(one, BaseModel) for one in value):
            for index, one in enumerate(value):
                yield from _walk(f"{name}.{index}", one)
        case _ if name in _HIDDEN:
            yield name, SET if value else NOT_SET
        case list() | tuple():
            yield name, [_plain(one) for one in value]
        case _:
            yield name, _plain(value)


def _plain(value: object) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case SecretStr():
            return SET
        case Path():
            return str(value)
    text = str(value)
    return _OPTIONS.sub("?…", _PASSWORD.sub("//…@", text)) if "://" in text else text

"""What may be said of an error in a log: words that help, and never a value that was to be written."""

from __future__ import annotations

from sqlalchemy.exc import SQLAlchemyError

from proxy.database.dialects import in_words
from proxy.errors import GateError


def said(error: BaseException) -> str:
    """What has gone wrong: of the gate's own errors and the database's their words, of others their kind."""
    if isinstance(error, GateError):
        return str(error)
    if isinstance(error, SQLAlchemyError):
        return f"the database: {in_words(error)}"
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__

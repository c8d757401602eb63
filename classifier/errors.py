"""The exceptions of the classifier. No message may carry anything of a file's content."""

from __future__ import annotations

import traceback


class ClassifierError(Exception):
    """The root of everything that the classifier raises on purpose."""


class SetupError(ClassifierError):
    """It cannot start as asked. The message says what to mend."""


class Rejection(ClassifierError):
    """A request that is answered with an error of protocol v1.

    Attributes:
        status: the HTTP status.
        code: one of the protocol's codes.
        message: a sentence for people.
        retry_after_s: seconds for `Retry-After`, or None.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.message = status, code, message
        self.retry_after_s = retry_after_s


def undecodable(message: str) -> Rejection:
    """The file claims a format that is looked at, and is not in it."""
    return Rejection(400, "undecodable", message)


def too_large(message: str) -> Rejection:
    """The file has more bytes or pixels than are looked at."""
    return Rejection(413, "too-large", message)


def unsupported(message: str) -> Rejection:
    """The file is in no format that is looked at."""
    return Rejection(415, "unsupported-media", message)


def overloaded(message: str) -> Rejection:
    """The queue is full. Another classifier may have room."""
    return Rejection(429, "overloaded", message, retry_after_s=1)


def deadline_exceeded() -> Rejection:
    """The answer would come too late to be of use."""
    return Rejection(504, "deadline-exceeded", "the deadline passed before the file was looked at")


def models_failed() -> Rejection:
    """The models raised, or gave nothing. Another classifier may do better."""
    return Rejection(500, "internal-error", "the models failed")


def error_place(error: BaseException) -> str:
    """Kind, file and line of a bug: enough to find it, and never a value, which may be of a picture."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {frame.filename}:{frame.lineno}"

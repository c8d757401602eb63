"""What pict-rs says when it refuses, in 0.5 and in 0.6, as recorded from both.

The gate refuses some requests in pict-rs's stead. It uses its codes, statuses and words, so that a client
need not care which of the two it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from proxy.errors import Refusal


@dataclass(frozen=True, slots=True)
class Wording:
    """One reason to refuse: its code, and status and words of either version."""

    code: str
    status: int
    msg: str
    status_06: int
    msg_06: str

    def __call__(self) -> Refusal:
        """The refusal, to be raised."""
        return Refusal(self.status, self.code, self.msg, in_06=(self.status_06, self.msg_06))


def _both(code: str, status: int, msg: str) -> Wording:
    return Wording(code, status, msg, status, msg)


FILE_EMPTY = _both("validate-file-empty", 400, "Uploaded file is empty")
FILE_TOO_LARGE = Wording("validate-file-size", 413, "File too large", 400, "File too large")
NOT_MEDIA = Wording(
    "command-failure",
    *(400, "Invalid media file provided"),
    *(400, "Command magick failed with status exit status: 1"),
)
NO_FILES = Wording(
    "validate-no-files",
    *(400, "No files present in upload"),
    *(500, "Failed to finalize file upload"),
)
DEADLINE_EXCEEDED = _both("request-timeout", 408, "Deadline exceeded")
DEADLINE_OUT_OF_RANGE = Wording(
    "parse-deadline", *(400, "Invalid deadline timestmap"), *(400, "Invalid deadline timestamp")
)
TOO_SLOW = _both("request-timeout", 408, "The upload came too slowly")
REFUSED_BY_VALIDATION = Wording(
    "failed-external-validation",
    *(400, "Failed external validation"),
    *(400, "Failed to upload file to url"),
)

# An upload's arguments.
NOT_A_NUMBER = "invalid digit found in string"
NOT_A_BOOLEAN = "provided string was not `true` or `false`"
STEP_UNKNOWN = Wording(
    "invalid-process-path",
    *(500, "Provided process path is invalid"),
    *(400, "Failed to parse process path"),
)
TOO_WIDE = _both("validate-width", 400, "Too wide")
TOO_TALL = _both("validate-height", 400, "Too tall")
TOO_MANY_PIXELS = _both("validate-area", 400, "Too many pixels")
TOO_MANY_FRAMES = _both("validate-frames", 400, "Too many frames")
LARGER_THAN_ASKED = Wording("validate-file-size", 413, "Filesize too large", 400, "Filesize is too large")
KIND_DISALLOWED = Wording(
    "media-disallowed",
    *(400, "Media type wasn't allowed for this upload"),
    *(400, "Media type isn't allowed for this upload"),
)

ALIAS_TAKEN = Wording(
    "duplicate-alias",
    *(400, "Tried to save an image with an already-taken name"),
    *(500, "Alias already exists"),
)
DELETE_TOKEN_WRONG = Wording(
    "invalid-delete-token",
    *(403, "Provided token did not match expected token"),
    *(403, "Invalid delete token"),
)
NO_API_KEY = Wording("invalid-api-token", 401, "Invalid API Key", 401, "Invalid API Token")


def unknown_extension(extension: str) -> Refusal:
    """`process.{extension}` where pict-rs cannot write that format."""
    return Wording(
        "invalid-file-extension",
        *(400, "Process endpoint was called with invalid extension"),
        *(400, f"Invalid format: {extension[:20]}"),
    )()


def bad_argument(msg: str, *, status_06: int) -> Refusal:
    """An upload's query has a value that cannot be read. 0.6's status depends on the entrance."""
    return Wording("invalid-query", 400, msg, status_06, msg)()


def busy() -> Refusal:
    """There is no room for one more upload."""
    return Refusal(503, "busy", "Too many uploads at once", retry_after_s=5)


def unavailable() -> Refusal:
    """Nobody can look, or what is to be held cannot be kept: nothing passes, and nothing is promised."""
    msg = "Pictures cannot be checked right now; please try again in a minute"
    return Refusal(503, "scan-unavailable", msg, retry_after_s=60)


def locked() -> Refusal:
    """There is a lockdown, and no placeholder to hold an upload behind."""
    msg = "No pictures are taken right now; please try again later"
    return Refusal(503, "scan-unavailable", msg, retry_after_s=900)


def malformed(msg: str) -> Refusal:
    """A body that is no upload; both versions use the words of the same form parser."""
    return Refusal(400, "file-upload-error", msg)


# A picture that the gate fetches itself (`/image/download`). pict-rs 0.6 has the code `invalid-query` for an
# address that is none and `unknown-error` for `http-client-error`; a refusal carries one code, that of 0.5.
SCHEME_NOT_ALLOWED = _both("http-client-error", 500, "URL scheme is not allowed")
ADDRESS_LOCAL = _both("download-file-error", 400, "Proxy url resolves to local address")
PORT_NOT_ALLOWED = _both("download-file-error", 400, "Pictures are not fetched from this port")
TOO_MANY_REDIRECTS = _both("download-file-error", 400, "The picture's address redirects too often")
DOWNLOAD_ENCODED = _both("download-file-error", 400, "The picture's server sent it in an encoded form")
SERVER_UNREACHABLE = _both("http-client-error", 500, "The picture's server cannot be reached")
DOWNLOAD_CUT_OFF = _both("http-client-error", 500, "The picture's server broke off its answer")
DOWNLOAD_TOO_SLOW = _both("download-file-error", 504, "The picture did not arrive in time")


def not_a_url(why: str) -> Refusal:
    """An address that cannot be fetched from. `why` is a fixed phrase, pict-rs's where it has one."""
    return _both("download-file-error", 400, why)()


def bad_response(status: int) -> Refusal:
    """The picture's server answered with `status`; in our words for it, never in the server's."""
    try:
        named = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        named = f"{status} <unknown status code>"
    return Wording(
        "download-file-error",
        *(500, f"Unable to download image, bad response {named}"),
        *(500, f"Invalid status: {named}"),
    )()

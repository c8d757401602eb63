"""The media file in a request of pict-rs's validation hook.

pict-rs 0.5 sends the file as the body. 0.6 sends a form with the file in its one part, and two Content-Type
headers: the file's and then the form's. Anything else is refused, because a file that the gate finds in a
body and a file that pict-rs stores must be the same.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

from proxy.errors import Refusal
from proxy.intake.multipart import Limits, MultipartError, Parser, boundary_of

# What a form takes up beside its file: two boundaries and the part's headers.
OVERHEAD_BYTES = 16 * 1024
_MEDIA_TYPE = re.compile(r"(?:image|video)/[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.IGNORECASE)
_FORM_TYPE = re.compile(r"multipart/form-data(?![^; \t])", re.IGNORECASE)
# Small beside a file, so that the parser never has two copies of one in its hands.
_STEP_BYTES = 64 * 1024


def media_of(headers: Sequence[tuple[str, str]], body: bytes) -> bytes:
    """The file, byte for byte.

    Args:
        headers: all of the request's, names in lower case.
        body: the whole of it.

    Raises:
        Refusal: 400; it is neither of the two shapes, or has no bytes.
    """
    types = [value for name, value in headers if name == "content-type"]
    if any(value.lower() != "identity" for name, value in headers if name == "content-encoding"):
        raise _malformed("The body is encoded")
    forms = [value for value in types if _FORM_TYPE.match(value)]
    media = [value for value in types if _MEDIA_TYPE.fullmatch(value)]
    if len(media) != 1 or len(media) + len(forms) != len(types) or len(forms) > 1:
        raise _malformed("The Content-Type is not that of pict-rs's validation")
    content = _only_part(forms[0], body) if forms else body
    if not content:
        raise _malformed("There is no file")
    return content


def _only_part(content_type: str, body: bytes) -> bytes:
    content = io.BytesIO()
    try:
        limits = Limits(parts=1, part_bytes=len(body), extended_names=True)
        parser = Parser(boundary_of(content_type), limits)
        for at in range(0, len(body), _STEP_BYTES):
            for event in parser.feed(body[at : at + _STEP_BYTES]):
                if isinstance(event, bytes):
                    content.write(event)
        parser.close()
    except MultipartError:
        raise _malformed("The form is not that of pict-rs's validation") from None
    return content.getvalue()


def _malformed(msg: str) -> Refusal:
    return Refusal(400, "malformed", msg)

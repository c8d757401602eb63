"""What an upload's query asks of pict-rs, as far as a held upload must be answered without pict-rs."""

from __future__ import annotations

from collections.abc import Sequence

from proxy import refusals
from proxy.media import Format, Kind, Measure, Size, processed_size

_NUMBERS = {  # pict-rs, struct UploadLimits: the largest value that each one's type holds
    "max_width": 2**16 - 1,
    "max_height": 2**16 - 1,
    "max_area": 2**32 - 1,
    "max_frame_count": 2**32 - 1,
    "max_file_size": 2**64 - 1,
}
_ALLOWS = {"allow_image": Kind.IMAGE, "allow_animation": Kind.ANIMATION, "allow_video": Kind.VIDEO}
_MEGABYTE = 1024 * 1024


class Arguments:
    """The query of an upload: limits, and processing steps in their order."""

    def __init__(self, query: Sequence[tuple[str, str]], *, bad_query_status_06: int = 400) -> None:
        """
        Args:
            query: the pairs, in their order.
            bad_query_status_06: what pict-rs 0.6 answers where it cannot read a value.

        Raises:
            Refusal: pict-rs would not understand it (its own status and code).
        """
        self.query = tuple(query)
        self._limits: dict[str, int] = {}
        self._disallowed: set[Kind] = set()
        self._steps: list[tuple[str, str]] = []
        for key, value in query:
            if key in _NUMBERS:
                number = _number(value)
                if number is None or number > _NUMBERS[key]:
                    raise refusals.bad_argument(refusals.NOT_A_NUMBER, status_06=bad_query_status_06)
                self._limits[key] = number
            elif key in _ALLOWS:
                if value not in ("true", "false"):
                    raise refusals.bad_argument(refusals.NOT_A_BOOLEAN, status_06=bad_query_status_06)
                if value == "false":
                    self._disallowed.add(_ALLOWS[key])
            else:
                self._steps.append((key, value))
        try:
            processed_size(Size(1, 1), self._steps)
        except ValueError:
            raise refusals.STEP_UNKNOWN() from None

    def check(self, media: Format, measure: Measure | None, file_bytes: int) -> None:
        """What pict-rs would check before it stores a file.

        Raises:
            Refusal: it would not store it.
        """
        limit = self._limits.get
        if measure is not None:
            width, height = measure.size
            if width > limit("max_width", width):
                raise refusals.TOO_WIDE()
            if height > limit("max_height", height):
                raise refusals.TOO_TALL()
            if measure.frames and measure.frames > limit("max_frame_count", measure.frames):
                raise refusals.TOO_MANY_FRAMES()
            if width * height > limit("max_area", width * height):
                raise refusals.TOO_MANY_PIXELS()
        if "max_file_size" in self._limits and file_bytes > self._limits["max_file_size"] * _MEGABYTE:
            raise refusals.LARGER_THAN_ASKED()
        if media.kind in self._disallowed:
            raise refusals.KIND_DISALLOWED()

    def size_after(self, media: Format, size: Size) -> Size:
        """The size that pict-rs would store; it does not process videos."""
        return size if media.kind is Kind.VIDEO else processed_size(size, self._steps)


def _number(value: str) -> int | None:
    """As Rust reads an unsigned number."""
    digits = value.removeprefix("+")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 20 else None

"""What an answer of protocol v1 means, whichever way it came: a look, or why there is none."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from proxy.channels.looks import ChannelError, File, Seen, Undecodable

# The classifier looked at the file and says that it is not for it; asking again changes nothing.
_NOT_FOR_IT = frozenset({"undecodable", "unsupported-media", "too-large"})


def look_of(
    name: str, file: File, status: int, retry_after: str | None, answer: Mapping[str, Any]
) -> Seen | Undecodable:
    """The look that an answer to `/v1/classify` is.

    Args:
        name: of the channel, for messages.
        file: that was asked about.
        status: as in HTTP.
        retry_after: the header of that name, seconds; None where there was none.
        answer: the JSON object.

    Raises:
        ChannelError: nobody looked, or the answer is not one of protocol v1 about this file.
    """
    if status == 200:
        return _seen(name, answer, file)
    code = _code(answer)
    if code in _NOT_FOR_IT and status in (400, 413, 415):
        return Undecodable(code)
    if status == 401:
        raise _refused(name)
    if status == 429:
        raise ChannelError(f"{name} is overloaded", retry_after_s=_seconds(retry_after))
    raise ChannelError(f"{name} answered {status} {code}")


def signals_of(name: str, status: int, answer: Mapping[str, Any]) -> frozenset[str]:
    """The names of the signals that an answer to `/v1/info` tells.

    Raises:
        ChannelError: it tells none.
    """
    if status == 401:
        raise _refused(name)
    names = answer.get("signals") if status == 200 else None
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise ChannelError(f"{name} answered {status}; is it a pictrs-classifier?")
    return frozenset(names)


def ensemble_of(answer: Mapping[str, Any]) -> str | None:
    """Name and version that an answer tells; None where it lacks one of them."""
    if "ensemble" not in answer or "version" not in answer:
        return None
    return f"{answer['ensemble']} {answer['version']}"


def _refused(name: str) -> ChannelError:
    return ChannelError(f"{name} refuses the token; see classifiers.token in the configuration")


def _seen(name: str, answer: Mapping[str, Any], file: File) -> Seen:
    """A 200, checked: an answer that contradicts itself, or is about another file, is nobody's look."""
    try:
        signals = _signals(answer["signals"])
        frames = []
        for frame in answer["frames"]:
            own = _signals(frame["signals"])
            frames.append({"index": int(frame["index"]), "signals": own})
            for signal, value in own.items():  # the file's are its frames' largest; believe the larger
                signals[signal] = max(value, signals.get(signal, 0.0))
        hashes = answer.get("hashes") or {}
        about = hashes.get("sha256")
        if about and file.sha256 and about != file.sha256:
            raise ValueError("the answer is about another file")
        media = answer["media"]
        ensemble = f"{answer['ensemble']} {answer['version']}"
        if not signals or not frames or int(media["frames_scored"]) < 1:
            raise ValueError("nothing was scored")
        size = int(media["width"]), int(media["height"])
        if min(size) < 1:
            raise ValueError("a picture without pixels")
        return Seen(signals, frames, ensemble, str(media["format"]), *size, *_pdq(hashes))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise ChannelError(f"{name}: its answer is not one of protocol v1") from None


def _signals(raw: Any) -> dict[str, float]:
    signals = {str(name): float(value) for name, value in raw.items()}
    if not all(math.isfinite(value) and 0 <= value <= 1 for value in signals.values()):
        raise ValueError("a signal is not within 0..1")
    return signals


def _pdq(hashes: Mapping[str, Any]) -> tuple[str, int] | tuple[None, None]:
    pdq, quality = hashes.get("pdq"), hashes.get("pdq_quality")
    if pdq is None or quality is None:
        return None, None
    if not re.fullmatch(r"[0-9a-f]{64}", pdq) or not 0 <= int(quality) <= 100:
        raise ValueError("a perceptual hash that is none")
    return str(pdq), int(quality)


def _code(answer: Mapping[str, Any]) -> str:
    """The code of an error. Its message is dropped: a codec's words may quote the file."""
    error = answer.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) and re.fullmatch(r"[a-z-]{1,40}", code) else "unknown"


def _seconds(retry_after: str | None) -> float:
    try:
        return min(60.0, max(0.05, float(retry_after or 1)))  # in this order NaN is the smallest
    except ValueError:
        return 1.0

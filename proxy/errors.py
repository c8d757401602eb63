"""The exceptions of the gate.

`Refusal` is what a client is told; the others are what an operator is told. No message may carry a
picture's bytes, a token or a key.
"""

from __future__ import annotations


class GateError(Exception):
    """The root of everything that the gate raises on purpose."""


class ConfigError(GateError):
    """The configuration cannot be used. The message names the key, the value and what is allowed."""


class CaseError(GateError):
    """A case cannot do what was asked of it (wrong state, no key, gone)."""


class HashesError(GateError):
    """A list of hashes cannot be read, or is not there. The message names file and line, never the hash."""


class StoredMeanwhile(CaseError):
    """A case cannot be confirmed yet: pict-rs has been given its picture since it was taken away there."""


class ConfirmedMeanwhile(CaseError):
    """A release cannot end: the same file was confirmed since it was begun."""


class AliasTaken(GateError):
    """An alias was asked for that stands for another picture already."""


class SealingError(GateError):
    """A case could not be sealed or opened, or its file could not be made durable."""


class LedgerError(GateError):
    """The ledger, or a file of its checkpoints, cannot be read."""


class NoRoom(SealingError):
    """The quarantine may not take one more case now; see `proxy.cases.quota`."""


class Unreadable(SealingError):
    """A sealed file is damaged, or sealed to other keys: to try again is of no use.

    Attributes:
        is_for_others: whether it is sealed to other keys.
    """

    def __init__(self, message: str, *, is_for_others: bool) -> None:
        super().__init__(message)
        self.is_for_others = is_for_others


class PictrsError(GateError):
    """pict-rs could not be reached, or answered with an error.

    Attributes:
        status: the HTTP status of its answer, also of one that was cut off; None where there was none.
        code: pict-rs's own `code`, or None; `too-large` is the gate's, of an answer that it did not read on.
        timed_out: whether it was the time limit that ended the waiting.
    """

    def __init__(
        self, message: str, *, status: int | None = None, code: str | None = None, timed_out: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.timed_out = timed_out

    @property
    def may_pass(self) -> bool:
        """Whether the same question may be answered later: none came, or one of a server in trouble."""
        if self.code == "too-large":
            return False
        return self.status is None or self.status < 300 or self.status in (408, 429) or self.status >= 500


class Refusal(GateError):
    """A request that the gate answers with an error of pict-rs's shape, `{"msg", "code"}`.

    Attributes:
        status: the HTTP status.
        code: a code for programs; pict-rs's own where pict-rs would refuse for the same reason.
        msg: a sentence for people (Lemmy shows it to the uploader).
        retry_after_s: seconds for a `Retry-After` header, or None.
        in_06: status and words of pict-rs 0.6, where they are others; see `proxy.refusals`.
    """

    def __init__(
        self,
        status: int,
        code: str,
        msg: str,
        *,
        retry_after_s: int | None = None,
        in_06: tuple[int, str] | None = None,
    ) -> None:
        super().__init__(f"{status} {code}: {msg}")
        self.status = status
        self.code = code
        self.msg = msg
        self.retry_after_s = retry_after_s
        self.in_06 = in_06

"""From a file to a verdict: known bytes first, then a look, then what it looks like and the policy."""

from __future__ import annotations

import logging

from proxy.channels.lookout import Lookout
from proxy.channels.looks import File, Look, Priority, Seen
from proxy.known_hashes import KnownHashes
from proxy.ledger.allows import Allows
from proxy.media import Format
from proxy.metrics import Metrics
from proxy.policy import Decision, Policy, Verdict, decide

log = logging.getLogger(__name__)


class Judge:
    """Decides about files, whichever way they come."""

    def __init__(
        self, known: KnownHashes, lookout: Lookout, policy: Policy, metrics: Metrics, allows: Allows
    ) -> None:
        self._known, self._lookout, self._policy, self._metrics = known, lookout, policy, metrics
        self._allows = allows

    async def judge(
        self, content: bytes, media: Format, sha256: str, *, priority: Priority, within_s: float
    ) -> tuple[Look | None, Decision]:
        """What was seen of a file, and what becomes of it.

        Args:
            content: its bytes; `sha256` is theirs, lower-case hexadecimal.
            media: what its signature claims.
            within_s: seconds after which it counts as looked at by nobody.

        Returns:
            The look, None where the hash was known; the decision.

        Raises:
            SQLAlchemyError: the database cannot be asked.
        """
        look: Look | None = None
        decision = await self._known.find(sha256)
        if decision is None:
            look = await self._lookout.look(
                File(content, media, sha256), priority=priority, within_s=within_s
            )
            decision = decide(self._policy, look, media, await self._known.find_near(look))
        self._metrics.verdicts.labels(verdict=decision.verdict.value).inc()
        if decision.verdict is Verdict.ALLOW and isinstance(look, Seen | None):
            self._allows.note(sha256, look)
        log.info("verdict=%s sha256=%s reason=%r", decision.verdict, sha256, decision.reason)
        return look, decision

"""From a file to a verdict: known bytes, a lockdown, a look, what it looks like, the policy."""

from __future__ import annotations

import logging
from typing import Protocol

from proxy.channels.lookout import Lookout
from proxy.channels.looks import File, Look, Priority, Seen
from proxy.known_hashes import KnownHashes
from proxy.ledger.allows import Allows
from proxy.media import Format
from proxy.metrics import Metrics
from proxy.policy import Decision, Policy, Verdict, decide

log = logging.getLogger(__name__)


class Precaution(Protocol):
    """What may decide before anybody looks: a lockdown."""

    async def decision(self, uploader_id: str | None) -> Decision | None:
        """What becomes of every file of an uploader; None where it is looked at."""
        ...


class Judge:
    """Decides about files, whichever way they come."""

    def __init__(
        self,
        known: KnownHashes,
        lookout: Lookout,
        policy: Policy,
        metrics: Metrics,
        *,
        allows: Allows,
        lockdown: Precaution,
    ) -> None:
        self._known, self._lookout, self._policy, self._metrics = known, lookout, policy, metrics
        self._allows, self._lockdown = allows, lockdown

    async def judge(
        self,
        content: bytes,
        media: Format,
        sha256: str,
        *,
        priority: Priority,
        within_s: float,
        uploader_id: str | None = None,
        despite_lockdown: bool = False,
    ) -> tuple[Look | None, Decision]:
        """What was seen of a file, and what becomes of it.

        Args:
            content: its bytes; `sha256` is theirs, lower-case hexadecimal.
            media: what its signature claims.
            within_s: seconds after which it counts as looked at by nobody.
            uploader_id: Lemmy's local user id, where it can be believed; a lockdown may let it pass.
            despite_lockdown: has it looked at whatever a lockdown says. The caller answers for that.

        Returns:
            The look, None where the hash was known or a lockdown holds everything; the decision.

        Raises:
            SQLAlchemyError: the database cannot be asked.
        """
        look: Look | None = None
        decision = await self._known.find(sha256)
        if decision is None and not despite_lockdown:
            decision = await self._lockdown.decision(uploader_id)
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

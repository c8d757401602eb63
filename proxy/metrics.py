"""What Prometheus sees. No label ever carries an alias, an address or anything else of a user."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The gate's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "pictrs_gate_requests_total",
            "Requests by route and status.",
            ["route", "status"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "pictrs_gate_request_seconds",
            "Time to answer, by route.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.verdicts = Counter(
            "pictrs_gate_verdicts_total", "Uploads by verdict.", ["verdict"], registry=self.registry
        )
        self.looks = Counter(
            "pictrs_gate_looks_total",
            "Files by what came of having them looked at.",
            ["outcome"],
            registry=self.registry,
        )
        self.look_seconds = Histogram(
            "pictrs_gate_look_seconds",
            "Time until somebody had looked, or nobody.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.classifier_fit = Gauge(
            "pictrs_gate_classifier_fit",
            "1 for a classifier that is asked first, 0 for one that has failed and is asked last.",
            ["classifier"],
            registry=self.registry,
        )
        self.backlog = Gauge(
            "pictrs_gate_backlog",
            "What waits until somebody can look: deferred cases, and uploads that passed unseen; "
            "and for a reviewer: pending cases, and releases that were cut off.",
            ["kind"],
            registry=self.registry,
        )
        self.backlog_oldest_seconds = Gauge(
            "pictrs_gate_backlog_oldest_seconds",
            "Since when the oldest of it waits.",
            registry=self.registry,
        )
        self.classifier_ejections = Counter(
            "pictrs_gate_classifier_ejections_total",
            "How often a classifier failed and was asked last from then on.",
            registry=self.registry,
        )
        self.unvalidated_fetches = Counter(
            "pictrs_gate_unvalidated_fetches_total",
            "Pictures that pict-rs has fetched without asking its validation hook; they were deleted again.",
            registry=self.registry,
        )
        self.public_hits = Gauge(
            "pictrs_gate_public_hits",
            "Pictures that passed unseen, are known to be hits by now, and that pict-rs has still.",
            registry=self.registry,
        )
        self.sealing_failures = Counter(
            "pictrs_gate_sealing_failures_total", "Cases that could not be written.", registry=self.registry
        )
        self.allows_dropped = Counter(
            "pictrs_gate_allows_dropped_total",
            "Plain allows that are missing in the statistics: the database did not take them in time.",
            registry=self.registry,
        )
        self._checkpoint_age = Gauge(
            "pictrs_gate_ledger_checkpoint_age_seconds",
            "Since the ledger's last checkpoint; one is made every day.",
            registry=self.registry,
        )
        self._checkpoint_age.set(math.inf)  # until there is one
        self.lockdown = Gauge(
            "pictrs_gate_lockdown", "1 while every upload is held, whatever it is.", registry=self.registry
        )
        self.quarantine_bytes = Gauge(
            "pictrs_gate_quarantine_bytes", "Bytes of all sealed files.", registry=self.registry
        )
        self.quarantine_quota_bytes = Gauge(
            "pictrs_gate_quarantine_quota_bytes",
            "Bytes that they may take; past it, what is to be held is refused.",
            registry=self.registry,
        )
        self.quarantine_free_bytes = Gauge(
            "pictrs_gate_quarantine_free_bytes",
            "Bytes free on the disk of the sealed files; 0 where the folder is gone.",
            registry=self.registry,
        )
        self.quota_refusals = Counter(
            "pictrs_gate_quota_refusals_total",
            "Uploads that were refused because there was no room to hold them, by the limit that was met.",
            ["limit"],
            registry=self.registry,
        )
        self.uploads_in_progress = Gauge(
            "pictrs_gate_uploads_in_progress",
            "Uploads between their first byte and their answer.",
            registry=self.registry,
        )

    def checkpoint_made_at(self, moment: datetime) -> None:
        """The ledger's last checkpoint is of `moment`."""
        self._checkpoint_age.set_function(lambda: (datetime.now(UTC) - moment).total_seconds())

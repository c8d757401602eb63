"""What Prometheus sees of the classifier."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_FRAMES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The classifier's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "pictrs_classifier_requests_total",
            "Files by what came of them: ok, or the protocol's error code.",
            ["outcome", "priority"],
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "pictrs_classifier_stage_seconds",
            "Time in each stage: decode, queue (all that a file waited), infer.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.remembered = Counter(
            "pictrs_classifier_remembered_frames_total",
            "Frames that were known from their pixels.",
            registry=self.registry,
        )
        self.batch_frames = Histogram(
            "pictrs_classifier_batch_frames",
            "Frames of each batch.",
            buckets=_FRAMES,
            registry=self.registry,
        )
        self.not_decoded = Counter(
            "pictrs_classifier_not_decoded_total",
            "Files that could not be decoded, by the format that their first bytes claim.",
            ["code", "format"],
            registry=self.registry,
        )
        self.waiting = Gauge(
            "pictrs_classifier_waiting", "Files under way or waiting.", registry=self.registry
        )
        self.linked = Gauge(
            "pictrs_classifier_linked", "1 while a gate that was dialled listens.", registry=self.registry
        )
        self.gpu_bytes = Gauge(
            "pictrs_classifier_gpu_memory_bytes",
            "Memory that torch has reserved on each card.",
            ["device"],
            registry=self.registry,
        )

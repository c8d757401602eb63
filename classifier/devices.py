"""The cards of this machine, as torch names them; torch is asked only where a head has loaded it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from classifier.metrics import Metrics


def others() -> Sequence[str]:
    """The cards beside the first one, which heads take by themselves."""
    if "torch" not in sys.modules:
        return []
    import torch

    return [f"cuda:{number}" for number in range(1, torch.cuda.device_count())]


def watch_memory(metrics: Metrics) -> None:
    """Lets `metrics` show what torch has reserved on each card."""
    if "torch" not in sys.modules:
        return
    import torch

    for number in range(torch.cuda.device_count()):
        device = f"cuda:{number}"

        def reserved(device: str = device) -> float:
            return float(torch.cuda.memory_reserved(device))

        metrics.gpu_bytes.labels(device=device).set_function(reserved)


def is_gpu() -> bool:
    """Whether there is a card that torch can use, and a head that has loaded torch."""
    if "torch" not in sys.modules:
        return False
    import torch

    return torch.cuda.is_available()

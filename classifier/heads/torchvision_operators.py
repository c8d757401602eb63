"""Lets `timm` import beside a CPU-only torch.

timm imports torchvision, and PyPI's torchvision for x86-64 Linux is built against CUDA: beside a torch
without it, the import fails with "operator torchvision::nms does not exist". timm uses none of torchvision's
compiled operators, so declaring the two that the import asks for is enough. Where torchvision imports,
nothing is done.
"""

from __future__ import annotations

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def declare() -> None:
    """Declares the operators where torchvision cannot bring its own. To be called before timm is imported."""
    try:
        import torchvision  # noqa: F401 — the import is the question
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for schema in _SCHEMAS:
            library.define(schema)  # type: ignore[no-untyped-call]
        _KEPT.append(library)


_KEPT: list[torch.library.Library] = []  # a library's operators go when it does

"""A torch model on a device: prepared pixels in, a row of numbers a frame out.

On a card nothing here waits before it must: `Tower.begin` only puts work into the card's queues, the upload
into one of its own, so that it overlaps the batch before it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import pad

from classifier.decoding import Array
from classifier.errors import SetupError
from classifier.heads import Inputs, Options

_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_COMPILE = ("off", "default", "reduce-overhead", "max-autotune")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a tower computes, and how.

    Attributes:
        precision: of weights and activations; pixels are normalised, and results given, in float32.
        compile: a mode of `torch.compile`, or `off`.
    """

    device: torch.device
    precision: torch.dtype
    compile: str

    def __str__(self) -> str:
        """For people."""
        compiled = "" if self.compile == "off" else f", compiled ({self.compile})"
        return f"on {self.device} in {str(self.precision).removeprefix('torch.')}{compiled}"


def placement(options: Options) -> Placement:
    """From a recipe: `device` (default: the caller's, else cuda where there is one, else cpu), `precision`,
    `compile`.

    Raises:
        SetupError: there is no such device here, or a value is not understood.
    """
    default = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    name = options.take("device", str, default=default)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SetupError(f"{options.where}: device: {name!r} is no device; cuda, cuda:1, cpu are") from None
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)  # by number, so that equal devices are equal
        cards = torch.cuda.device_count()
        if device.index >= cards:
            raise SetupError(f"{options.where}: device: {name}: torch sees {cards} card(s) here")
    precision = _one_of(options, "precision", "auto", ("auto", *_PRECISIONS))
    compiled = _one_of(options, "compile", "off", _COMPILE)
    return Placement(device, _PRECISIONS.get(precision) or _best_precision(device), compiled)


class Tower:
    """A model, ready to compute."""

    def __init__(
        self,
        model: torch.nn.Module,
        results: Callable[[torch.Tensor], torch.Tensor],
        mean: Sequence[float],
        std: Sequence[float],
        placed: Placement,
    ) -> None:
        """
        Args:
            model: of normalised pixels (n, 3, height, width); it is moved and converted in place.
            results: what is wanted, (n, k), of what the model gives, in float32, on the same device.
            mean, std: of each channel, for pixels 0..1.
        """
        self._placed, self._results = placed, results
        model = model.eval().requires_grad_(False).to(placed.device, placed.precision)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._model: Callable[[torch.Tensor], torch.Tensor] = model
        if placed.compile != "off":
            self._model = torch.compile(self._model, mode=placed.compile, dynamic=False)
        self._mean, self._std = (
            torch.tensor(channels, dtype=torch.float32, device=placed.device).view(1, 3, 1, 1)
            for channels in (mean, std)
        )

    def begin(self, inputs: Inputs) -> Callable[[], Array]:
        """Begins to compute; what it returns waits for the results, (n, k) float32.

        Args:
            inputs: of each frame (1, height, width, 3) uint8; heads of equal preparation share their upload.

        Raises:
            ArithmeticError: what it returns does, where a result is no number.
        """
        device = self._placed.device
        if device.type != "cuda":
            with torch.inference_mode():
                pixels = inputs.once(("pixels", device), lambda: _upload(inputs.arrays, device))
                results = self._compute(pixels).cpu()
            return lambda: _numbers(results)
        with torch.cuda.device(device), torch.inference_mode():
            pixels = inputs.once(("pixels", device), lambda: _upload_beside(inputs.arrays, device))
            on_card = self._compute(pixels)
            # Pinned: into other memory the copy would wait for the card here.
            results = torch.empty(on_card.shape, dtype=on_card.dtype, pin_memory=True)
            results.copy_(on_card, non_blocking=True)
            # blocking: whoever waits sleeps instead of burning a core
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record()

        def finish() -> Array:
            done.synchronize()
            return _numbers(results)

        return finish

    def _compute(self, pixels: torch.Tensor) -> torch.Tensor:
        """Of pixels (n, height, width, 3) uint8."""
        count = len(pixels)
        # Only the view changes: what lies in memory channels last is what channels_last wants.
        normal = (pixels.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std
        normal = normal.to(self._placed.precision)
        if self._placed.compile != "off":
            normal = pad(normal, (0, 0, 0, 0, 0, 0, 0, padded(count) - count))
        return self._results(self._model(normal)[:count].float())


def padded(count: int) -> int:
    """The next power of two: a model is compiled anew for every batch size that it meets."""
    return 1 << (count - 1).bit_length()


def fingerprint(model: torch.nn.Module) -> bytes:
    """A digest of every tensor by name, wherever its file came from; to be taken before `Tower` converts."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.digest()


def configured(values: object) -> bytes:
    """A digest of what a model's own configuration makes of its weights.

    Args:
        values: of types whose `repr` says all that is in them, and nothing else.
    """
    return hashlib.sha256(repr(values).encode()).digest()


def _numbers(results: torch.Tensor) -> Array:
    """Half precision can overflow, and what is no number reaches no threshold: better no answer."""
    numbers = results.numpy()
    if not np.isfinite(numbers).all():
        raise ArithmeticError("a model gave what is no number; precision fp32 may help")
    return numbers


def _upload(arrays: Sequence[Array], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(arrays)).to(device)


def _upload_beside(arrays: Sequence[Array], device: torch.device) -> torch.Tensor:
    """Uploads in a queue of its own, for which the one that computes waits."""
    count = sum(len(array) for array in arrays)
    pinned = torch.empty((count, *arrays[0].shape[1:]), dtype=torch.uint8, pin_memory=True)
    np.concatenate(arrays, out=pinned.numpy())
    beside, computing = _upload_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(beside):
        pixels = pinned.to(device, non_blocking=True)
    computing.wait_stream(beside)
    pixels.record_stream(computing)  # or its memory would be given away while it is still read
    return pixels


@functools.cache
def _upload_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _best_precision(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return torch.float32
    with torch.cuda.device(device):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def _one_of(options: Options, key: str, default: str, allowed: Sequence[str]) -> str:
    value: str = options.take(key, str, default=default)
    if value not in allowed:
        raise SetupError(f"{options.where}: {key}: {value!r} is none of {', '.join(allowed)}")
    return value

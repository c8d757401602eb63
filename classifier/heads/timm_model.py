"""Any signal by any classification model of `timm`: `hf-hub:…`, `local-dir:…` or a built-in name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from classifier.errors import SetupError
from classifier.heads import Finish, Head, Inputs, Options, torchvision_operators
from classifier.heads.resizing import INTERPOLATIONS, Resized
from classifier.heads.towers import Placement, Tower, configured, fingerprint, placement
from classifier.heads.weights import Source, first_line, pin, sha256_of, source

torchvision_operators.declare()
import timm  # noqa: E402
from timm.data import resolve_model_data_config  # noqa: E402

# Where timm 1.0.31 looks (models/_hub.py), in its order.
_HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_FOLDER_WEIGHTS = (*_HUB_WEIGHTS, "pytorch_model.pth", "model.pth")


class TimmHead:
    """The probability of some of a model's classes together."""

    warning = None

    def __init__(
        self, model: str, signal: str, classes: Sequence[int | str], placed: Placement, described: str
    ) -> None:
        """
        Args:
            described: the SHA-256 of the file that describes the model; empty where its library does.

        Raises:
            SetupError: the model cannot be loaded, or has no such classes.
        """
        self.signals = (signal,)
        try:
            loaded = timm.create_model(model, pretrained=True)
        except Exception as error:  # noqa: BLE001 — timm, the hub and safetensors each have their own
            raise SetupError(f"timm: {model}: cannot be loaded: {first_line(error)}") from None
        config = resolve_model_data_config(loaded)
        self.preparation = _preparation(model, config)
        numbers = _class_numbers(model, classes, loaded)
        # What else the description makes of the weights (model_args) is nowhere to be asked for.
        used = (self.preparation, config["mean"], config["std"], numbers, described)
        self._fingerprints = [fingerprint(loaded), configured(used)]

        def together(logits: torch.Tensor) -> torch.Tensor:
            # one logit is a yes or no, several are one choice
            odds = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)
            return odds[:, numbers].sum(dim=1, keepdim=True).clamp(0, 1)

        self._tower = Tower(loaded, together, config["mean"], config["std"], placed)

    def begin(self, inputs: Inputs) -> Finish:
        """See `Head.begin`."""
        finish = self._tower.begin(inputs)
        return lambda: [{self.signals[0]: float(score)} for score in finish()[:, 0]]

    def fingerprints(self) -> Iterator[bytes]:
        """See `Head.fingerprints`."""
        yield from self._fingerprints


def _preparation(name: str, config: dict[str, Any]) -> Resized:
    _, height, width = config["input_size"]
    if config["crop_mode"] not in ("center", "squash") or config["interpolation"] not in INTERPOLATIONS:
        raise SetupError(f"timm: {name}: {config['crop_mode']}, {config['interpolation']}: not understood")
    if config["crop_mode"] == "center" and height != width:
        raise SetupError(f"timm: {name}: an input of {width}×{height} with crop_mode center")
    return Resized(height, width, config["crop_pct"], config["crop_mode"], config["interpolation"])


def _class_numbers(name: str, classes: Sequence[int | str], model: Any) -> list[int]:
    labels = list(model.pretrained_cfg.get("label_names") or [])
    count = model.num_classes
    numbers = []
    for wanted in classes:
        number = wanted if isinstance(wanted, int) else labels.index(wanted) if wanted in labels else -1
        if not 0 <= number < count:
            known = ", ".join(labels) or f"0..{count - 1}"
            raise SetupError(f"timm: {name}: has no class {wanted!r}; it has {known}")
        numbers.append(number)
    return numbers


@dataclass(frozen=True, slots=True)
class TimmPlan:
    """See `TimmHead`.

    Attributes:
        source: of the model.
        sha256: that its file of weights has to have, or None.
    """

    source: Source
    signal: str
    classes: Sequence[int | str]
    placed: Placement
    sha256: str | None

    @property
    def signals(self) -> tuple[str, ...]:
        """See `Plan.signals`."""
        return (self.signal,)

    @property
    def sources(self) -> Sequence[Source]:
        """See `Plan.sources`."""
        return (self.source,)

    def load(self) -> TimmHead:
        """See `Plan.load`."""
        self.source.bring()
        self.source.check(self.sha256)
        config = self.source.config_file
        described = sha256_of(config) if config else ""
        return TimmHead(self.source.model, self.signal, self.classes, self.placed, described)

    def explain(self, head: Head | None) -> Iterator[tuple[str, str]]:
        """See `Plan.explain`."""
        classes = " + ".join(f"P({wanted})" for wanted in self.classes)
        yield self.signal, f"{classes} of a classifier of pictures"
        yield "takes", str(head.preparation) if head else "known once its files are here"
        yield "weights", str(self.source)
        yield "computes", str(self.placed)


def plan(options: Options) -> TimmPlan:
    """From a recipe: `model` as timm names it, `signal`, `classes` by label or number, `sha256`, and the keys
    of `towers.placement`."""
    classes = options.take("classes", list)
    if not classes or not all(isinstance(wanted, int | str) for wanted in classes):
        raise SetupError("timm: classes: has to be a list of labels or numbers")
    return TimmPlan(
        _source(options.take("model", str)),
        options.take("signal", str),
        classes,
        placement(options),
        pin(options.where, options.find("sha256", str)),
    )


def _source(model: str) -> Source:
    found = source(model, "config.json", _HUB_WEIGHTS, _FOLDER_WEIGHTS)
    if found is not None:
        return found
    built_in = timm.get_pretrained_cfg(model)
    if built_in is None or not built_in.hf_hub_id:
        raise SetupError(
            f"timm: {model}: has to be hf-hub:…, local-dir:…, or one of timm's models with weights"
        )
    names = (built_in.hf_hub_filename,) if built_in.hf_hub_filename else _HUB_WEIGHTS
    return Source(model, built_in.hf_hub_id, None, None, None, names)

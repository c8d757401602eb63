"""Any signal by any classification model of `timm`: `hf-hub:…`, `local-dir:…` or a built-in name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from classifier.errors import SetupError
from classifier.heads import Finish, Inputs, Options, torchvision_operators
from classifier.heads.resizing import INTERPOLATIONS, Resized

torchvision_operators.declare()
import timm  # noqa: E402
from timm.data import resolve_model_data_config  # noqa: E402


class TimmHead:
    """The probability of some of a model's classes together."""

    warning = None

    def __init__(self, model: str, signal: str, classes: Sequence[int | str], device: str) -> None:
        """
        Raises:
            SetupError: the model cannot be loaded, or has no such classes.
        """
        self.signals = (signal,)
        self._device = torch.device(device)
        try:
            self._model = timm.create_model(model, pretrained=True)
        except Exception as error:  # noqa: BLE001 — timm, the hub and safetensors each have their own
            raise SetupError(f"timm: {model}: cannot be loaded: {type(error).__name__}: {error}") from None
        self._model.eval().to(self._device)
        config = resolve_model_data_config(self._model)
        _, height, width = config["input_size"]
        if config["crop_mode"] not in ("center", "squash") or config["interpolation"] not in INTERPOLATIONS:
            raise SetupError(
                f"timm: {model}: {config['crop_mode']}, {config['interpolation']}: not understood"
            )
        if config["crop_mode"] == "center" and height != width:
            raise SetupError(f"timm: {model}: an input of {width}×{height} with crop_mode center")
        self.preparation = Resized(
            height, width, config["crop_pct"], config["crop_mode"], config["interpolation"]
        )
        self._mean, self._std = (
            torch.tensor(config[name], device=self._device).view(1, 3, 1, 1) for name in ("mean", "std")
        )
        self._classes = _class_numbers(model, classes, self._model)

    def begin(self, inputs: Inputs) -> Finish:
        """See `Head.begin`."""
        batch = torch.from_numpy(np.concatenate(inputs.arrays)).to(self._device)
        with torch.inference_mode():
            pixels = batch.permute(0, 3, 1, 2).float() / 255
            logits = self._model((pixels - self._mean) / self._std).float()
            # one logit is a yes or no, several are one choice
            odds = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)
            scores = odds[:, self._classes].sum(dim=1).clamp(0, 1).cpu()
        return lambda: [{self.signals[0]: float(score)} for score in scores]

    def fingerprints(self) -> Iterator[bytes]:
        """See `Head.fingerprints`: of every tensor by name, wherever the file came from."""
        for name, tensor in sorted(self._model.state_dict().items()):
            raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            yield hashlib.sha256(name.encode() + raw.tobytes()).digest()


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


def build(options: Options) -> TimmHead:
    """From a recipe: `model` as timm names it, `signal`, `classes` by label or number, `device`."""
    classes = options.take("classes", list)
    if not classes or not all(isinstance(wanted, int | str) for wanted in classes):
        raise SetupError("timm: classes: has to be a list of labels or numbers")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    return TimmHead(
        options.take("model", str),
        options.take("signal", str),
        classes,
        options.take("device", str, default=default),
    )

"""Signals by what a picture is nearer to: short phrases, by an image tower of `open_clip` (CLIP or SigLIP).

The phrases are embedded once by the text tower, remembered by `phrases`, and the text tower is dropped.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch.nn.functional import normalize

from classifier.errors import SetupError
from classifier.heads import Finish, Head, Inputs, Options, phrases, torchvision_operators
from classifier.heads.resizing import INTERPOLATIONS, Resized
from classifier.heads.towers import Placement, Tower, configured, fingerprint, placement
from classifier.heads.weights import Source, first_line, pin, sha256_of, source

torchvision_operators.declare()
import open_clip  # noqa: E402

# Where open_clip 3.3 looks (pretrained.py, factory.py), in its order.
_CONFIG = "open_clip_config.json"
_HUB_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_FOLDER_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)


@dataclass(frozen=True, slots=True)
class Concept:
    """What a picture is asked: phrases that say yes, and phrases that say no."""

    yes: tuple[str, ...]
    no: tuple[str, ...]


class ConceptsHead:
    """For each signal, a softmax over its phrases' similarities to the picture, summed over `yes`."""

    warning = None

    def __init__(
        self, origin: Source, concepts: Mapping[str, Concept], temperature: float | None, placed: Placement
    ) -> None:
        """
        Args:
            temperature: what cosines are divided by; None takes the model's own, 1 / exp(its logit scale).

        Raises:
            SetupError: the model cannot be loaded, or prepares its pictures in an unknown way.
        """
        self.signals = tuple(concepts)
        model = origin.model
        try:
            with _quietly():
                both = open_clip.create_model(model, require_pretrained=True).eval()
        except Exception as error:  # noqa: BLE001 — open_clip, the hub and safetensors each have their own
            raise SetupError(f"concepts: {model}: cannot be loaded: {first_line(error)}") from None
        config = both.visual.preprocess_cfg
        self.preparation = _preparation(model, config)
        weights = fingerprint(both)
        said = list(dict.fromkeys(phrase for one in concepts.values() for phrase in (*one.yes, *one.no)))
        how = {**_how(origin), "model": model, "weights": weights.hex()}
        rows = phrases.embeddings(how, said, lambda: _embed(model, both, said))
        self._fingerprints = [weights, configured((self.preparation, config["mean"], config["std"], how))]
        scale = 1 / temperature if temperature else float(both.logit_scale.detach().exp())
        towards = (rows * scale).T.to(placed.device)
        asked = [
            ([said.index(phrase) for phrase in (*one.yes, *one.no)], len(one.yes))
            for one in concepts.values()
        ]

        def nearer(features: torch.Tensor) -> torch.Tensor:
            similar = normalize(features, dim=1) @ towards
            odds = [similar[:, places].softmax(dim=1)[:, :count].sum(dim=1) for places, count in asked]
            return torch.stack(odds, dim=1).clamp(0, 1)

        # Only the image tower is kept: the text tower goes with `both`.
        self._tower = Tower(both.visual, nearer, config["mean"], config["std"], placed)

    def begin(self, inputs: Inputs) -> Finish:
        """See `Head.begin`."""
        finish = self._tower.begin(inputs)
        return lambda: [dict(zip(self.signals, map(float, row), strict=True)) for row in finish()]

    def fingerprints(self) -> Iterator[bytes]:
        """See `Head.fingerprints`: of both towers, since the phrases' embeddings follow from them."""
        yield from self._fingerprints


def _preparation(name: str, config: Mapping[str, Any]) -> Resized:
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    modes = {"shortest": "center", "squash": "squash"}  # open_clip's word → timm's
    mode, how = modes.get(config["resize_mode"]), config["interpolation"]
    if mode is None or how not in INTERPOLATIONS:
        raise SetupError(f"concepts: {name}: {config['resize_mode']}, {how}: not understood")
    if mode == "center" and height != width:
        raise SetupError(f"concepts: {name}: an input of {width}×{height} with resize_mode shortest")
    return Resized(height, width, 1.0, mode, how)


def _embed(name: str, both: Any, said: Sequence[str]) -> torch.Tensor:
    """Each phrase's direction (n, dimensions) float32, by the text tower, on the CPU."""
    try:
        with _quietly():
            tokens = open_clip.get_tokenizer(name)(said)
    except Exception as error:  # noqa: BLE001 — tokenizers come from the hub and from another library
        raise SetupError(f"concepts: {name}: its tokenizer cannot be loaded: {first_line(error)}") from None
    with torch.inference_mode():
        embedded: torch.Tensor = both.encode_text(tokens, normalize=True)
    return embedded.float()


def _how(origin: Source) -> dict[str, str]:
    """What phrases' embeddings depend on, beside the weights."""
    config = origin.config_file
    tokenizer = _tokenizer(origin)
    if tokenizer is not None:
        try:
            tokenizer += f", transformers {metadata.version('transformers')}"
        except metadata.PackageNotFoundError:
            raise SetupError(
                f"concepts: {origin.model}: its tokenizer needs transformers; pip install transformers"
            ) from None
    return {
        "configuration": sha256_of(config) if config else "",
        "open_clip": metadata.version("open_clip_torch"),
        "tokenizer": tokenizer or "own",
    }


def _tokenizer(origin: Source) -> str | None:
    """The repository of the tokenizer, where the model does not use open_clip's own."""
    config = origin.config_file
    if config is None:
        return None
    try:
        name = json.loads(config.read_text())["model_cfg"]["text_cfg"].get("hf_tokenizer_name")
    except (ValueError, LookupError, TypeError, AttributeError):
        return None  # open_clip will say what is wrong with it
    return name if isinstance(name, str) and name else None


@contextmanager
def _quietly() -> Iterator[None]:
    """Drops what open_clip tells the root logger at level info, a dozen lines a model."""

    def matters(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING

    root = logging.getLogger()
    root.addFilter(matters)
    try:
        yield
    finally:
        root.removeFilter(matters)


@dataclass(frozen=True, slots=True)
class ConceptsPlan:
    """See `ConceptsHead`.

    Attributes:
        source: of the model.
        sha256: that its file of weights has to have, or None.
    """

    source: Source
    concepts: Mapping[str, Concept]
    temperature: float | None
    placed: Placement
    sha256: str | None

    @property
    def signals(self) -> tuple[str, ...]:
        """See `Plan.signals`."""
        return tuple(self.concepts)

    @property
    def sources(self) -> Sequence[Source]:
        """See `Plan.sources`: the tokenizer may have one of its own, named by the model's configuration."""
        name = _tokenizer(self.source)
        if name is None or self.source.repository is None:
            return (self.source,)
        return (self.source, Source(name, name, None, None, None, ()))

    def load(self) -> ConceptsHead:
        """See `Plan.load`."""
        self.source.bring()
        self.source.check(self.sha256)
        return ConceptsHead(self.source, self.concepts, self.temperature, self.placed)

    def explain(self, head: Head | None) -> Iterator[tuple[str, str]]:
        """See `Plan.explain`."""
        for signal, concept in self.concepts.items():
            yield signal, "how much nearer the picture is to the phrases of yes than to those of no"
            yield "  yes", "; ".join(concept.yes)
            yield "  no", "; ".join(concept.no)
        yield "takes", str(head.preparation) if head else "known once its files are here"
        yield "weights", str(self.source)
        yield "computes", str(self.placed)


def plan(options: Options) -> ConceptsPlan:
    """From a recipe: `model` (`hf-hub:…` or `local-dir:…`), `signals`, a table of tables with `yes` and `no`,
    `temperature`, `sha256`, and the keys of `towers.placement`."""
    model = options.take("model", str)
    origin = source(model, _CONFIG, _HUB_WEIGHTS, _FOLDER_WEIGHTS)
    if origin is None or origin.revision is not None:  # open_clip takes no revision
        raise SetupError(f"concepts: model: {model}: has to be hf-hub:owner/name or local-dir:path")
    tables = options.take("signals", dict)
    if not tables:
        raise SetupError(f"{options.where}: signals: there is none")
    concepts = {name: _concept(f"{options.where}: signals.{name}", table) for name, table in tables.items()}
    temperature = options.find("temperature", (int, float))
    if temperature is not None and not temperature > 0:
        raise SetupError(f"{options.where}: temperature: {temperature}: has to be above 0")
    pinned = pin(options.where, options.find("sha256", str))
    return ConceptsPlan(origin, concepts, temperature, placement(options), pinned)


def _concept(where: str, table: Any) -> Concept:
    if not isinstance(table, dict):
        raise SetupError(f"{where}: has to be a table with yes and no")
    options = Options(where, table)
    yes, no = (_phrases(where, key, options.take(key, list)) for key in ("yes", "no"))
    options.done()
    if set(yes) & set(no):
        raise SetupError(f"{where}: {(set(yes) & set(no)).pop()!r} is both yes and no")
    return Concept(yes, no)


def _phrases(where: str, key: str, said: Sequence[Any]) -> tuple[str, ...]:
    if not said or not all(isinstance(phrase, str) and phrase.strip() for phrase in said):
        raise SetupError(f"{where}: {key}: has to be a list of phrases")
    return tuple(dict.fromkeys(said))

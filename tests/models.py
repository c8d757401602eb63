"""Small randomly initialised models in local folders, laid out as the hub has them, and recipes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from classifier.decoding import Limits
from classifier.decoding.worker import prepare
from classifier.ensembles import Ensemble, strongest
from classifier.heads import Signals


def recipe(folder: Path, *tables: str) -> str:
    """The path of a recipe with these `[[heads]]`."""
    path = folder / "recipe.toml"
    path.write_text('name = "own"\nabout = "a test"\n' + "\n".join(f"[[heads]]\n{table}" for table in tables))
    return str(path)


def look(ensemble: Ensemble, content: bytes, *, frames: int = 32) -> Signals:
    """The signals of a file."""
    decoded = prepare(content, ensemble.preparations, Limits(frames=frames))
    return strongest(ensemble.begin(decoded.frames)())


def timm_table(folder: Path | str, signal: str = "sexual", **options: Any) -> str:
    """A head of `timm_model`'s class `unsafe`, on the CPU."""
    model = folder if isinstance(folder, str) else f"local-dir:{folder}"
    table = {"signal": signal, "model": model, "classes": ["unsafe"], "device": "cpu", **options}
    return 'kind = "timm"\n' + "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items())


def timm_model(
    folder: Path, *, seed: int = 0, change: Callable[[Any], None] | None = None, **config: Any
) -> Path:
    """A ViT of 160×160 pixels and three classes.

    Args:
        change: of the model, before it is saved.
        config: overrides of its `pretrained_cfg`.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    model = timm.create_model("test_vit", num_classes=3)
    if change is not None:
        change(model)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    described = {
        "architecture": "test_vit",
        "num_classes": 3,
        "label_names": ["safe", "doubtful", "unsafe"],
        "pretrained_cfg": {
            "input_size": [3, 160, 160],
            "mean": [0.4, 0.5, 0.6],
            "std": [0.2, 0.25, 0.3],
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "num_classes": 3,
            **config,
        },
    }
    (folder / "config.json").write_text(json.dumps(described))
    return folder


def clip_model(
    folder: Path,
    *,
    seed: int = 0,
    siglip: bool = False,
    text: Mapping[str, Any] | None = None,
    change: Callable[[Any], None] | None = None,
    **preprocess: Any,
) -> Path:
    """A CLIP of 48×48 pixels, with open_clip's own tokenizer.

    Args:
        siglip: built as SigLIP is: an image tower of timm's (160×160 pixels), the text tower apart, a bias.
        text: overrides of its `text_cfg`.
        change: of the model, before it is saved.
        preprocess: overrides of its `preprocess_cfg`.
    """
    import open_clip
    import torch
    from safetensors.torch import save_file

    vision = {"image_size": 48, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32}
    by_timm = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"}
    config: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": by_timm if siglip else vision,
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 2,
            **(text or {}),
        },
    }
    torch.manual_seed(seed)
    if siglip:
        config["init_logit_bias"] = -10
        model: Any = open_clip.model.CustomTextCLIP(**config)
        config["custom_text"] = True
        last = model.visual.head.proj.weight
    else:
        model = open_clip.model.CLIP(**config)
        last = model.visual.proj
    # As initialised, all pictures look alike to it: its last projection is made to matter.
    torch.nn.init.normal_(last, std=1.0)
    if change is not None:
        change(model)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    described = {
        "model_cfg": config,
        "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], **preprocess},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    return folder

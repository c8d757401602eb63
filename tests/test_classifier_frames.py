"""Videos and long animations: no foreign frame passes between those that are scored."""

from __future__ import annotations

import io
from collections.abc import Iterator

import av
import numpy as np
import pytest
from PIL import Image

from classifier.decoding import Decoded, Limits, videos
from classifier.decoding.choosing import Chooser, features_of
from classifier.decoding.worker import prepare
from classifier.errors import Rejection
from tests import pictures
from tests.preparations import Pixels, indices_of, pixels_of


def decoded(content: bytes, limits: Limits | None = None) -> Decoded:
    return prepare(content, [Pixels()], limits or Limits())


def moving(count: int, odd: int | None, size: tuple[int, int] = (320, 180)) -> Iterator[Image.Image]:
    """A square that moves over a picture, and at one place another picture."""
    ground, other = pictures.draw(size, 3), pictures.draw(size, 77)
    for number in range(count):
        if number == odd:
            yield other
            continue
        image = ground.copy()
        left = number % (size[0] - 30)
        image.paste((255, 0, 0), (left, 60, left + 30, 90))
        yield image


def video(frames: Iterator[Image.Image], extension: str = "mp4", size: tuple[int, int] = (320, 180)) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=extension) as container:
        codec = "libvpx" if extension == "webm" else "libx264"
        stream = container.add_stream(codec, rate=25, width=size[0], height=size[1], pix_fmt="yuv420p")
        stream.codec_context.thread_count = 1  # libvpx's threads wait for each other by spinning
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize("extension", ["mp4", "mov", "webm"])
def test_a_video_is_decoded_from_its_first_frame_to_its_last(extension: str) -> None:
    seen = decoded(pictures.video(extension))
    media = seen.media
    assert (media.kind, media.format, media.frames) == ("video", extension, 20)
    assert (media.width, media.height, media.frames_scored) == (160, 120, len(indices_of(seen)))
    assert indices_of(seen)[0] == 0 and indices_of(seen)[-1] == 19
    for index, pixels in zip(indices_of(seen), pixels_of(seen), strict=True):
        drawn = np.asarray(pictures.draw((160, 120), index), int)
        assert np.abs(pixels.astype(int) - drawn).mean() < 12
    assert seen.hashes.pdq is not None


def test_jpeg_xl_is_a_picture() -> None:
    seen = decoded(pictures.encode(pictures.draw((96, 64)), "JXL", lossless=True))
    assert (seen.media.kind, seen.media.format) == ("image", "jxl")
    assert np.array_equal(pixels_of(seen)[0], np.asarray(pictures.draw((96, 64))))


@pytest.mark.parametrize("odd", [1, 101, 250, 298])
def test_one_odd_frame_of_a_long_gif_is_among_the_scored(odd: int) -> None:
    first, *rest = moving(300, odd, (160, 100))
    content = pictures.encode(first, "GIF", save_all=True, append_images=rest, duration=40)
    seen = decoded(content)
    assert odd in indices_of(seen)
    assert {0, 299} <= set(indices_of(seen)) and len(indices_of(seen)) <= 32


@pytest.mark.parametrize("extension", ["mp4", "webm"])
@pytest.mark.parametrize("odd", [1, 237, 498])
def test_one_odd_frame_of_a_twenty_second_video_is_among_the_scored(extension: str, odd: int) -> None:
    seen = decoded(video(moving(500, odd), extension))
    assert seen.media.frames == 500
    assert odd in indices_of(seen) and {0, 499} <= set(indices_of(seen)) and len(indices_of(seen)) <= 32


def test_what_stands_still_to_the_last_pixel_is_scored_once_and_at_its_end() -> None:
    still = pictures.draw((320, 180), 5)
    chosen = indices_of(decoded(video(still for _ in range(100))))
    assert {0, 99} <= set(chosen) and len(chosen) < 10  # compressing it changes a few pixels now and then


def test_a_video_that_lies_on_its_side_is_shown_upright() -> None:
    lying = video(iter([Image.new("RGB", (64, 32), "white")] * 2), size=(64, 32))
    upright = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # a quarter to the right
    at = lying.index(b"tkhd") + 4 + 40
    turned = lying[:at] + b"".join(value.to_bytes(4, signed=True) for value in upright) + lying[at + 36 :]
    seen = decoded(turned)
    assert (seen.media.width, seen.media.height) == (32, 64)
    assert pixels_of(seen)[0].shape == (64, 32, 3)


def test_a_turned_video_is_turned_the_right_way() -> None:
    image = Image.new("RGB", (64, 32), "white")
    image.paste((255, 0, 0), (0, 0, 24, 16))  # top left, which goes to the top right
    lying = video(iter([image] * 2), size=(64, 32))
    right = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    at = lying.index(b"tkhd") + 4 + 40
    seen = decoded(lying[:at] + b"".join(one.to_bytes(4, signed=True) for one in right) + lying[at + 36 :])
    pixels = pixels_of(seen)[0].astype(int)
    assert pixels[4, 27].tolist() == pytest.approx([254, 0, 0], abs=40)
    assert pixels[60, 4].tolist() == pytest.approx([255, 255, 255], abs=40)


def test_frames_of_a_large_video_are_reduced_and_its_size_is_told() -> None:
    seen = decoded(video(iter([pictures.draw((1920, 1080), 1)]), size=(1920, 1080)))
    assert (seen.media.width, seen.media.height) == (1920, 1080)
    height, width, _ = pixels_of(seen)[0].shape
    assert width * height <= 1_001_000 and width / height == pytest.approx(16 / 9, rel=0.01)


def test_a_video_of_more_pixels_than_may_be_is_refused() -> None:
    with pytest.raises(Rejection) as rejected:
        decoded(pictures.video(), Limits(pixels=160 * 120 - 1))
    assert rejected.value.code == "too-large"


def test_a_track_of_sound_alone_is_no_video() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44_100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 44_100
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    with pytest.raises(Rejection) as rejected:
        decoded(file.getvalue())
    assert rejected.value.code == "undecodable"


def test_every_picture_track_is_looked_at() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        tracks = [
            container.add_stream("libx264", rate=25, width=64, height=64, pix_fmt="yuv420p") for _ in "ab"
        ]
        for track, colour in zip(tracks, ("white", "red"), strict=True):
            for _ in range(3):
                container.mux(track.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 64), colour))))
            container.mux(track.encode())
    seen = decoded(file.getvalue())
    colours = (pixels.mean(axis=(0, 1)) for pixels in pixels_of(seen))
    means = {tuple(int(value) > 128 for value in colour) for colour in colours}
    assert means == {(True, True, True), (True, False, False)}


def test_without_the_library_videos_are_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "av", None)
    with pytest.raises(Rejection) as rejected:
        decoded(pictures.video())
    assert rejected.value.code == "unsupported-media"


def test_of_many_different_frames_the_most_different_stay() -> None:
    chooser = Chooser(4)
    colours = [*range(0, 40, 2), 250, *range(40, 60, 2)]
    images = [[Image.new("RGB", (30, 20), (colour,) * 3)] for colour in colours]
    for index, image in enumerate(images):
        chooser.see(index, features_of(image), lambda image=image: image)
    kept = dict(chooser.chosen((len(images) - 1, images[-1])))
    assert len(kept) <= 4 and 0 in kept and 20 in kept and len(images) - 1 in kept


def mosaic(image: Image.Image) -> Image.Image:
    """What has the same colours as the picture in each of 24×24 parts."""
    return image.resize((24, 24), Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)


def test_a_picture_between_mosaics_of_itself_is_among_the_scored() -> None:
    chooser = Chooser(32)
    whole = [pictures.draw((384, 384), 3)]
    around = [mosaic(whole[0])]
    images = [around] * 5 + [whole] * 3 + [around] * 92
    for index, image in enumerate(images):
        chooser.see(index, features_of(image), lambda image=image: image)
    assert [index for index, _ in chooser.chosen((99, around))] == [0, 5, 99]


def test_what_is_shown_for_long_is_scored_however_many_frames_differ_more() -> None:
    chooser = Chooser(32)
    noise = np.random.default_rng(1)
    images = [[Image.fromarray(noise.integers(0, 2, (24, 24, 3), np.uint8) * 255)] for _ in range(60)]
    images[40:40] = [[Image.new("RGB", (24, 24), (128, 128, at))] for at in range(100)]
    for index, image in enumerate(images):
        chooser.see(index, features_of(image), lambda image=image: image)
    chosen = [index for index, _ in chooser.chosen((159, images[-1]))]
    assert len(chosen) == 32 and sum(40 <= index < 140 for index in chosen) >= 3


def test_frames_alike_in_all_that_is_compared_are_looked_at_at_even_distances() -> None:
    chooser = Chooser(32)
    images = [[Image.new("RGB", (30, 20), (128, 128, 100))] for _ in range(300)]
    for index, (one,) in enumerate(images):
        one.putpixel((index % 30, index // 30), (128, 128, 103))  # no two the same to the last pixel
    for index, image in enumerate(images):
        chooser.see(index, features_of(image), lambda image=image: image)
    chosen = [index for index, _ in chooser.chosen((299, images[-1]))]
    assert np.diff(chosen).max() <= 32 and len(chosen) <= 32

"""Decoding: what a file shows is what the heads get; what cannot be decoded costs only its own request."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from classifier.decoding import Array, Decoded, Frame, Limits, Preparation
from classifier.decoding import pool as pools
from classifier.decoding.pool import DecodingPool
from classifier.decoding.worker import prepare
from classifier.errors import Rejection
from classifier.heads.resizing import Resized
from classifier.turns import Priority
from tests import pictures
from tests.preparations import Holds, Misbehaves, Nice, Pixels, Scripted, indices_of, pixels_of


def shown(content: bytes) -> list[Array]:
    return pixels_of(prepare(content, [Pixels()], Limits()))


RED, WHITE = (254, 0, 0), (255, 255, 255)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (pictures.encode(Image.new("RGB", (8, 8), "red"), "PNG"), (255, 0, 0)),
        (pictures.encode(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG"), WHITE),
        (pictures.encode(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "PNG"), (127, 127, 127)),
        (pictures.encode(Image.new("LA", (8, 8), (0, 0)), "PNG"), WHITE),
        (pictures.encode(Image.new("L", (8, 8), 100), "PNG"), (100, 100, 100)),
        (pictures.encode(Image.new("1", (8, 8), 1), "PNG"), WHITE),
        (pictures.encode(Image.new("I;16", (8, 8), 100 * 256), "PNG"), (100, 100, 100)),
        (pictures.encode(Image.new("P", (8, 8), 0), "PNG", transparency=0), WHITE),
        (pictures.encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), RED),
        (
            pictures.encode(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "WEBP", lossless=True, exact=True),
            WHITE,
        ),
    ],
)
def test_every_kind_of_pixel_is_shown_as_a_page_would_show_it(
    content: bytes, expected: tuple[int, int, int]
) -> None:
    (pixels,) = shown(content)
    assert np.abs(pixels[4, 4].astype(int) - expected).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(orientation: int) -> None:
    upright = Image.new("RGB", (64, 32), "white")
    upright.paste((255, 0, 0), (0, 0, 16, 16))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Exif's orientation → Pillow's way back from it
    stored = upright.transpose(Image.Transpose(back[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = pictures.encode(stored, "JPEG", quality=95, subsampling=0, exif=exif)
    decoded = prepare(content, [Pixels()], Limits())
    assert (decoded.media.width, decoded.media.height) == (64, 32)
    (pixels,) = pixels_of(decoded)
    assert pixels[4, 4].tolist() == pytest.approx([254, 0, 0], abs=12)


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "AVIF"])
def test_every_frame_of_a_short_animation_is_scored(name: str) -> None:
    decoded = prepare(pictures.animation(name, frames=7), [Pixels()], Limits())
    assert (decoded.media.kind, decoded.media.frames, indices_of(decoded)) == ("animation", 7, list(range(7)))
    assert decoded.media.format == ("apng" if name == "PNG" else name.lower())
    frames = [array.tobytes() for array in pixels_of(decoded)]
    assert len(set(frames)) == 7


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"this is no picture", 415, "unsupported-media"),
        (pictures.video()[:3000], 400, "undecodable"),
        (pictures.video("webm")[:300], 400, "undecodable"),
        (pictures.video()[:32] + b"junk" * 100, 400, "undecodable"),
        (pictures.jpeg()[:3000], 400, "undecodable"),
        (pictures.png()[:2000], 400, "undecodable"),
        (pictures.png()[:8] + b"junk" * 100, 400, "undecodable"),
        (pictures.animation()[:-800], 400, "undecodable"),
        (pictures.encode(Image.new("1", (9000, 9000)), "PNG"), 413, "too-large"),
    ],
)
def test_what_cannot_be_decoded_is_rejected_with_its_reason(content: bytes, status: int, code: str) -> None:
    with pytest.raises(Rejection) as rejected:
        prepare(content, [Pixels()], Limits())
    assert (rejected.value.status, rejected.value.code) == (status, code)


@pytest.fixture(params=["PNG", "GIF", "JPEG", "WEBP", "AVIF", "JXL", "mp4", "mov", "webm"])
def damaged(request: pytest.FixtureRequest) -> Iterator[list[bytes]]:
    name = request.param
    whole = pictures.video(name) if name.islower() else pictures.encode(pictures.draw((96, 64)), name)
    rng = np.random.default_rng(1)
    files = []
    for _ in range(60):
        broken = bytearray(whole)
        for position in rng.integers(8, len(broken), size=3):
            broken[position] = rng.integers(0, 256)
        files.append(bytes(broken[: rng.integers(len(broken) // 2, len(broken) + 1)]))
    yield files


def test_a_damaged_file_is_decoded_or_rejected(damaged: list[bytes]) -> None:
    for content in damaged:
        try:
            prepare(content, [Pixels()], Limits())
        except Rejection as rejection:
            assert rejection.code in ("undecodable", "too-large", "unsupported-media")


@asynccontextmanager
async def pool(preparation: Preparation, workers: int = 1) -> AsyncIterator[DecodingPool]:
    running = DecodingPool(workers, [preparation], Limits(memory_bytes=2 * 1024**3))
    await running.start()
    try:
        yield running
    finally:
        await running.close()


async def decode(
    running: DecodingPool, content: bytes, *, within_s: float, priority: Priority = Priority.LIVE
) -> Decoded:
    deadline = asyncio.get_running_loop().time() + within_s
    return await running.decode(content, priority=priority, deadline=deadline)


async def test_a_decoder_that_crashes_costs_only_its_own_file() -> None:
    async with pool(Misbehaves(dies_at=40), workers=2) as running:
        bad, good = pictures.png((40, 40)), pictures.png((50, 50))
        answers = await asyncio.gather(
            *(decode(running, content, within_s=20) for content in (bad, good, bad, good)),
            return_exceptions=True,
        )
        codes = [answer.code if isinstance(answer, Rejection) else "decoded" for answer in answers]
        assert codes == ["undecodable", "decoded", "undecodable", "decoded"]


async def test_a_decoder_that_hangs_is_killed_at_the_deadline_and_replaced() -> None:
    async with pool(Misbehaves(hangs_at=40)) as running:
        with pytest.raises(Rejection, match="deadline-exceeded"):
            await decode(running, pictures.png((40, 40)), within_s=0.3)
        await decode(running, pictures.png((50, 50)), within_s=20)


async def test_a_decoder_that_wants_too_much_memory_gets_none() -> None:
    async with pool(Misbehaves(eats_at=40)) as running:
        with pytest.raises(Rejection, match="too-large"):
            await decode(running, pictures.png((40, 40)), within_s=20)
        await decode(running, pictures.png((50, 50)), within_s=20)


async def test_who_waits_for_a_decoder_waits_no_longer_than_its_deadline() -> None:
    async with pool(Misbehaves(hangs_at=40)) as running:
        hanging = asyncio.create_task(decode(running, pictures.png((40, 40)), within_s=1.0))
        await asyncio.sleep(0.05)
        with pytest.raises(Rejection, match="deadline-exceeded"):
            await decode(running, pictures.png((50, 50)), within_s=0.2)
        with pytest.raises(Rejection):
            await hanging


async def test_a_client_that_leaves_does_not_take_the_decoder_along() -> None:
    async with pool(Misbehaves()) as running:
        leaving = asyncio.create_task(decode(running, pictures.png((2000, 2000)), within_s=20))
        await asyncio.sleep(0.01)
        leaving.cancel()
        await decode(running, pictures.png((50, 50)), within_s=20)


async def test_decoders_stand_back_for_models_on_the_same_cores() -> None:
    pool = DecodingPool(1, [Nice()], Limits(), niceness=7)
    await pool.start()
    try:
        shown, _ = await decode(pool, pictures.png(), within_s=20)
    finally:
        await pool.close()
    assert shown.frames[0].inputs[Nice()] == os.nice(0) + 7


def decoders() -> set[int]:
    """The process ids of the pool's workers."""
    return {child.pid for child in multiprocessing.active_children() if child.pid and child.name == "decoder"}


async def test_decoders_that_died_while_they_had_nothing_to_do_cost_no_file() -> None:
    async with pool(Misbehaves(), workers=2) as running:
        for number in decoders():
            os.kill(number, signal.SIGKILL)
            os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)
        await decode(running, pictures.png((50, 50)), within_s=60)


async def test_a_file_is_tried_again_when_its_decoder_died(tmp_path: Path) -> None:
    script = Scripted(tmp_path / "tally", ("die", "decode"))
    async with pool(script) as running:
        await decode(running, pictures.png((40, 40)), within_s=60)
        assert script.count == 2


async def test_a_file_of_which_two_decoders_died_is_not_tried_a_third_time(tmp_path: Path) -> None:
    script = Scripted(tmp_path / "tally", ("die", "die", "decode"))
    async with pool(script, workers=2) as running:
        with pytest.raises(Rejection, match="undecodable"):
            await decode(running, pictures.png((40, 40)), within_s=60)
        assert script.count == 2


async def test_the_second_try_has_the_deadline_of_the_first(tmp_path: Path) -> None:
    async with pool(Scripted(tmp_path / "tally", ("die", "hang"))) as running:
        with pytest.raises(Rejection, match="deadline-exceeded"):
            await decode(running, pictures.png((40, 40)), within_s=2)


async def test_a_decoder_that_its_deadline_kills_after_all_serves_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exchange = pools._Worker.exchange

    def until_it_is_killed(worker: pools._Worker, content: bytes) -> object:
        answer = exchange(worker, content)
        worker.process.join()
        return answer

    async with pool(Misbehaves(), workers=2) as running:
        with monkeypatch.context() as patch:
            patch.setattr(pools._Worker, "exchange", until_it_is_killed)
            late = [decode(running, pictures.png((50, 50)), within_s=0.5) for _ in range(2)]
            await asyncio.gather(*late, return_exceptions=True)
        await decode(running, pictures.png((50, 50)), within_s=60)


async def test_a_deadline_that_was_kept_does_not_end_the_decoder_of_the_next_file(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with pool(Holds(tmp_path / "until")) as running:
        before, deadline = decoders(), loop.time() + 3
        await running.decode(pictures.png((50, 50)), priority=Priority.LIVE, deadline=deadline)
        following = asyncio.create_task(decode(running, pictures.png((40, 40)), within_s=60))
        await asyncio.sleep(deadline + 0.1 - loop.time())
        (tmp_path / "until").touch()
        await following
        assert decoders() == before


async def test_a_pool_that_stops_blames_no_file() -> None:
    async with pool(Misbehaves(hangs_at=40)) as running:
        hanging = asyncio.create_task(decode(running, pictures.png((40, 40)), within_s=60))
        await asyncio.sleep(0.1)
    with pytest.raises(Rejection, match="overloaded"):
        await hanging


async def test_a_decoder_is_the_live_file_s_before_the_backfill_s(tmp_path: Path) -> None:
    order: list[str] = []

    async def one(name: str, priority: Priority) -> None:
        await decode(running, pictures.png((40, 40)), within_s=60, priority=priority)
        order.append(name)

    async with pool(Holds(tmp_path / "until")) as running:
        tasks = []
        for name in ["backfill 1", "backfill 2", "live 1", "backfill 3", "live 2"]:
            tasks.append(asyncio.create_task(one(name, Priority(name.split()[0]))))
            await asyncio.sleep(0)  # each waits before the next one comes; the first has the decoder
        (tmp_path / "until").touch()
        await asyncio.gather(*tasks)
    assert order == ["backfill 1", "live 1", "live 2", "backfill 2", "backfill 3"]


@dataclass(frozen=True)
class Needs:
    """The size of the frame that it gets, when it needs a shorter side of so many pixels."""

    side: int

    def suffices(self, width: int, height: int) -> bool:
        return min(width, height) >= self.side

    def prepare(self, frame: Frame) -> Array:
        return np.asarray(frame.image.size)


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ([100], (512, 384)),  # PDQ wants 512 at least
        ([500], (1024, 768)),
        ([500, 800], (2048, 1536)),
        ([3000], (4096, 3072)),
    ],
)
def test_a_large_jpeg_is_decoded_as_small_as_every_head_allows(
    sides: list[int], expected: tuple[int, int]
) -> None:
    content = pictures.jpeg((4096, 3072), exif=b"")
    needs = [Needs(side) for side in sides]
    decoded = prepare(content, needs, Limits())
    assert (decoded.media.width, decoded.media.height) == (4096, 3072)
    for one in needs:
        assert tuple(decoded.frames[0].inputs[one]) == expected


def test_what_is_decoded_small_is_the_same_picture() -> None:
    content = pictures.encode(pictures.draw((4000, 3000), 9), "JPEG", quality=90)
    head = Resized(384, 384, 1.0, "center", "bicubic")
    reduced = prepare(content, [head], Limits())
    whole = prepare(content, [head, Pixels()], Limits())
    small, large = (one.frames[0].inputs[head].astype(int) for one in (reduced, whole))
    assert np.abs(small - large).mean() < 0.5
    assert reduced.hashes.pdq is not None and whole.hashes.pdq is not None
    apart = int(reduced.hashes.pdq, 16) ^ int(whole.hashes.pdq, 16)
    assert apart.bit_count() <= 10  # of 256; 31 is a match


def test_a_decoder_ends_once_however_many_end_it() -> None:
    """A refill that is cancelled goes on in its thread, while the pool closes."""
    for _ in range(5):
        worker = pools._Worker([], Limits(), niceness=0)
        worker.wait_until_ready()
        with ThreadPoolExecutor(8) as threads:
            for ended in [threads.submit(worker.end) for _ in range(8)]:
                ended.result()


def test_of_a_picture_much_wider_than_high_only_the_middle_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def resized(image: Image.Image, size: tuple[int, int], *arguments: Any, **options: Any) -> Image.Image:
        made.append(size)
        return resize(image, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", resized)
    head = Resized(384, 384, 1.0, "center", "bicubic")
    array = head.prepare(Frame(Image.new("RGB", (60_000, 2), "red"), 0, ""))
    assert array.shape == (1, 384, 384, 3) and (array == np.array([255, 0, 0])).all()
    assert made == [(384, 384)]  # the whole picture at that height would have 13 gigabytes


def profile(*, swapped: bool) -> bytes:
    """An sRGB profile; one that shows red as blue where `swapped`."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    entries = range(132, 132 + 12 * int.from_bytes(content[128:132]), 12)
    places = {bytes(content[entry : entry + 4]): entry + 4 for entry in entries}
    if swapped:
        red, blue = (slice(places[tag], places[tag] + 8) for tag in (b"rXYZ", b"bXYZ"))
        content[red], content[blue] = content[blue], content[red]
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("JPEG", "RGB"),
        ("PNG", "RGB"),
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("WEBP", "RGB"),
        ("WEBP", "RGBA"),
        ("AVIF", "RGB"),
        ("AVIF", "RGBA"),
    ],
)
def test_a_picture_is_looked_at_in_the_colours_that_its_profile_shows(name: str, mode: str) -> None:
    red = Image.new("RGB", (64, 64), (230, 20, 30)).convert(mode)
    quality = {"quality": 100} if name != "PNG" else {}
    for swapped, expected in ((False, (230, 20, 30)), (True, (30, 20, 230))):
        content = pictures.encode(red, name, icc_profile=profile(swapped=swapped), **quality)
        seen, *stored = pixels_of(prepare(content, [Pixels()], Limits()))
        assert np.abs(seen.mean(axis=(0, 1)) - expected).max() < 8
        assert len(stored) == swapped  # such a profile makes two pictures of one


def test_a_profile_that_is_none_is_ignored_as_browsers_do() -> None:
    red = Image.new("RGB", (64, 64), (230, 20, 30))
    for broken in (b"no profile", profile(swapped=True)[:200], bytes(5000)):
        content = pictures.encode(red, "PNG", icc_profile=broken)
        (seen,) = pixels_of(prepare(content, [Pixels()], Limits()))
        assert (seen == (230, 20, 30)).all()


def test_a_grey_and_a_cmyk_picture_with_a_profile_of_another_kind_are_looked_at() -> None:
    for mode in ("L", "CMYK"):
        image = Image.new("RGB", (64, 64), "white").convert(mode)
        content = pictures.encode(image, "JPEG", icc_profile=profile(swapped=True), quality=100)
        (seen,) = pixels_of(prepare(content, [Pixels()], Limits()))
        assert seen.min() > 245


@pytest.mark.parametrize("size", [(4000, 2), (2, 4000), (3000, 1)])
def test_a_picture_that_is_nearly_a_line_is_looked_at(size: tuple[int, int]) -> None:
    from classifier.heads.faces import FaceChips

    seen = prepare(pictures.png(size), [FaceChips(1024)], Limits())
    assert (seen.media.width, seen.media.height) == size

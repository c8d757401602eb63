"""Small variants first: what they do not settle is looked at itself, and only the line is spared."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from proxy.backfill.options import Options
from proxy.backfill.run import Work, pages_of
from proxy.backfill.sources import Entry
from proxy.backfill.thumbnails import is_near, marked, side_of
from proxy.database import BackfillRun, Database
from proxy.database import backfill as runs
from proxy.media import Kind
from tests import pictrs, pictures
from tests.backfill import PNG, POLICY, Eye, Store, content, entry, means
from tests.client import upload
from tests.conftest import SIGNALS
from tests.fake import SEEN, Asked, Reply, classifier, json_reply
from tests.gate import Gate

NewGate = Callable[..., Gate]
LARGE = 100_000


def small(number: int) -> bytes:
    return PNG + b"small " + str(number).encode()


def picture(number: int) -> Entry:
    """Every tenth is small already, every fifth a video."""
    plain = entry(number)
    size = 1000 if number % 10 == 0 else LARGE
    kind = Kind.VIDEO if number % 5 == 1 else Kind.IMAGE
    return dataclasses.replace(plain, size=size, kind=kind)


async def gone_over(
    database: Database, store: Store, scores: Mapping[bytes, float], options: Options, missing: int = -1
) -> tuple[BackfillRun, list[bytes]]:
    """A run, and what was looked at in it."""
    seen: list[bytes] = []
    run = runs.begin(database, kind="run", options=options.to_json(), newest=None)

    async def thumbnail(alias: str, side: int) -> bytes | None:
        assert side == options.via_thumbnails
        number = int(alias.removesuffix(".png"))
        return None if number == missing else small(number)

    eye = Eye(scores, on_look=lambda file: seen.append(file.content))
    async with means(database, store, eye) as made:
        work = Work(
            dataclasses.replace(made, thumbnail=thumbnail),
            run,
            options,
            ensembles=await made.lookout.ensembles(),
            stop=asyncio.Event(),
            on_batch=lambda _: None,
        )
        assert await work.over(pages_of(store, None))
    return runs.record(database, run.id, runs.Batch(), finished=True), seen


async def test_the_original_is_looked_at_where_its_variant_comes_near_a_threshold(database: Database) -> None:
    store = Store(20, entry=picture)
    scores = {small(3): 0.3, content(3): 0.9, small(4): 0.24, content(4): 0.9, small(7): 0.8, content(7): 0.1}
    run, seen = await gone_over(database, store, scores, Options(via_thumbnails=256), missing=8)
    assert run.looked_at == 20
    variants = {number for number in range(20) if number % 10 and number % 5 != 1} - {8}
    originals = {0, 10, 1, 6, 11, 16, 8, 3, 7}  # small, videos, without a variant, near
    assert {one for one in seen if b"small" in one} == {small(number) for number in variants}
    assert {one for one in seen if b"small" not in one} == {content(number) for number in originals}
    (hit,) = runs.hits_of(database, run.id)  # of 4 the variant says next to nothing: that is its price
    assert hit.aliases == ["3.png"] and hit.signals == {"sexual": 0.9}


async def test_a_look_at_a_variant_is_none_at_the_original(database: Database) -> None:
    store = Store(5, entry=lambda number: dataclasses.replace(entry(number), size=LARGE, kind=Kind.IMAGE))
    await gone_over(database, store, {}, Options(via_thumbnails=256))
    same, seen = await gone_over(database, store, {}, Options(via_thumbnails=128))
    assert (same.reused, seen) == (5, [])
    _, seen = await gone_over(database, store, {}, Options(via_thumbnails=512))
    assert len(seen) == 5
    whole, seen = await gone_over(database, store, {}, Options())
    assert (whole.looked_at, set(seen)) == (5, {content(number) for number in range(5)})
    after, seen = await gone_over(database, store, {}, Options(via_thumbnails=256))
    assert (after.reused, seen) == (5, [])


def test_near_means_that_all_signals_of_a_rule_have_half_of_it() -> None:
    assert is_near(POLICY, {"sexual": 0.25}) and not is_near(POLICY, {"sexual": 0.2499})
    assert is_near(POLICY, {"other": 0.0})  # nobody has said anything about it
    assert side_of(marked("starter 1 @home", 256)) == ("starter 1 @home", 256)
    assert side_of("starter 1") == ("starter 1", None)


def test_real_variants_are_looked_at_and_few_bytes_are_fetched(new_gate: NewGate, tmp_path: Path) -> None:
    store = pictrs.Pictrs(tmp_path / "store", real=pictrs.find())
    large = [pictures.encode(pictures.draw((700, 500), seed=7 + seed), "PNG") for seed in range(3)]
    planted = pictures.encode(pictures.draw((700, 500), seed=17), "PNG", compress_level=0)
    for one in (*large, planted):
        assert len(one) > 64 * 1024 or one is not planted
        assert upload(store.url, one).status == 201
    bodies: list[bytes] = []

    def look(asked: Asked) -> Reply:
        bodies.append(asked.body)
        is_large = len(asked.body) > 64 * 1024
        near = {"sexual": 0.3, "minor": 0.3}
        found = SIGNALS if is_large else near if b"WEBP" in asked.body[:16] else SEEN["signals"]
        media = {**SEEN["media"], "format": "webp" if b"WEBP" in asked.body[:16] else "png"}
        frames = [{"index": 0, "signals": found}]
        return json_reply(200, {**SEEN, "media": media, "signals": found, "frames": frames})

    looking = classifier(look)
    gate = new_gate(pictrs_url=store.url, api_key=store.api_key, classifier_url=looking.url, start=False)
    words = ("backfill", "run", "--config", str(gate.config), "--json", "--via-thumbnails", "128")
    report = json.loads(gate.run(*words).stdout)
    assert (report["looked_at"], report["hit_count"]) == (4, 1)
    assert report["options"]["via_thumbnails"] == 128
    variants = [body for body in bodies if body[8:12] == b"WEBP"]
    assert variants and all(len(body) < 30_000 for body in variants)
    refused = gate.run(*words, "--source", f"files:{tmp_path}", check=False)
    assert refused.returncode == 1 and "--via-thumbnails: pict-rs makes them" in refused.stderr
    looking.close()
    store.stop()

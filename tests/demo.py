"""`make demo`: the main job, end to end, on real photographs, with an account that is readable at a glance.

Starts pict-rs (the real one where there is one, else the stand-in), the classifier with its real weights and
the gate, on free loopback ports, and does as clients and a moderator would. Ends by itself.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageOps
from rich.console import Console

from tests import pictrs, pictures
from tests.client import Answer, get, upload
from tests.gate import Classifier, Gate

# Deliberately silly: it holds every picture with a face, because the demonstration has harmless ones only.
RULE = {"name": "demonstration: a face", "at_least": {"faces": 0.5}}


class Failed(Exception):
    """A step did not show what it should."""


def expect(fact: bool, otherwise: str) -> None:
    """Raises where `fact` does not hold."""
    if not fact:
        raise Failed(otherwise)


def same_picture(one: bytes, other: bytes) -> bool:
    """Whether two files show the same pixels; pict-rs rewrites files, but not these pictures."""
    first, second = (Image.open(io.BytesIO(content)).convert("RGB") for content in (one, other))
    return first.size == second.size and ImageChops.difference(first, second).getbbox() is None


def timed_upload(url: str, content: bytes) -> tuple[Answer, str]:
    """An upload's answer, and how long it took."""
    began = time.monotonic()
    answer = upload(url, content)
    return answer, f"{answer.status} in {(time.monotonic() - began) * 1000:.0f} ms"


class Demo:
    """The steps, in order. Each says what it has shown."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.real = pictrs.find()
        self.started: list[Any] = []

    @property
    def pictrs_version(self) -> str:
        return pictrs.version(self.real)

    def steps(self) -> list[tuple[str, Callable[[], str]]]:
        """Name and deed of each step."""
        return [
            ("everything is started", self.start),
            ("a photograph passes and comes back", self.photograph_passes),
            ("a portrait is held and shows a placeholder", self.portrait_is_held),
            ("a moderator sees the case, without the picture", self.case_is_listed),
            ("released: the same alias shows the photograph", self.case_is_released),
            ("another one is confirmed and kept", self.case_is_confirmed),
            ("its next upload is refused without a look", self.known_is_refused),
            ("the classifier is gone: deferred, not passed", self.outage_defers),
            ("the classifier is back: looked at, and shown", self.outage_ends),
            ("under attack: a lockdown holds every upload", self.lockdown_holds),
            ("backfill finds what was stored before the gate", self.backfill_finds),
            ("the ledger has it all, and holds", self.ledger_holds),
        ]

    def start(self) -> str:
        self.pictrs = pictrs.Pictrs(self.folder / "pict-rs", real=self.real)
        self.started.append(self.pictrs)
        # Stored before there was a gate: backfill is to find it.
        old = upload(self.pictrs.url, self._portrait(crop=40))
        expect(old.status == 201, f"pict-rs answered {old.status}")
        self.old_alias = old.json()["files"][0]["file"]
        self.classifier = Classifier(self.folder / "classifier")
        self.started.append(self.classifier)
        self.gate = Gate(
            self.folder / "gate",
            pictrs_url=self.pictrs.url,
            api_key=self.pictrs.api_key,
            classifier_url=self.classifier.url,
            rules=[RULE],
        )
        self.started.append(self.gate)
        return (
            f"pict-rs {self.pictrs.url} ← gate {self.gate.url} → classifier {self.classifier.url}, keys made"
        )

    def photograph_passes(self) -> str:
        content = pictures.photograph("rocket")
        answer, took = timed_upload(self.gate.url, content)
        expect(answer.status == 201, f"the gate answered {answer.status}: {answer.body!r}")
        alias = answer.json()["files"][0]["file"]
        shown = get(self.gate.url, f"/image/original/{alias}")
        expect(shown.status == 200 and same_picture(shown.body, content), "another picture came back")
        expect(self.gate.cases() == [], "it became a case")
        return f"rocket, {len(content) // 1000} kB → {took}, {alias}"

    def portrait_is_held(self) -> str:
        self.portrait = self._portrait()
        answer, took = timed_upload(self.gate.url, self.portrait)
        expect(answer.status == 201, f"the gate answered {answer.status}: {answer.body!r}")
        entry = answer.json()["files"][0]
        self.alias = entry["file"]
        shown = get(self.gate.url, f"/image/original/{self.alias}")
        size = Image.open(io.BytesIO(shown.body)).size
        expect(not same_picture(shown.body, self.portrait), "the portrait is shown")
        expect(
            size == (entry["details"]["width"], entry["details"]["height"]), "the placeholder's size differs"
        )
        direct = get(self.pictrs.url, f"/image/original/{self.alias}")
        expect(direct.status == 404, "pict-rs has it")
        return (
            f"astronaut → {took} as if stored; its alias shows grey {size[0]}×{size[1]}, pict-rs has nothing"
        )

    def case_is_listed(self) -> str:
        (case,) = json.loads(self.gate.review("list", "--json").stdout)
        expect(case["state"] == "pending" and case["alias"] == self.alias, "the case is not as it should be")
        self.case = case["id"]
        sealed = (self.gate.folder / "cases" / f"{self.case}.age").read_bytes()
        expect(sealed.startswith(b"age-encryption.org/v1"), "the case is not sealed")
        signals = ", ".join(f"{name} {value:.2f}" for name, value in sorted(case["signals"].items()))
        return f"review list: {self.case}, {case['reason']} ({signals})"

    def case_is_released(self) -> str:
        self.gate.review("release", self.case)
        shown = get(self.gate.url, f"/image/original/{self.alias}")
        expect(
            shown.status == 200 and same_picture(shown.body, self.portrait), "it does not show the portrait"
        )
        return f"review release → {self.alias} shows the portrait; no post had to change"

    def case_is_confirmed(self) -> str:
        self.other = self._portrait(mirror=True)
        answer = self.gate.upload(self.other)
        self.other_alias = answer.json()["files"][0]["file"]
        case = self.gate.cases()[0]
        expect(case["alias"] == self.other_alias, "the newest case is another one")
        self.gate.review("confirm", case["id"])
        shown = get(self.gate.url, f"/image/original/{self.other_alias}")
        expect(not same_picture(shown.body, self.other), "the confirmed picture is shown")
        return f"astronaut mirrored → review confirm {case['id']}: sealed, and its SHA-256 is remembered"

    def known_is_refused(self) -> str:
        before = self._looks()
        answer, took = timed_upload(self.gate.url, self.other)
        expect(answer.status == 400, f"the gate answered {answer.status}")
        code = answer.json()["code"]
        expect(code == "failed-external-validation", f"its code is {code}")
        expect(self._looks() == before, "the classifier was asked")
        return f"the same file again → {took}, {code}; the classifier was not asked"

    def outage_defers(self) -> str:
        self.classifier.stop()
        answer, took = timed_upload(self.gate.url, pictures.photograph("cat"))
        expect(answer.status == 201, f"the gate answered {answer.status}: {answer.body!r}")
        alias = self.deferred_alias = answer.json()["files"][0]["file"]
        case = self.gate.cases()[0]
        expect(case["alias"] == alias and case["state"] == "deferred", "it was not deferred")
        expect(get(self.pictrs.url, f"/image/original/{alias}").status == 404, "it was stored unseen")
        return f"cat, nobody could look → {took}, sealed as {case['id']}, state deferred"

    def outage_ends(self) -> str:
        self.classifier = Classifier(self.folder / "classifier", port=self.classifier.port)
        self.started.append(self.classifier)
        case = self.gate.cases()[0]
        took_s = self._is_released_by_the_gate(case["id"])
        shown = get(self.gate.url, f"/image/original/{self.deferred_alias}")
        expect(same_picture(shown.body, pictures.photograph("cat")), "another picture is shown")
        return f"cat, by itself → shown under the same alias {took_s:.1f} s later, {case['id']} released"

    def lockdown_holds(self) -> str:
        self._lockdown("on", "--for", "1h", "--reason", "demonstration")
        answer, took = timed_upload(self.gate.url, pictures.photograph("chelsea"))
        alias = answer.json()["files"][0]["file"]
        expect(get(self.pictrs.url, f"/image/original/{alias}").status == 404, "it was stored")
        self._lockdown("off")
        self._is_released_by_the_gate(self.gate.cases()[0]["id"])
        shown = get(self.gate.url, f"/image/original/{alias}")
        expect(same_picture(shown.body, pictures.photograph("chelsea")), "another picture is shown")
        return f"chelsea → {took}, held unseen; lockdown off: looked at and shown, with no human step"

    def backfill_finds(self) -> str:
        made = self.gate.run("backfill", "run", "--json", "--config", str(self.gate.config))
        report = json.loads(made.stdout)
        found = {alias for hit in report["hits"] for alias in hit["aliases"]}
        expect(self.old_alias in found, "the old portrait is not among the hits")
        shown = get(self.pictrs.url, f"/image/original/{self.old_alias}")
        expect(shown.status == 200, "backfill touched it")
        return (
            f"{report['looked_at']} stored files looked at, {len(report['hits'])} hits reported, none touched"
        )

    def ledger_holds(self) -> str:
        made = self.gate.run("ledger", "verify", "--config", str(self.gate.config))
        acts = Counter(entry.act for entry in self.gate.ledger())
        expect(acts["confirmed"] == 1 and acts["blocked"] == 1, f"the ledger has {dict(acts)}")
        told = ", ".join(f"{act} {count}" for act, count in sorted(acts.items()))
        return f"{made.stdout.strip().splitlines()[-1]}: {told}"

    def _lockdown(self, *words: str) -> None:
        self.gate.run("lockdown", *words, "--reviewer", "demo", "--config", str(self.gate.config))

    def _is_released_by_the_gate(self, case_id: str) -> float:
        """Waits until the gate has looked and found it harmless; seconds."""
        began = time.monotonic()
        while True:
            case = next(case for case in self.gate.cases() if case["id"] == case_id)
            if case["state"] not in ("deferred", "releasing"):
                break
            expect(time.monotonic() - began < 90, "nobody has looked at it")
            time.sleep(0.1)
        expect((case["state"], case["decided_by"]) == ("released", "gate"), f"it is {case['state']}")
        return time.monotonic() - began

    def _portrait(self, *, mirror: bool = False, crop: int = 0) -> bytes:
        image = Image.open(io.BytesIO(pictures.photograph("astronaut")))
        image = ImageOps.mirror(image) if mirror else image
        return pictures.encode(ImageOps.crop(image, crop), "JPEG", quality=90)

    def _looks(self) -> float:
        text = get(self.classifier.url, "/metrics").body.decode()
        lines = [line for line in text.splitlines() if line.startswith("pictrs_classifier_requests_total{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def stop(self) -> None:
        """Ends everything that it has started."""
        for one in reversed(self.started):
            one.stop()


def main() -> int:
    """Runs the demonstration; 0 where every step has shown what it should."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--json", action="store_true", help="the account as one JSON object")
    parser.add_argument("--keep", action="store_true", help="leave everything running and say where")
    options = parser.parse_args()
    console = Console(stderr=options.json, highlight=False)
    demo = Demo(Path(tempfile.mkdtemp(prefix="pictrs-gate-demo-")))
    if demo.real is not None:
        console.print(
            f"[bold]pictrs-gate[/]  with the real {demo.pictrs_version}, the classifier's starter ensemble"
        )
    else:
        console.print(
            "[bold]pictrs-gate[/]  with a small stand-in for pict-rs; `make pict-rs` brings the real one"
        )
    account: list[dict[str, Any]] = []
    failed = False
    try:
        for number, (name, deed) in enumerate(demo.steps(), start=1):
            began = time.monotonic()
            try:
                told = deed()
            except Exception as error:  # noqa: BLE001 — whatever it is, the account says it
                failed, told = True, f"{type(error).__name__}: {error}"
            ms = round((time.monotonic() - began) * 1000, 1)
            account.append({"name": name, "ok": not failed, "ms": ms, "told": told})
            mark = "[red]✗[/]" if failed else "[green]✓[/]"
            console.print(f" {mark} {number}  [bold]{name}[/] [dim]{ms / 1000:.2f} s[/]")
            console.print(f"      [dim]{told}[/]", soft_wrap=True)
            if failed:
                break
    finally:
        kept = options.keep and not failed
        if not kept:
            demo.stop()
            shutil.rmtree(demo.folder, ignore_errors=True)
    if options.json:
        print(json.dumps({"pictrs": demo.pictrs_version, "steps": account}, indent=1))
    if kept:
        _print_how_to_go_on(console, demo)
    elif not failed:
        console.print("Every step as promised; everything is stopped and cleaned up.")
    return 1 if failed else 0


def _print_how_to_go_on(console: Console, demo: Demo) -> None:
    pids = " ".join(str(one.program.process.pid) for one in (demo.gate, demo.classifier, demo.pictrs))
    console.print("Left running:", soft_wrap=True)
    console.print(f"  gate        {demo.gate.url}  (metrics {demo.gate.internal_url}/metrics)")
    console.print(f"  classifier  {demo.classifier.url}")
    console.print(f"  pict-rs     {demo.pictrs.url}")
    console.print(f"  curl -F 'images[]=@picture.jpg' {demo.gate.url}/image", soft_wrap=True)
    console.print(f"  cases       pictrs-gate review list --config {demo.gate.config}", soft_wrap=True)
    console.print(f"To end it:    kill {pids}; rm -r {demo.folder}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())

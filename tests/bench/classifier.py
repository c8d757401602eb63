"""`make bench-classifier`: what the classifier adds to its models, side by side with the models alone.

Models have random weights, because only their cost matters. Server, bare model and clients are processes of
their own on the same cores; everything is on loopback, bounded, and ends by itself. Where torch finds a card,
the same is measured on it, with larger models and more clients. Needs no more than the classifier itself.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from classifier import ensembles
from classifier.decoding import Frame, Limits, Prepared
from classifier.decoding.files import decode
from classifier.decoding.worker import _pdq, prepare
from classifier.heads.resizing import Resized
from tests.bench.load import TOKEN, Variations, photograph
from tests.processes import Program, answers, free_port

_ROOT = Path(__file__).parent.parent.parent
_CONFIGURED = ("input_size", "fixed_input_size", "crop_pct", "interpolation", "mean", "std")
_FIRST = iter(range(0, 9**6, 20_000))  # so that no two loads have pictures in common


def recipe(folder: Path, name: str, architecture: str, *, device: str) -> Path:
    """A recipe of one timm model with random weights, kept in `folder`."""
    weights = folder / name
    weights.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=2)
    save_file(model.state_dict(), weights / "model.safetensors")
    config = {key: model.pretrained_cfg[key] for key in _CONFIGURED}
    described = {"architecture": architecture, "num_classes": 2, "label_names": ["no", "yes"]}
    described["pretrained_cfg"] = {**config, "num_classes": 2, "label_names": ["no", "yes"]}
    (weights / "config.json").write_text(json.dumps(described))
    path = folder / f"{name}.toml"
    path.write_text(
        f'name = "{name}"\nabout = "random weights"\n[[heads]]\nkind = "timm"\nsignal = "s"\n'
        f'model = "local-dir:{weights}"\nclasses = ["yes"]\ndevice = "{device}"\n'
    )
    return path


SCRIPTED = 'name = "scripted"\n[[heads]]\nkind = "scripted"\notherwise = { s = 0.5 }\n'


@contextmanager
def serving(folder: Path, ensemble: Path, *options: object) -> Iterator[tuple[int, int]]:
    """A classifier as an operator starts it; its port and process."""
    port, token = free_port(), folder / "token"
    token.write_text(TOKEN)
    command = [sys.executable, "-c", "import sys; from classifier.cli import main; sys.exit(main())"]
    words = ["--log-level", "warning", "serve", "--ensemble", ensemble, "--listen", f"127.0.0.1:{port}"]
    all_words = [*command, *words, "--token-file", token, *options]
    program = Program([str(word) for word in all_words], folder / "classifier.log", cwd=_ROOT)
    try:
        program.wait_until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), within_s=300)
        yield port, program.process.pid
    finally:
        program.stop()


class Load:
    """Clients in processes of their own, under way."""

    def __init__(
        self,
        port: int,
        *,
        connections: int,
        seconds: float,
        priority: str = "live",
        side: str,
        processes: int = 1,
    ) -> None:
        words = [
            sys.executable,
            "-m",
            "tests.bench.load",
            "127.0.0.1",
            port,
            connections // processes,
            seconds,
        ]
        self._began = time.perf_counter()
        self._clients = [
            subprocess.Popen(
                [*map(str, words), priority, side, str(next(_FIRST))], stdout=subprocess.PIPE, cwd=_ROOT
            )
            for _ in range(processes)
        ]

    def done(self) -> dict[str, Any]:
        """What it took: images a second, and each answer's milliseconds."""
        results = [json.loads(client.communicate(timeout=600)[0]) for client in self._clients]
        taken = [ms for result in results for ms in result["ms"]]
        seconds = max(result["seconds"] for result in results)
        return {"images_per_s": len(taken) / seconds, "ms": taken, "bytes": results[0]["bytes"]}


def bare(ensemble: Path, batch: int, seconds: float) -> dict[str, float]:
    """Images a second of the model alone, and its CPU time for one."""
    words = [sys.executable, "-m", "tests.bench.bare", str(ensemble), str(batch), str(seconds)]
    output = subprocess.run(words, stdout=subprocess.PIPE, check=True, cwd=_ROOT, timeout=600).stdout
    figures: dict[str, float] = json.loads(output)
    return figures


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    ordered = sorted(values)
    return {
        "p50": round(statistics.median(ordered), 2),
        "p95": round(ordered[max(0, int(len(ordered) * 0.95) - 1)], 2),
    }


def cpu_s(pid: int) -> float:
    """CPU time of a process and of what it has started, in seconds."""
    total = 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(path.parent.name) == pid or int(fields[1]) == pid:
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def against_bare(
    folder: Path, ensemble: Path, *, batch: int, seconds: float, rounds: int, side: str, clients: int = 1
) -> dict[str, Any]:
    """The server over HTTP and the bare model, in turn on the same cores."""
    alone, served, cpu = [], [], []
    with serving(folder, ensemble, "--batch", batch) as (port, pid):
        Load(port, connections=clients, seconds=3, side=side, processes=clients).done()  # warm
        for _ in range(rounds):
            model = bare(ensemble, batch, seconds)
            alone.append(model["images_per_s"])
            before = cpu_s(pid)
            connections = 4 * batch if clients == 1 else max(8 * batch, clients)
            load = Load(port, connections=connections, seconds=seconds, side=side, processes=clients)
            done = load.done()
            served.append(done["images_per_s"])
            cpu.append(model["cpu_s_an_image"] / ((cpu_s(pid) - before) / len(done["ms"])))
    ratios = [ours / theirs for ours, theirs in zip(served, alone, strict=True)]
    return {
        "batch": batch,
        "bare_images_per_s": round(statistics.median(alone), 2),
        "served_images_per_s": round(statistics.median(served), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        # what is left where others do not take the cores away meanwhile
        "ratio_of_cpu_time": round(statistics.median(cpu), 3),
    }


def preparing(ensemble: Path, noise_part: float, rounds: int = 12) -> dict[str, Any]:
    """The prepare stage on 12-megapixel JPEGs against Pillow's whole decode and the same resize, each with
    and without the hashes (PDQ, SHA-256). The more detail there is, the less is won by decoding it smaller.
    """
    loaded = ensembles.load(str(ensemble))
    (resized,) = loaded.preparations
    assert isinstance(resized, Resized)

    def reduced(content: bytes) -> Frame:
        _, frames = decode(content, "", Limits(), resized.suffices)
        return next(iter(frames))

    def whole(content: bytes) -> Frame:
        return Frame(Image.open(io.BytesIO(content)).convert("RGB"), 0, "")

    def hashed(content: bytes, frame: Frame) -> Any:
        hashlib.sha256(content).hexdigest()
        _pdq(frame)
        return resized.prepare(frame)

    taken: dict[str, list[float]] = {}
    apart = []
    for number in range(rounds):
        content = photograph((4000, 3000), seed=number % 3, noise_part=noise_part)
        inputs: dict[str, Any] = {}
        for name, work in {
            "prepare_ms": lambda content: resized.prepare(reduced(content)),
            "pillow_ms": lambda content: resized.prepare(whole(content)),
            "prepare_and_hash_ms": lambda content: prepare(content, [resized], Limits()),
            "pillow_and_hash_ms": lambda content: hashed(content, whole(content)),
        }.items():
            began = time.perf_counter()
            inputs[name] = work(content)
            taken.setdefault(name, []).append(1000 * (time.perf_counter() - began))
        frames = [Prepared(0, {resized: inputs[name]}, b"") for name in ("prepare_ms", "pillow_ms")]
        one, other = loaded.begin(frames)()
        apart.append(abs(one["s"] - other["s"]))

    def times(slow: str, quick: str) -> float:
        return round(statistics.median(a / b for a, b in zip(taken[slow], taken[quick], strict=True)), 2)

    return {
        "bytes": len(content),
        **{name: round(statistics.median(values), 1) for name, values in taken.items()},
        "times_faster": times("pillow_ms", "prepare_ms"),
        "times_faster_with_hashes": times("pillow_and_hash_ms", "prepare_and_hash_ms"),
        "signals_apart_at_most": round(max(apart), 5),
    }


def waiting(folder: Path) -> dict[str, float]:
    """What one request at a time waits that is neither decoded nor computed meanwhile, in milliseconds."""
    import urllib.request

    scripted = folder / "scripted.toml"
    scripted.write_text(SCRIPTED)
    variations, queue = Variations(photograph((640, 480)), next(_FIRST)), []
    with serving(folder, scripted) as (port, _):
        for _ in range(200):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/classify",
                data=variations.next(),
                headers={"Authorization": f"Bearer {TOKEN}"},
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                queue.append(json.load(answer)["timing_ms"]["queue"])
    return spread(queue[20:])


def live_beside_backfill(folder: Path, ensemble: Path, *, batch: int, seconds: float) -> dict[str, Any]:
    """Live latency alone, and while a backfill takes all it can get."""
    with serving(folder, ensemble, "--batch", batch) as (port, _):
        Load(port, connections=1, seconds=3, side="640x480").done()
        alone = Load(port, connections=1, seconds=seconds, side="640x480").done()["ms"]
        backfill = Load(
            port, connections=8 * batch, seconds=2 * seconds + 6, priority="backfill", side="640x480"
        )
        time.sleep(6)
        beside = Load(port, connections=1, seconds=seconds, side="640x480").done()["ms"]
        throughput = backfill.done()["images_per_s"]
    one_batch = 1000 * batch / throughput
    allowed = 1.5 * statistics.median(alone) + one_batch
    return {
        "alone_ms": spread(alone),
        "beside_backfill_ms": spread(beside),
        "one_batch_ms": round(one_batch, 1),
        "allowed_ms": round(allowed, 1),
        "of_allowed": round(statistics.median(beside) / allowed, 2),
    }


def decoding(folder: Path, resized: Resized, side: str, seconds: float) -> float:
    """Images a second that the decoders of this machine prepare, with no model and no server."""
    size = tuple(map(int, side.split("x")))
    words = "from classifier.heads.resizing import Resized; from tests.bench.classifier import prepare_for; "
    words += f"prepare_for({resized!r}, {size}, {seconds})"
    workers = [
        subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE, cwd=_ROOT)
        for _ in range(os.cpu_count() or 1)
    ]
    return sum(float(worker.communicate(timeout=300)[0]) for worker in workers)


def prepare_for(resized: Resized, side: tuple[int, int], seconds: float) -> None:
    """One process of `decoding`."""
    variations, count = Variations(photograph(side), 0), 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        prepare(variations.next(), [resized], Limits())
        count += 1
    print(count / (time.perf_counter() - began))


def on_cards(folder: Path, seconds: float) -> dict[str, Any]:
    """Images a second on the cards there are: over HTTP, the model alone, and what decoding allows."""
    figures: dict[str, Any] = {"device": torch.cuda.get_device_name(0), "cards": torch.cuda.device_count()}
    for name, architecture in (
        ("vit_tiny_384", "vit_tiny_patch16_384"),
        ("vit_large_224", "vit_large_patch14_clip_224"),
    ):
        made = recipe(folder, name, architecture, device="cuda")
        (resized,) = ensembles.load(str(made)).preparations
        assert isinstance(resized, Resized)
        figures[name] = {
            "decode_limit_images_per_s": round(decoding(folder, resized, "1152x896", seconds)),
            **against_bare(
                folder,
                made,
                batch=32,
                seconds=seconds,
                rounds=3,
                side="1152x896",
                clients=min(8, os.cpu_count() or 1),
            ),
        }
    return figures


def measure(folder: Path, *, quick: bool) -> Mapping[str, Any]:
    """All figures; `quick` for a machine whose time is short."""
    seconds, rounds = (8.0, 1) if quick else (10.0, 7)
    figures: dict[str, Any] = {}
    if torch.cuda.is_available():
        figures["e_gpu"] = on_cards(folder, seconds)
    tiny = recipe(folder, "vit_tiny_384_cpu", "vit_tiny_patch16_384", device="cpu")
    figures["a_served_against_bare_vit_tiny_384"] = against_bare(
        folder, tiny, batch=8, seconds=seconds, rounds=rounds, side="640x480"
    )
    figures["b_prepare_12_megapixels"] = [preparing(tiny, part) for part in (0.1, 0.14)]
    figures["c_waiting_one_at_a_time_ms"] = waiting(folder)
    figures["d_live_beside_backfill"] = live_beside_backfill(folder, tiny, batch=4, seconds=seconds)
    return figures


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="make bench-classifier", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object of named figures")
    parser.add_argument("--quick", action="store_true", help="shorter, less exact")
    options = parser.parse_args()
    cpu = next(
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    )
    figures: dict[str, Any] = {
        "machine": f"{os.cpu_count()} × {cpu.partition(': ')[2]}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    with tempfile.TemporaryDirectory(prefix="pictrs-gate-bench-") as name:
        figures |= measure(Path(name), quick=options.quick)
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    for key, value in figures.items():
        print(key, ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value)


if __name__ == "__main__":
    main()

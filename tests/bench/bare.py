"""The bare model in a tight loop, in a process of its own: what no server can beat; prints images a second.

python -m tests.bench.bare RECIPE BATCH SECONDS [DEVICE]
"""

from __future__ import annotations

import json
import sys
import time

from classifier import ensembles
from classifier.decoding import Limits
from classifier.decoding.worker import prepare
from tests.bench.load import photograph


def main() -> None:
    """Computes, and prints."""
    recipe, batch, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    ensemble = ensembles.load(recipe, sys.argv[4] if len(sys.argv) > 4 else None)
    frames = list(prepare(photograph((640, 480)), ensemble.preparations, Limits()).frames) * batch
    for _ in range(3):  # warm
        ensemble.begin(frames)()
    count, began, before = 0, time.perf_counter(), None
    cpu_began = time.process_time()
    while time.perf_counter() - began < seconds:
        finish = ensemble.begin(frames)  # two at a time, as the server has them
        if before is not None:
            before()
        before = finish
        count += batch
    if before is not None:
        before()
    cpu_s = (time.process_time() - cpu_began) / count
    print(json.dumps({"images_per_s": count / (time.perf_counter() - began), "cpu_s_an_image": cpu_s}))


if __name__ == "__main__":
    main()

"""The predictions of docs/scale.md: hours of AutoAttack on ImageNet's 50,000 validation images by number of accelerators, simulated.

What an image costs is measured (forwards and backwards of stored runs); what an accelerator does in a second is the reader's to put in.

`python tests/benchmarks/cluster.py [FORWARDS_PER_SECOND]`
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from simulated_cluster import Cluster, Slice

from robustbench_lite.shards import LEAST, MOST, TURNS
from robustbench_lite.spreading import Spread

IMAGES = 50_000
STANDS = 7831 + 2 * 1910
"""Forwards that an image costs which stands all of AutoAttack; a backward is two. Of digits_pgd_at, 29 images."""
FALLS = 27 + 2 * 26
"""The same of an image that falls; 25 images."""
MODELS = {"undefended, 76 % right, none stands": (0.76, 0.0), "robust, 64 % right, 38 % stand": (0.64, 0.38)}
START_UP = 60.0
"""Seconds until a worker has its packages, weights and first images."""


def hours(workers: int, seconds: float, deaths: float, seed: int = 0) -> tuple[float, float]:
    """Hours of wall time and of all accelerators together.

    Args:
        seconds: that an image takes, on average.
        deaths: of a worker, an hour.
    """
    each = max(LEAST, min(MOST, -(-IMAGES // (TURNS * workers))))
    done: set[int] = set()
    draws = np.random.default_rng(seed)
    pieces = [Slice(n, tuple(range(start, min(start + each, IMAGES))), done) for n, start in enumerate(range(0, IMAGES, each))]
    paces = seconds * draws.lognormal(-0.02, 0.2, workers)  # machines are not alike
    cluster = Cluster(
        workers,
        lives=lambda _: draws.exponential(3600 / deaths) if deaths else np.inf,
        pace=lambda worker: float(paces[worker]),
        start_up=START_UP,
    )
    spread = Spread(cluster, lambda piece, image: piece.done.add(image), retries=10**6, clock=lambda: cluster.now)
    spread.run(pieces)
    assert len(done) == IMAGES
    return cluster.now / 3600, cluster.spent / 3600


if __name__ == "__main__":
    speed = float(sys.argv[1]) if len(sys.argv) > 1 else 2500.0
    print("| model | forwards an image | accelerators | hours | no less than | with deaths |\n|---|---|---|---|---|---|")
    for name, (right, stands) in MODELS.items():
        cost = 1 + stands * STANDS + (right - stands) * FALLS
        for workers in (1, 8, 64, 1000):
            least = IMAGES * cost / speed / 3600 / workers
            calm, stormy = (hours(workers, cost / speed, deaths)[0] for deaths in (0.0, 0.1))
            print(f"| {name} | {cost:,.0f} | {workers} | {calm:.2f} | {least:.2f} | {stormy:.2f} |", flush=True)

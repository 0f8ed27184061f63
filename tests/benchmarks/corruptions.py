"""Corruptions beside `imagecorruptions`: milliseconds an image, 224 pixels, batches of 32, random draws included.

Both take turns, severity by severity, and the medians of the rounds are compared. That library runs one image at a time, in one thread but
for what OpenCV and NumPy do by themselves; where it fails (with current NumPy and scikit-image) the cell says so.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

IMAGES, SIZE, ROUNDS = 32, 224, 3


def pictures() -> torch.Tensor:
    """(IMAGES, 3, SIZE, SIZE): the 20 real photographs, some of them twice."""
    from robustbench_lite.classifier import Preprocess
    from robustbench_lite.data import load_data

    data = load_data("imagenet", preprocess=Preprocess(size=(SIZE, SIZE), resize=256))
    return torch.stack([data[k % len(data)][0] for k in range(IMAGES)])


def ours(x: torch.Tensor) -> Callable[[str, int], None]:
    from robustbench_lite.corrupting import Member, draws
    from robustbench_lite.registry import CORRUPTIONS

    ids = [str(k) for k in range(len(x))]

    def run(name: str, severity: int) -> None:
        Member(name, CORRUPTIONS.build(name))(x, severity, draws(0, name, severity, ids, x.device))

    return run


def theirs(x: torch.Tensor) -> Callable[[str, int], None]:
    warnings.simplefilter("ignore")
    from imagecorruptions import corrupt

    arrays = (x * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()

    def run(name: str, severity: int) -> None:
        for array in arrays:
            corrupt(array, severity=severity, corruption_name=name)

    return run


def seconds(run: Callable[[str, int], None], name: str, severity: int) -> float | None:
    started = time.perf_counter()
    try:
        run(name, severity)
    except Exception:
        return None
    return time.perf_counter() - started


def speed() -> list[str]:
    """A line for every corruption."""
    from robustbench_lite.corrupting import members

    x = pictures()
    runs: dict[str, Any] = {"ours": ours(x), "theirs": theirs(x)}
    lines = []
    totals = {"ours": 0.0, "theirs": 0.0}
    names = list(dict.fromkeys(member.name.removesuffix("(procedural)") for member, _ in members("all")))
    for name in names:
        for run in runs.values():  # caches are filled, as they are after the first batch of any run
            seconds(run, name, 1)
        took: dict[str, list[float]] = {"ours": [], "theirs": []}
        for severity in range(1, 6):
            rounds: dict[str, list[float | None]] = {"ours": [], "theirs": []}
            for _ in range(ROUNDS):
                for who, run in runs.items():
                    rounds[who].append(seconds(run, name, severity) if None not in rounds[who] else None)
            for who, times in rounds.items():
                if None not in times:
                    took[who].append(1000 * statistics.median(t for t in times if t is not None) / IMAGES)
        mean = {who: statistics.fmean(values) for who, values in took.items() if len(values) == 5}
        if "theirs" in mean and name not in ("speckle_noise", "gaussian_blur", "spatter", "saturate"):
            for who in totals:
                totals[who] += mean[who]
        beside = f"{mean['theirs']:.1f} | {mean['theirs'] / mean['ours']:.1f} x" if "theirs" in mean else "fails | "
        lines.append(f"| {name} | {mean['ours']:.1f} | {beside} | {max(took['ours']):.1f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    lines.append(
        f"| those of the 15 that it can run | {totals['ours']:.0f} | {totals['theirs']:.0f} | {totals['theirs'] / totals['ours']:.1f} x | |"
    )
    return lines


@dataclass(frozen=True)
class Drawn:
    """Pictures that are made when they are asked for, so that no data set is in memory."""

    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(index))


def peak(count: int) -> None:
    """Print the peak memory in MB of an evaluation of so many images."""
    import robustbench_lite as rb
    from robustbench_lite.labelled import LabelledImages

    data = LabelledImages(Drawn(count), [0] * count, [str(k) for k in range(count)])
    model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10)).eval()
    rb.evaluate(model, (), data, corruptions=["motion_blur:severity=5", "elastic_transform:severity=1"], batch_size=IMAGES)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def memory() -> list[str]:
    """A line for each number of images: the batch is what has to be in memory, and not the data set."""
    lines = []
    for count in (64, 256, 1024):
        ran = subprocess.run([sys.executable, __file__, str(count)], stdout=subprocess.PIPE, text=True, check=True)
        lines.append(f"| {count} | {float(ran.stdout):.0f} |")
    return lines


if __name__ == "__main__":
    torch.set_num_threads(2)
    what = sys.argv[1]
    if what.isdigit():
        peak(int(what))
    else:
        print("\n".join({"speed": speed, "memory": memory}[what]()))

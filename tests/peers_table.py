"""`make peers`: our attacks against pyautoattack's on three small networks under three norms, image by image.

Every cell is written down as soon as it is measured, so that a run that was stopped goes on where it was. Both sides run on one thread
from seed 0 on the same images, all of which the network gets right without an attack; the final images of both are judged alike.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from peer_models import EPS, load, right_digits
from scipy.stats import binomtest
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.classifier import Classifier, Images, Labels, Logits
from robustbench_lite.labelled import from_arrays
from robustbench_lite.threat import ball

NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}
"""Our norms by the peer's names."""

PAIRS = {"autoattack": None, "square:queries=5000": ["square"]}
"""Our attacks, and of which attacks the peer's cascade is made; None is its standard one."""


@dataclass(frozen=True)
class Cell:
    """What one side did to the images of one network under one norm.

    broken: one flag an image. forwards, backwards: a mean over the images. seconds: processor time of all of them.
    """

    side: str
    attack: str
    model: str
    norm: str
    eps: float
    digest: str
    broken: list[bool]
    forwards: float
    backwards: float
    seconds: float

    @property
    def key(self) -> tuple[str, str, str, str, float, str, int]:
        return self.side, self.attack, self.model, self.norm, self.eps, self.digest, len(self.broken)


class Counting(nn.Module):
    """A model that counts the images that go through it forwards and backwards."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards, self.backwards = model, 0, 0
        self.eval()

    def forward(self, x: Images) -> Logits:
        self.forwards += len(x)
        logits: Logits = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self._back)
        return logits

    def _back(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def by_us(classifier: Classifier, x: Images, y: Labels, norm: str, eps: float, attack: str = "autoattack") -> Cell:
    """What our attack breaks, with its own count of passes."""
    images, started = from_arrays(x, y), time.process_time()
    result = rb.evaluate(classifier, [attack], images, norm=norm, eps=eps, witnesses="none", device="cpu")
    seconds = time.process_time() - started
    verdicts = {v.sample_id: v for v in result.of(result.conditions[1].name)}
    broken = [bool(verdicts[key].broken) for key in images.ids]
    forwards, backwards = (sum(getattr(v, what) for v in verdicts.values()) / len(y) for what in ("forwards", "backwards"))
    return Cell(our_side(), attack, classifier.name, norm, eps, classifier.digest, broken, forwards, backwards, seconds)


def by_peer(classifier: Classifier, x: Images, y: Labels, norm: str, eps: float, attack: str = "autoattack") -> Cell:
    """What the peer's breaks: its final images are in the ball, by our measure, and misclassified."""
    from pyautoattack import AutoAttack

    attacks, counting, tracer = PAIRS[attack], Counting(classifier), sys.gettrace()
    started = time.process_time()
    with torch.random.fork_rng():  # it seeds the global generator
        how = {"version": "standard"} if attacks is None else {"version": "custom", "attacks": attacks}
        peer = AutoAttack(counting, norm=NAMES[norm], eps=eps, seed=0, device="cpu", **how)
        try:
            x_adv, _ = peer.run_standard_evaluation(x, y, batch_size=len(x))
        finally:
            sys.settrace(tracer)  # its check for dynamic defenses takes away the tracer of coverage and debuggers
    seconds = time.process_time() - started
    with torch.no_grad():
        broken = ball(norm, eps).contains(x_adv, x) & (classifier(x_adv).argmax(1) != y)
    passes = counting.forwards / len(y), counting.backwards / len(y)
    return Cell(peer_side(), attack, classifier.name, norm, eps, classifier.digest, broken.tolist(), *passes, seconds)


def our_side() -> str:
    return f"robustbench-lite {version('robustbench-lite')}"


def peer_side() -> str:
    return f"pyautoattack {version('pyautoattack')}"


@dataclass(frozen=True)
class Pair:
    """The two sides on the same images."""

    ours: Cell
    peer: Cell

    @property
    def only(self) -> tuple[int, int]:
        """How many images only we break, and only the peer."""
        pairs = list(zip(self.ours.broken, self.peer.broken, strict=True))
        return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)

    @property
    def p(self) -> float:
        """McNemar's exact test, two-sided: how likely so uneven a split of the images that only one side breaks is by chance."""
        only_we, only_peer = self.only
        return float(binomtest(only_we, only_we + only_peer).pvalue) if only_we + only_peer else 1.0

    @property
    def weaker(self) -> bool:
        """Whether the difference is against us and significant."""
        only_we, only_peer = self.only
        return only_peer > only_we and self.p <= 0.05

    def row(self) -> str:
        ours, peer, n = self.ours, self.peer, len(self.ours.broken)
        robust = f"{n - sum(ours.broken)} | {n - sum(peer.broken)}"
        passes = " | ".join(f"{cell.forwards:.0f} + {cell.backwards:.0f}" for cell in (ours, peer))
        what = f"{ours.attack} | {ours.model.removeprefix('peer-')} | {ours.norm} | {ours.eps:g} | {n}"
        return (
            f"| {what} | {robust} | {self.only[0]} | {self.only[1]} | {self.p:.2g} | {passes} | {ours.seconds:.0f} | {peer.seconds:.0f} |"
        )


HEAD = (
    "| attack | network | norm | eps | images | robust, ours | robust, peer | only we break | only the peer | p "
    "| passes an image, ours | passes, peer | s, ours | s, peer |"
)


def measured(file: Path, count: int) -> Iterator[Pair]:
    """Every pair of cells; what the file has is not measured again, and what it has not is added to it."""
    cells = [Cell(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
    known = {cell.key: cell for cell in cells}
    sides = {our_side(): by_us, peer_side(): by_peer}
    for attack in PAIRS:
        for model, sizes in EPS.items():
            classifier = load(model)
            x, y = right_digits(classifier, count)
            for norm, eps in sizes.items():
                for side, run in sides.items():
                    key = side, attack, classifier.name, norm, eps, classifier.digest, len(y)
                    if key not in known:
                        known[key] = run(classifier, x, y, norm, eps, attack)
                        write(file, list(known.values()))
                ours, peer = (known[side, attack, classifier.name, norm, eps, classifier.digest, len(y)] for side in sides)
                yield Pair(ours, peer)


def write(file: Path, cells: Sequence[Cell]) -> None:
    """Put all cells into the file, which is whole at any moment."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    part.write_text("".join(json.dumps(asdict(cell)) + "\n" for cell in cells))
    part.replace(file)


def main() -> None:
    """Measure what is missing, print the table, and fail where a peer is significantly stronger."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200, help="how many images (200)")
    parser.add_argument("--file", type=Path, default=Path("build/peers.jsonl"), help="where cells are kept; delete it to measure again")
    chosen = parser.parse_args()
    chosen.file.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    print(HEAD)
    print("|---" * (HEAD.count("|") - 1) + "|")
    weaker = 0
    for pair in measured(chosen.file, chosen.images):
        print(pair.row(), flush=True)
        weaker += pair.weaker
    if weaker:
        sys.exit(f"ours is significantly weaker in {weaker} rows (exact McNemar p at most .05)")


if __name__ == "__main__":
    main()

"""AutoAttack against pyautoattack's: of the same images ours breaks no fewer; and where the peer crashes, ours still works."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import peers_table
import pytest
import torch
from peer_models import EPS, load, right_digits
from peers_table import Cell, Pair, by_peer, by_us, measured
from torch import Tensor, nn

from robustbench_lite.classifier import Classifier

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_autoattack_breaks_what_the_peers_breaks(norm: str) -> None:
    """On the PGD-trained network, of 50 images that it gets right; at a radius where a fifth survive, since survivors are the bill."""
    classifier = load("pgd")
    x, y = right_digits(classifier, 50)
    eps = 1.25 * EPS["pgd"][norm]
    pair = Pair(by_us(classifier, x, y, norm, eps), by_peer(classifier, x, y, norm, eps))
    print(pair.row())
    assert len(y) == 50
    assert 5 <= sum(pair.ours.broken) <= 45, "where nearly all or nearly none break, nothing is compared"
    only_we, only_peer = pair.only
    assert only_peer - only_we <= 2


class FirstClasses(nn.Module):
    """A network that knows only the first of its classes."""

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.model, self.classes = model, classes

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits[:, : self.classes]


@pytest.mark.parametrize(("classes", "norm"), [(2, "linf"), (3, "l2"), (5, "l1")])
def test_with_few_classes_autoattack_breaks_what_long_pgd_breaks(classes: int, norm: str) -> None:
    """Here the peer ends with an IndexError as soon as an image survives its first attack."""
    few = Classifier(FirstClasses(load("pgd"), classes).eval(), classes=classes)
    x, y = right_digits(few, 12, classes)
    eps = 1.6 * EPS["pgd"][norm]
    ours = torch.tensor(by_us(few, x, y, norm, eps).broken)
    pgd = torch.tensor(by_us(few, x, y, norm, eps, "pgd:steps=100,restarts=3,loss=margin").broken)
    print(classes, norm, int(ours.sum()), int(pgd.sum()))
    assert pgd.any(), "PGD breaks nothing: nothing is compared"
    assert not (pgd & ~ours).any()
    assert not ours.all(), "the last of the cascade was never needed"
    with pytest.raises(IndexError):
        by_peer(few, x, y, norm, eps)


# --- the table of `make peers` -----------------------------------------------------------------------------------------------------


def cell(broken: str) -> Cell:
    return Cell("a side", "autoattack", "a model", "linf", 0.1, "0", [mark == "x" for mark in broken], 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("ours", "peer", "only", "p", "weaker"),
    [
        ("xxxx....", "xxxx....", (0, 0), 1.0, False),
        ("x.......", ".xxxxxx.", (1, 6), 2 * (1 + 7) / 2**7, False),
        ("........", ".xxxxxx.", (0, 6), 2 / 2**6, True),
        (".xxxxxx.", "........", (6, 0), 2 / 2**6, False),
    ],
)
def test_only_what_one_side_breaks_decides(ours: str, peer: str, only: tuple[int, int], p: float, weaker: bool) -> None:
    pair = Pair(cell(ours), cell(peer))
    assert (pair.only, pair.weaker) == (only, weaker)
    assert pair.p == pytest.approx(p)


class Stopped(Exception):
    pass


def test_a_table_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, asked = tmp_path / "peers.jsonl", []

    def side(name: str) -> Any:
        def run(classifier: Classifier, x: Tensor, y: Tensor, norm: str, eps: float, attack: str) -> Cell:
            if len(asked) == 5:
                raise Stopped
            asked.append((name, attack, classifier.name, norm))
            found = replace(cell("x" * len(y)), side=name, attack=attack, model=classifier.name)
            return replace(found, norm=norm, eps=eps, digest=classifier.digest)

        return run

    monkeypatch.setattr(peers_table, "by_us", side(peers_table.our_side()))
    monkeypatch.setattr(peers_table, "by_peer", side(peers_table.peer_side()))
    with pytest.raises(Stopped):
        list(measured(file, 3))
    first = asked.copy()
    asked.clear()
    monkeypatch.setattr(peers_table, "PAIRS", {"autoattack": None})
    monkeypatch.setattr(peers_table, "EPS", {"standard": EPS["standard"]})
    assert len(list(measured(file, 3))) == 3
    assert len(set(first)) == 5
    assert asked == [(peers_table.peer_side(), "autoattack", "peer-standard", "l1")]

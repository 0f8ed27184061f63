"""Against foolbox and torchattacks: at equal steps and step sizes ours breaks at least as many of the same images."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import robustbench_lite as rb
from robustbench_lite.classifier import Classifier
from robustbench_lite.criteria import Misclassified
from robustbench_lite.oracle import Case, Ledger, WhiteBox
from robustbench_lite.passes import Passes
from robustbench_lite.registry import ATTACKS
from robustbench_lite.streams import Streams
from robustbench_lite.threat import ball

with warnings.catch_warnings(action="ignore"):  # it imports a name from where scipy no longer keeps it
    import foolbox

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1200)]

Peer = Callable[[Classifier, Tensor, Tensor, float], Tensor]
STEPS, SHARE = 20, 0.1


def foolbox_pgd(made: type) -> Peer:
    def run(classifier: Classifier, x: Tensor, y: Tensor, eps: float) -> Tensor:
        model = foolbox.PyTorchModel(classifier, bounds=(0, 1))
        return made(steps=STEPS, rel_stepsize=SHARE)(model, x, y, epsilons=eps)[1]

    return run


def torchattacks_pgd(name: str) -> Peer:
    def run(classifier: Classifier, x: Tensor, y: Tensor, eps: float) -> Tensor:
        import torchattacks

        return getattr(torchattacks, name)(classifier, eps=eps, alpha=SHARE * eps, steps=STEPS, random_start=True)(x, y)

    return run


PEERS = {
    "foolbox": {"linf": foolbox_pgd(foolbox.attacks.LinfPGD), "l2": foolbox_pgd(foolbox.attacks.L2PGD)},
    "torchattacks": {"linf": torchattacks_pgd("PGD"), "l2": torchattacks_pgd("PGDL2")},
}


def images_of(model: str, limit: int | None) -> tuple[Classifier, Tensor, Tensor, list[str]]:
    classifier = rb.load_model(model)
    images = rb.load_data(str(classifier.data), limit=limit, preprocess=classifier.preprocess)
    return classifier, torch.stack([image for image, _ in images]), torch.tensor(list(images.labels)), list(images.ids)


def broken_by_peer(peer: Peer, classifier: Classifier, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = torch.cat([peer(classifier, part, labels, eps) for part, labels in zip(x.split(100), y.split(100), strict=True)])
    with torch.no_grad():
        return classifier(found.detach()).argmax(1) != y


def broken_by_us(model: str, limit: int | None, norm: str, eps: float, seed: int, ids: list[str]) -> Tensor:
    data = rb.load_data("digits", limit=limit) if limit else None
    attack = f"pgd:steps={STEPS},step_size={SHARE}"
    result = rb.evaluate(model, [attack], data, norm=norm, eps=eps, seed=seed, witnesses="none")
    found = {v.sample_id: v.broken for v in result.verdicts if v.condition.startswith("pgd")}
    return torch.tensor([found[key] for key in ids])


@pytest.mark.parametrize("library", PEERS)
@pytest.mark.parametrize(
    ("model", "limit", "norm", "sizes", "seeds"),
    [
        ("digits_cnn", 400, "linf", (0.03, 0.05, 0.07), (0, 1, 2)),
        ("digits_cnn", 400, "l2", (0.5, 1.0, 1.5), (0, 1, 2)),
        ("efficientnet_lite0", None, "linf", (0.1 / 255, 0.25 / 255), (0,)),
        ("efficientnet_lite0", None, "l2", (0.05, 0.15), (0,)),
    ],
)
def test_no_weaker(library: str, model: str, limit: int | None, norm: str, sizes: tuple[float, ...], seeds: tuple[int, ...]) -> None:
    """Paired: images that only the peer breaks, minus images that only we break. The random starts differ, so it is summed over seeds."""
    classifier, x, y, ids = images_of(model, limit)
    peer, told, alive = PEERS[library][norm], [], 0
    for eps in sizes:
        for seed in seeds:
            theirs = broken_by_peer(peer, classifier, x, y, eps, seed)
            ours = broken_by_us(model, limit, norm, eps, seed, ids)
            alive += int((~ours).sum())
            told.append((eps, seed, int((theirs & ~ours).sum()), int((ours & ~theirs).sum())))
    print(library, model, norm, told)
    assert alive > 0, "everything breaks: nothing can be compared"
    assert sum(only_theirs - only_ours for *_, only_theirs, only_ours in told) <= 0, told
    assert max(only_theirs - only_ours for *_, only_theirs, only_ours in told) <= 2, told


class Listening(torch.nn.Module):
    """A model that remembers, per image, whether anything it was asked about was misclassified."""

    def __init__(self, classifier: Classifier, label: int) -> None:
        super().__init__()
        self.classifier, self.label, self.broken = classifier, label, False
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.classifier(x)
        self.broken |= bool((logits.argmax(1) != self.label).any())
        return logits


@pytest.mark.parametrize(("attack", "eps"), [("LinfPGD:steps=10", 0.04), ("L2PGD:steps=10", 1.0), ("L2BasicIterativeAttack:steps=5", 1.0)])
def test_foolbox_through_the_adapter_is_foolbox(attack: str, eps: float) -> None:
    """One image at a time under the adapter's seed, foolbox alone asks about a misclassified image exactly where we call it broken."""
    classifier, x, y, ids = images_of("digits_cnn", 40)
    result = rb.evaluate("digits_cnn", [f"foolbox:{attack}"], rb.load_data("digits", limit=40), eps=eps, prepare=False)
    condition = result.conditions[1].name
    broken = {v.sample_id: v.broken for v in result.of(condition)}
    made = ATTACKS.build(f"foolbox:{attack}").build()
    for image, label, key in zip(x, y, ids, strict=True):
        listening = Listening(classifier, int(label))
        (seed,) = Streams(0, condition, [(key, 0)], None, torch.device("cpu")).seeds("foolbox")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 - foolbox draws from the global state
            random.seed(seed)
            model = foolbox.PyTorchModel(listening, bounds=(0, 1))
            _, _, success = made(model, image[None], label[None], epsilons=eps)
        assert broken[key] == (listening.broken or bool(success)), key
    assert 0 < sum(map(bool, broken.values())) < 40


def iterates(spec: str, classifier: Classifier, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
    """The last image of one of our attacks, stepped by hand."""
    attack = ATTACKS.build(spec)
    with torch.no_grad():
        logits = classifier(x)
    case = Case(x, ball(norm, eps), Misclassified(y), torch.full_like(y, -1))
    oracle = WhiteBox(Passes(classifier), case, Ledger.opened(x, logits))
    keys = [(str(i), 0) for i in range(len(x))]
    state = attack.start(oracle, Streams(0, "", keys, None, x.device))
    for _ in range(attack.steps):
        state = attack.step(oracle, state, Streams(0, "", keys, state.t, x.device))
    return state.x


@pytest.mark.parametrize(("model", "eps"), [("digits_cnn", 0.05), ("efficientnet_lite0", 1 / 255)])
def test_fgsm_and_bim_images_are_theirs(model: str, eps: float) -> None:
    """Without randomness the images themselves must agree, but for pixels whose gradient is zero up to rounding."""
    import torchattacks

    classifier, x, y, _ = images_of(model, 50 if model == "digits_cnn" else None)
    theirs = foolbox.PyTorchModel(classifier, bounds=(0, 1))
    fgsm, bim = iterates("fgsm", classifier, x, y, "linf", eps), iterates("bim:steps=5,step_size=0.25", classifier, x, y, "linf", eps)
    pairs = {
        "foolbox FGSM": (fgsm, foolbox.attacks.LinfFastGradientAttack()(theirs, x, y, epsilons=eps)[1]),
        "torchattacks FGSM": (fgsm, torchattacks.FGSM(classifier, eps=eps)(x, y)),
        "foolbox BIM": (
            bim,
            foolbox.attacks.LinfBasicIterativeAttack(rel_stepsize=0.25, steps=5, random_start=False)(theirs, x, y, epsilons=eps)[1],
        ),
        "torchattacks BIM": (bim, torchattacks.BIM(classifier, eps=eps, alpha=eps / 4, steps=5)(x, y)),
        "foolbox FGM": (
            iterates("fgsm", classifier, x, y, "l2", 40 * eps),
            foolbox.attacks.L2FastGradientAttack()(theirs, x, y, epsilons=40 * eps)[1],
        ),
    }
    for name, (ours, other) in pairs.items():
        differ = ((ours - other).abs() > 1e-5).float().mean()
        print(model, name, float(differ), float((ours - other).abs().max()))
        assert differ <= 1e-4, name

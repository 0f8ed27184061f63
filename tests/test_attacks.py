"""The contract of every registered attack, under every norm that it declares, and the closed form on a linear model."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.criteria import Misclassified, Targeted
from robustbench_lite.errors import BadSpec, UnknownName
from robustbench_lite.judge import Judge
from robustbench_lite.oracle import Case, Ledger
from robustbench_lite.passes import Passes
from robustbench_lite.plan import Finding, Plan, Subject, parts
from robustbench_lite.registry import ATTACKS
from robustbench_lite.scenarios import scenario_names
from robustbench_lite.scheduler import run
from robustbench_lite.threat import ball

Run = Callable[..., list[Finding]]

# what is tested of an attack that needs a name, or whose default steps would take long
CHOSEN = {"foolbox": ("foolbox:LinfPGD:steps=5,rel_stepsize=0.5", "foolbox:L2DeepFoolAttack:steps=10"), "pgd": ("pgd:steps=8",),
          # in l1 apgd leaves the ball for a while, but not in three steps; the parts of autoattack are in the list themselves
          "apgd": ("apgd:steps=3",), "apgd-l1": ("apgd-l1:steps=3",),
          "apgd-dlr": ("apgd-dlr:steps=3",), "apgd-t": ("apgd-t:steps=3,targets=2",), "autoattack": (),
          "admix": ("admix:steps=5,scales=2,partners=2",), "ti": ("ti:size=3",),
          # at rounding's mercy after many steps: half of its iterates lie on the boundary
          "fab": ("fab:steps=6",), "fab-t": ("fab-t:steps=6,targets=3",),
          "vmi": ("vmi:steps=5,neighbours=2",), "vni": ("vni:steps=5,neighbours=2",)}  # fmt: skip
CHOSEN |= {
    "square": ("square:queries=30",),
    "cw": ("cw:searches=2,iterations=10",),
    "ead": ("ead:searches=2,iterations=10",),
    "noise": ("noise:queries=20",),
    "rays": ("rays:queries=120",),
    "surfree": ("surfree:queries=120",),
    "hopskipjump": ("hopskipjump:queries=250",),
    "boundary": ("boundary:steps=40,around=0.1,inward=0.05,probes=2,trials=5",),
    "nes": ("nes:steps=8,momentum=0.5",),
    "spsa": ("spsa:steps=8,samples=25",),
    "es-pgd": ("es-pgd:iterations=8,samples=100",),
    "sgm": (),  # not for the models below, which have no skip connections: test_sgm.py holds it to the same
    "bpda": (),  # nor this, as they offer no stand-ins: test_bpda_attack.py
    "own-patch": ("own-patch:steps=10",),
    "patch": (), "natural-patch": (), "universal": (),  # these must learn first: test_patches.py, test_universal.py
    "one-pixel": ("one-pixel:generations=4,population=12,at_once=5",),
    "sparse-rs": ("sparse-rs:queries=30",),
    "fmn": ("fmn:steps=40",), "sigma-zero": ("sigma-zero:steps=60",),
    "deepfool": ("deepfool:steps=8,halvings=4",), "superdeepfool": ("superdeepfool:steps=5",),
    "ddn": ("ddn:steps=20",), "alma": ("alma:steps=40,smoothing=0.5",),
    "clumsy": (), "spatial": (), "colour": (), "stadv": (),  # know pictures and not values: test_clumsy.py, test_spatial.py, test_stadv.py
}  # fmt: skip
OURS = [name for name in ATTACKS.names() if ATTACKS.get(name).__module__.startswith("robustbench_lite.attacks.")]
CHOSEN |= dict.fromkeys(scenario_names(), ())  # they are made of others, which are in the list themselves
SPECS = [spec for name in OURS for spec in CHOSEN.get(name, (name,))]
CASES = [(spec, norm) for spec in SPECS for norm in ATTACKS.build(spec).norms if norm != "flow"]  # that of test_stadv.py
STEPPED = [(spec, norm) for spec, norm in CASES if getattr(ATTACKS.build(spec), "batched", True)]
EPS = {"linf": 0.06, "l2": 0.5, "l1": 3.0, "l0": 8.0, "pixels": 4.0, "patch": 0.25}
SMALLEST = {"l0": 1.0, "pixels": 1.0, "patch": 1 / 8}  # one value, and one pixel of eight

each = pytest.mark.parametrize(("spec", "norm"), CASES)
each_of_ours = pytest.mark.parametrize(("spec", "norm"), STEPPED)


def with_option(spec: str, option: str) -> str:
    return spec + ("," if ":" in spec else ":") + option


def first_part(spec: str, norm: str) -> Any:
    """The attack itself, or the first of those that it consists of."""
    return next(iter(parts(ATTACKS.build(spec), norm).values()))


def everything_global(model: nn.Module) -> list[Any]:
    """What an attack may not change: the model, its hooks and its modes, and global random state."""
    legacy = np.random.get_state()  # noqa: NPY002 - it is what must not change
    modules = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), len(m._backward_pre_hooks))
        for m in model.modules()
    ]
    parameters = [(name, p.requires_grad, p.grad, p.tolist()) for name, p in model.named_parameters()]
    switches = [torch.is_grad_enabled(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()]
    return [modules, parameters, switches, torch.get_rng_state().tolist(), legacy[1].tolist(), legacy[2:], random.getstate()]


@each
def test_it_stays_in_ball_and_box_changes_nothing_and_repeats(attack: Run, net: Any, pictures: Any, spec: str, norm: str) -> None:
    model, x = net(), pictures(10)
    copy, before = x.clone(), everything_global(model)
    first = attack(model, spec, x, norm=norm, eps=EPS[norm])
    assert everything_global(model) == before
    assert torch.equal(x, copy)
    threat = ball(norm, EPS[norm])
    images = torch.stack([f.image for f in first])
    assert (threat.contains(images, x) | torch.tensor([bool(f.approach) and not f.broken for f in first])).all()
    with torch.no_grad():
        wrong = model(images).argmax(1) != model(x).argmax(1)
    assert [f.met for f in first] == wrong.tolist()
    assert [f.distance for f in first] == pytest.approx(threat.distance(images, x).tolist(), abs=1e-5)
    assert any(wrong)
    again = attack(model, spec, x, norm=norm, eps=EPS[norm])
    assert all(torch.equal(a.image, b.image) and a.forwards == b.forwards for a, b in zip(first, again, strict=True))


@each
def test_verdicts_do_not_depend_on_the_batch(attack: Run, net: Any, pictures: Any, spec: str, norm: str) -> None:
    count, few = (64, 12) if (spec, norm) in STEPPED else (7, 7)
    model, x = net(), pictures(count)
    runs = [attack(model, spec, x[:n], norm=norm, eps=EPS[norm] / 2, batch_size=size) for size, n in ((64, count), (7, count), (1, few))]
    for found in runs[1:]:
        whole = runs[0][: len(found)]
        assert [f.broken for f in found] == [f.broken for f in whole]
        if getattr(first_part(spec, norm), "goal", "first") == "closest":
            # they end at the boundary, where rounding decides on the last step: in a batch it is another than alone
            assert [f.met for f in found] == [f.met for f in whole]
            slack = 1.0 if norm == "l0" else 1e-4
            apart = sum(f.distance != pytest.approx(w.distance, rel=0.01, abs=slack) for f, w in zip(found, whole, strict=True))
            assert apart <= max(1, len(found) // 50)  # the boundaries of several classes meet where superdeepfool ends
            continue
        assert [f.steps for f in found] == [f.steps for f in whole]
        assert torch.allclose(torch.stack([f.image for f in found]), torch.stack([f.image for f in whole]), atol=1e-4)


@each_of_ours
def test_every_iterate_is_an_image_that_the_search_may_look_at(net: Any, pictures: Any, streams: Any, spec: str, norm: str) -> None:
    model, x = net(), pictures(6)
    made, threat = first_part(spec, norm), ball(norm, EPS[norm])
    if getattr(made, "goal", "first") == "closest":
        threat = replace(threat, eps=torch.tensor(torch.inf))
    rule = Misclassified(model(x).argmax(1))
    case = Case(x, threat, rule, rule, torch.full((6,), -1), torch.zeros(6, dtype=torch.long))
    oracle = made.access(Passes(model), case, Ledger.opened(x, model(x)))
    state = made.start(oracle, streams(6))
    assert threat.contains(state.x, x).all()
    for step in range(made.steps):
        before = {name: value.clone() for name, value in vars(state).items()}
        moved = made.step(oracle, state, streams(6, step=step))
        assert all(torch.equal(value, before[name]) for name, value in vars(state).items())
        assert threat.contains(moved.x, x).all()
        assert moved.t.tolist() == [step + 1] * 6
        state = moved
        if state.done.any():
            break


@each
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_it_works_with_few_and_many_classes(attack: Run, net: Any, pictures: Any, spec: str, norm: str, classes: int) -> None:
    model, x = net(classes), 0.4 + 0.2 * pictures(12)
    if (spec, norm) not in STEPPED:
        assert sum(bool(f.broken) for f in attack(model, spec, x, norm=norm, eps=4 * EPS[norm])) >= 6
        return
    clean = Misclassified(model(x).argmax(1)).margin(model(x)).tolist()
    # where a loss is constant, its gradient is zero and no image comes nearer to being broken
    losses = ("ce", "dlr", "margin") if hasattr(first_part(spec, norm), "loss") else ()
    for tried in [with_option(spec, f"loss={loss}") for loss in losses] or [spec]:
        found = attack(model, tried, x, norm=norm, eps=max(SMALLEST.get(norm, 0), EPS[norm] / 4))
        assert sum(f.met or f.margin > before for f, before in zip(found, clean, strict=True)) >= 11


class Light(nn.Module):
    """Class 0 where the mean lies nearer to `home` than 0.02, class 1 beyond."""

    def __init__(self, home: float) -> None:
        super().__init__()
        self.home = home

    def forward(self, x: Tensor) -> Tensor:
        away = (x.flatten(1).mean(1) - self.home) * (1 - 2 * self.home)
        return torch.stack([0.02 - away, away - 0.02], 1) * 10


@each
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_saturated_images_can_be_moved(attack: Run, spec: str, norm: str, value: float) -> None:
    if spec.startswith("sigma-zero"):
        pytest.skip("all values weigh the same here, and it moves such values together")
    x = torch.full((2, 3, 4, 4), value)
    eps = {"linf": 0.06, "l2": 0.5, "l1": 2.5, "l0": 4.0, "pixels": 2.0, "patch": 0.5}[norm]
    assert [f.broken for f in attack(Light(value), spec, x, norm=norm, eps=eps)] == [True, True]


@each
def test_a_target_is_reached(net: Any, pictures: Any, spec: str, norm: str) -> None:
    model, x = net(), pictures(6)
    logits = model(x)
    labels, target = logits.argmax(1), logits.topk(2, dim=1).indices[:, 1]
    rules = Targeted(labels, target)
    waiting = [Subject(str(i), lambda i=i: x[i], rules.take(slice(i, i + 1)), logits[i : i + 1]) for i in range(6)]
    passes = Passes(model)
    plan = Plan(first_part(spec, norm), ball(norm, 4 * EPS[norm]), "c", passes, Judge(passes))
    found = sorted((f for part in run(plan, waiting, 6 if (spec, norm) in STEPPED else 1) for f in part), key=lambda f: f.id)
    reached = [f for f in found if f.broken]
    assert reached
    assert all(f.logits.argmax() == target[int(f.id)] for f in reached)


# --- the closed form -------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Two classes, parted by a plane at a chosen distance from the grey image."""

    def __init__(self, weight: Tensor, offset: float) -> None:
        super().__init__()
        self.weight, self.offset = weight, offset

    def forward(self, x: Tensor) -> Tensor:
        height = (x - 0.5).flatten(1) @ self.weight + self.offset
        return torch.stack([height, -height], 1)


WEIGHT = torch.randn(48, generator=torch.Generator().manual_seed(3))
DUAL = {"linf": WEIGHT.abs().sum(), "l2": WEIGHT.norm(), "l1": WEIGHT.abs().max()}
DISTANCE = {"linf": 0.2, "l2": 0.3, "l1": 0.3}
LINEAR = [
    ("pgd", "linf"), ("pgd", "l2"), ("pgd", "l1"), ("pgd:momentum=0.75", "linf"), ("pgd:loss=dlr", "l2"), ("pgd:loss=margin", "l1"),
    ("bim", "linf"), ("bim", "l2"), ("bim", "l1"), ("fgsm", "linf"), ("fgsm", "l2"), ("fgsm", "l1"),
    ("foolbox:LinfPGD:rel_stepsize=0.1", "linf"), ("foolbox:L2DeepFoolAttack", "l2"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "norm"), LINEAR)
def test_on_a_linear_model_it_succeeds_just_beyond_the_plane_and_not_before(attack: Run, spec: str, norm: str) -> None:
    model, x = Linear(WEIGHT, float(DISTANCE[norm] * DUAL[norm])), torch.full((3, 3, 4, 4), 0.5)
    for share, expected in ((0.99, False), (1.01, True)):
        found = attack(model, spec, x, norm=norm, eps=share * DISTANCE[norm])
        assert [f.broken for f in found] == [expected] * 3


@pytest.mark.parametrize("spec", ["fgsm", "pgd:step_size=1"])
def test_on_a_linear_model_l0_needs_exactly_the_heaviest_values(attack: Run, spec: str) -> None:
    reach = 0.5 * WEIGHT.abs().sort(descending=True).values.cumsum(0)  # from grey, a value moves by one half
    x = torch.full((3, 3, 4, 4), 0.5)
    for count in (1, 4, 9):
        model = Linear(WEIGHT, float(reach[count - 2] + reach[count - 1]) / 2 if count > 1 else float(reach[0]) / 2)
        assert [f.broken for f in attack(model, spec, x, norm="l0", eps=float(count))] == [True] * 3
        if count > 1:
            assert [f.broken for f in attack(model, spec, x, norm="l0", eps=float(count - 1))] == [False] * 3


# --- pgd -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_more_steps_never_free_an_image(attack: Run, net: Any, pictures: Any, norm: str) -> None:
    # steps that overshoot, so that images are broken and mended again on the way
    x, broken = pictures(40), set()
    for steps in (1, 2, 4, 8, 16):
        for goal in ("first", "full"):
            found = attack(
                net(),
                f"pgd:steps={steps},step_size=1.5,loss=margin",
                x,
                norm=norm,
                eps=max(1, EPS[norm] // 3) if norm == "l0" else EPS[norm] / 3,
                goal=goal,
            )
            now = {f.id for f in found if f.broken}
            assert broken <= now
        broken = now
    assert 0 < len(broken) < 40


def test_the_goal_full_uses_every_step_and_closest_is_nearer(attack: Run, net: Any, pictures: Any) -> None:
    runs = {
        goal: attack(net(), "pgd:steps=12,restarts=2", pictures(20), norm="l2", eps=1.0, goal=goal) for goal in ("first", "closest", "full")
    }
    broken = [[f.broken for f in found] for found in runs.values()]
    assert broken[0] == broken[1] == broken[2]
    for first, closest, full in zip(*runs.values(), strict=True):
        assert full.steps == closest.steps == 24
        assert full.forwards == 2 * 13
        assert full.margin >= first.margin
        assert not first.broken or closest.distance <= first.distance
    assert sum(f.steps for f in runs["first"]) < 100
    assert np.mean([c.distance for c in runs["closest"]]) < 0.9 * np.mean([f.distance for f in runs["first"]])


def test_costs_are_as_documented(attack: Run, net: Any, pictures: Any) -> None:
    for spec, forwards, backwards in (("pgd:steps=5,restarts=3", 18, 15), ("bim:steps=4", 5, 4), ("fgsm", 2, 1)):
        (found,) = attack(net(), spec, pictures(1), eps=1e-5)
        assert (found.broken, found.forwards, found.backwards) == (False, forwards, backwards)


def test_the_sign_of_the_step_is_right(attack: Run, net: Any, pictures: Any) -> None:
    x = pictures(20)
    for spec in ("fgsm", "bim", "pgd:steps=5"):
        found = attack(net(), with_option(spec, "loss=margin"), x, eps=0.02, goal="full")
        noise = attack(net(), "pgd:steps=1,step_size=1e-6", x, eps=0.02, goal="full")
        assert sum(f.margin > n.margin for f, n in zip(found, noise, strict=True)) >= 18


# --- foolbox ---------------------------------------------------------------------------------------------------------------


def test_foolboxs_attacks_are_found_by_name_and_their_parameters_checked() -> None:
    declared = {"LinfPGD": "linf", "L2DeepFoolAttack": "l2", "HopSkipJumpAttack": "l2", "EADAttack": "l1", "L0FMNAttack": "l0"}
    assert {name: ATTACKS.build(f"foolbox:{name}").norms for name in declared} == {name: (norm,) for name, norm in declared.items()}
    assert ATTACKS.build("foolbox:GaussianBlurAttack").norms == ("linf", "l2", "l1", "l0")
    assert ATTACKS.spec_of(ATTACKS.build("foolbox:LinfPGD:steps=5,random_start=false")) == "foolbox:LinfPGD:steps=5,random_start=false"
    assert ATTACKS.build("foolbox:LinfPGD:random_start=false").build().random_start is False
    with pytest.raises(UnknownName, match="did you mean 'LinfPGD'"):
        ATTACKS.build("foolbox:LinfPGDD")
    with pytest.raises(BadSpec, match="no parameter 'step': did you mean 'steps'"):
        ATTACKS.build("foolbox:LinfPGD:step=5")
    with pytest.raises(BadSpec, match="say which attack of foolbox"):
        ATTACKS.build("foolbox")


def test_an_attack_of_foolbox_without_a_targeted_form_says_so(net: Any, pictures: Any) -> None:
    model, x = net(), pictures(1)
    rule = Targeted(torch.tensor([0]), torch.tensor([1]))
    passes = Passes(model)
    plan = Plan(ATTACKS.build("foolbox:FGSM"), ball("linf", 0.1), "c", passes, Judge(passes))
    with pytest.raises(BadSpec, match=r"foolbox:FGSM does not run here: .*criterion"):
        next(run(plan, [Subject("a", lambda: x[0], rule, model(x))], 1))


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.5), ("l2", 4.0), ("l1", 60.0), ("l0", 192.0)])
def test_an_attack_of_foolbox_without_a_norm_is_told_ours(attack: Run, net: Any, pictures: Any, norm: str, eps: float) -> None:
    found = attack(net(), "foolbox:InversionAttack", pictures(6), norm=norm, eps=eps)
    assert all(ball(norm, eps).contains(f.image[None], pictures(6)[i : i + 1]).all() for i, f in enumerate(found))
    assert None not in [f.broken for f in found]


def test_an_attack_of_foolbox_is_about_as_strong_as_ours_and_its_passes_are_counted(attack: Run, net: Any, pictures: Any) -> None:
    found = attack(net(), "foolbox:LinfPGD:steps=10,rel_stepsize=0.25", pictures(6), eps=EPS["linf"])
    assert all(f.forwards >= 10 and f.backwards == 10 for f in found)
    assert sum(bool(f.broken) for f in found) >= sum(bool(f.broken) for f in attack(net(), "bim", pictures(6), eps=EPS["linf"])) - 1

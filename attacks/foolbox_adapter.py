"""Every attack of foolbox (Rauber et al., JOSS 2020, https://doi.org/10.21105/joss.02607), as `foolbox:NAME`."""

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustbench_lite.criteria import Criterion, Misclassified, Targeted
from robustbench_lite.errors import BadSpec, UnknownName, did_you_mean
from robustbench_lite.oracle import WholeModel
from robustbench_lite.plan import State
from robustbench_lite.registry import Spec, attack
from robustbench_lite.streams import Streams, seeded

POWERS = {"linf": float("inf"), "l2": 2, "l1": 1, "l0": 0}


@attack("foolbox")
@dataclass(frozen=True)
class Foolbox:
    """Run an attack of foolbox as it is, one image at a time, under random state of its own; the verdict is ours.

    Slower than an attack of this package: it leaves no image early, and one image does not fill a device. Its parameters are
    foolbox's own (`foolbox:LinfPGD:steps=100`).

    Args:
        attack: foolbox's name for it, such as LinfPGD or L2CarliniWagnerAttack.
        options: its constructor's arguments.
    """

    access = WholeModel
    steps: ClassVar[int] = 1
    batched: ClassVar[bool] = False
    cost: ClassVar[str] = "foolbox's, without early leaving"

    attack: str
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_spec(cls, spec: Spec) -> "Foolbox":
        if not spec.first:
            raise BadSpec(f"say which attack of foolbox: foolbox:NAME, such as foolbox:LinfPGD (there are {len(names())})")
        made = cls(spec.first, dict(spec.options))
        made.build()
        return made

    @property
    def spec(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"foolbox:{self.attack}" + (f":{options}" if options else "")

    @property
    def norms(self) -> tuple[str, ...]:
        try:
            distance = self.build().distance
        except (AttributeError, ValueError):  # it has none of its own
            return tuple(POWERS)
        return tuple(norm for norm, power in POWERS.items() if power == distance.p)

    def build(self, norm: str | None = None) -> Any:
        """The attack, its parameters read as what they look like; one that works under any norm is told which.

        Raises:
            UnknownName, BadSpec: no such attack, no such parameter, or a value it does not take.
        """
        known = names()
        if self.attack not in known:
            raise UnknownName("attack of foolbox", self.attack, known)
        signature = inspect.signature(known[self.attack])
        values = {}
        for key, text in self.options.items():
            if key not in signature.parameters:
                raise BadSpec(f"foolbox:{self.attack} has no parameter {key!r}{did_you_mean(key, signature.parameters)}")
            values[key] = _value(text)
        if norm is not None and "distance" in signature.parameters:
            values["distance"] = _library().distances.LpDistance(POWERS[norm])
        try:
            return known[self.attack](**values)
        except (TypeError, ValueError) as error:
            raise BadSpec(f"foolbox:{self.attack} does not take these parameters: {error}") from error

    def described(self) -> str:
        """What foolbox says of the attack, and its parameters."""
        made = names()[self.attack]
        return f"{self.attack}{inspect.signature(made)}\n{inspect.getdoc(made) or ''}"

    def start(self, oracle: WholeModel, draw: Streams) -> State:
        model = _library().PyTorchModel(_Counted(oracle), bounds=(0, 1), device=oracle.origin.device)
        with seeded(draw.seeds("foolbox")[0]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*failed to draw sufficient random inputs")
            try:
                found, _, _ = self.build(oracle.threat.norm)(model, oracle.origin, _criterion(oracle), epsilons=float(oracle.threat.eps))
            except (ValueError, TypeError, NotImplementedError, ImportError) as error:  # what foolbox's attacks refuse with
                if "init_attack failed" not in str(error):
                    raise BadSpec(f"foolbox:{self.attack} does not run here: {' '.join(str(error).split())}") from error
                found = self._from_plain(model, oracle)
        return State.at(oracle.origin if found is None else found.detach())

    def _from_plain(self, model: Any, oracle: WholeModel) -> Tensor | None:
        """From the negative or a plain image, where noise gave no image to start from; None where the model is right about these too."""
        x = oracle.origin
        for start in (1 - x, torch.zeros_like(x), torch.ones_like(x), torch.full_like(x, 0.5)):
            if oracle.criterion.margin(oracle.answer(start)) > 0:
                made = self.build(oracle.threat.norm)
                found: Tensor = made(model, x, _criterion(oracle), epsilons=float(oracle.threat.eps), starting_points=start)[0]
                return found
        return None

    def step(self, oracle: WholeModel, state: State, draw: Streams) -> State:
        return state.moved(state.x)


class _Counted(nn.Module):
    """The door in the form of a module, which is what foolbox asks for."""

    def __init__(self, oracle: WholeModel) -> None:
        super().__init__()
        self.oracle = oracle
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        return self.oracle.answer(x)


def _library() -> Any:
    """foolbox, imported on first use and without the warnings that its own old imports cause."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import foolbox
    return foolbox


def names() -> dict[str, Any]:
    """All attacks of the installed foolbox that can be named alone, by their names there."""
    attacks, found = _library().attacks, {}
    for name, thing in vars(attacks).items():
        if inspect.isclass(thing) and issubclass(thing, attacks.base.Attack) and not inspect.isabstract(thing):
            required = [
                p for p in inspect.signature(thing).parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
            ]
            if not required:
                found[name] = thing
    return found


def _value(text: str) -> Any:
    lowered = {"true": True, "false": False, "none": None}
    if text.lower() in lowered:
        return lowered[text.lower()]
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _criterion(oracle: WholeModel) -> Any:
    criteria = _library().criteria
    match oracle.criterion:
        case Misclassified(labels):
            return criteria.Misclassification(labels)
        case Targeted(_, target):
            return criteria.TargetedMisclassification(target)
        case other:
            return _ours(other)


def _ours(criterion: Criterion) -> Any:
    """One of ours for those attacks that ask whether an image is adversarial and nothing else; the others refuse what they do not know."""

    class Ours(_library().criteria.Criterion):  # type: ignore[misc]  # foolbox is imported on first use only
        def __repr__(self) -> str:
            return type(criterion).__name__

        def __call__(self, perturbed: Any, outputs: Any) -> Any:
            logits = getattr(outputs, "raw", outputs)
            return type(outputs)(criterion.margin(logits) > 0) if logits is not outputs else criterion.margin(logits) > 0

    return Ours()

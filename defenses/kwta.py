"""k-winners-take-all, k-WTA (Xiao, Zhong, Zheng, ICLR 2020, https://arxiv.org/abs/1905.10510)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, fx, nn

from robustbench_lite.defending import Kind
from robustbench_lite.errors import ModelError
from robustbench_lite.registry import defense

EVERY = 2
"""Epochs between two steps of gamma, as in the published fine-tuning."""

SOFTNESS = 0.1
"""Width of the smooth stand-in's threshold, in standard deviations of what comes in."""


class WinnersTakeAll(nn.Module):
    """Keeps the k largest values of a sample and sets the others to 0; of any shape (B, ...). Gradients reach the winners only.

    Winners may be negative, and values equal to the k-th are all kept, as in the published code.

    Args:
        gamma: k = floor(gamma * N), at least 1.
        per_channel: N counts the values of each channel by itself, and not of the whole sample; without channels, of the sample.
    """

    def __init__(self, gamma: float, *, per_channel: bool = False) -> None:
        super().__init__()
        self.gamma, self.per_channel = gamma, per_channel

    def forward(self, x: Tensor) -> Tensor:
        # a product and not a choice, so that what is no number stays none; autograd keeps the mask only, one byte a value
        return x * (x >= self.threshold(x))

    def threshold(self, x: Tensor) -> Tensor:
        """The k-th largest value: (B, 1, ...), or (B, C, 1, ...) by channels."""
        values = x.detach().flatten(2 if self.per_channel and x.ndim > 2 else 1)
        k = max(1, int(self.gamma * values.shape[-1] + 1e-6))  # 0.29 of 100 are 29, though the product is 28.999999999999996
        lowest = values.topk(k, sorted=False).values.amin(-1)  # of what torch has, the fastest on CPUs: sorting takes six times as long
        return lowest.reshape(*lowest.shape, *(1,) * (x.ndim - lowest.ndim))

    @property
    def stand_ins(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """What an adaptive attack may take gradients through: `straight`, as if all had won, or `smooth`, a threshold without a jump."""
        return {"straight": lambda x: x, "smooth": self._smooth}

    def _smooth(self, x: Tensor) -> Tensor:
        spread = x.detach().flatten(1).std(1).clamp(min=1e-12).reshape(-1, *(1,) * (x.ndim - 1))
        return x * ((x - self.threshold(x)) / (SOFTNESS * spread)).sigmoid()

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}, per_channel={self.per_channel}"


@defense("kwta")
@dataclass(frozen=True)
class KWTA:
    """Replace the network's ReLUs by the k largest values of each layer, so that its gradients point nowhere for long.

    That masks gradients and is no robustness by itself: attacks that estimate or smooth the gradient break it (Tramèr et al., NeurIPS
    2020). Of 100 digits at linf 0.05, 80 withstood pgd and 13 `bpda`. Take it to test attacks, or together with adversarial
    training, and judge it by `bpda` and autoattack. A training step takes up to twice as long, by channels more than by volume.

    A ReLU that stands before the blocks of a ResNet keeps its place, as in the published code for CIFAR; networks without blocks have none.

    The smallest gammas are hard to learn. The paper's way is a network of gamma=0.2, from which gamma then falls every second epoch:

        robust-train ... --defense kwta:gamma=0.2 --out wide.safetensors
        robust-train ... --defense kwta:gamma=0.08,start=0.2 --init wide.safetensors --lr 0.001 --epochs 70 --out narrow.safetensors

    Args:
        gamma: share of a layer's values that win.
        within: volume counts the values of a whole sample, channel those of each channel.
        stem: replace the ReLU before the blocks too, as the published code does for ImageNet.
        start: gamma in the first epoch, which falls to `gamma` in the last; None keeps it constant.
    """

    kind: ClassVar[Kind] = "network"

    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    within: Literal["volume", "channel"] = "volume"
    stem: bool = False
    start: Annotated[float, Field(gt=0, le=1)] | None = None

    def __post_init__(self) -> None:
        if self.start is not None and self.start <= self.gamma:
            raise ValueError(f"gamma falls from start={self.start:g} to gamma={self.gamma:g}: start must be the larger one")

    def rebuild(self, model: nn.Module) -> nn.Module:
        """The same network with its ReLUs replaced.

        Raises:
            ModelError: it has none, or some that are no modules.
        """
        if count := _called_as_functions(model):
            raise ModelError(
                f"kwta replaces modules, and {type(model).__name__} calls relu as a function, {count} times: write nn.ReLU there"
            )
        names = [name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, nn.ReLU)]
        if not self.stem and names and "." not in names[0] and any("." in name for name in names):
            del names[0]
        if not names:
            raise ModelError(f"kwta replaces ReLUs, and {type(model).__name__} has none: take a network with ReLUs, such as resnet18")
        for name in names:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, WinnersTakeAll(self.gamma, per_channel=self.within == "channel"))
        return model

    def scheduled(self, model: nn.Module, epoch: int, epochs: int) -> None:
        """Set the gamma of this epoch; the last step down comes with the last pair of epochs."""
        if self.start is None:
            return
        steps = (epochs - 1) // EVERY
        left = (steps - epoch // EVERY) / steps if steps else 0.0
        for module in model.modules():
            if isinstance(module, WinnersTakeAll):
                module.gamma = self.gamma + left * (self.start - self.gamma)


def _called_as_functions(model: nn.Module) -> int:
    """How many ReLUs of a network are not modules; 0 too where it cannot be traced."""
    try:
        nodes = fx.Tracer().trace(model).nodes
    except Exception:  # tracing runs the model's own code, on stand-ins, which may fail in any way
        return 0
    names = (getattr(node.target, "__name__", node.target) for node in nodes if node.op in ("call_function", "call_method"))
    return sum(name in ("relu", "relu_") for name in names)

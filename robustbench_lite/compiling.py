"""A frozen model through torch.compile, in the place of its own Python: only where that is safe, and where it says the same.

Whatever is found on it is settled on the model as given, as with everything that `prepare` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import parent_process
from typing import Any

import torch
from torch import Tensor, fx, nn

from .classifier import Images, Logits
from .errors import InvalidEvaluation
from .passes import Passes
from .prepare import briefly, refuse_unsafe, unsafe
from .results import Reduced

BACKEND = "inductor"
LOGITS_APART, GRADIENTS_APART = 1e-3, 1e-2
"""How far apart the two models may be, relative to the largest logit and to the length of the gradients, of which kinks tip some values."""

GRAPHS = 32
"""At most of one model; torch's own limit is eight, which two precisions may reach."""

PROBED, TIMED = 4, 32
"""Images that both models are asked about, and by how many at a time they are timed."""

LEAST, SECONDS = 3, 1
"""Rounds of that at least, and how long at least."""


@dataclass(frozen=True)
class Compilation:
    """What came of it.

    Args:
        passes: the compiled model's, or those that were given.
        reason: why it is not compiled.
        seconds: until it could be used.
        pace: what a forward and a backward of the compiled model take, over what they took.
    """

    passes: Passes
    reason: str | None = None
    seconds: float = 0.0
    pace: float = 1.0

    def described(self) -> dict[str, Any]:
        """For the run's record."""
        return {
            "compiled": self.reason is None,
            "not_compiled_because": self.reason,
            "compile_seconds": round(self.seconds, 1),
            "compiled_pace": round(self.pace, 2),
        }


class Compiled(nn.Module):
    """Answers as `plain` does.

    Few graphs serve every number of images but one, which would need more: a single image goes through `plain`. So does everything
    once torch.compile fails at something that it has not met before; `failed` is told why.
    """

    def __init__(self, plain: nn.Module, failed: Callable[[str], object] = lambda _: None) -> None:
        super().__init__()
        self.plain, self._failed = plain, failed

        def answer(images: Images) -> Logits:
            logits: Logits = plain(images)
            return logits

        # torch counts graphs by code object, and gives up at some number: every model has to have its own
        answer.__code__ = answer.__code__.replace()
        self._answer: Callable[[Images], Logits] | None = torch.compile(answer, backend=_smooth, fullgraph=True)
        self.training = False

    def forward(self, images: Images) -> Logits:
        from torch._dynamo import maybe_mark_dynamic
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        if self._answer is not None and len(images) > 1:
            try:
                maybe_mark_dynamic(images, 0)
                return self._answer(images)
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:
                self._answer = None
                self._failed(_why(error))
        logits: Logits = self.plain(images)
        return logits


def _smooth(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """The backend, for graphs without an operation that rounding could tip over."""
    from torch._dynamo import lookup_backend

    refuse_unsafe(graph.graph)
    compiled: Callable[..., Any] = lookup_backend(BACKEND)(graph, inputs)
    return compiled


@contextmanager
def graphs_kept() -> Iterator[None]:
    """Several backward passes through one compiled forward, as `Passes.jacobian` takes them, and a graph for each precision, for few images
    and many, and with a backward pass or without, for as long as this lasts.
    """
    import torch._dynamo.config
    import torch._functorch.config
    import torch._inductor.config

    with ExitStack() as during:
        during.enter_context(torch._functorch.config.patch(donated_buffer=False))
        during.enter_context(torch._dynamo.config.patch(cache_size_limit=GRAPHS))
        if parent_process() is not None:  # a worker beside others: processes of its own would crowd them, and outlive it where it is killed
            during.enter_context(torch._inductor.config.patch(compile_threads=1))
        yield


def compiled(passes: Passes, probe: Images, reduced: Reduced | None, failed: Callable[[str], object]) -> Compilation:
    """
    Args:
        passes: the model to compile, as it is searched on.
        probe: (B, C, H, W) a few images that both models must agree on.
        reduced: a precision that it is to run in too.
        failed: told why, if it has to be given up later.
    """
    if reason := unsafe(passes.model):
        return Compilation(passes, reason)
    if passes.micro == 1:
        return Compilation(passes, "its images go through one at a time")
    started, troubles = time.perf_counter(), list[str]()
    model = Compiled(passes.model, troubles.append)
    fast = replace(passes, model=model, prepared=True)
    x, more = (probe.repeat(count, 1, 1, 1)[: min(count, passes.micro or count)] for count in (PROBED, TIMED))
    try:
        apart = _apart(passes, fast, x)
        if reduced:
            _ask(replace(fast, reduced=reduced), x)
        pace = _pace(passes, fast, more)
    except Exception as error:  # compiling runs the model's own code, on stand-ins, and a compiler of C++: either may fail in any way
        return Compilation(passes, _why(error))
    if reason := next(iter(troubles), apart):
        return Compilation(passes, reason)
    model._failed = failed
    return Compilation(fast, seconds=time.perf_counter() - started, pace=pace)


def _apart(plain: Passes, fast: Passes, x: Images) -> str | None:
    """In what the two models differ, if they do."""
    (logits, slopes), (exact, right) = _ask(fast, x), _ask(plain, x)
    for name, gap, size, most in (
        ("logits", (logits - exact).abs().amax(), exact.abs().amax(), LOGITS_APART),
        ("gradients", (slopes - right).norm(), right.norm(), GRADIENTS_APART),
    ):
        if not gap <= most * size.clamp(min=1e-6):  # nor where either is no number
            return f"the compiled model's {name} differ by {float(gap / size):.2g}"
    return None


def _ask(passes: Passes, x: Images) -> tuple[Logits, Tensor]:
    """Logits without a graph, and the gradients of the two highest of them; of a model that has none, the logits again."""
    logits = passes.logits(x)
    with torch.enable_grad():
        if not passes.model(x.detach()[:1].requires_grad_()).requires_grad:
            return logits, logits
    return logits, passes.jacobian(x, logits.topk(min(2, logits.shape[1]), dim=1).indices)[1]


def _pace(plain: Passes, fast: Passes, x: Images) -> float:
    """The shortest time of one over that of the other; in turn, so that what else the machine does meets both."""
    taken: dict[bool, list[float]] = {False: [], True: []}
    until = time.perf_counter() + SECONDS
    while len(taken[True]) < LEAST or time.perf_counter() < until:
        for compiled, passes in ((False, plain), (True, fast)):
            started = time.perf_counter()
            _ask(passes, x)[1].sum().item()  # waits for an accelerator
            taken[compiled].append(time.perf_counter() - started)
    return min(taken[True]) / min(taken[False])


def _why(error: Exception) -> str:
    """Of an error in a pass, the one that it was made of."""
    first = error.__cause__ if isinstance(error, InvalidEvaluation) and isinstance(error.__cause__, Exception) else error
    return f"it cannot be compiled ({briefly(getattr(first, 'inner_exception', first))})"

"""Operations without a useful gradient in the model's forward pass."""

from __future__ import annotations

import re
from collections import Counter as Tally
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustbench_lite.diagnostics import Counter, Evidence, Finding, Look
from robustbench_lite.registry import diagnostic
from robustbench_lite.settlement import settled
from robustbench_lite.telling import searches

if TYPE_CHECKING:
    from torch import Tensor

STEPS = re.compile(r"(Round|Floor|Ceil|Trunc|Sign|Sgn)Backward\d")
"""Nodes of autograd's graph whose gradient is zero wherever it exists."""


@diagnostic("operations")
@dataclass(frozen=True)
class Operations:
    """Rounding and the like on the way from the image to the logits.

    A layer that declares a stand-in for its gradient has it in every attack. Whole numbers and yes-or-no made of what depends on the
    image are only noted: k-WTA makes them, but so does many a check that changes nothing. What a scripted model does is not seen.
    """

    def observe(self, look: Look) -> Mapping[str, Any]:
        import torch

        from robustbench_lite.bpda import declaring

        x = look.batch(look.ids[:1])[0].requires_grad_()
        with torch.enable_grad(), _watch() as whole:
            logits = look.model(x)
        seen = {
            "steps": dict(Tally(match[1].lower() for name in _nodes(logits) if (match := STEPS.fullmatch(name)))),
            "whole": dict(whole),
            "declared": declaring(look.model),
        }
        return seen if any(seen.values()) else {}

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        seen = evidence.observed("operations")
        for norm, eps in evidence.balls if seen else ():
            if seen["steps"]:
                yield from _blocked(evidence, norm, eps, seen["steps"])
            rows = evidence.rows(norm, eps)
            if seen["declared"] and not evidence.hidden:
                text = f"gradients pass {', '.join(seen['declared'])} by the stand-in that it declares"
                yield Finding("operations", "notes", rows, text, "the attacks are adaptive in this respect")
            if seen["whole"]:
                text = f"the model makes whole numbers or yes-or-no of what depends on the image ({_counted(seen['whole'])})"
                yield Finding("operations", "notes", rows, text, "gradients do not see what hangs on these", figures=seen["whole"])


def _blocked(evidence: Evidence, norm: str, eps: float, steps: Mapping[str, int]) -> Iterator[Finding]:
    """About the rows of a ball that follow the model's own gradients; a note once what would settle it was tried."""
    climbing = [row for row in evidence.balls[norm, eps] if evidence.follows_gradients(row)]
    worst = evidence.worst(norm, eps)
    names = tuple(row.name for row in [*climbing, *([worst] if worst else [])] if evidence.standing(row))
    if climbing and names:
        settle = (*searches(norm), Counter("es-pgd:samples=500,iterations=40"))
        done = settled(evidence, climbing[0], settle)
        yield Finding(
            "operations",
            "notes" if done else "doubts",
            names,
            f"the model's forward pass has operations whose gradient is zero ({_counted(steps)})",
            "attacks without gradients were tried on what was left"
            if done
            else "an attack that follows gradients does not get past these, so the figure may be too high",
            () if done else settle,
            steps,
        )


def _counted(tally: Mapping[str, int]) -> str:
    return ", ".join(f"{name} x {count}" if count > 1 else name for name, count in tally.items())


def _nodes(logits: Tensor) -> Iterator[str]:
    """Names of the nodes of the graph behind the logits, each once; none where nothing leads back to the image."""
    waiting, seen = [logits.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node.name()
            waiting += [earlier for earlier, _ in node.next_functions]


def _watch() -> Any:
    """A context that yields how often each function of torch makes whole numbers or truth values of what depends on the image."""
    from contextlib import contextmanager

    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    found: Tally[str] = Tally()

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            if isinstance(made, Tensor) and not made.is_floating_point() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
                found[func.__name__.strip("_")] += 1
            return made

    @contextmanager
    def watching() -> Iterator[Tally[str]]:
        with Watch():
            yield found

    return watching()

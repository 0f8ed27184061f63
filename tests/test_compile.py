"""A model through torch.compile: it says the same, or is searched as it was, and the run says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite import compiling
from robustbench_lite.compiling import BACKEND, Compilation, Compiled, compiled, graphs_kept
from robustbench_lite.conditions import criterion
from robustbench_lite.passes import Passes
from robustbench_lite.registry import ATTACKS
from robustbench_lite.ways import Ways

QUICK = "aot_eager"
"""Torch's tracing and its backward pass, without the compiler."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compiling, "BACKEND", QUICK)
    monkeypatch.setattr(compiling, "SECONDS", 0)
    with graphs_kept():
        yield


def network(*between: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), *between, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)).eval().requires_grad_(False)


def images(count: int = 4, size: int = 8) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def made(model: nn.Module, probe: Tensor | None = None, failed: Callable[[str], object] = pytest.fail, **more: Any) -> Compilation:
    return compiled(Passes(model, **more), images() if probe is None else probe, None, failed)


def backend(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """One whose graphs answer a little otherwise."""

    def smooth(graph: Any, inputs: Any) -> Any:
        return lambda *given: tuple(change(each) if each.is_floating_point() else each for each in graph(*given))

    return smooth


def test_answers_and_gradients_of_every_batch_size_by_few_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []
    smooth = compiling._smooth
    monkeypatch.setattr(compiling, "_smooth", lambda *given: graphs.append(1) or smooth(*given))  # type: ignore[func-returns-value]
    model, before = network(nn.ReLU()), torch.get_rng_state()
    done = made(model)
    assert done.reason is None
    assert done.passes.prepared
    assert torch.equal(torch.get_rng_state(), before)
    for count in (1, 2, 3, 7, 64, 5):
        x, plain = images(count), Passes(model)
        labels = torch.zeros(count, dtype=torch.long)
        rule = criterion(labels, None, plain.logits(x))
        assert torch.allclose(done.passes.logits(x), plain.logits(x), atol=1e-6)
        for one, other in zip(done.passes.gradient(x, rule, "ce"), plain.gradient(x, rule, "ce"), strict=True):
            assert torch.allclose(one, other, atol=1e-6)
        classes = torch.arange(3).expand(count, 3)
        assert torch.allclose(done.passes.jacobian(x, classes)[1], plain.jacobian(x, classes)[1], atol=1e-6)
    assert len(graphs) <= 4  # with a backward pass and without, from 16 images on (torch's own choice for convolutions) and below


class Rough(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change, self.training = change, False

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x)


def branching(x: Tensor) -> Tensor:
    return x if x.mean() > 0.4 else -x


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: (x * 8).round() / 8, "round is not smooth"),
        (lambda x: x + 0.1 * torch.randn_like(x), "randn_like is not smooth"),
        (branching, "it cannot be compiled (Unsupported: "),
    ],
)
def test_what_cannot_be_compiled_is_searched_as_it_was(change: Callable[[Tensor], Tensor], reason: str) -> None:
    model = network(Rough(change))
    done = made(model)
    assert reason in str(done.reason)
    assert done.passes.model is model
    assert not done.passes.prepared


def test_hooks_archives_and_single_images() -> None:
    model = network()
    model[0].register_forward_hook(lambda *_: None)
    assert made(model).reason == "0 has hooks"
    assert made(network(), micro=1).reason == "its images go through one at a time"
    assert made(network(), images(1)).reason is None  # of one image there are several to probe with


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_an_archive_is_searched_as_it_was() -> None:
    assert made(torch.jit.trace(network(), images())).reason == "the model is an archive"


@pytest.mark.parametrize(
    ("change", "reason"),
    [(lambda x: x * 1.01, "logits differ by 0.01"), (lambda x: x * torch.nan, "logits differ by nan")],
)
def test_a_compiled_model_that_answers_otherwise_is_not_used(
    change: Callable[[Tensor], Tensor], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_smooth", backend(change))
    done = made(network(nn.ReLU()))
    assert reason in str(done.reason)
    assert not isinstance(done.passes.model, Compiled)


class TwiceTheSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * slope


def test_a_compiled_model_with_other_gradients_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_smooth", backend(TwiceTheSlope.apply))
    assert made(network(nn.ReLU())).reason == "the compiled model's gradients differ by 1"


def test_without_a_compiler_the_model_is_searched_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch._inductor.config as settings

    monkeypatch.setattr(compiling, "BACKEND", BACKEND)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with settings.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}):
        reason = str(made(network(nn.ReLU())).reason)
    assert reason.startswith("it cannot be compiled (InvalidCxxCompiler: No working C++ compiler found")


def test_what_fails_later_is_searched_uncompiled_from_there_on(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()  # or a graph for any size comes first, of which another test showed the need
    failures: list[str] = []
    model = network(nn.ReLU())
    done = made(model, failed=failures.append)
    assert done.reason is None

    def gone(*_: Any) -> Any:
        raise RuntimeError("no space left on device")

    monkeypatch.setattr(compiling, "refuse_unsafe", gone)
    for size in (8, 12, 12, 8):  # another size of image is another graph
        x = images(size=size)
        assert torch.allclose(done.passes.logits(x), Passes(model).logits(x), atol=1e-6)
    assert failures == ["it cannot be compiled (RuntimeError: no space left on device)"]


def test_many_models_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch gives a piece of code up that was compiled too often."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    with torch._dynamo.config.patch(cache_size_limit=4):
        assert [done.reason for done in [made(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval()) for _ in range(5)]] == [None] * 5


def test_a_model_without_gradients_and_one_of_one_logit() -> None:
    class Hard(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x.detach())

    model = network(nn.ReLU())
    assert made(Hard().eval()).reason is None
    one = nn.Sequential(nn.Flatten(), nn.Linear(192, 1)).eval().requires_grad_(False)
    assert made(one).reason is None


ASKED: dict[str, Any] = {"attacks": ["pgd:steps=5", "fab:steps=3"], "data": "digits", "limit": 30, "eps": 0.05}


@pytest.mark.parametrize("engine", [QUICK, pytest.param(BACKEND, marks=pytest.mark.slow)])
def test_verdicts_are_the_same_and_the_run_says_what_was_done(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", engine)
    monkeypatch.setattr("robustbench_lite.ways.SLOWER", torch.inf)
    plain, fast = rb.evaluate("digits_cnn", **ASKED), rb.evaluate("digits_cnn", **ASKED, compile=True)
    assert fast.verdict_digest == plain.verdict_digest
    assert fast.config["notes"] == plain.config["notes"]
    said = fast.config["sessions"][0]["prepared"]
    assert (said["folded_layers"], said["compiled"], said["not_compiled_because"]) == (3, True, None)
    assert said["compile_seconds"] > 0
    assert "compiled" not in plain.config["sessions"][0]["prepared"]


def test_a_run_says_why_a_model_was_not_compiled_and_that_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    data = images(6), torch.zeros(6, dtype=torch.long)
    model = rb.Classifier(network(Rough(branching)), name="crooked")
    notes = rb.evaluate(model, "fgsm", data, eps=0.05, compile=True).config["notes"]
    assert any(note.startswith("crooked was searched uncompiled: it cannot be compiled (Unsupported: ") for note in notes)
    monkeypatch.setattr("robustbench_lite.ways.SLOWER", 0.0)
    notes = rb.evaluate(rb.Classifier(network(nn.ReLU()), name="slow"), "fgsm", data, eps=0.05, compile=True).config["notes"]
    assert "slow takes longer compiled than uncompiled on this machine: leave --compile out" in notes


def test_which_attacks_search_on_what() -> None:
    plain, rough, fast = (Passes(network()) for _ in range(3))
    found = Ways(plain, [rough, fast], random=False)
    for spec, expected in (("pgd", [rough, fast]), ("sgm", [plain]), ("foolbox:LinfPGD", [fast])):
        assert [passes.model for passes in found.of(ATTACKS.build(spec), None)] == [passes.model for passes in expected], spec

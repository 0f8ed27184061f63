"""The training loop: one for every architecture, data set and defense, in one process or in several.

A step's draws are keyed by (seed, image, epoch) and the order of the images by (seed, epoch), so that a training which was killed goes on
to the same weights, and several processes learn what one would.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from robustbench_lite.checkpoints import load_into, read_state_dict
from robustbench_lite.classifier import Classifier
from robustbench_lite.defending import About, Batch, Defenses, Replay, Step
from robustbench_lite.errors import InvalidEvaluation, ModelError, RobustEvalError, first_line
from robustbench_lite.labelled import LabelledImages
from robustbench_lite.streams import Streams, generator
from robustbench_lite.trained import Made

from .adversary import evaluating
from .average import Average
from .feed import Feed, counted, some_of
from .framing import Frame, framing
from .optimizing import optimizer_for, start_at_zero
from .recipe import Recipe
from .selection import Selection
from .states import damaged, keep_state, kept_state
from .world import World

STATE_SECONDS = 60.0
"""The state is written at the end of an epoch, and within a long one so often."""

HALF = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: its number from 1, the mean loss over its images, the last learning rate, seconds of training so far, and
    the shares of the images held out that were right, clean and attacked; None where none are."""

    number: int
    loss: float
    lr: float
    seconds: float
    clean: float | None = None
    attacked: float | None = None


class Diverged(InvalidEvaluation):
    """The loss or the weights are no numbers any more."""


class Objective(nn.Module):
    """The losses of a batch under a defense, as one module, so that several processes exchange gradients once a step."""

    def __init__(self, classifier: Classifier, defenses: Defenses, frame: Frame) -> None:
        super().__init__()
        self.classifier, self.defenses, self.frame = classifier, defenses, frame

    def forward(self, images: Tensor, targets: Tensor, draw: Streams, progress: float, replay: Replay | None = None) -> Tensor:
        """(B,)."""
        with torch.autocast(images.device.type, enabled=False):  # pixels keep their precision
            batch = self.defenses.augment(Batch(self.frame(images, draw), targets), draw)
        return self.defenses.losses(Step(self.classifier, batch, draw, progress, replay or Replay()))


@dataclass
class Running:
    """How far a training has come; all of it is in the state file."""

    step: int = 0
    total: float = 0.0  # of the losses of this epoch's images so far
    seconds: float = 0.0
    epochs: tuple[Epoch, ...] = ()


class Training:
    """A network while it is trained.

    Args:
        made: what the network is; its defense is what it is trained with.
        data: training images with one class an image.
        recipe: how.
        world: this process among those that train together.
        init: a checkpoint to start from; None starts from weights drawn under the recipe's seed.
        selection: images held out to choose the epoch by; None keeps the last.
        state_file: where the state is kept; None keeps none.
        report: called after every epoch with all epochs so far.

    Raises:
        UsageError: a defense that is not trained, or data that cannot be trained on.
        ModelError: the network cannot take these images, or `init` holds another one.
        RunMismatch: the state is of another training.
    """

    def __init__(
        self,
        made: Made,
        data: LabelledImages,
        recipe: Recipe,
        world: World,
        *,
        init: Path | None = None,
        selection: Selection | None = None,
        state_file: Path | None = None,
        report: Callable[[tuple[Epoch, ...]], None] = lambda epochs: None,
    ) -> None:
        self.recipe, self.world, self.selection = recipe, world, selection
        self.state_file, self.report = state_file, report
        self.probe = data[0][0][None]
        _, channels, height, width = self.probe.shape
        some = partial(some_of, data, recipe.seed)
        about = About(counted(data), dict(data.default_eps), world.device, (channels, height, width), recipe.seed, some)
        self.defenses = Defenses.parse(made.defense).trainable().informed(about)
        self.feed = Feed.of(data, recipe, world)
        self.classifier = self._at_the_start(made, init).to(world.device).train()
        self.objective: nn.Module = Objective(self.classifier, self.defenses, framing(recipe.tricks.augment))
        if world.size > 1:
            on = [world.device] if world.device.type == "cuda" else None
            self.objective = DistributedDataParallel(self.objective, device_ids=on)
        self.optimizer = optimizer_for(self.classifier, recipe)
        self.phases = self.defenses.phases(self.classifier.model)
        self.average = Average.of(self.classifier, recipe.tricks.ema)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=recipe.tricks.precision == "fp16")
        self.running = Running()
        self.identity: dict[str, Any] = {
            "version": version("robustbench-lite"),
            "training images": data.digest[:16],
            "init": None if init is None else hashlib.sha256(init.expanduser().read_bytes()).hexdigest()[:16],
            # batch statistics, partners of mixing and dropout are each process's own
            "processes": world.size if world.size > 1 else None,
            "files of": self.defenses.taught_by,
            **({"held out": None} if selection is None else selection.identity),
            **asdict(made),
            **{name: value for name, value in asdict(recipe).items() if name != "tricks"},
            **asdict(recipe.tricks),
        }
        self._restore()

    def run(self) -> Classifier:
        """The trained classifier, on the CPU and in eval mode: the last weights, or those of the epoch that `selection` chose.

        The same arguments give the same weights on the same machine. Global random state is left as it was.

        Raises:
            Diverged: the loss or a weight is no longer a finite number; the state on disk is from before.
            InvalidEvaluation: the state cannot be written.
        """
        running, feed = self.running, self.feed
        before, started = running.seconds, time.monotonic()
        kept = started
        # cuDNN would otherwise pick kernels by their speed of the moment, and some of those add up in any order
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            for batch, draw, everyone in feed.batches(running.step):
                epoch = running.step // feed.per_epoch
                self.defenses.scheduled(self.classifier.model, epoch, self.recipe.epochs)
                replay = Replay()
                for replay.number in range(self.defenses.replays):
                    self._step(batch, draw, everyone, replay)
                running.step, running.seconds = running.step + 1, before + time.monotonic() - started
                ends = running.step % feed.per_epoch == 0
                self.defenses.stepped(self.world, ends)
                if ends or time.monotonic() - kept >= STATE_SECONDS:
                    self._check()
                    if ends:
                        self._end_of_epoch(epoch)
                    self._keep()
                    kept = time.monotonic()
        return self._result()

    def _step(self, batch: Batch, draw: Streams, everyone: int, replay: Replay) -> None:
        """One update along the gradient of the mean loss over all processes' images, of which there are `everyone`."""
        running, tricks, device = self.running, self.recipe.tricks, self.world.device
        lr = self._rate(running.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        half = HALF[tricks.precision]
        progress = running.step / (self.recipe.epochs * self.feed.per_epoch)
        with self._seeded(replay.number), torch.autocast(device.type, dtype=half, enabled=half is not None):
            loss: Tensor = self.objective(batch.images, batch.targets, draw, progress, replay).sum()
        self.optimizer.zero_grad()
        # gradients are averaged over the processes, whose parts may differ by one image
        torch.autograd.backward(self.scaler.scale(loss * (self.world.size / everyone)))
        running.total += float(self.world.total(loss.detach()))
        if not math.isfinite(running.total):
            raise self._diverged(f"the loss became {running.total}", running.step + 1)
        if tricks.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.classifier.parameters(), tricks.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update(self.classifier)

    def _rate(self, step: int) -> float:
        return self.recipe.learning_rate(step, self.feed.per_epoch, self.phases)

    def _end_of_epoch(self, epoch: int) -> None:
        running, model = self.running, self._as_used()
        self.world.agree(model.buffers())  # running statistics are each process's own
        settled = self.defenses.settled(model.model, (epoch + 1) / self.recipe.epochs)
        score = None if self.selection is None else self.selection.consider(model, epoch + 1, settled=settled)
        running.epochs += (
            Epoch(
                epoch + 1,
                running.total / (len(self.feed.data) * self.defenses.replays),
                self._rate(running.step - 1),
                running.seconds,
                *((score.clean, score.attacked) if score is not None else ()),
            ),
        )
        running.total = 0.0
        self.report(running.epochs)

    @contextmanager
    def _seeded(self, replay: int) -> Iterator[None]:
        """torch's random state keyed by the update, for networks that draw themselves (dropout), and put back afterwards."""
        devices = [self.world.device] if self.world.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            key = (self.running.step, self.world.rank, *([replay] if replay else []))
            seed = int(generator(self.recipe.seed, "network", *key).integers(2**63))
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed(seed)
            yield

    def _at_the_start(self, made: Made, init: Path | None) -> Classifier:
        """First weights are drawn from the global CPU generator, which every initialiser uses: it is lent and given back."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.recipe.seed)  # torch.manual_seed would seed the accelerators too, for good
            classifier = made.untrained()
        try:
            with torch.no_grad():
                classifier(self.probe)
        except (RuntimeError, ValueError, AssertionError) as error:  # whatever a network's own layers raise
            raise ModelError(
                f"{made.architecture} cannot take images of shape {tuple(self.probe.shape[1:])}: {first_line(error)}"
            ) from error
        if self.recipe.tricks.zero_gamma:
            start_at_zero(classifier, self.probe)
        if init is not None:
            load_into(classifier.model, read_state_dict(init), init, made.architecture, made.classes)
        return classifier

    def _keep(self) -> None:
        if self.state_file is None or not self.world.first:
            return
        keep_state(
            self.state_file,
            self.identity,
            {
                "classifier": self.classifier.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": None if self.average.model is None else self.average.model.state_dict(),
                "scaler": self.scaler.state_dict(),
                "selection": None if self.selection is None else self.selection.state(),
                "defenses": self.defenses.state(),
                "step": self.running.step,
                "total": self.running.total,
                "seconds": self.running.seconds,
                "epochs": [astuple(epoch) for epoch in self.running.epochs],
            },
        )

    def last_good(self) -> Classifier | None:
        """What `run` would have made of the state on disk; None where there is none. For use after `Diverged`."""
        return self._result() if self._restore() else None

    def _restore(self) -> bool:
        """Go back to the state on disk, if there is one."""
        state = None if self.state_file is None else kept_state(self.state_file, self.identity)
        if state is None or self.state_file is None:
            return False
        try:
            self._take(state)
        except (torch.OutOfMemoryError, MemoryError, RobustEvalError):
            raise
        except Exception as error:  # whatever the parts' own loading raises of what is not theirs
            raise damaged(self.state_file) from error
        return True

    def _take(self, state: dict[str, Any]) -> None:
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average.model is not None:
            self.average.model.load_state_dict(state["average"])
            self.average.steps = state["step"] * self.defenses.replays
        self.scaler.load_state_dict(state["scaler"])
        if self.selection is not None:
            self.selection.restore(state["selection"])
        self.defenses.restore(state["defenses"])
        epochs = tuple(Epoch(*epoch) for epoch in state["epochs"])
        self.running = Running(state["step"], state["total"], state["seconds"], epochs)

    def _as_used(self) -> Classifier:
        """What is tested and written, with its layers as the end of the schedule leaves them, since a checkpoint is built so."""
        model = self.average.of_model(self.classifier)
        self.defenses.scheduled(model.model, self.recipe.epochs - 1, self.recipe.epochs)
        return model

    def _result(self) -> Classifier:
        model = self._as_used()
        best = model if self.selection is None else self.selection.best(model)
        return best.eval().cpu().requires_grad_(False)

    def _check(self) -> None:
        """Weights that are no numbers, or answer in none, never take the place of good ones."""
        with evaluating(self.classifier), torch.no_grad():
            answer = self.classifier(self.probe.to(self.world.device))
        if not all(bool(tensor.isfinite().all()) for tensor in (answer, *self.classifier.state_dict().values())):
            raise self._diverged("weights became useless", self.running.step)

    def _diverged(self, what: str, step: int) -> Diverged:
        epoch = math.ceil(step / self.feed.per_epoch)
        return Diverged(f"{what} in step {step} (epoch {epoch}): try a smaller --lr than {self.recipe.lr:g}, --clip 1 or --warmup 5")

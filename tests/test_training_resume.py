"""A training that was killed, interrupted, has diverged or found the disk full: what is left of it, and how it goes on."""

from __future__ import annotations

import csv
import errno
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from robustbench_lite.defenses import training as loop
from robustbench_lite.defenses.adversary import attack_for_training
from robustbench_lite.defenses.job import save
from robustbench_lite.defenses.selection import Selection
from robustbench_lite.defenses.states import keep_state, kept_state
from robustbench_lite.defenses.train_cli import main
from safetensors.torch import load_file
from torch import Tensor
from training_fixture import ALONE, digits, made, metadata, register_forgetful, same, training

from robustbench_lite.defending import Kind, Step
from robustbench_lite.errors import InvalidEvaluation, ModelError, RunMismatch, UsageError
from robustbench_lite.registry import ARCHITECTURES, DEFENSES, defense
from robustbench_lite.threat import ball
from robustbench_lite.trained import load_trained

TESTS = Path(__file__).parent
KILLED = """
import os, signal, sys
from training_fixture import register_forgetful
from robustbench_lite.defenses import states, training
from robustbench_lite.defenses.train_cli import main

register_forgetful()
training.STATE_SECONDS = 0.0
states_left, replace = int(sys.argv[1]), os.replace

def replaced(part, file):
    global states_left
    states_left -= str(file).endswith(".state")
    if not states_left and sys.argv[2] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(part, file)
    if not states_left:
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = replaced
main(sys.argv[3:])
"""


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test registers is gone afterwards; `forgetful` is there."""
    for registry in (ARCHITECTURES, DEFENSES):
        registry.names()
        monkeypatch.setattr(registry, "found", dict(registry.found))
    register_forgetful()


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STATE_SECONDS", 0.0)


def table(file: Path) -> list[list[str]]:
    """A training's CSV without the seconds."""
    with file.open(newline="") as opened:
        rows = list(csv.reader(opened))
    seconds = rows[0].index("seconds")
    return [row[:seconds] + row[seconds + 1 :] for row in rows]


class Interrupted(Exception):
    """Raised by a report: the training ends there, with the state of the step before."""


def interrupted(state: Path, **given: object) -> None:
    def report(epochs: object) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        training(state_file=state, report=report, **given).run()


SGD = "--optimizer sgd --lr 0.02 --ema 0.9 --clip 1 --defense pgd-at:attack=(pgd:steps=2) --validation 0.2"
ADAMW = "--optimizer adamw --label-smoothing 0.1 --warmup 0.5 --validation 0.1 --validation-attack fgsm"


@pytest.mark.parametrize(("settings", "state", "when"), [(SGD, 5, "after"), (ADAMW, 3, "before")], ids=["sgd", "adamw"])
def test_killed_and_resumed_gives_the_same_weights(settings: str, state: int, when: str, tmp_path: Path) -> None:
    """Killed in mid-epoch after a state was written, and at an epoch's end while the next is."""
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    usual = ["--model", "forgetful", "--epochs", "2", "--batch-size", "270", "--seed", "4", "--device", "cpu", *settings.split()]
    command = [sys.executable, "-c", KILLED, str(state), when, *usual, "--out", str(other)]
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = torch.load(tmp_path / "other.training.state", weights_only=True)["state"]
    assert left["step"] == state - (when == "before")
    assert (tmp_path / "other.training.state.part").exists() == (when == "before")

    assert main([*usual, "--out", str(other)]) == 0
    assert main([*usual, "--out", str(one)]) == 0
    expected, found = load_file(one), load_file(other)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert table(tmp_path / "one.training.csv") == table(tmp_path / "other.training.csv")
    facts = [{name: text for name, text in metadata(file).items() if name != "command"} for file in (one, other)]
    assert facts[0] == facts[1]
    suffixes = (".safetensors", ".training.csv", ".training.png")
    assert {file.name for file in tmp_path.iterdir()} == {f"{stem}{suffix}" for stem in ("one", "other") for suffix in suffixes}


def test_a_state_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    state = tmp_path / "state"
    given: dict[str, object] = {"ema": 0.5, "what": made("forgetful"), "augment": "turn-shift"}
    interrupted(state, **given)
    resumed = training(state_file=state, **given)
    assert resumed.running.step == 2
    assert same(resumed.run(), training(**given).run())


def test_the_epoch_chosen_before_the_kill_is_remembered(tmp_path: Path) -> None:
    class Falling(Selection):
        """Every epoch is worse than the one before."""

        def consider(self, classifier: object, epoch: int, **given: bool) -> object:
            self.fallen = epoch
            return super().consider(classifier, epoch, **given)  # type: ignore[arg-type] # of the parent's

        def _scored(self, classifier: object) -> object:
            from robustbench_lite.defenses.selection import Score

            return Score(1 / self.fallen, 1.0)

    def selection() -> Selection:
        return Falling(digits(8), None, None, 0, ALONE)

    state, first = tmp_path / "state", selection()
    weights = training(epochs=3, selection=first).run()
    assert first.epoch == 1

    def stop(epochs: tuple[object, ...]) -> None:
        if len(epochs) == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        training(epochs=3, selection=selection(), state_file=state, report=stop).run()
    last = selection()
    resumed = training(epochs=3, selection=last, state_file=state)
    assert (last.epoch, last.score and last.score.attacked) == (1, 1.0)
    assert same(resumed.run(), weights)


# --- states that are not gone on with


def test_a_state_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    state = tmp_path / "state"
    interrupted(state)
    for given, said in (
        ({"lr": 0.1}, r"with lr 0\.05, not 0\.1: repeat that command to go on, choose another --out, or start over with --fresh"),
        ({"momentum": 0.5}, r"with momentum 0\.9, not 0\.5"),
        ({"ema": 0.9}, r"with ema None, not 0\.9"),
        ({"seed": 7}, "with seed 0, not 7"),
        ({"epochs": 3}, "with epochs 2, not 3"),
        ({"what": made("forgetful")}, "with architecture small_cnn, not forgetful"),
        ({"data": digits(95)}, "with training images "),
        ({"selection": Selection(digits(8), None, None, 0, ALONE)}, "with held out None"),
    ):
        with pytest.raises(RunMismatch, match=said):
            training(**{"state_file": state, **given})


def test_a_state_of_another_validation_is_refused(tmp_path: Path) -> None:
    def selection(steps: int, eps: float) -> Selection:
        return Selection(digits(8), attack_for_training(f"pgd:steps={steps}", "linf"), ball("linf", eps), 0, ALONE)

    state = tmp_path / "state"
    interrupted(state, selection=selection(2, 0.1))
    training(state_file=state, selection=selection(2, 0.1))
    with pytest.raises(RunMismatch, match="with validation attack PGD"):
        training(state_file=state, selection=selection(3, 0.1))
    with pytest.raises(RunMismatch, match=r"with validation threat linf 0\.1"):
        training(state_file=state, selection=selection(2, 0.2))


def test_a_state_of_another_teacher_under_the_same_name_is_refused(tmp_path: Path) -> None:
    teacher, state = tmp_path / "teacher.safetensors", tmp_path / "state"
    what = made(defense=f"distill:teacher={teacher}")
    save(training().run(), teacher, made(), {})
    interrupted(state, what=what)
    training(what=what, state_file=state)
    save(training(seed=1).run(), teacher, made(), {})
    with pytest.raises(RunMismatch, match="with files of distill "):
        training(what=what, state_file=state)


def test_a_state_of_several_processes_is_refused_by_one(tmp_path: Path) -> None:
    state = tmp_path / "state"
    interrupted(state)
    left = torch.load(state, weights_only=True)
    torch.save(left | {"identity": left["identity"] | {"processes": 2}}, state)
    with pytest.raises(RunMismatch, match="with processes 2, not None"):
        training(state_file=state)


def test_the_weights_to_start_from_belong_to_the_training(tmp_path: Path) -> None:
    start, state = tmp_path / "start.safetensors", tmp_path / "state"
    first = training()
    save(first.run(), start, made(), {})
    begun = training(init=start, ema=0.5)
    assert same(begun.classifier, first.classifier)
    assert begun.average.model is not None
    assert same(begun.average.model, first.classifier), "the average starts there too"
    interrupted(state, init=start)
    assert same(training(init=start, state_file=state).run(), training(init=start).run())
    save(training(seed=1).run(), start, made(), {})
    with pytest.raises(RunMismatch, match="with init "):
        training(init=start, state_file=state)
    with pytest.raises(ModelError, match=r"start\.safetensors does not fit forgetful: "):
        training(init=start, what=made("forgetful"))


@pytest.mark.parametrize("damage", [b"", b"no state", None])
def test_a_damaged_state_is_one_line(damage: bytes | None, tmp_path: Path) -> None:
    state = tmp_path / "state"
    interrupted(state)
    content = state.read_bytes()
    state.write_bytes(content[: len(content) // 2] if damage is None else damage)
    with pytest.raises(UsageError, match="state is damaged or no state of a training: delete it, or start over with --fresh"):
        training(state_file=state)


@pytest.mark.parametrize("part", ["classifier", "optimizer", "epochs", "step"])
def test_a_state_that_lacks_a_part_is_one_line(part: str, tmp_path: Path) -> None:
    state = tmp_path / "state"
    interrupted(state)
    found = torch.load(state, weights_only=True)
    del found["state"][part]
    torch.save(found, state)
    with pytest.raises(UsageError, match="state is damaged or no state of a training: delete it, or start over with --fresh"):
        training(state_file=state)


def test_fresh_starts_over_and_force_alone_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, state = tmp_path / "a.safetensors", tmp_path / "a.training.state"
    usual = ["--model", "forgetful", "--batch-size", "450", "--device", "cpu", "--out", str(out)]
    state.write_bytes(b"of something else")
    out.write_bytes(b"mine")
    assert main([*usual, "--epochs", "1", "--force"]) == 2
    assert "start over with --fresh" in capsys.readouterr().err
    assert (out.read_bytes(), state.read_bytes()) == (b"mine", b"of something else")
    assert main([*usual, "--epochs", "1", "--force", "--fresh"]) == 0
    assert not state.exists()


# --- divergence


def test_what_diverges_leaves_the_last_good_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @defense("breaks")
    @dataclass(frozen=True)
    class Breaks:
        kind: ClassVar[Kind] = "adversarial"
        at: float = 0.75

        def fit(self, step: Step) -> Tensor:
            return step.logits.logsumexp(1) * (math.nan if step.progress >= self.at else 1.0)

    out, good = tmp_path / "a.safetensors", tmp_path / "a.last-good.safetensors"
    usual = ["--model", "small_cnn", "--batch-size", "450", "--epochs", "2", "--device", "cpu", "--out", str(out), "--defense"]
    assert main([*usual, "breaks:at=0"]) == 4
    assert capsys.readouterr().err.endswith("no good weights were saved before\n")
    assert main([*usual, "breaks"]) == 4
    said = capsys.readouterr().err.splitlines()[-1]
    assert "the loss became nan in step 4 (epoch 2): try a smaller --lr" in said
    assert said.endswith(f"the last good weights, of step 3, are in {good}")
    assert not out.exists()
    classifier = load_trained(good)
    assert classifier(torch.rand(2, 3, 32, 32)).isfinite().all()
    kept = torch.load(tmp_path / "a.training.state", weights_only=True)["state"]
    assert kept["step"] == 3
    assert all(
        torch.equal(tensor, kept["classifier"][name]) for name, tensor in classifier.state_dict().items() if name.startswith("model.")
    )


def test_weights_that_are_nan_never_replace_the_state(tmp_path: Path) -> None:
    state = tmp_path / "state"
    interrupted(state)
    before = state.read_bytes()
    broken = training(state_file=state)
    with torch.no_grad():
        next(broken.classifier.parameters()).fill_(math.nan)
    with pytest.raises(InvalidEvaluation, match="in step 3"):
        broken.run()
    assert state.read_bytes() == before


def test_the_last_good_weights_of_a_first_epoch_are_found_before_anything_was_chosen(tmp_path: Path) -> None:
    """The state is of an epoch in which the images held out were not asked about yet."""
    ours = training(lr=1e9, batch_size=8, selection=Selection(digits(8), None, None, 0, ALONE), state_file=tmp_path / "state")
    with pytest.raises(InvalidEvaluation, match=r"in step \d+ \(epoch 1\)"):
        ours.run()
    good = ours.last_good()
    assert good is not None
    assert all(weight.isfinite().all() for weight in good.parameters())


# --- disks


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path) -> None:
    """The system's own limit on the size of a file, below that of a state."""
    command = [sys.executable, "-m", "robustbench_lite.defenses.train_cli", "--epochs", "2", "--batch-size", "450", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    limited = ["bash", "-c", 'ulimit -f 100; exec "$@"', "-", *command, "--out", str(tmp_path / "a.safetensors")]
    done = subprocess.run(limited, env=environment, capture_output=True, text=True)
    assert done.returncode == 4
    assert f"robust-train: could not write {tmp_path}/a.training.state: File too large; what was there before" in done.stderr
    assert "Traceback" not in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["a.training.csv"]


@pytest.mark.parametrize(("place", "broken"), [(os, "replace"), (Path, "write_bytes")])
def test_a_state_that_cannot_be_written_leaves_the_one_before(
    place: object, broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    interrupted(state)
    before = state.read_bytes()

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(place, broken, full)
    with pytest.raises(InvalidEvaluation, match=r"could not write .*/state: No space left on device; what was there before is as it was"):
        training(state_file=state).run()
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    assert state.read_bytes() == before


@pytest.mark.filterwarnings("ignore:Exception ignored in")  # between a file's opening and its `with`, nothing can close it
def test_an_interruption_at_any_point_of_keeping_a_state_stays_one(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def keep_until(seconds: float) -> None:
        # again and again: an interruption that falls into a destructor is swallowed by Python
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
        try:
            while True:
                keep_state(tmp_path / "state", {}, state)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    state = {str(number): torch.zeros(50_000) for number in range(10)}
    keep_state(tmp_path / "state", {}, state)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for tenth_of_ms in range(1, 61):
            with pytest.raises(KeyboardInterrupt):  # of torch.save into an open file: RuntimeError, or the end of the process
                keep_until(tenth_of_ms / 10_000)
            assert kept_state(tmp_path / "state", {}) is not None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_interrupted_training_exits_130_and_keeps_its_state(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "robustbench_lite.defenses.train_cli", "--epochs", "100000", "--batch-size", "900", "--device", "cpu"]
    command += ["--model", "small_cnn", "--out", str(tmp_path / "a.safetensors")]
    # a shell's background jobs, these tests among them, ignore Ctrl-C and hand that down
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=listening) as running:
        try:
            assert running.stderr is not None
            assert running.stderr.readline().startswith("epoch 1 of 100000")
            running.send_signal(signal.SIGINT)
            _, said = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 130
    assert said.startswith("robust-train: interrupted; the same command goes on")
    assert said.count("\n") == 1
    assert not (tmp_path / "a.safetensors").exists()

"""An evaluation over several processes: its verdicts are those of one, image by image, in memory and on disk."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_fixture import FACTORIES, CommandLine, Ran
from same_run import same
from torch import nn

import robustbench_lite as rb
from robustbench_lite.engines.engine import Died, Event, told
from robustbench_lite.engines.opening import Workers
from robustbench_lite.errors import InvalidEvaluation, UsageError
from robustbench_lite.quarantine import quarantine
from robustbench_lite.relay import Parcel, receive
from robustbench_lite.results import VERDICT_FIELDS, Witness
from robustbench_lite.samples import drawn
from robustbench_lite.store import Store
from robustbench_lite.witnesses import image_digest, packed

EVERYTHING = {
    "attacks": ["pgd:steps=5", "square:queries=20", "fmn:steps=5", "universal:epochs=1"],
    "corruptions": ["fog:severity=1", "p:translate"],
    "certify": ["ibp"],
    "eps": 0.05,
    "limit": 24,
}


def test_two_workers_say_what_one_process_says() -> None:
    asked = {"attacks": ["pgd:steps=5", "square:queries=20"], "data": "digits", "limit": 24}
    same(rb.evaluate("digits_cnn", **asked), rb.evaluate("digits_cnn", **asked, workers=2))


UNGUARDED = "import robustbench_lite as rb\nrb.evaluate('digits_cnn', 'fgsm', 'digits', limit=8, workers=1)\n"


@pytest.mark.parametrize("on_stdin", [False, True])
def test_a_script_that_workers_cannot_import_is_told_so_once(tmp_path: Path, on_stdin: bool) -> None:
    (tmp_path / "script.py").write_text(UNGUARDED)
    command = [sys.executable, "-" if on_stdin else "script.py"]
    ran = subprocess.run(command, input=UNGUARDED, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    *before, last = ran.stderr.splitlines()
    assert ran.returncode == 1
    assert "UsageError: a worker could not begin" in last
    assert 'under `if __name__ == "__main__":`' in last
    assert sum(line.startswith("Traceback") for line in before) == 2, "the worker's, of one worker, and this one"


@pytest.mark.slow
def test_everything_at_once_on_disk(tmp_path: Path, inside: Callable[..., Ran], robust_eval: CommandLine) -> None:
    alone = rb.evaluate("digits_cnn", **EVERYTHING, out="alone")
    spread = rb.evaluate("digits_cnn", **EVERYTHING, out="spread", workers=rb_workers(2, shard=8))
    assert len({v.condition for v in alone.verdicts}) == 8
    assert alone.sequenced
    assert alone.proofs
    assert alone.left_out
    same(alone, spread)
    names = [sorted(path.name for path in (tmp_path / run / "witnesses").iterdir()) for run in ("alone", "spread")]
    assert names[0] == names[1]
    assert inside("verify", "spread").code == 0
    for run in ("alone", "spread"):
        assert inside("report", run).code == 0
    counts = [[(row["condition"], row["n"], row["accuracy"]) for row in robust_eval.table(run)] for run in ("alone", "spread")]
    assert counts[0] == counts[1]
    compared = inside("compare", "alone", "spread", "--fail-on-difference")
    assert compared.code == 0, compared
    again = rb.evaluate("digits_cnn", **EVERYTHING, out="spread", workers=2)  # complete: nobody is asked for anything
    same(alone, again)


def rb_workers(count: int, **more: Any) -> Any:
    return Workers(count=count, **more)


OTHERS = {
    "surrogates": {"attacks": ["pgd:steps=5"], "surrogates": ["digits_pgd_at", "digits_augmix"]},
    "a cascade": {"attacks": ["autoattack"], "eps": 0.1, "limit": 16},
    "doubt": {"attacks": ["pgd:steps=5"], "doubt": True},
    "settle": {"model": "digits_kwta", "attacks": ["pgd:steps=5"], "settle": True},
    "outputs": {"attacks": ["pgd:steps=5"], "goal": "full", "keep_outputs": True},
    "nearest at two radii": {"attacks": ["fmn:steps=10"], "eps": [0.02, 0.1]},
    "learns on the surrogate": {"attacks": ["universal:epochs=1"], "surrogates": ["digits_augmix"]},
    "few witnesses": {"attacks": ["pgd:steps=5"], "witnesses": 3},
    "another order": {"attacks": ["pgd:steps=5"], "shuffle_seed": 5},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_ways_to_ask(name: str) -> None:
    asked = {"model": "digits_cnn", "data": "digits", "limit": 24, **OTHERS[name]}
    model = asked.pop("model")
    same(rb.evaluate(model, **asked), rb.evaluate(model, **asked, workers=rb_workers(2, shard=7)))


@pytest.mark.slow
def test_radii_for_every_image() -> None:
    images = rb.load_data("digits", limit=24)
    asked = {"attacks": ["pgd:steps=5"], "radii": {key: 0.01 + 0.005 * (n % 7) for n, key in enumerate(images.ids)}}
    same(rb.evaluate("digits_cnn", data=images, **asked), rb.evaluate("digits_cnn", data=images, **asked, workers=2))


@pytest.mark.slow
def test_python_objects_files_and_factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model and arrays from Python; images in a file and a folder, and a factory, by paths relative to where the driver is."""
    monkeypatch.chdir(tmp_path)
    draw = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(4, 192, generator=draw) * 0.3)
    x = torch.rand(20, 3, 8, 8, generator=draw)
    y = model(x).argmax(1)
    asked = {"attacks": ["pgd:steps=5"], "eps": 0.05}
    same(rb.evaluate(model, data=(x, y), **asked), rb.evaluate(model, data=(x, y), **asked, workers=2))

    digits = rb.load_data("digits", limit=16)
    pixels = torch.stack([image for image, _ in digits])
    np.savez("digits.npz", images=pixels.numpy(), labels=np.asarray(digits.labels))
    Path("factory.py").write_text(FACTORIES)
    named = {"data": "npz:digits.npz", "attacks": ["pgd:steps=5"], "eps": 0.05}
    same(rb.evaluate("factory.py:plain", **named), rb.evaluate("factory.py:plain", **named, workers=2))


class Local(nn.Module):
    """Of a class that a worker cannot find."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :4]


def test_what_cannot_be_sent_is_refused() -> None:
    unsendable = Local().eval()
    unsendable.secret = lambda: None
    with pytest.raises(UsageError, match=r"cannot be sent to workers .*name them, or leave --workers out"):
        rb.evaluate(unsendable, data=(torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)), eps=0.1, workers=2)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--workers", "0"), "--workers must be 1 or more, got 0"),
        (("--workers", "2", "--shard-size", "0"), "--shard-size must be 1 or more, got 0"),
        (("--shard-size", "16"), "--shard-size is of workers: add --workers or --engine ray"),
        (("--workers", "2", "--hang-after", "0"), "cannot be negative"),
        (("--gpus-per-worker", "1"), "are of Ray: add --engine ray"),
        (("--ray-address", "auto"), "are of Ray: add --engine ray"),
    ],
)
def test_options_that_do_not_go_together(inside: Callable[..., Ran], words: tuple[str, ...], complaint: str) -> None:
    ran = inside("--model", "digits_cnn", "--limit", "4", "--attack", "pgd", *words)
    assert ran.code == 2
    assert complaint in ran.complaint


# ------------------------------------------------------------------ an image that kills


class Dying:
    """An engine of one worker in this process, which dies at one image before it has done anything."""

    size = 1

    def __init__(self, deadly: str) -> None:
        self.deadly, self.happened, self.deaths = deadly, list[tuple[object, Event]](), 0

    def start(self, job: Any) -> object:
        handle = object()
        if self.deadly in job.args[1]:
            self.deaths += 1
            self.happened.append((handle, Died("killed by SIGSEGV")))
        else:
            told(job, lambda event: self.happened.append((handle, event)))
        return handle

    def events(self, seconds: float) -> list[tuple[object, Event]]:
        happened, self.happened = self.happened, []
        return happened

    def lack(self) -> None: ...
    def kill(self, handle: object) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Mined:
    """Pictures of which one must not be touched by the driver either."""

    pictures: Any
    mine: int

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> torch.Tensor:
        assert index != self.mine
        return self.pictures[index]


def mined(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], str, Dying]:
    images = rb.load_data("digits", limit=24)
    key = max(images.ids, key=lambda key: drawn(0, "order", key))  # the last; the driver looks at the first
    engine = Dying(key)
    monkeypatch.setattr(Workers, "open", lambda *_: engine)
    data = replace(images, pictures=Mined(images.pictures, images.ids.index(key)))
    asked = {"attacks": ["pgd:steps=2"], "corruptions": ["fog:severity=1", "p:translate"], "certify": ["ibp"], "eps": 0.05, "data": data}
    return asked, key, engine


def test_an_image_that_kills_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, key, engine = mined(monkeypatch)
    with pytest.raises(InvalidEvaluation, match=rf"^shard 2 \(image {key}\) kills its worker: killed by SIGSEGV, .* quarantine; the same"):
        rb.evaluate("digits_cnn", **asked, workers=2)
    assert engine.deaths <= 2 + 4 + 2, "at its shard of 16 images, at each half, alone"


def test_an_image_that_kills_is_correct_nowhere_and_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, key, _ = mined(monkeypatch)
    alone = rb.evaluate("digits_cnn", **asked | {"data": "digits", "limit": 24})
    counted = rb.evaluate("digits_cnn", **asked, workers=2, on_bad_image="quarantine")
    assert [(each.sample_id, each.reason) for each in quarantine(counted)] == [(key, "kills its worker: killed by SIGSEGV")]
    assert {v.condition for v in counted.verdicts if v.sample_id == key and v.broken is None} == {v.condition for v in counted.verdicts}
    fates = [{(v.condition, v.sample_id): v.broken for v in run.verdicts if v.sample_id != key} for run in (alone, counted)]
    assert fates[0] == fates[1]
    assert sum(note.startswith("a worker died at shard 2 (") for note in counted.config["notes"]) == 2, "of three: two say the same"
    assert any(note.endswith("more workers died") for note in counted.config["notes"])


# ------------------------------------------------------------------ what the driver takes in


def config() -> dict[str, Any]:
    return {"identity": {}, "model": {"name": "m"}, "conditions": [], "sessions": [{}], "notes": [], "created": "now"}


def row(condition: str, sample_id: str, **values: Any) -> tuple[Any, ...]:
    given = {"condition": condition, "sample_id": sample_id, **values}
    return tuple(given.get(name) for name in VERDICT_FIELDS)


def test_the_first_verdict_stays_with_its_witness(tmp_path: Path) -> None:
    """The second worker on a shard may find another image (on another device, say): none of it replaces what a verdict names."""
    witness = [Witness(torch.zeros(3, 4, 4), torch.full((3, 4, 4), value)) for value in (0.25, 0.5)]
    parcels = []
    for each, reason in zip(witness, ("first", "second"), strict=True):
        content = packed(each, {"condition": "pgd", "sample_id": "a"})
        parcels.append(
            Parcel("pgd", [("verdicts", [row("pgd", "a", broken=1, reason=reason)]), ("seconds", [("pgd", 1.0)])], [("pgd", "a", content)])
        )
    with Store(tmp_path / "run", config()) as store:
        assert [receive(store, parcel) for parcel in parcels] == [[("pgd", 1)], []]
        files = list((tmp_path / "run" / "witnesses").iterdir())
        assert [file.read_bytes() for file in files] == [parcels[0].witnesses[0][2]]
    database = sqlite3.connect(tmp_path / "run" / "results.sqlite")
    assert database.execute("SELECT reason FROM verdicts").fetchall() == [("first",)]
    database.close()
    assert image_digest(witness[0].adversarial) != image_digest(witness[1].adversarial)


def test_images_in_quarantine_are_news_once_and_do_not_show_that_a_worker_moves_on() -> None:
    bad, good = row("clean", "a", reason="unreadable: cut off"), row("clean", "b", broken=0)
    assert not Parcel(rows=[("verdicts", [bad])]).moved
    assert Parcel(rows=[("verdicts", [bad, good])]).moved
    with Store(None, {**config(), "conditions": [{"name": "clean"}]}) as store:
        assert receive(store, Parcel(rows=[("verdicts", [bad, good])])) == [("clean", None), ("clean", 0)]
        assert receive(store, Parcel(rows=[("verdicts", [bad, good])])) == []
        assert len(store.of("verdicts")) == 2


@pytest.mark.parametrize("more", [{}, {"compile": True}])
def test_a_finished_run_is_read_again_with_workers_as_without(tmp_path: Path, more: dict[str, Any]) -> None:
    asked = {"attacks": "fgsm", "data": "digits", "limit": 12, "out": tmp_path / "run"}
    whole = rb.evaluate("digits_cnn", **asked)
    same(whole, rb.evaluate("digits_cnn", **asked, **more, workers=2))


def test_more_images_than_sqlite_has_variables(tmp_path: Path) -> None:
    with Store(None, {**config(), "conditions": [{"name": "clean"}]}) as store:
        ids = [f"image {number}" for number in range(40_000)]
        store.put("verdicts", [row("clean", key, broken=0) for key in ids])
        assert len(store.decided_of(["clean"], ids)) == len(store.of("verdicts", ids)) == 40_000

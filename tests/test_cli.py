"""The command line from end to end: what a first run prints and leaves behind, and what its options change."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_fixture import CommandLine, Ran

from robustbench_lite.engines.local import bfloat16_here
from robustbench_lite.results import TABLE_COLUMNS, VERDICT_FIELDS

FIRST = ("--model", "digits_cnn", "--attack", "pgd", "--limit", "100")
PROMISED = "model,data,condition,kind,norm,eps,severity,n,correct,accuracy,ci_low,ci_high,undecided,mean_forwards,mean_backwards,seconds"

Inside = Callable[..., Ran]


def options(*, limit: int = 40, attack: str = "pgd:steps=10", out: str = "run", **more: object) -> list[str]:
    listed = ["--model", "digits_cnn", "--limit", str(limit), "--attack", attack, "--out", out]
    for name, value in more.items():
        listed += [f"--{name.replace('_', '-')}", str(value)]
    return listed


def test_the_first_run_and_what_it_leaves_behind(robust_eval: CommandLine, inside: Inside) -> None:
    first = robust_eval(*FIRST)
    assert (first.code, first.err) == (0, "")
    for word in ("digits_cnn on digits", "clean", "pgd[linf,0.15]", "100.0 %", "report: robust-eval-runs/"):
        assert word in first.out
    (run,) = (robust_eval.folder / "robust-eval-runs").iterdir()

    rows = {row["condition"]: row for row in robust_eval.table(run)}
    assert list(rows) == ["clean", "pgd[linf,0.15]", "worst[linf,0.15]"]
    assert ",".join(rows["clean"]).startswith(PROMISED)
    assert tuple(rows["clean"]) == TABLE_COLUMNS
    attacked = rows["pgd[linf,0.15]"]
    assert (attacked["model"], attacked["kind"], attacked["norm"], attacked["eps"]) == ("digits_cnn", "attack", "linf", "0.15")
    assert int(attacked["correct"]) < int(rows["clean"]["correct"]) / 2 < int(rows["clean"]["n"]) == 100
    assert float(attacked["ci_low"]) <= float(attacked["accuracy"]) == int(attacked["correct"]) / 100 <= float(attacked["ci_high"])
    assert float(attacked["mean_backwards"]) > 1

    samples = robust_eval.samples(run)
    assert tuple(samples[0]) == (*VERDICT_FIELDS, "nearest")
    assert len(samples) == 300
    broken = [s for s in robust_eval.samples(run, "pgd[linf,0.15]") if s["broken"] == "true" and s["broken_by"] != "clean"]
    assert len(broken) == int(rows["clean"]["correct"]) - int(attacked["correct"])
    assert len(list((run / "witnesses").glob("*.safetensors"))) == len(broken) == sum(bool(s["witness"]) for s in broken)

    recorded = json.loads((run / "run.json").read_text())
    assert recorded["command"] == "robust-eval " + " ".join(FIRST)
    assert recorded["data"]["n"] == recorded["data"]["limit"] == 100
    assert {"model", "data", "conditions", "goal", "seed", "precision"} <= set(recorded["identity"])
    assert torch.__version__.startswith(recorded["versions"]["torch"])
    report = (run / "report.html").read_text()
    assert "pgd[linf,0.15]" in report
    assert "<script src" not in report

    # the same command has nothing left to do
    before = (run / "table.csv").read_bytes()
    again = robust_eval(*FIRST)
    assert again.code == 0
    assert (run / "table.csv").read_bytes() == before  # the seconds among them
    sessions = json.loads((run / "run.json").read_text())["sessions"]
    assert ["batch_size" in session for session in sessions] == [True, False]  # the second did not even prepare the model

    # what is lost is made again from the verdicts
    kept = {name: (run / name).read_bytes() for name in ("table.csv", "samples.csv")}
    for name in (*kept, "report.html"):
        (run / name).unlink()
    assert inside("report", run).code == 0
    assert {name: (run / name).read_bytes() for name in kept} == kept
    assert (run / "report.html").exists()

    held = inside("verify", run)
    assert (held.code, held.out) == (0, f"all {len(broken)} witnesses hold\n")

    fresh = inside(*FIRST, "--fresh")
    assert fresh.code == 0
    assert len(json.loads((run / "run.json").read_text())["sessions"]) == 1
    assert [(s["sample_id"], s["broken"]) for s in robust_eval.samples(run)] == [(s["sample_id"], s["broken"]) for s in samples]


def test_several_eps_give_a_curve(robust_eval: CommandLine, inside: Inside) -> None:
    ran = inside(*options(), "--attack", "fgsm", "--eps", "0.02", "--eps", "0.05", "--eps", "16/255")
    assert ran.code == 0
    rows = [row for row in robust_eval.table("run") if row["kind"] == "attack"]
    assert [row["condition"] for row in rows[:3]] == [f"pgd:steps=10[linf,{eps}]" for eps in ("0.02", "0.05", "16/255")]
    correct = [int(row["correct"]) for row in rows]
    assert correct[0] > correct[1] > correct[2]
    assert all(strong <= weak for strong, weak in zip(correct[:3], correct[3:], strict=True))  # fgsm is no stronger
    worst = [int(row["correct"]) for row in robust_eval.table("run") if row["kind"] == "worst"]
    assert all(w <= c for w, c in zip(worst, correct[:3], strict=True))


@pytest.mark.parametrize(("norm", "eps"), [("l2", 1.5), ("l1", 25), ("l0", 100)])
def test_every_norm_keeps_to_its_ball_and_breaks_something(robust_eval: CommandLine, inside: Inside, norm: str, eps: float) -> None:
    assert inside(*options(norm=norm, eps=eps)).code == 0
    samples = robust_eval.samples("run", f"pgd:steps=10[{norm},{eps}]")
    assert all(0 < float(s["distance"]) <= eps * 1.0001 for s in samples if s["broken_by"] != "clean")
    row = robust_eval.table("run")[1]
    assert row["norm"] == norm
    assert int(row["correct"]) < 35
    assert inside("verify", "run").code == 0


def test_goals(robust_eval: CommandLine, inside: Inside) -> None:
    found = {}
    for goal in ("first", "closest", "full"):
        assert inside(*options(goal=goal, out=goal, eps=0.1)).code == 0
        found[goal] = robust_eval.samples(goal, "pgd:steps=10[linf,0.1]")
    first, closest, full = found.values()
    pairs = [(f, c, u) for f, c, u in zip(first, closest, full, strict=True) if f["witness"]]
    assert len(pairs) > 10
    assert all(f["sample_id"] == c["sample_id"] == u["sample_id"] for f, c, u in pairs)
    assert all(float(c["distance"]) <= float(f["distance"]) for f, c, _ in pairs)
    assert sum(float(u["confidence"]) for *_, u in pairs) > 1.3 * sum(float(f["confidence"]) for f, *_ in pairs)
    assert {u["backwards"] for *_, u in pairs} == {"10"}
    assert robust_eval.table("closest")[1]["median_distance"] not in ("", "inf")
    assert robust_eval.table("first")[1]["median_distance"] == ""


def test_targets(robust_eval: CommandLine, inside: Inside) -> None:
    assert inside(*options(target=3, out="three", eps=0.2)).code == 0
    samples = robust_eval.samples("three", "pgd:steps=10[linf,0.2,target=3]")
    assert {s["target"] for s in samples if s["broken_by"] != "clean"} == {"3"}
    assert "3" not in {s["label"] for s in samples}
    assert 0 < len(samples) < 40
    broken = [s for s in samples if s["witness"]]
    assert {s["prediction"] for s in broken} == {"3"}
    assert inside("verify", "three").code == 0
    assert inside(*options(target="least-likely", out="least", eps=0.2)).code == 0
    broken = [s for s in robust_eval.samples("least", "pgd:steps=10[linf,0.2,target=least-likely]") if s["witness"]]
    assert all(s["prediction"] == s["target"] for s in broken)
    assert len({s["target"] for s in broken}) > 1


def test_a_first_pass_in_bfloat16_loses_nothing(robust_eval: CommandLine, inside: Inside) -> None:
    assert inside(*options(limit=100, eps=0.05, out="fp32")).code == 0
    ran = inside(*options(limit=100, eps=0.05, out="bf16", precision="bf16"))
    assert ran.code == 0
    if not bfloat16_here(torch.device("cpu")):
        assert "note: this processor does not compute in bfloat16" in ran.out
        return
    exact, rough = (robust_eval.samples(run, "pgd:steps=10[linf,0.05]") for run in ("fp32", "bf16"))
    assert {s["precision"] for s in rough if s["broken"] == "false"} == {"fp32"}  # survivors were attacked again
    assert "bf16" in {s["precision"] for s in rough}
    assert robust_eval.table("bf16")[1]["search"] == "bf16+fp32"
    weaker = sum(e["broken"] != r["broken"] and bool(e["witness"]) for e, r in zip(exact, rough, strict=True))
    assert weaker <= 1
    assert inside("verify", "bf16").code == 0


def test_a_query_budget_is_kept(robust_eval: CommandLine, inside: Inside) -> None:
    assert inside(*options(query_budget=6, eps=0.05)).code == 0
    spent = [int(s["forwards"]) + int(s["backwards"]) for s in robust_eval.samples("run", "pgd:steps=10[linf,0.05]")]
    assert max(spent) == 6


def test_no_witnesses_is_not_a_verified_run(robust_eval: CommandLine, inside: Inside) -> None:
    assert inside(*options(witnesses="none", eps=0.15)).code == 0
    assert not (robust_eval.folder / "run" / "witnesses").exists()
    refused = inside("verify", "run")
    assert refused.code == 2
    assert "kept no witness" in refused.complaint
    assert inside(*options(witnesses=5, eps=0.15, out="five")).code == 0
    assert len(list((robust_eval.folder / "five" / "witnesses").iterdir())) <= 5
    assert "more broken images no witness was kept" in inside("verify", "five").out


def test_a_model_of_other_classes_is_noted(inside: Inside, factories: Path) -> None:
    factories.write_text(factories.read_text() + "\ndef twenty(): return Linear(20).eval()\n")
    ran = inside("--model", f"{factories}:twenty", "--data", "digits", "--limit", "10", "--attack", "fgsm")
    assert "20 classes and digits 10: do their labels mean the same?" in ran.out


def test_a_defense_is_put_on_the_model_and_belongs_to_the_run(robust_eval: CommandLine, inside: Inside) -> None:
    command = ("--model", "digits_cnn", "--limit", "12", "--attack", "fgsm", "--eps", "0.1")
    assert "digits_cnn on digits" in inside(*command).out
    defended = inside(*command, "--defense", "bit-depth:bits=2")
    assert (defended.code, "digits_cnn+bit-depth:bits=2" in defended.out) == (0, True)
    assert len(list((robust_eval.folder / "robust-eval-runs").iterdir())) == 2
    run = Path(defended.out.split("report: ")[1].split("/report.html")[0])
    assert json.loads((robust_eval.folder / run / "run.json").read_text())["model"]["recipe"]["defense"] == "bit-depth:bits=2"
    assert inside("verify", run).code == 0  # the defense is there again, or its witnesses would not hold


@pytest.mark.parametrize(("defense", "words"), [("pgd-at", "robust-train --defense pgd-at"), ("bit-dept", "did you mean 'bit-depth'")])
def test_a_defense_that_cannot_be_put_on_is_refused(inside: Inside, defense: str, words: str) -> None:
    refused = inside("--model", "digits_cnn", "--defense", defense)
    assert (refused.code, words in refused.complaint) == (2, True)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("list",), ("pgd", "white box", "foolbox:NAME", "linf l2 l1 l0", "https://arxiv.org/abs/1706.06083", "steps + 1 forwards")),
        (("list", "data"), ("imagenet", "imagefolder", "digits", "npz")),
        (("list", "reports"), ("csv", "html", "terminal")),
        (("list", "corruptions"), ("corruptions",)),
        (("list", "defenses"), ("pgd-at", "kwta", "augmix")),
        (("list", "architectures"), ("digits_cnn", "cifar_resnet18", "wrn_40_2")),
        (("describe", "pgd"), ("Madry", "white box", "steps", "40", "step_size", "ce, dlr or margin", "none")),
        (("describe", "foolbox:LinfPGD"), ("rel_stepsize", "foolbox")),
        (("describe", "digits"), ("scikit-learn", "split", "test or train")),
        (("--help",), ("--model", "--attack", "--eps", "--batch-size", "describe", "verify", "report")),
        (("--version",), ("0.1.0",)),
        ((), ("robust-eval --model digits_cnn --attack pgd", "--help")),
    ],
)
def test_what_can_be_asked_without_a_model(inside: Inside, command: tuple[str, ...], words: tuple[str, ...]) -> None:
    ran = inside(*command)
    assert (ran.code, ran.err) == (0, "")
    assert [word for word in words if word not in ran.out] == []


def test_models_are_listed(inside: Inside) -> None:
    ran = inside("list", "models")
    assert ran.code == 0
    for name in ("digits_cnn", "efficientnet_lite0", "resnet50", "timm:tf_efficientnet_lite0.in1k"):
        assert f"  {name}\n" in ran.out


def test_help_does_not_wait_for_torch() -> None:
    look = "import sys, robustbench_lite.cli; print([m for m in ('torch', 'numpy', 'timm', 'pandas') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def test_a_pipe_gets_the_table_alone(robust_eval: CommandLine) -> None:
    """Whoever stops reading early, as `head` does, hears no complaint."""
    process = robust_eval.start("list", "models")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.wait()
    process.stderr.close()

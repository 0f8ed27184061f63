"""`robust-eval gate` and `robust-eval baseline write`: exit codes, what is printed and written, and what is refused."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cli_fixture import CommandLine, Ran

from robustbench_lite.gate.running import EVALUATED, folder_of
from robustbench_lite.gate.settings import Settings

Inside = Callable[..., Ran]
GATE = '[gate]\nmodel = "digits_standard"\nattacks = ["fgsm"]\neps = 0.15\nlimit = 60\nrules = [\n  "{}",\n]\n'


@pytest.fixture(autouse=True)
def not_in_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "ROBUST_EVAL_FAIL_EXIT_CODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., None]:
    """Write robust-eval.toml with one rule and further lines."""

    def write(rule: str, more: str = "") -> None:
        (tmp_path / "robust-eval.toml").write_text(GATE.format(rule) + more)

    return write


# ---------------------------------------------------------------------- outcomes


def test_passes_and_writes_everything(inside: Inside, settings: Callable[..., None], tmp_path: Path) -> None:
    settings("clean.accuracy >= 0.8")
    ran = inside("gate", "--out", "run")
    assert ran.code == 0, ran
    assert "PASS" in ran.out
    assert "an inconclusive rule fails the gate, and one against a baseline only warns" in ran.out
    assert "written: run/gate.json" in ran.out
    said = json.loads((tmp_path / "run" / "gate.json").read_text())
    ruling = said["rulings"][0]
    assert (said["outcome"], said["exit_code"], said["settings"]) == ("pass", 0, "robust-eval.toml")
    assert (ruling["rule"], ruling["condition"], ruling["line"], ruling["n"], ruling["threshold"]) == (
        "clean.accuracy >= 0.8",
        "clean",
        7,
        60,
        0.8,
    )
    assert said["run"]["command"] == "robust-eval gate --out run"
    assert ElementTree.parse(tmp_path / "run" / "gate-junit.xml").getroot().iter("testcase")
    for name in ("gate.md", "gate.sarif", "badge.json", "badge.svg", "table.csv", "report.html"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    assert inside("gate", "--out", "run").code == 0  # again: goes on where there is nothing left to do
    assert inside("gate", "--out", "run", "--fresh").code == 0  # and all of it is ours to throw away


def test_fails(inside: Inside, settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    settings("fgsm.accuracy >= 0.8")
    ran = inside("gate", "--out", "run")
    assert ran.code == 1, ran
    assert "FAIL" in ran.out
    monkeypatch.setenv("ROBUST_EVAL_FAIL_EXIT_CODE", "100")
    assert inside("gate", "--out", "run").code == 100
    monkeypatch.setenv("ROBUST_EVAL_FAIL_EXIT_CODE", "red")
    assert inside("gate", "--out", "run").complaint == "ROBUST_EVAL_FAIL_EXIT_CODE takes a whole number, got 'red'"


def test_a_clear_fail_needs_no_more_than_half_of_the_images(inside: Inside, settings: Callable[..., None], tmp_path: Path) -> None:
    settings("pgd.accuracy >= 0.65", 'device = "cpu"\n')
    ran = inside("gate", "--attack", "pgd", "--eps", "0.15", "--limit", "400", "--out", "run")
    assert ran.code == 1, ran
    said = json.loads((tmp_path / "run" / "gate.json").read_text())
    assert said["rulings"][0]["n"] <= said["rulings"][0]["of"] / 2 == 200
    assert "pgd[linf,0.15] was stopped after" in ran.out
    assert "not a fair sample" in (tmp_path / "run" / "report.html").read_text()
    settings("pgd.accuracy >= 0.65", "fast = false\n")
    ran = inside("gate", "--attack", "pgd", "--eps", "0.15", "--limit", "60", "--out", "whole")
    said = json.loads((tmp_path / "whole" / "gate.json").read_text())
    assert (ran.code, said["rulings"][0]["n"]) == (1, 60)
    assert "was stopped" not in ran.out


@pytest.mark.slow
def test_a_pass_may_end_early_and_is_a_pass(inside: Inside, settings: Callable[..., None], tmp_path: Path) -> None:
    settings("apgd.accuracy >= 0.2")
    ran = inside("gate", "--model", "digits_pgd_at", "--attack", "apgd", "--eps", "0.05", "--batch-size", "10", "--out", "run")
    assert ran.code == 2  # how it is computed is not a gate's to say
    ran = inside("gate", "--model", "digits_pgd_at", "--attack", "apgd", "--eps", "0.05", "--limit", "300", "--out", "run")
    assert ran.code == 0, ran
    said = json.loads((tmp_path / "run" / "gate.json").read_text())
    assert said["rulings"][0]["n"] < 300


@pytest.mark.parametrize(("policy", "code"), [(None, 3), ("warn", 0)])
def test_inconclusive(inside: Inside, settings: Callable[..., None], policy: str | None, code: int) -> None:
    settings("clean.accuracy >= 0.97")
    ran = inside("gate", "--limit", "20", "--out", "run", *(("--on-inconclusive", policy) if policy else ()))
    assert ran.code == code, ran
    assert "INCONCLUSIVE" in ran.out
    assert policy is None or f'on_inconclusive = "{policy}"' in ran.out


@pytest.mark.slow
def test_a_pass_under_an_attack_that_did_not_come_to_its_end_is_invalid(inside: Inside, settings: Callable[..., None]) -> None:
    settings("pgd.accuracy >= 0.1", "fast = false\n")
    ran = inside("gate", "--model", "digits_kwta", "--attack", "pgd", "--eps", "0.02", "--out", "run")
    assert ran.code == 4, ran
    assert "INVALID" in ran.out


def test_without_a_file(inside: Inside) -> None:
    ran = inside("gate", "--model", "digits_cnn", "--limit", "40", "--rule", "clean.accuracy >= 0.7", "--out", "run")
    assert ran.code == 0, ran


def test_github(inside: Inside, settings: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings("fgsm.accuracy >= 0.8")
    (tmp_path / "summary").write_text("before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    ran = inside("gate", "--out", "run")
    assert "::error file=robust-eval.toml,line=7," in ran.out
    summary = (tmp_path / "summary").read_text()
    assert summary.startswith("before\n## ")
    assert "fgsm.accuracy" in summary
    ran = inside("gate", "--out", "run", "--rule", "clean.accuracy >= 0.8")
    assert ran.code == 0
    assert ran.out.endswith("report.html\n")  # nothing to annotate: no empty line
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "none" / "summary"))
    ran = inside("gate", "--out", "run")
    assert (ran.code, "FAIL" in ran.out) == (1, True)  # the outcome stands
    assert "summary cannot be written (No such file or directory); run/gate.md has the text" in ran.complaint


@pytest.mark.slow
def test_a_failed_gate_fails_though_nobody_reads_what_it_says(robust_eval: CommandLine, settings: Callable[..., None]) -> None:
    settings("clean.accuracy <= 0.2", 'out = "run"\n')
    with robust_eval.start("gate") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=120) == 1


# ---------------------------------------------------------------------- against a baseline


def test_baseline(inside: Inside, settings: Callable[..., None], tmp_path: Path) -> None:
    asked = ("--attack", "fgsm", "--eps", "0.15", "--limit", "120")
    assert inside("--model", "digits_pgd_at", *asked, "--out", "before").code == 0
    ran = inside("baseline", "write", "before")
    assert (ran.code, ran.out) == (0, "baseline: baseline.json (120 images of digits); commit it\n")
    assert "baseline.json is there already: --update replaces it" in inside("baseline", "write", "before").complaint
    assert inside("baseline", "write", "before", "--update").code == 0
    settings("fgsm.accuracy no_worse_than baseline by 0.1")
    for baseline in ("baseline.json", "before"):
        gate = ("gate", *asked, "--baseline", baseline)
        assert inside(*gate, "--model", "digits_pgd_at", "--out", "same").code in (0, 4)  # 4 where fgsm is found to be weak
        worse = inside(*gate, "--model", "digits_standard", "--out", "worse")
        assert worse.code == 1, worse

    # with no rule that compares, every row is compared by `margin`
    ran = inside("gate", *asked, "--model", "digits_standard", "--baseline", "before", "--rule", "clean.accuracy >= 0.5", "--out", "worse")
    assert ran.code == 1, ran
    said = json.loads((tmp_path / "worse" / "gate.json").read_text())
    assert [ruling["rule"] for ruling in said["rulings"]] == [
        "clean.accuracy >= 0.5",
        "clean.accuracy no_worse_than baseline",
        "worst[linf,0.15].accuracy no_worse_than baseline",
    ]
    assert said["rulings"][1]["threshold"] == -0.02
    (tmp_path / "robust-eval.toml").write_text(GATE.format("fgsm.accuracy no_worse_than baseline") + "margin = 0.3\n")
    assert inside("gate", *asked, "--baseline", "before", "--out", "worse").code == 1
    assert json.loads((tmp_path / "worse" / "gate.json").read_text())["rulings"][0]["threshold"] == -0.3

    for options, words in (
        (("--data", "digits:train"), "baseline.json is of other data: it has 120 images of digits, and lacks 120 of the 120 here"),
        (("--limit", "300"), "and lacks 180 of the 300 here"),
        (("--eps", "0.1"), "baseline.json has no fgsm[linf,0.1], it has clean, fgsm[linf,0.15]"),
        (("--attack", "pgd", "--rule", "pgd.accuracy no_worse_than baseline"), "has no pgd[linf,0.15]"),
    ):
        given = dict(zip(asked[::2], asked[1::2], strict=True)) | dict(zip(options[::2], options[1::2], strict=True))
        ran = inside("gate", "--baseline", "baseline.json", *[word for pair in given.items() for word in pair], "--out", "other")
        assert ran.code == 2
        assert words in ran.complaint
        assert not (tmp_path / "other").exists()  # nothing was evaluated

    said = json.loads((tmp_path / "baseline.json").read_text())
    (tmp_path / "votes.json").write_text(json.dumps(said | {"terms": said["terms"] | {"votes": 3}}))
    ran = inside("gate", *asked, "--baseline", "votes.json", "--out", "other")
    assert "votes.json was made with votes 3, not 10" in ran.complaint
    assert not (tmp_path / "other").exists()

    (tmp_path / "robust-eval.toml").write_text(GATE.format("fgsm.accuracy no_worse_than baseline") + "seed = 1\n")
    assert "baseline.json was made with seed 0, not 1" in inside("gate", "--baseline", "baseline.json").complaint


def test_a_baseline_of_a_run_that_is_no_baseline(inside: Inside, settings: Callable[..., None], factories: Path) -> None:
    settings("pgd.accuracy >= 0.95")
    assert inside("gate", "--attack", "pgd", "--limit", "400", "--out", "short").code == 1
    assert "ended early" in inside("baseline", "write", "short").complaint
    lost = ("--model", f"{factories}:some_nan", "--data", "digits", "--limit", "60", "--on-bad-image", "quarantine", "--out", "nan")
    assert inside(*lost).code == 4
    assert "images of nan are undecided" in inside("baseline", "write", "nan").complaint
    assert inside("baseline", "write", "nothing").complaint == "nothing is not a run: it has no run.json"


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("pgdd.accuracy >= 0.5", ["robust-eval.toml, line 7:", "no such condition 'pgdd'", "The gate evaluates clean, fgsm[linf,0.15]"]),
        ("fog[3].accuracy >= 0.5", ["line 7:", "no such condition 'fog[3]'"]),
        ("fgsm.accuracy >= 45", ["line 7:", "45 is no share: 45 % is 0.45"]),
        ("fgsm.accuracy > 45%", ["line 7:", "45% is no share"]),
        ("fgsm.acuracy >= 0.5", ["line 7:", "did you mean 'accuracy'"]),
        ("fgsm >= 0.5", ["line 7:", "names no figure"]),
        ("good", ["line 7:", "the rule 'good' cannot be read"]),
        ("corruptions.mean_error <= 0.5", ["line 7:", "evaluates no corruptions", "corruptions = ["]),
        ("fgsm.accuracy no_worse_than baseline", ["there is no baseline: give one with --baseline"]),
        ("findings: none of [nonsense]", ["line 7:", "no finding 'nonsense'"]),
    ],
)
def test_rules(inside: Inside, settings: Callable[..., None], tmp_path: Path, rule: str, words: list[str]) -> None:
    settings(rule)
    ran = inside("gate", "--out", "run")
    assert ran.code == 2, ran
    for each in words:
        assert each in ran.complaint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no robust-eval.toml here"),
        ("[gate\n", "robust-eval.toml cannot be read: Expected ']' at the end of a table declaration (at line 1, column 6)"),
        ('[gate]\nmodel = "digits_cnn"\nrulez = []\n', "robust-eval.toml, line 3: there is no setting 'gate.rulez': did you mean 'rules'"),
        ('[gate]\nmodel = "digits_cnn"\n', "there are no rules"),
        (GATE.format("clean.accuracy >= 0.5").replace("standard", "standart"), "did you mean 'digits_standard'"),
        (GATE.format("clean.accuracy >= 0.5").replace("fgsm", "fgsn"), "did you mean 'fgsm'"),
        (GATE.format("fgsm.accuracy >= 0.5").replace('["fgsm"]', "[]"), "no such condition 'fgsm'"),
        (GATE.format("fgsm.accuracy >= 0.5").replace("0.15", "8"), "write 8/255 and not 8"),
        (GATE.format("fgsm.accuracy >= 0.5").replace("0.15", '"x"'), "'x' is not a number"),
        (GATE.format("clean.accuracy >= 0.5") + 'data = "digit"\n', "did you mean 'digits'"),
        (GATE.format("clean.accuracy >= 0.5") + 'baseline = "none.json"\n', "there is no baseline at none.json"),
        (GATE.format("clean.accuracy >= 0.5") + 'corruptions = ["fogg"]\n', "did you mean 'fog'"),
        (GATE.format("clean.accuracy >= 0.5") + 'device = "tpu"\n', "unknown device 'tpu'"),
        (
            GATE.format("corruptions.mean_error <= 0.5") + 'alpha = 0.01\ncorruptions = ["fog"]\n',
            "line 7: corruptions.mean_error <= 0.5: limits",
        ),
    ],
)
def test_settings(inside: Inside, tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "robust-eval.toml").write_text(text)
    ran = inside("gate", "--out", "run")
    assert ran.code == 2, ran
    assert words in ran.complaint
    assert not (tmp_path / "run").exists()


def test_options(inside: Inside, settings: Callable[..., None]) -> None:
    settings("clean.accuracy >= 0.5")
    for options, words in (
        (("--limit", "0"), "--limit: input should be greater than or equal to 1, got 0"),
        (("--on-inconclusive", "maybe"), "--on-inconclusive"),
        (("--config", "none.toml"), "none.toml cannot be read (No such file or directory)"),
        (("--margin", "2"), "--margin: input should be less than 1"),
    ):
        ran = inside("gate", *options)
        assert ran.code == 2
        assert words in ran.complaint


# ---------------------------------------------------------------------- going on


def test_the_same_settings_have_the_same_place_whatever_the_rules() -> None:
    first = Settings(model="digits_cnn", attacks=["pgd"], rules=["clean.accuracy >= 0.5"])
    assert folder_of(first) == folder_of(first.model_copy(update={"rules": ["clean.accuracy >= 0.6"], "alpha": 0.01, "device": "cpu"}))
    assert folder_of(first).name.startswith("gate-digits_cnn-")
    for change in ({"attacks": ["fgsm"]}, {"limit": 3}, {"seed": 1}, {"weights": "w.pt"}, {"doubt": True}):
        assert folder_of(first) != folder_of(first.model_copy(update=change))
    assert set(EVALUATED) < set(Settings.model_fields)


@pytest.mark.slow
def test_interrupted_it_goes_on(robust_eval: CommandLine, inside: Inside, factories: Path) -> None:
    (robust_eval.folder / "robust-eval.toml").write_text(
        f'[gate]\nmodel = "{factories}:sleepy"\ndata = "digits"\nlimit = 120\nattacks = ["pgd:steps=20"]\neps = 0.05\n'
        'rules = ["pgd.accuracy >= 0.99"]\nfast = false\nout = "run"\n'
    )
    process = robust_eval.start("gate", "--allow-code", env={"NAP": "0.4"})
    until = time.monotonic() + 100
    while not any(condition.startswith("pgd") for condition, _ in robust_eval.broken("run")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; the same command goes on where it stopped" in complaint
    before = robust_eval.broken("run")
    assert len(before) < 240
    ran = inside("gate", "--allow-code")
    assert ran.code == 1, ran
    after = robust_eval.broken("run")
    assert len(after) == 240
    assert before.items() <= after.items()

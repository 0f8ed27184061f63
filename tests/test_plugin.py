"""A package of somebody else's adds an attack through an entry point, and a broken one does not break the rest."""

from __future__ import annotations

from pathlib import Path

from cli_fixture import CommandLine

THEIRS = '''
from dataclasses import dataclass
from robustbench_lite.oracle import Scores
from robustbench_lite.registry import attack
from robustbench_lite.plan import State

@attack("theirs")
@dataclass(frozen=True)
class Theirs:
    """Random points of the ball, each asked about once."""
    access, norms, steps = Scores, ("linf", "l2"), 25
    tries: int = 25
    def start(self, oracle, draw):
        return State.at(oracle.origin)
    def step(self, oracle, state, draw):
        oracle.logits(state.x)
        return state.moved(oracle.threat.random_point(oracle.origin, draw))
'''


def install(site: Path, package: str, code: str, entry_points: str) -> None:
    """What `pip install` leaves behind of a package with one module."""
    about = site / f"{package}-1.0.dist-info"
    about.mkdir(parents=True)
    (site / f"{package}.py").write_text(code)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(entry_points)


def test_a_third_partys_attack(robust_eval: CommandLine) -> None:
    site = robust_eval.folder / "site"
    install(site, "their_attacks", THEIRS, "[robustbench_lite.attacks]\ntheirs = their_attacks:Theirs\n")
    install(site, "broken_attacks", "import a_module_that_is_missing\n", "[robustbench_lite.attacks]\nsorry = broken_attacks:Sorry\n")
    theirs = {"PYTHONPATH": str(site)}

    listed = robust_eval("list", "attacks", env=theirs)
    assert (listed.code, listed.err) == (0, "")
    assert any(line.startswith("theirs ") and "scores" in line and "linf l2" in line for line in listed.out.splitlines())
    assert "sorry: cannot be imported: ModuleNotFoundError: No module named 'a_module_that_is_missing'" in listed.out

    command = ("--model", "digits_cnn", "--limit", "20", "--eps", "0.4", "--out", "run")
    ran = robust_eval(*command, "--attack", "theirs", env=theirs)
    assert (ran.code, "robust-eval:" in ran.err) == (0, False)  # a busy machine may say how far it is
    clean, attacked, _ = robust_eval.table("run")
    assert attacked["condition"] == "theirs[linf,0.4]"
    assert int(attacked["correct"]) < int(clean["correct"])
    assert (float(attacked["mean_forwards"]) > 1, attacked["mean_backwards"]) == (True, "0.0")

    sorry = robust_eval(*command, "--attack", "sorry", env=theirs)
    assert sorry.code == 2
    assert "'sorry' could not be imported: ModuleNotFoundError" in sorry.complaint

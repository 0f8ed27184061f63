"""The examples for CI systems are what these systems read, and their commands run: here against a tiny gate on digits."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from junitparser import JUnitXml

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples" / "ci"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HOSTED = {"actions/checkout", "actions/setup-python", "actions/upload-artifact", "github/codeql-action/upload-sarif"}
"""Steps that run at GitHub only."""
SETTINGS = """
[gate]
model = "digits_standard"
data = "digits"
attacks = ["fgsm"]
eps = [0.1]
limit = 60
rules = [
    "clean.accuracy >= 0.5",
    "fgsm.accuracy >= 0.6",
]
"""


def read(name: str) -> Any:
    return yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8"))


def needs_network(command: str) -> bool:
    """Whether it installs, which is not tried here; what it would install must be this package, with extras that there are."""
    words = shlex.split(command)
    if words[:2] != ["pip", "install"]:
        return False
    package = re.fullmatch(r"([\w-]+)\[(\w+)\]", words[2])
    assert package
    assert package[1] == PROJECT["name"]
    assert package[2] in PROJECT["optional-dependencies"]
    return True


def commands() -> list[str]:
    """All that the examples run, in order, each once."""
    steps, job = read("github-actions.yml")["jobs"]["gate"]["steps"], read("gitlab-ci.yml")["robustness"]
    return list(dict.fromkeys([*(step["run"] for step in steps if "run" in step), *job["before_script"], *job["script"]]))


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where the commands ran as a CI system runs them, without those that need a network, and what was printed; the gate failed."""
    folder = tmp_path_factory.mktemp("ci")
    (folder / "robust-eval.toml").write_text(SETTINGS)
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    at_github = {"PATH": path, "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(folder / "summary.md")}
    (command,) = [each for each in commands() if not needs_network(each)]
    done = subprocess.run(
        ["bash", "-e", "-c", command], cwd=folder, env=os.environ | at_github, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    return folder, done.stdout


def test_the_workflow_for_github_finds_what_its_later_steps_take(gate: tuple[Path, str]) -> None:
    folder, printed = gate
    workflow = read("github-actions.yml")
    assert set(workflow[True]) == {"pull_request", "push"}  # YAML reads `on` as true
    assert workflow["permissions"]["security-events"] == "write"
    used = {step["uses"].partition("@")[0]: step for step in workflow["jobs"]["gate"]["steps"] if "uses" in step}
    assert set(used) == HOSTED
    for name, key in (("actions/upload-artifact", "path"), ("github/codeql-action/upload-sarif", "sarif_file")):
        assert (folder / used[name]["with"][key]).exists()
        assert "always()" in used[name]["if"]
    upload = used["github/codeql-action/upload-sarif"]
    assert upload["with"]["sarif_file"] in upload["if"]
    assert (folder / "summary.md").read_text(encoding="utf-8").startswith("## Robustness gate: ❌ fail\n")
    assert re.search(r"^::error file=robust-eval\.toml,line=10,title=fgsm\.accuracy >= 0\.6::fail: ", printed, re.M)


def test_the_job_for_gitlab_finds_its_reports(gate: tuple[Path, str]) -> None:
    folder, _ = gate
    artifacts = read("gitlab-ci.yml")["robustness"]["artifacts"]
    assert artifacts["when"] == "always"
    assert all((folder / path).is_dir() for path in artifacts["paths"])
    (suite,) = JUnitXml.fromfile(str(folder / artifacts["reports"]["junit"]))
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (2, 1, 0, 0)


def test_the_gate_wrote_all_that_the_guide_promises(gate: tuple[Path, str]) -> None:
    folder, guide = gate[0], (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    promised = re.findall(r"^\| `([\w-]+\.\w+)` \|", guide, re.M)
    assert len(promised) == 6
    assert [name for name in promised if not (folder / "robustness" / name).exists()] == []
    keys = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", guide.partition("## gate.json")[2], re.M)))
    assert keys == list(json.loads((folder / "robustness" / "gate.json").read_text()))


@pytest.mark.parametrize("name", ["github-actions.yml", "gitlab-ci.yml"])
def test_an_example_is_named_in_the_guide(name: str) -> None:
    assert f"(examples/ci/{name})" in (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")

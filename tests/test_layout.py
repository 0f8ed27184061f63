"""The shape of the repository: what is shipped, how long files are, who imports whom, what starts fast."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from robustbench_lite.registry import ATTACKS

ROOT = Path(__file__).parents[1]
OURS = ("robustbench_lite", "attacks", "corruptions", "defenses", "reports", "tests")
SOURCES = sorted(path for folder in OURS for path in (ROOT / folder).rglob("*.py"))
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_folder_of_code_is_shipped() -> None:
    folders = {path.parent.relative_to(ROOT) for folder in OURS if folder != "tests" for path in (ROOT / folder).rglob("__init__.py")}
    moved = {"attacks", "corruptions", "defenses", "reports"}
    packages = {".".join(("robustbench_lite", *folder.parts) if folder.parts[0] in moved else folder.parts) for folder in folders}
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == packages
    assert SETTINGS["tool"]["setuptools"]["package-dir"] == {f"robustbench_lite.{name}": name for name in moved}


def test_code_lies_in_no_folder_without_an_init() -> None:
    assert not [named(p) for p in SOURCES if p.relative_to(ROOT).parts[0] != "tests" and not (p.parent / "__init__.py").exists()]


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_files_are_short(path: Path) -> None:
    limit = 500 if path.is_relative_to(ROOT / "tests") else 400
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parent == ROOT / "attacks" and p.name != "__init__.py"], ids=named)
def test_an_attacks_file_names_its_paper_and_registers_what_it_holds(path: Path) -> None:
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
    assert re.search(r"https://\S+\w", first)
    module = f"robustbench_lite.attacks.{path.stem}"
    assert [name for name in ATTACKS.names() if ATTACKS.get(name).__module__ == module]


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{'.' * node.level}{node.module or ''}"} | {
                f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names
            }
    return found


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_attacks_are_reached_by_name(path: Path) -> None:
    inside = path.parent == ROOT / "attacks"
    assert not [name for name in imported(path) if name.startswith("robustbench_lite.attacks") or (inside and name.startswith("."))]


@pytest.mark.parametrize("module", ["cli", "errors", "registry", "results", "stats"])
def test_what_must_start_fast_imports_nothing_heavy(module: str) -> None:
    heavy = {"torch", "torchvision", "timm", "foolbox", "pandas", "matplotlib", "sklearn", "scipy", "jinja2"}
    code = f"import sys, robustbench_lite.{module}; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

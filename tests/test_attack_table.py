"""docs/attacks.md says what is registered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from robustbench_lite.catalogue import attack_table
from robustbench_lite.registry import ATTACKS

PAGE = Path(__file__).parents[1] / "docs/attacks.md"
TABLE = attack_table().splitlines()


def test_the_page_holds_the_table_of_what_is_registered() -> None:
    shown = [line for line in PAGE.read_text(encoding="utf-8").partition("<!-- attack table -->")[2].splitlines() if line.startswith("|")]
    assert shown == TABLE, "the attacks have changed: make attack-table"


def test_every_attack_has_a_row_with_its_paper() -> None:
    names = [line.split("`")[1].partition(":")[0] for line in TABLE[2:]]
    assert names == ATTACKS.names()


@pytest.mark.parametrize("line", TABLE[2:], ids=lambda line: line.split("`")[1])
def test_a_row_is_whole(line: str) -> None:
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert len(cells) == 7
    assert all(cells)
    assert re.fullmatch(r"\[[^\]]+\]\(https://\S+\)", cells[2]), "the first line of the file names no paper"

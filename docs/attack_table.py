"""`make attack-table`: the table of docs/attacks.md, from what is registered."""

from __future__ import annotations

from pathlib import Path

from robustbench_lite.catalogue import attack_table

PAGE = Path(__file__).parent / "attacks.md"
BEGIN, END = "<!-- attack table -->\n", "<!-- end of the attack table -->\n"


def main() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{attack_table()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

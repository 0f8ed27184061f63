"""The page in a browser and for a screen reader: nothing is fetched, nothing but its own script runs, and it can be read in every mode."""

from __future__ import annotations

import re
import shutil
import subprocess
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest
from report_run import EVIL, FGSM, PGD, WORST, believed, example, page, refuted, texts, tree

from robustbench_lite.results import Result

CSS = Path(__file__).parents[1].joinpath("reports/page.css")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, str]:
    result = refuted(tmp_path_factory.mktemp("page"), (4 / 255,))
    return result, page(result)


def opened(path: Path, *more: str) -> tuple[str, str]:
    """What Chromium makes of a page, without a network: its document after a second, and what it logged."""
    assert CHROMIUM is not None
    alone = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={path.parent / 'profile'}")
    blocked = ("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=1000", "--dump-dom")
    done = subprocess.run([CHROMIUM, *alone, *blocked, *more, path.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_only_the_pages_own_script_may_run_and_nothing_be_fetched(told: tuple[Result, str]) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", told[1], re.DOTALL)
    allowed = b64encode(sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', told[1])
    assert policy.replace("&#39;", "'").split("; ") == [
        "default-src 'none'", "style-src 'unsafe-inline'", "img-src data:", f"script-src 'sha256-{allowed}'", "base-uri 'none'",
        "form-action 'none'",
    ]  # fmt: skip
    assert not set(script) & set("&<")  # the page is XML too
    assert not re.findall(r"""(?:src|href|action|data|poster)\s*=\s*["'](?!data:|#)""", told[1].replace(script, ""))
    assert not re.findall(r"url\((?!#)|@import|\bfetch\(|XMLHttpRequest|WebSocket|import\(", told[1])


@in_chromium
def test_chromium_has_nothing_to_complain_of_and_sorts(told: tuple[Result, str], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(told[1], encoding="utf-8")
    document, log = opened(path)
    assert log == ""
    assert len(re.findall(r'<button type="button">', document)) > 10

    def sorted_by(column: str, clicks: int) -> list[str]:
        """The names in the first column after so many clicks; the page's policy has to make room for the test's own script."""
        each = f'for (const h of document.querySelectorAll("#table th button")) if (h.textContent === "{column}")'
        click = f"{each} {{ {'h.click();' * clicks} }}"
        text = re.sub(r"<meta http-equiv[^>]*>", "", told[1]).replace("</body>", f"<script>{click}</script></body>")
        path.write_text(text, encoding="utf-8")
        found, log = opened(path)
        assert log == ""
        assert f'aria-sort="{("ascending", "descending")[clicks - 1]}"' in found
        return re.findall(r'<th scope="row">(\S+?\]|clean)', found.partition('id="table"')[2].partition("</table>")[0])

    assert sorted_by("accuracy", 1) == [FGSM, PGD, WORST, "clean"]
    assert sorted_by("accuracy", 2) == ["clean", FGSM, PGD, WORST]
    assert sorted_by("condition", 1) == ["clean", FGSM, PGD, WORST]
    assert sorted_by("seconds", 2)[-1] == WORST  # an empty cell comes last either way


@in_chromium
def test_what_slipped_through_the_escaping_would_not_run(told: tuple[Result, str], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(told[1].replace("</main>", "<script>document.title = 'taken over'</script></main>"), encoding="utf-8")
    document, log = opened(path)
    assert "<title>taken over" not in document
    assert "Content Security Policy" in log  # so that the other tests would see a complaint


def test_a_screen_reader_finds_its_way(told: tuple[Result, str]) -> None:
    document = tree(told[1])
    levels = [int(e.tag[1]) for e in document.iter() if re.fullmatch("h[1-6]", e.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert document.get("lang") == "en"
    assert [len(list(document.iter(tag))) for tag in ("header", "main")] == [1, 1]
    skip = next(document.iter("a"))
    assert skip.get("href", "").removeprefix("#") == next(document.iter("main")).get("id")
    for table in document.iter("table"):
        assert texts(next(table.iter("caption")))
        assert all(th.get("scope") in ("col", "row") for th in table.iter("th"))
    assert all(image.get("alt") for image in document.iter("img"))
    svgs = "{http://www.w3.org/2000/svg}svg"
    charts = [e for e in document.iter() if e.get("role") == "img"]
    assert len(charts) == len(list(document.iter(svgs)))
    assert all(chart.get("aria-label") for chart in charts)


@pytest.mark.parametrize("mode", ["light", "dark", "print"])
def test_text_stands_out_from_what_is_behind_it(mode: str) -> None:
    blocks = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})", block)) for block in re.findall(r":root \{(.*?)\}", CSS.read_text(), re.DOTALL)
    ]
    colours = blocks[0] | (blocks[("light", "dark", "print").index(mode)])

    def brightness(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [(ink, paper) for ink in ("ink", "quiet") for paper in ("paper", "tint", "warn-tint", "bad-tint")]
    pairs += [
        ("warn", "paper"),
        ("warn", "tint"),
        ("warn", "warn-tint"),
        ("good", "paper"),
        ("good", "tint"),
        ("bad", "paper"),
        ("bad", "bad-tint"),
    ]
    for ink, paper in [*pairs, ("bad", "tint")]:
        dark, light = sorted(brightness(colours[name]) for name in (ink, paper))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (mode, ink, paper)


def test_a_thousand_images_stay_under_five_megabytes(tmp_path: Path) -> None:
    result = example(tmp_path, n=1000, pixels=224)
    assert sum(v.witness is not None for v in result.verdicts) > 20
    broken = [replace(v, broken=True, broken_by="pgd", witness="ab" * 32) if "pgd" in v.condition else v for v in result.verdicts]
    text = page(replace(result, verdicts=broken))
    assert len(text.encode()) < 5_000_000
    tree(text)


def test_many_classes_fold_away(tmp_path: Path) -> None:
    result = example(tmp_path, (4 / 255,), n=40)
    spread = [replace(v, label=int(v.sample_id[-3:]) // 2) for v in result.verdicts]
    document = tree(page(believed(replace(result, verdicts=spread))))
    (folded,) = document.iter("details")
    assert texts(next(folded.iter("summary"))) == "The other 8 classes"
    assert len(list(folded.iter("tr"))) == 9
    single = [replace(v, label=int(v.sample_id[-3:])) for v in result.verdicts]
    assert "By class" not in texts(tree(page(believed(replace(result, verdicts=single)))))
    assert EVIL in texts(tree(page(believed(example(tmp_path)))))

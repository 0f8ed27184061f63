"""What is computed and drawn from distances: curves over all eps, and how soon an attack came how near."""

from __future__ import annotations

import math
import random
import re
import statistics
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from report_run import believed, in_terminal, page, svgs, texts, tree, verdict

from robustbench_lite.distances import broken_after, curves, medians
from robustbench_lite.registry import FORMATS
from robustbench_lite.results import Condition, Result, Verdict, table_row
from robustbench_lite.worst import worst_case

N = 31
SVG = "{http://www.w3.org/2000/svg}"


def search(spec: str, sizes: Sequence[float], luck: int, scaled: bool = False) -> tuple[list[Condition], list[Verdict]]:
    """Rows of one search for the nearest: image 0 wrong when clean, 1 undecided, 2 and 3 never found."""
    draw = random.Random(luck)
    conditions = [Condition(f"{spec}[l2,{eps:g}{'x' * scaled}]", "attack", spec, "l2", eps, goal="closest", scaled=scaled) for eps in sizes]
    verdicts = []
    for i in range(N):
        passes, distance, approach = 0, 8.0, []
        for _ in range(draw.randint(1, 6)):
            passes, distance = passes + draw.randint(1, 30), distance * draw.uniform(0.3, 0.9)
            approach.append([passes, distance])
        for c in conditions:
            radius = float(c.eps or 0) * (1 + i / N) if scaled else None
            name = c.name
            if i == 0:
                changed: dict[str, Any] = {"broken": True, "broken_by": "clean", "forwards": 0, "backwards": 0, "distance": 0.0}
            elif i == 1:
                changed = {"broken": None, "reason": "NaN in the logits", "distance": 0.0}
            elif i < 4:
                changed = {"distance": 0.0}
            else:
                broken = distance <= (radius or float(c.eps or 0))
                changed = {"broken": broken, "broken_by": spec if broken else None, "distance": distance, "approach": tuple(approach)}
            verdicts.append(verdict(i, name, **{"radius": radius, "forwards": 200, "backwards": 50, **changed}))
    return conditions, verdicts


def run(folder: Path | None, *searches: tuple[list[Condition], list[Verdict]]) -> Result:
    conditions = [Condition("clean", "clean"), *(c for some, _ in searches for c in some)]
    wrong = {"broken": True, "broken_by": "clean"}
    verdicts = [verdict(i, "clean", distance=0.0, forwards=1, backwards=0, **(wrong if i == 0 else {})) for i in range(N)]
    verdicts += [v for _, some in searches for v in some]
    worst, worst_verdicts = worst_case(conditions, verdicts)
    config = {"model": {"name": "toy", "classes": 3}, "data": {"name": "toys", "n": N}, "versions": {}}
    return believed(Result(config, [*conditions, *worst], [*verdicts, *worst_verdicts], {}, lambda *_: None, folder))


def brute(verdicts: Sequence[Verdict], eps: float) -> float:
    return sum(v.broken is not None and v.nearest > eps * (1 + 1e-5) for v in verdicts) / len(verdicts)


def test_a_curve_is_the_share_of_images_whose_nearest_lies_further() -> None:
    result = run(None, search("fmn", (0.5, 1.0), 1), search("ddn", (0.5, 1.0), 2))
    fmn, ddn, worst = curves(result)
    assert [(c.name, c.judged, c.n) for c in (fmn, ddn, worst)] == [(name, (0.5, 1.0), N) for name in ("fmn", "ddn", "worst case")]
    for curve, row in ((fmn, "fmn[l2,1]"), (ddn, "ddn[l2,1]"), (worst, "worst[l2,1]")):
        for eps in [0.0, *(k / 7 for k in range(1, 60)), *(v.nearest for v in result.of(row) if v.nearest < math.inf)]:
            assert curve.at(eps) == brute(result.of(row), eps)
            assert worst.at(eps) <= curve.at(eps)
    assert fmn.at(0) == (N - 2) / N  # one wrong, one undecided
    assert fmn.at(fmn.end) == 2 / N
    with pytest.raises(ValueError, match="eps must be 0 or more, got -1"):
        fmn.at(-1)


def test_a_curve_goes_through_the_rows_of_the_table() -> None:
    result = run(None, search("fmn", (0.5, 1.0, 2.0), 3), search("ddn", (0.5, 1.0, 2.0), 4))
    accuracy = result.table.set_index("condition").accuracy
    for curve in curves(result):
        assert [curve.at(eps) for eps in curve.judged] == [accuracy[name] for name in curve.conditions]


def test_a_distance_of_exactly_eps_is_broken_on_the_curve_as_in_the_row() -> None:
    conditions, verdicts = search("fmn", (0.5,), 1)
    verdicts[9] = replace(verdicts[9], distance=0.5 * (1 + 5e-6), broken=True, broken_by="fmn")
    (curve, *_) = curves(run(None, (conditions, verdicts)))
    assert curve.at(0.5) == sum(v.broken is False for v in verdicts) / N


def test_what_rounding_lets_a_ball_hold_is_broken_on_the_curve_too() -> None:
    eps = 0.5 / 255
    conditions, verdicts = search("pgd", (eps,), 1)
    verdicts = [replace(v, distance=eps * (1 + 1.5e-5), broken=True, broken_by="pgd", approach=(), reason=None) for v in verdicts]
    assert curves(run(None, (conditions, verdicts)))[0].at(eps) == 0


def test_a_search_that_was_cut_short_is_correct_at_no_eps() -> None:
    conditions, verdicts = search("fmn", (4.0,), 1)
    broken = next(v for v in verdicts if v.broken and v.broken_by != "clean")
    cut = [replace(v, reason="NaN in the logits") if v is broken else v for v in verdicts]
    (before, *_), (after, *_) = curves(run(None, (conditions, verdicts))), curves(run(None, (conditions, cut)))
    assert before.correct(broken.distance / 2) - 1 == after.correct(broken.distance / 2)


def test_of_images_that_only_some_attacks_were_for_each_is_read_by_itself() -> None:
    """The shares of fmn are of all images, those of all together of some."""
    fmn, patch = search("fmn", (1.0,), 3), search("patch", (1.0,), 9)
    some = {v.sample_id for v in patch[1][: N // 2]}
    result = run(None, fmn, (patch[0], [v for v in patch[1] if v.sample_id in some]))
    of_fmn, of_patch = ({v.sample_id: v for v in result.of(name)} for name in ("fmn[l2,1]", "patch[l2,1]"))
    left = 0
    for key, v in of_fmn.items():
        nearest = min(v.nearest, of_patch[key].nearest) if key in some else v.nearest
        undecided = v.broken is None or (key in some and of_patch[key].broken is None)
        left += not undecided and nearest > 1.0
    (line,) = [line for line in in_terminal(result).splitlines() if line.startswith("fmn ") and "≤" in line]
    assert f"≤ {100 * left / N:.1f}" in line


def test_images_with_an_eps_of_their_own_are_counted_in_multiples_of_it() -> None:
    result = run(None, search("fmn", (1.0, 2.0), 5, scaled=True))
    fmn = curves(result)[0]
    accuracy = result.table.set_index("condition").accuracy
    assert fmn.scaled
    assert [fmn.at(1), fmn.at(2)] == [accuracy["fmn[l2,1x]"], accuracy["fmn[l2,2x]"]]
    assert fmn.at(1.5) == sum(v.broken is not None and v.nearest > 1.5 * (v.radius or 0) for v in result.of("fmn[l2,1x]")) / N


def test_an_attack_that_stays_in_its_ball_says_nothing_beyond() -> None:
    conditions, verdicts = search("pgd", (0.5,), 6)
    inside = [v if v.nearest <= 0.5 else replace(v, approach=(), distance=0.1) for v in verdicts]
    result = run(None, (conditions, inside))
    assert curves(result)[0].end == 0.5
    (line,) = [line for line in in_terminal(result).splitlines() if line.startswith("pgd ") and "none found" in line]
    assert len(re.findall(r"\d+\.\d", line)) == 3  # 0.125, 0.25 and 0.5, and nothing at 1 and 2


def test_an_image_breaks_with_the_first_passes_that_bring_it_within_eps() -> None:
    found = verdict(4, "fmn[l2,1]", broken=True, approach=((3, 4.0), (9, 1.0), (20, 0.4), (30, 0.3)), forwards=50, backwards=50)
    assert [broken_after(found, eps) for eps in (5, 1, 0.999999, 0.5, 0.3)] == [3, 9, 9, 20, 30]
    assert broken_after(replace(found, radius=0.35), 5) == 30
    assert broken_after(replace(found, approach=()), 1) == 100  # it left when it was broken
    assert broken_after(replace(found, broken=False), 1) is None


@pytest.mark.parametrize("n", [N, N - 1])
def test_medians_are_those_of_the_images_so_far_and_end_with_the_tables(n: int) -> None:
    conditions, verdicts = search("fmn", (1.0,), 7)
    pairs = medians(verdicts[:n])
    for passes in range(260):
        so_far = []
        for v in verdicts[:n]:
            reached = [distance for at, distance in v.approach if at <= passes]
            so_far.append(0.0 if v.broken_by == "clean" or v.broken is None else min(reached, default=math.inf))
        known = [distance for at, distance in pairs if at <= passes]
        assert (known[-1] if known else math.inf) == statistics.median(so_far), passes
    assert pairs[-1] == (250, table_row(conditions[0], verdicts[:n], "", "", 0.0)["median_distance"])


def test_without_a_known_half_there_is_no_median() -> None:
    _, verdicts = search("fmn", (1.0,), 7)
    lost = [replace(v, approach=(), broken=False, broken_by=None) for v in verdicts]
    assert medians(lost) == []


# What is shown


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, str]:
    conditions, verdicts = search("pgd", (1.0,), 8)
    fixed = (
        [replace(c, goal="first") for c in conditions],
        [v if v.broken else replace(v, approach=(), distance=0.5) for v in verdicts],
    )
    result = run(tmp_path_factory.mktemp("shown"), search("fmn", (0.5, 1.0), 1), search("ddn", (0.5, 1.0), 2), fixed)
    return result, page(result)


def places(chart: str, prefix: str, axis: str) -> dict[float, float]:
    """Of each tick its number and where it lies in the chart."""
    found = {}
    for tick in ElementTree.fromstring(chart).iter(f"{SVG}g"):
        if re.fullmatch(rf"{prefix}-{axis}tick_\d+", tick.get("id", "")) and (text := "".join(tick.itertext()).strip()):
            (use,) = tick.iter(f"{SVG}use")
            found[float(text.replace("−", "-"))] = float(use.get(axis, ""))
    return found


def drawn(chart: str, prefix: str, log: bool = False) -> list[list[tuple[float, float]]]:
    """The corners of every line, in the numbers of the axes; with `log`, x is a logarithm."""
    xs, ys = places(chart, prefix, "x"), places(chart, prefix, "y")
    along = sorted((math.log10(number) if log else number, place) for number, place in xs.items())
    up = sorted(ys.items())

    def number(place: float, ticks: Sequence[tuple[float, float]]) -> float:
        (first, at), (last, end) = ticks[0], ticks[-1]
        return first + (place - at) / (end - at) * (last - first)

    return [
        [(number(float(x), along), number(float(y), up)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path.get("d", ""))]
        for group in ElementTree.fromstring(chart).iter(f"{SVG}g")
        if re.fullmatch(rf"{prefix}-line2d_\d+", group.get("id", ""))
        for path in group.findall(f"{SVG}path")
    ]


def flat(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The middle and the height of every level part."""
    return [((x + after) / 2, y) for (x, y), (after, _) in pairwise(line) if after - x > 1e-3]


def test_the_page_draws_a_step_wherever_an_image_falls(shown: tuple[Result, str]) -> None:
    result, text = shown
    lines = [line for line in drawn(next(svg for svg in svgs(text) if "curve0" in svg), "curve0") if len(line) > 20]
    for curve in curves(result):
        assert any(all(abs(y - 100 * curve.at(x)) < 0.1 for x, y in flat(line)) for line in lines), curve.name
    assert "nearest broken image found; the table is about 0.5 and 1 (dotted)" in texts(tree(text))


def test_queries_count_the_passes_that_it_took_and_not_those_of_the_whole_search(shown: tuple[Result, str]) -> None:
    result, text = shown
    lines = [line for line in drawn(next(svg for svg in svgs(text) if "queries-" in svg), "queries", log=True) if len(line) > 5]
    for name in ("fmn[l2,0.5]", "fmn[l2,1]", "ddn[l2,1]"):
        met = [v for v in result.of(name) if v.broken_by != "clean"]
        ends = [min(p for p, d in v.approach if d <= float(name[7:-1])) for v in met if v.broken]

        def share(x: float, ends: Sequence[float] = ends, n: int = len(met)) -> float:
            return 100 * sum(math.log10(end) <= x for end in ends) / n

        assert any(all(abs(y - share(x)) < 0.1 for x, y in flat(line)) for line in lines), name


def test_the_page_shows_medians_in_words(shown: tuple[Result, str], tmp_path: Path) -> None:
    result, text = shown
    assert "Median distance against passes, l2" in texts(tree(text))
    median = result.table.set_index("condition").median_distance["fmn[l2,1]"]
    assert f"{median:.4g}" in texts(tree(text))
    conditions, verdicts = search("fmn", (1.0,), 7)
    lost = run(tmp_path, (conditions, [replace(v, approach=(), broken=v.broken_by == "clean", distance=0.1) for v in verdicts]))
    assert "none found" in texts(tree(page(lost)))
    assert "Median distance against passes" not in page(lost)


def test_multiples_of_own_eps_are_named_on_the_axis(tmp_path: Path) -> None:
    text = page(run(tmp_path, search("fmn", (1.0, 2.0), 5, scaled=True)))
    assert "multiples of each image's own eps" in next(svg for svg in svgs(text) if "curve0" in svg).replace("&apos;", "'")
    assert "the table is about 1x and 2x (dotted)" in texts(tree(text))
    assert "Accuracy by eps (l2), in multiples of each image's own eps, %" in " ".join(
        in_terminal(run(None, search("fmn", (1.0,), 5, scaled=True)), 120).split()
    )


def test_the_terminal_and_markdown_read_the_curve_at_a_few_sizes(shown: tuple[Result, str]) -> None:
    result, _ = shown
    written = in_terminal(result)
    assert max(map(len, written.splitlines())) <= 80
    fmn, ddn, worst = curves(result)
    markdown = FORMATS.get("markdown")(result)[0].read_text(encoding="utf-8")
    for curve in (fmn, ddn, worst):
        expected = []
        for eps in (0.25, 0.5, 1.0, 2.0):
            least = 100 * worst.at(eps)
            unasked = " ?" if least and eps not in curve.judged else ""
            expected.append(f"{least:.1f}{unasked}" if curve.at(eps) == worst.at(eps) else f"≤ {least:.1f}")
        (line,) = [line for line in written.splitlines() if line.startswith(f"{curve.name} ")]
        assert line.split()[-sum(len(cell.split()) for cell in expected) :] == " ".join(expected).split()
        assert f"| {' | '.join(expected)} |" in markdown
    assert "## Accuracy by eps (l2), %" in markdown


def test_a_page_of_many_distances_stays_small(tmp_path: Path) -> None:
    conditions, verdicts = search("fmn", (1.0,), 1)
    many = [replace(v, sample_id=f"{k} {v.sample_id}", distance=v.distance * (1 + k / 1000)) for k in range(100) for v in verdicts]
    clean = [replace(v, condition="clean") for v in many]
    result = run(tmp_path, (conditions, many))
    result = believed(replace(result, verdicts=[*clean, *(v for v in result.verdicts if v.condition != "clean")]))
    assert len(next(svg for svg in svgs(page(result)) if "curve0" in svg)) < 200_000

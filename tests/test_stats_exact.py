"""Exact limits and paired tests, against SciPy, published values and other ways to the same number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, norm

from robustbench_lite.gate.groups import effective_size
from robustbench_lite.paired import holm, mcnemar, score, tango
from robustbench_lite.stats import clopper_pearson, wilson

counts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
tables = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 300)).map(lambda t: (t[0], t[1], t[0] + t[1] + t[2]))


@given(counts, st.sampled_from([0.005, 0.025, 0.05, 0.2]))
def test_the_limits_are_clopper_and_pearsons(pair: tuple[int, int], alpha: float) -> None:
    successes, n = pair
    both = binomtest(successes, n).proportion_ci(1 - 2 * alpha, "exact")
    below = binomtest(successes, n, alternative="greater").proportion_ci(1 - alpha, "exact")
    above = binomtest(successes, n, alternative="less").proportion_ci(1 - alpha, "exact")
    assert clopper_pearson(successes, n, alpha) == pytest.approx((both.low, both.high), abs=1e-9)
    assert clopper_pearson(successes, n, alpha) == pytest.approx((below.low, above.high), abs=1e-9)


def test_what_statsmodels_says() -> None:
    known = json.loads((Path(__file__).parent / "goldens" / "statsmodels.json").read_text())
    for gained, lost, p in known["mcnemar"]:
        assert mcnemar(gained, lost, two_sided=True) == pytest.approx(p, abs=1e-9)
    for p, adjusted in known["holm"]:
        assert holm(p) == pytest.approx(adjusted, abs=1e-9)
    for successes, n, low, high in known["clopper_pearson"]:
        assert clopper_pearson(successes, n) == pytest.approx((low, high), abs=1e-9)
    for successes, n, low, high in known["wilson"]:
        assert wilson(successes, n) == pytest.approx((low, high), abs=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_what_is_no_share_has_no_limits(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"got {successes} of {n}"):
        clopper_pearson(successes, n)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemars_p_is_that_of_the_binomial_test(gained: int, lost: int) -> None:
    if gained + lost == 0:
        assert mcnemar(0, 0) == mcnemar(0, 0, two_sided=True) == 1
        return
    assert mcnemar(gained, lost) == pytest.approx(binomtest(lost, gained + lost, alternative="greater").pvalue, rel=1e-9, abs=1e-300)
    assert mcnemar(gained, lost, two_sided=True) == pytest.approx(binomtest(lost, gained + lost).pvalue, rel=1e-9, abs=1e-300)


def test_four_changed_images_are_too_few_for_mcnemar() -> None:
    assert mcnemar(0, 4) == 0.0625
    assert mcnemar(0, 5) == 0.03125


def test_mcnemar_refuses_less_than_nothing() -> None:
    with pytest.raises(ValueError, match="got -1 gained"):
        mcnemar(-1, 3)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.9]) == [1, 1]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 0.2))
def test_holm_rejects_what_stepping_down_rejects(p: list[float], alpha: float) -> None:
    rejected = set()
    for rank, place in enumerate(np.argsort(p, kind="stable")):
        if p[place] * (len(p) - rank) > alpha:
            break
        rejected.add(int(place))
    assert {i for i, adjusted in enumerate(holm(p)) if adjusted <= alpha} == rejected


def test_tangos_interval_as_published() -> None:
    """Fagerland, Lydersen and Laake (Stat. Med. 33:2850, 2014), the airway reactivity of 21 children: -0.517 to -0.026."""
    assert tango(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


@given(tables, st.sampled_from([0.025, 0.05]))
def test_tangos_limits_are_roots_of_the_quartic(table: tuple[int, int, int], alpha: float) -> None:
    """The closed form of Yang, Sun and Hardin (Stat. Med. 32:1336, 2013)."""
    b, c, n = table
    g, d, s = norm.ppf(1 - alpha) ** 2, b - c, b + c
    coefficients = [
        n**2 * (n / g + 1) ** 2,
        -n * d * (n / g + 1) * (4 * n / g + 1),
        2 * n * d**2 * (3 * n / g + 2) / g - n**2 * (s / g + 1),
        n * d * (2 * s / g + 1) - d**3 * (4 * n / g + 1) / g,
        d**2 * (d**2 / g - s) / g,
    ]
    roots = np.roots(coefficients)
    real = roots[abs(roots.imag) < 1e-5].real
    assert tango(b, c, n, alpha) == pytest.approx((real.min(), real.max()), abs=1e-6)


@given(tables, st.integers(-600, 600).filter(bool).map(lambda thousandths: thousandths / 1000))
def test_the_score_is_at_the_maximum_of_the_likelihood(table: tuple[int, int, int], difference: float) -> None:
    gained, lost, n = table
    stay = n - gained - lost

    def unlikely(share_lost: float) -> float:
        p = np.array([share_lost + difference, share_lost, 1 - 2 * share_lost - difference]).clip(1e-300)
        return -float(np.array([gained, lost, stay]) @ np.log(p))

    found = minimize_scalar(unlikely, bounds=(max(0, -difference), (1 - difference) / 2), method="bounded", options={"xatol": 1e-12})
    variance = n * (2 * found.x + difference - difference**2)
    expected = (gained - lost - n * difference) / np.sqrt(variance)
    assert score(gained, lost, n, difference) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_no_change_at_all_still_leaves_room() -> None:
    z = norm.ppf(0.95)
    assert tango(0, 0, 30, 0.05) == pytest.approx((-(z**2) / (30 + z**2), z**2 / (30 + z**2)), abs=1e-12)
    assert tango(0, 7, 7)[0] == -1
    assert tango(7, 0, 7)[1] == 1


@pytest.mark.parametrize(("gained", "lost", "n", "difference"), [(-1, 0, 5, 0.0), (3, 3, 5, 0.0), (1, 1, 5, 1.0), (0, 0, 0, 0.0)])
def test_the_score_refuses_what_is_no_table(gained: int, lost: int, n: int, difference: float) -> None:
    with pytest.raises(ValueError, match="need"):
        score(gained, lost, n, difference)


@pytest.mark.parametrize("margin", [0.02, 0.1, 0.3])
def test_an_image_more_never_turns_a_pass_into_less(margin: float) -> None:
    """What curtailment rests on: the acceptance of Tango's test is monotone in every image."""
    for n in (5, 20, 45):
        accepted = {(b, c): score(b, c, n, -margin) >= norm.ppf(0.95) for b in range(n + 1) for c in range(n + 1 - b)}
        for (b, c), yes in accepted.items():
            if yes:
                assert accepted.get((b + 1, c), True)
                assert accepted.get((b, c - 1), True)


def test_images_that_are_copies_count_once() -> None:
    draw = np.random.default_rng(0)
    patients = draw.random(200) < 0.7
    copied = np.repeat(patients, 5)
    size = effective_size(list(copied), [i // 5 for i in range(1000)])
    assert 185 < size < 200.5
    assert effective_size(list(copied), list(range(1000))) == 1000
    assert effective_size([1] * 30, [i // 10 for i in range(30)]) == 3
    unrelated = list(draw.random(1000) < 0.7)
    assert 800 < effective_size(unrelated, [i // 5 for i in range(1000)]) <= 1000


def test_limits_of_grouped_images_cover() -> None:
    """Patients differ in how hard they are; one-sided limits at 5 % must still be wrong at most so often."""
    draw, wrong, plainly_wrong = np.random.default_rng(1), 0, 0
    for _ in range(1000):
        right = draw.random((40, 10)) < draw.beta(1.4, 0.6, 40)[:, None]
        size = effective_size(list(right.ravel()), [i // 10 for i in range(400)])
        wrong += clopper_pearson(float(right.mean()) * size, size, 0.05)[0] > 0.7
        plainly_wrong += clopper_pearson(int(right.sum()), 400, 0.05)[0] > 0.7
    assert wrong <= 50 + 3 * 7
    assert plainly_wrong > 150

"""Intervals and tests against statsmodels, scipy, published examples and a brute-force inversion."""

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from parity.judge.statistics import mcnemar_exact, noninferiority_p, pairs_needed, tango, wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 30), (30, 30), (1, 7), (183, 200), (49_999, 100_000)])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_wilson_equals_statsmodels(successes: int, n: int, level: float) -> None:
    expected = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    assert wilson(successes, n, level) == pytest.approx(expected, abs=1e-12)
    assert 0 <= wilson(successes, n, level)[0] <= successes / n <= wilson(successes, n, level)[1] <= 1


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 1), (1, 1), (9, 3), (6, 16), (0, 40), (500, 430), (3000, 3200)])
def test_mcnemar_equals_statsmodels_and_the_binomial_test(b: int, c: int) -> None:
    p = mcnemar_exact(b, c)
    assert p == pytest.approx(mcnemar([[5, b], [c, 5]], exact=True).pvalue if b + c else 1.0, rel=1e-6)
    if b + c:
        assert p == pytest.approx(scipy.stats.binomtest(b, b + c).pvalue, rel=1e-6)


@pytest.mark.parametrize(
    ("b", "c", "n", "level", "digits", "low", "high"),
    [
        # Tango, Statistics in Medicine 17 (1998), section 6.2: sleeping difficulties of 32 pairs
        (9, 3, 32, 0.95, 3, -0.027, 0.390),
        # Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables (2017), chapter 8: airway
        # hyper-responsiveness (Bentur et al. 2009) as in the source of R's `ratesci`, and complete response (Cavo et
        # al. 2012) as in the tests of the book's own R package, `contingencytables`
        (1, 7, 21, 0.95, 3, -0.517, -0.026),
        (6, 16, 161, 0.95, 4, -0.1240, -0.0054),
    ],
)
def test_tango_equals_published_examples(
    b: int, c: int, n: int, level: float, digits: int, low: float, high: float
) -> None:
    assert [round(end, digits) for end in tango(b, c, n, level)] == [low, high]


def test_tangos_crossover_trial() -> None:
    """Section 6.1 of the paper: 44 pairs, 0 and 1 of them discordant; the 90 % interval begins at -0.096."""
    assert round(tango(0, 1, 44, 0.90)[0], 3) == -0.096


def log_likelihood(q21: float, b: int, c: int, n: int, difference: float) -> float:
    """Of the trinomial (b, c, the rest) with q12 = q21 + difference."""
    q12 = q21 + difference
    parts = ((b, q12), (c, q21), (n - b - c, 1 - q12 - q21))
    return sum(count * math.log(max(q, 1e-300)) for count, q in parts if count)


def score_z(b: int, c: int, n: int, difference: float) -> float:
    """The score statistic with the nuisance parameter found by maximising the likelihood numerically."""
    low, high = max(0.0, -difference), (1 - difference) / 2
    found = scipy.optimize.minimize_scalar(
        lambda q: -log_likelihood(q, b, c, n, difference),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-13},
    )
    q21 = min((low, high, found.x), key=lambda q: -log_likelihood(q, b, c, n, difference))
    variance = n * (2 * q21 + difference - difference**2)
    return (b - c - n * difference) / math.sqrt(variance)


@pytest.mark.parametrize(("b", "c", "n"), [(7, 0, 14), (3, 2, 14), (13, 1, 14), (10, 3, 50), (2, 9, 20), (25, 12, 200)])
def test_tango_equals_a_brute_force_inversion_of_the_score_test(b: int, c: int, n: int) -> None:
    z = scipy.stats.norm.ppf(0.975)
    estimate = (b - c) / n
    for end, sign, limit in zip(tango(b, c, n), (1, -1), (-0.9999, 0.9999), strict=True):
        expected = scipy.optimize.brentq(lambda d, s=sign: score_z(b, c, n, d) - s * z, limit, estimate, xtol=1e-10)
        assert end == pytest.approx(expected, abs=1e-5)  # the likelihood is flat to 1e-7 around its maximum


def test_tango_holds_its_estimate_mirrors_and_stays_in_range() -> None:
    for n in (1, 2, 5, 12):
        for b, c in itertools.product(range(n + 1), repeat=2):
            if b + c <= n:
                low, high = tango(b, c, n)
                assert -1 <= low <= (b - c) / n <= high <= 1
                assert low < high
                assert tango(c, b, n) == pytest.approx((-high, -low), abs=1e-12)
                assert low <= 0 <= high if b == c else True


def test_tango_rejects_zero_exactly_where_mcnemars_score_test_does() -> None:
    """At a difference of 0 the statistic is (b - c) / sqrt(b + c)."""
    z = scipy.stats.norm.ppf(0.975)
    for b, c in itertools.product(range(25), repeat=2):
        if b + c:
            low, high = tango(b, c, 200)
            assert (low <= 0 <= high) == (abs(b - c) / math.sqrt(b + c) <= z)


def test_tango_covers_as_often_as_it_says() -> None:
    """95 % nominal; 3,000 draws of 200 pairs put the observed share within 1.2 points (3 standard errors)."""
    generator = np.random.default_rng(7)
    draws = generator.multinomial(200, (0.04, 0.02, 0.94), size=3000)
    intervals = {(int(b), int(c)): tango(int(b), int(c), 200) for b, c, _ in draws}
    covered = [low <= 0.02 <= high for low, high in (intervals[int(b), int(c)] for b, c, _ in draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)


def test_tangos_own_example_of_non_inferiority() -> None:
    """Section 6.1: 0 and 1 of 44 pairs discordant, a margin of 0.1: Z = 1.709, p = 0.044."""
    p = noninferiority_p(0, 1, 44, 0.1)
    assert (round(p, 3), round(float(scipy.stats.norm.isf(p)), 3)) == (0.044, 1.709)


@pytest.mark.parametrize(("b", "c", "n"), [(0, 0, 30), (0, 1, 44), (3, 2, 14), (10, 3, 50), (2, 9, 100), (25, 12, 200)])
@pytest.mark.parametrize("margin", [0.03, 0.1, 0.3])
def test_non_inferiority_equals_a_brute_force_score_test(b: int, c: int, n: int, margin: float) -> None:
    expected = scipy.stats.norm.sf(score_z(b, c, n, -margin))
    assert noninferiority_p(b, c, n, margin) == pytest.approx(expected, abs=1e-6)


def test_non_inferiority_is_shown_exactly_where_tangos_interval_shows_it() -> None:
    for n in (20, 60, 200):
        for b, c in itertools.product(range(10), repeat=2):
            for margin in (0.02, 0.05, 0.15):
                assert (noninferiority_p(b, c, n, margin) < 0.025) == (tango(b, c, n)[0] > -margin)


def test_non_inferiority_at_the_ends() -> None:
    assert noninferiority_p(0, 5, 5, 1.0) == 1.0
    assert noninferiority_p(0, 4, 5, 1.0) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match="not possible"):
        noninferiority_p(0, 1, 5, 0.0)


def test_non_inferiority_errs_as_often_as_it_says() -> None:
    """At a true difference of the margin, 2.5 % nominal: 4,000 draws of 300 pairs stay below 3.5 % (4 errors)."""
    generator = np.random.default_rng(11)
    draws = generator.multinomial(300, (0.02, 0.07, 0.91), size=4000)
    known = {(int(b), int(c)): noninferiority_p(int(b), int(c), 300, 0.05) for b, c, _ in draws}
    assert np.mean([known[int(b), int(c)] < 0.025 for b, c, _ in draws]) < 0.035


@pytest.mark.parametrize("margin", [0.01, 0.03, 0.1])
@pytest.mark.parametrize(
    ("b", "c", "n"), [(0, 0, 40), (1, 1, 281), (0, 1, 281), (3, 5, 400), (8, 3, 120), (20, 20, 100)]
)
def test_the_pairs_needed_are_the_fewest_that_do(b: int, c: int, n: int, margin: float) -> None:
    """Z grows as the root of the pairs; one fewer does not do, within what the numerical maximum is exact to."""
    needed = pairs_needed(b, c, n, margin)
    assert needed is not None
    z = scipy.stats.norm.ppf(0.975)
    each = score_z(b, c, n, -margin) / math.sqrt(n)
    assert each * math.sqrt(needed) >= z - 1e-4
    assert each * math.sqrt(needed - 1) < z + 1e-4
    times = math.ceil(needed / n)  # so many times the sample has whole numbers, and goes through the interval itself
    assert tango(b * times, c * times, n * times)[0] >= -margin
    assert (tango(b, c, n)[0] >= -margin) == (needed <= n)


@pytest.mark.parametrize(("margin", "needed"), [(0.03, 125), (0.05, 73), (0.1, 35), (0.01, 381)])
def test_the_pairs_needed_where_none_differ(margin: float, needed: int) -> None:
    assert pairs_needed(0, 0, 20, margin) == needed
    assert tango(0, 0, needed)[0] >= -margin
    assert tango(0, 0, needed - 1)[0] < -margin


def test_no_number_shows_a_difference_that_is_beyond_the_margin() -> None:
    assert pairs_needed(0, 3, 100, 0.02) is None
    assert pairs_needed(0, 2, 100, 0.02) is None
    assert pairs_needed(0, 1, 100, 0.02) is not None
    with pytest.raises(ValueError, match="not possible"):
        pairs_needed(1, 1, 1, 0.03)


def test_about_half_of_the_samples_of_the_needed_size_do() -> None:
    """What the docstring promises; 2,000 draws have a standard error of 1.1 points, and counts are lumpy."""
    needed = pairs_needed(10, 15, 500, 0.03)
    assert needed is not None
    generator = np.random.default_rng(3)
    draws = generator.multinomial(needed, (0.02, 0.03, 0.95), size=2000)
    shown = np.mean([noninferiority_p(int(b), int(c), needed, 0.03) < 0.025 for b, c, _ in draws])
    assert 0.4 < shown < 0.6


@pytest.mark.parametrize("bad", [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_impossible_counts_are_refused(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="is not possible"):
        tango(*bad)
    with pytest.raises(ValueError, match="not a proportion"):
        wilson(5, 4)

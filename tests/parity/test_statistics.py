"""Intervals and tests against statsmodels, scipy, published examples and a brute-force inversion."""

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from parity.statistics import mcnemar_exact, tango, wilson


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


@pytest.mark.parametrize("bad", [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_impossible_counts_are_refused(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="is not possible"):
        tango(*bad)
    with pytest.raises(ValueError, match="not a proportion"):
        wilson(5, 4)

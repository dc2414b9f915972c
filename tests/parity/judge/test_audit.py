"""The audit's arithmetic: rows against textbook and brute force, exact levels, chances by simulation, and what is not
valid.

The simulations draw pictures from a population in which the phone is worse than the reference by exactly the margin, so
every PASS is a false one. What they give with other seeds stands beside each bound.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import beta, binom, hypergeom

from parity.judge.audit import ALPHA, Bet, Course, at_least, follow, looks, pass_rows, spending
from parity.judge.statistics import tango

MARGIN = 0.03
SHARE = 0.92
PLACEMENTS = ("random", "large", "small")


@pytest.mark.parametrize(("theta", "pictures"), [(0.02, 183), (0.03, 122), (0.0326, 112), (0.05, 72)])
def test_a_single_look_is_clopper_and_pearson(theta: float, pictures: int) -> None:
    assert looks(theta, 1000, lambda _: ALPHA, 1) == [pictures]
    assert beta.ppf(1 - ALPHA, 1, pictures) <= theta < beta.ppf(1 - ALPHA, 1, pictures - 1)


def stopped(theta: float, rows: Sequence[int]) -> list[float]:
    """The chance of having stopped by each row, picture by picture: slow and plain."""
    going, chances, total = {0: 1.0}, [], 0.0
    for n in range(1, rows[-1] + 1):
        after: dict[int, float] = {}
        for lost, chance in going.items():
            after[lost] = after.get(lost, 0.0) + chance * (1 - theta)
            after[lost + 1] = after.get(lost + 1, 0.0) + chance * theta
        going = after
        while len(chances) < len(rows) and rows[len(chances)] == n:
            total += sum(going.pop(lost) for lost in [lost for lost in going if lost <= len(chances)])
            chances.append(total)
    return chances


@pytest.mark.parametrize(("theta", "most"), [(MARGIN / SHARE, 258), (MARGIN / SHARE, 920), (0.05, 600), (0.01, 1500)])
def test_the_level_is_exact_and_no_row_could_be_earlier(theta: float, most: int) -> None:
    rows = looks(theta, most)
    chances = stopped(theta, rows)
    assert all(chance <= spending(row) for row, chance in enumerate(chances))
    for row in range(len(rows)):
        earlier = [*rows[:row], rows[row] - 1]
        assert stopped(theta, earlier)[-1] > spending(row)
    assert max(chances) <= ALPHA


def test_the_level_is_nearly_used_up() -> None:
    """0.0243 in 14 rows, 0.0249 in 103."""
    assert 0.0242 < stopped(MARGIN / SHARE, looks(MARGIN / SHARE, 920))[-1] < 0.0244
    long = looks(MARGIN / SHARE, 4600)
    assert len(long) > 100
    assert 0.0246 < stopped(MARGIN / SHARE, long[:40])[-1] < 0.0249


def test_the_level_by_simulation() -> None:
    """0.0242 to 0.0246 with seeds 1 to 5; its standard error is 0.0008."""
    theta = MARGIN / SHARE
    rows = looks(theta, 920)
    lost = np.cumsum(np.random.default_rng(1).random((40_000, rows[-1]), np.float32) < theta, axis=1, dtype=np.int16)
    passed = np.any([lost[:, n - 1] <= row for row, n in enumerate(rows)], axis=0)
    assert 0.0220 < passed.mean() < 0.0270


@pytest.mark.parametrize(
    ("n", "share", "won", "lost", "first"),
    [
        (281, 0.92, 0, 0, (143, 233)),
        (1000, 0.92, 0, 0, (128, 206, 286, 357)),
        (1000, 0.92, 5, 5, (131, 211, 294, 368)),
        (5000, 0.92, 75, 75, (129, 207, 289, 361)),
        (5000, 0.60, 125, 125, (84, 135, 189, 236)),
        (50_000, 0.92, 250, 250, (127, 204, 284, 354)),
    ],
)
def test_rows_as_published(n: int, share: float, won: int, lost: int, first: tuple[int, ...]) -> None:
    rows = pass_rows(share, *terms(won, lost, n), MARGIN, round(share * n))
    assert rows[: len(first)] == first
    assert list(rows) == sorted(rows)
    assert rows[-1] <= share * n
    floor = math.ceil(math.log(ALPHA) / math.log(1 - MARGIN / share))  # no test of one look gets below it
    assert rows[0] >= floor


def test_a_row_is_the_first_that_keeps_the_margin_by_mover() -> None:
    """By brute force over every picture and loss rate."""
    difference, width = terms(1, 1, 281)
    found = pass_rows(SHARE, difference, width, MARGIN, 258)
    rates = np.linspace(0.005, MARGIN / SHARE, 400)
    tables = [looks(float(rate), 258) for rate in rates]
    for row, pictures in enumerate(found):

        def kept(n: int, row: int = row) -> bool:
            seen = SHARE * row / n
            return any(
                len(table) > row
                and table[row] <= n
                and seen + math.hypot(width, SHARE * rate - seen) <= MARGIN + difference
                for rate, table in zip(rates, tables, strict=True)
            )

        # These rates lie between those that are tried, and n_l is no smooth function of the rate: 0 and 1 apart.
        assert abs(next(n for n in range(1, 259) if kept(n)) - pictures) <= 1


def test_more_room_means_fewer_pictures() -> None:
    difference, width = terms(5, 5, 1000)
    rows = pass_rows(SHARE, difference, width, MARGIN, 920)
    assert pass_rows(SHARE, difference, width, 0.05, 920)[0] < 100 < rows[0]
    assert pass_rows(SHARE, difference + 0.01, width, MARGIN, 920)[0] < rows[0]
    assert pass_rows(0.6, difference, width, MARGIN, 920)[0] < rows[0]
    assert pass_rows(SHARE, difference, 2 * width, MARGIN, 920)[0] > rows[0]
    assert pass_rows(SHARE, difference, width, MARGIN, rows[2]) == rows[:3]
    exact = pass_rows(SHARE, 0.0, 0.0, MARGIN, 920)  # a host that is known without doubt leaves the plain test
    assert exact == tuple(looks(MARGIN / SHARE, 920))


@pytest.mark.parametrize(
    ("share", "difference", "width", "most"),
    [(0.92, -0.02, 0.01, 900), (0.92, 0.0, 0.03, 900), (0.0, 0.0, 0.01, 900), (0.92, 0.0, 0.01, 100), (0.01, 0, 0, 99)],
)
def test_where_no_number_of_pictures_would_do(share: float, difference: float, width: float, most: int) -> None:
    assert pass_rows(share, difference, width, MARGIN, most) == ()


def test_the_binomial_tail() -> None:
    for n, chance in ((5, 0.1), (30, 0.03)):
        for k in range(n + 1):
            assert at_least(k, n, chance) == pytest.approx(binom.sf(k - 1, n, chance))


# The bet.


def test_the_bet_is_fair_where_the_margin_is_just_kept() -> None:
    """Its wealth, averaged over every order of the pictures, stays 1 at every picture; below 1 where less is lost."""
    pictures = [1, 0, 0, -1, 0, 1]
    for allowed, fair in ((sum(pictures), True), (sum(pictures) + 0.5, False)):
        courses = []
        for order in permutations(pictures):
            bet = Bet(len(order), allowed)
            courses.append([bet.see(net) for net in order])
        means = np.mean(courses, axis=0)
        assert np.min(courses) > 0
        if fair:
            np.testing.assert_allclose(means[:-1], 1)
        else:
            assert max(means) < 1


def fail_after(lost: int, reps: int, seed: int, gained: int = 0, allowed: float = 30, upto: int = 1000) -> list[float]:
    """Pictures to an early FAIL of 1,000, infinity where there is none."""
    generator, found = np.random.default_rng(seed), []
    net = np.zeros(1000, int)
    net[:lost], net[lost : lost + gained] = 1, -1
    for _ in range(reps):
        bet, at = Bet(1000, allowed), math.inf
        for place, one in enumerate(generator.permutation(net)[:upto], start=1):
            if bet.see(int(one)) * ALPHA >= 1:
                at = place
                break
        found.append(at)
    return found


@pytest.mark.parametrize(("lost", "low", "high"), [(600, 9, 13), (300, 22, 31), (100, 75, 115)])
def test_a_phone_that_is_far_worse_fails_early(lost: int, low: int, high: int) -> None:
    """Medians of 11, 26 and 94 pictures with 300 runs each."""
    assert low <= np.median(fail_after(lost, 150, 5)) <= high


@pytest.mark.parametrize("gained", [0, 30])
def test_a_phone_at_the_margin_rarely_fails_early(gained: int) -> None:
    """0.6 to 1.6 % of 500, though every picture is bet on; alpha is 2.5 %."""
    assert np.isfinite(fail_after(30 + gained, 300, 6, gained)).mean() <= 0.04


# How the rules are followed.

ROWS = (20, 35, 50)


def answers(lost: Sequence[int] = (), n: int = 60, host_wrong: Sequence[int] = ()) -> list[tuple[bool, bool]]:
    """(host right, phone right) of n pictures; places from 1 on."""
    return [(place not in host_wrong, place not in lost and place not in host_wrong) for place in range(1, n + 1)]


def course(*args: Sequence[int], n: int = 60, rows: Sequence[int] = ROWS, block: int = 10) -> Course:
    return follow(answers(*args[:1], n=n, host_wrong=args[1] if len(args) > 1 else ()), rows, block, 1000, 30)


def test_it_passes_at_the_first_row_that_it_reaches() -> None:
    assert course() == Course("PASS", 20, (), 20, 0, pytest.approx(1, abs=0.1))
    assert course((12,)).at == 35
    assert course((12, 20)) == Course("PASS", 50, (12, 20), 50, 2, pytest.approx(1, abs=0.1))
    assert course((20,)).at == 35  # lost with the very picture
    assert course((21,)).at == 20  # what comes behind the stop changes nothing
    assert course((), (3, 7)).at == 22  # pictures that the host gets wrong are not counted
    assert course(n=19).stop is None


def test_it_stops_where_too_many_are_lost() -> None:
    assert course((12, 14, 16)) == Course("FUTILE", 16, (12, 14, 16), 16, None, pytest.approx(1, abs=0.1))
    early = course((1, 2, 3))
    assert (early.stop, early.at) == ("FUTILE", 10)  # the block is played to its end, as it may show a FAIL
    assert course((1, 2, 3), n=5).stop == "FUTILE"
    assert follow([], (), 10, 1000, 30).stop == "FUTILE"
    assert follow([], ROWS, 10, 1000, 30).stop is None


def test_it_fails_in_the_block_alone() -> None:
    lost = tuple(range(1, 11))
    assert course(lost).stop == "FAIL"
    assert course(lost).wealth >= 40
    assert course(tuple(place + 10 for place in lost)).stop == "FUTILE"


def test_a_loss_never_helps() -> None:
    generator = np.random.default_rng(9)
    order = ("PASS", None, "FUTILE", "FAIL")
    for _ in range(300):
        lost = set(generator.choice(60, generator.integers(0, 5), replace=False) + 1)
        more = lost | {int(generator.integers(1, 61))}
        fewer, worse = course(tuple(lost)), course(tuple(more))
        assert order.index(worse.stop) >= order.index(fewer.stop)
        if worse.stop == fewer.stop == "PASS":
            assert worse.at >= fewer.at


# Simulations of a phone that is worse by exactly the margin.


def terms(won: int, lost: int, n: int) -> tuple[float, float]:
    """D and w."""
    difference = (won - lost) / n
    return difference, difference - tango(won, lost, n)[0]


@cache
def rows_for(n: int, right: int, won: int, lost: int) -> tuple[int, ...]:
    return pass_rows(right / n, *terms(won, lost, n), MARGIN, right)


@dataclass(frozen=True)
class Drawn:
    """N pictures as they came out."""

    reference: np.ndarray
    host: np.ndarray
    phone: np.ndarray
    margin: np.ndarray


@dataclass(frozen=True)
class Population:
    """Chances, as shares of all pictures. The phone is worse by the margin: won - lost - phone_lost + phone_won."""

    won: float = 0.0
    lost: float = 0.0
    phone_lost: float = MARGIN
    phone_won: float = 0.0

    def draw(self, generator: np.random.Generator, n: int, placement: str) -> Drawn:
        right = round(SHARE * n)
        host = np.arange(n) < right
        chance = generator.random(n)
        reference = np.where(host, chance >= self.won * n / right, chance < self.lost * n / (n - right))
        margin, fault = generator.random(n), self.phone_lost * n / right
        hit = {"random": generator.random(n) < fault, "large": margin > 1 - fault, "small": margin < fault}[placement]
        phone = np.where(host, ~hit, generator.random(n) < self.phone_won * n / (n - right))
        return Drawn(reference, host, phone, margin)


SAME, FLIPS, WORSE = (
    Population(),
    Population(0.005, 0.005),
    Population(0.005, 0.015, 0.02),
)
GAINS = Population(0.01, 0.01, 0.035, 0.005)


def audited(generator: np.random.Generator, drawn: Drawn, census: int = 0, block: int = 30) -> Course:
    """By the plan, with a census of the smallest margins."""
    n = len(drawn.host)
    rest = np.ones(n, bool)
    rest[np.argsort(drawn.margin)[:census]] = False
    known = np.where(rest, drawn.host, drawn.phone)
    won, lost = int((known & ~drawn.reference).sum()), int((drawn.reference & ~known).sum())
    order = generator.permutation(np.flatnonzero(rest))
    order = np.concatenate([order[:block], order[block:][drawn.host[order[block:]]]])
    rows = rows_for(n, int((drawn.host & rest).sum()), won, lost)
    given = zip(drawn.host[order].tolist(), drawn.phone[order].tolist(), strict=True)
    return follow(list(given), rows, block, n - census, n * MARGIN + won - lost)


def share_of(test: Callable[[np.random.Generator, Drawn], bool], population: Population, n: int, runs: int,
             placement: str = "random", seed: int = 11) -> float:  # fmt: skip
    generator = np.random.default_rng(seed)
    return sum(test(generator, population.draw(generator, n, placement)) for _ in range(runs)) / runs


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(("n", "census", "population"), [(281, 0, FLIPS), (1000, 0, SAME), (1000, 30, SAME)])
def test_a_phone_that_is_worse_by_the_margin_rarely_passes(
    n: int, census: int, population: Population, placement: str
) -> None:
    """4,000 runs each: 1.3 to 1.7 % at 281; 2.1 to 2.5 % at 1,000, 1.4 to 2.1 % with the census."""
    passed = share_of(lambda g, drawn: audited(g, drawn, census).stop == "PASS", population, n, 1000, placement)
    assert passed <= 0.035  # 2.5 % and two standard errors of 1,000 runs


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(
    ("n", "census", "population"),
    [
        *((281, 0, population) for population in (FLIPS, WORSE, GAINS)),
        *((1000, 0, population) for population in (SAME, FLIPS, WORSE)),
        *((1000, 30, population) for population in (SAME, WORSE)),
    ],
)
def test_the_chance_of_a_false_pass(n: int, census: int, population: Population, placement: str) -> None:
    """0.7 to 2.5 %, as measured with 4,000 runs and another seed; 0.3 % at least with a census and gains."""
    passed = share_of(lambda g, drawn: audited(g, drawn, census).stop == "PASS", population, n, 3000, placement)
    assert passed <= 0.03


@pytest.mark.parametrize(
    ("n", "population", "least", "mean"),
    [
        (281, Population(phone_lost=0), 1.0, (143, 147)),
        (281, Population(0.005, 0.005, 0.001, 0.001), 0.66, (148, 168)),
        (1000, Population(phone_lost=0), 1.0, (129, 133)),
        (1000, Population(0.005, 0.005, 0.001, 0.001), 0.98, (140, 162)),
    ],
)
def test_a_good_phone_passes_after_few_pictures(
    n: int, population: Population, least: float, mean: tuple[int, int]
) -> None:
    """400 runs: 100 % after 145 pictures and 75 % after 157 at 281; 100 % after 131 and after 150 at 1,000."""
    generator = np.random.default_rng(12)
    found = [audited(generator, population.draw(generator, n, "random")) for _ in range(100)]
    passed = [one.at for one in found if one.stop == "PASS"]
    assert len(passed) >= least * len(found)
    assert mean[0] <= np.mean(passed) <= mean[1]


# What is not valid: each lets more than twice as many through as it says.


def peek(generator: np.random.Generator, drawn: Drawn) -> bool:
    """Tango's interval after every ten pictures until it passes."""
    order = generator.permutation(len(drawn.host))
    won = np.cumsum(drawn.phone[order] & ~drawn.reference[order])
    lost = np.cumsum(drawn.reference[order] & ~drawn.phone[order])
    return any(tango(int(won[n - 1]), int(lost[n - 1]), n)[0] > -MARGIN for n in range(70, len(order) + 1, 10))


def normal(generator: np.random.Generator, drawn: Drawn) -> bool:
    """The host corrected by 70 pictures (prediction-powered), with a normal interval: no loss seen, no width."""
    sample = generator.permutation(len(drawn.host))[:70]
    host = drawn.host.astype(float) - drawn.reference
    correction = drawn.phone[sample].astype(float) - drawn.host[sample]
    error = math.sqrt(host.var() / len(host) + correction.var(ddof=1) / 70)
    return bool(host.mean() + correction.mean() - 1.96 * error > -MARGIN)


@cache
def of_these(n: int, right: int) -> tuple[int, ...]:
    """Rows for "these photos": hypergeometric, for a population of the N themselves."""
    faulty = math.floor(MARGIN * n) + 1
    spent = [spending(row) - (spending(row - 1) if row else 0) for row in range(3)]
    return tuple(
        next(k for k in range(row, right + 1) if hypergeom.cdf(row, right, faulty, k) <= share)
        for row, share in enumerate(spent)
    )


def hypergeometric(generator: np.random.Generator, drawn: Drawn) -> bool:
    n, right = len(drawn.host), int(drawn.host.sum())
    order = generator.permutation(np.flatnonzero(drawn.host))
    lost = np.cumsum(~drawn.phone[order])
    return any(lost[at - 1] <= row for row, at in enumerate(of_these(n, right)))


def again(generator: np.random.Generator, drawn: Drawn) -> bool:
    """A new plan after each loss, five times."""
    rows = rows_for(len(drawn.host), int(drawn.host.sum()), 0, 0)
    right = np.flatnonzero(drawn.host)
    return any(bool(drawn.phone[generator.permutation(right)[: rows[0]]].all()) for _ in range(5))


def skipping(generator: np.random.Generator, drawn: Drawn) -> bool:
    """Pictures on which the app crashes are left out."""
    order = generator.permutation(np.flatnonzero(drawn.host))
    rows = rows_for(len(drawn.host), int(drawn.host.sum()), 0, 0)
    return follow([(True, True) for key in order if drawn.phone[key]], rows, 0, len(drawn.host), 30).stop == "PASS"


@pytest.mark.parametrize(
    ("wrong", "n", "runs", "least"),
    [
        (peek, 1000, 100, 0.05),  # 11 % of 600
        (normal, 1000, 1000, 0.05),  # 11 % of 4,000
        (hypergeometric, 281, 1000, 0.05),  # 8 % of 4,000, and 27 % where the host is worse by a point
        (again, 1000, 1000, 0.05),  # 8 % of 4,000, and 24 % there
        (skipping, 1000, 20, 1.0),
    ],
)
def test_what_is_not_valid(
    wrong: Callable[[np.random.Generator, Drawn], bool], n: int, runs: int, least: float
) -> None:
    assert share_of(wrong, SAME, n, runs, seed=13) >= least

"""Intervals and tests for two sides that answered the same images.

The sides are paired, so only the images on which they differ carry information: ``b`` of ``n`` that only the first got
right, ``c`` that only the second did. The first is the one whose worth is in question (the candidate).
"""

import math
from collections.abc import Callable
from statistics import NormalDist


def _z(level: float) -> float:
    """Normal quantile of a two-sided interval."""
    return NormalDist().inv_cdf((1 + level) / 2)


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of one proportion, both ends within 0..1.

    Source: Wilson, J. Am. Stat. Assoc. 22 (1927) 209-212. Raises ValueError unless 0 <= successes <= n, n > 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} of {n} is not a proportion")
    z2 = _z(level) ** 2
    centre = successes + z2 / 2
    half = math.sqrt(z2) * math.sqrt(successes * (n - successes) / n + z2 / 4)
    # At 0 and n an end is exactly 0 or 1; rounding would leave 1e-17 beyond it.
    low = 0.0 if successes == 0 else (centre - half) / (n + z2)
    high = 1.0 if successes == n else (centre + half) / (n + z2)
    return low, high


def tango(b: int, c: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Tango's score interval for the paired difference of two proportions, (b - c) / n, ends within -1..1.

    The interval holds every difference that the score test does not reject. It has a width even where the sides never
    differ (b = c = 0), where Wald's interval has none. No continuity or bias correction.

    Source: Tango, Statistics in Medicine 17 (1998) 891-908, equations for Z and for the restricted estimate of q21.
    Raises ValueError unless b, c >= 0, b + c <= n, n > 0.
    """
    if min(b, c) < 0 or b + c > n or n == 0:
        raise ValueError(f"{b} + {c} differing of {n} pairs is not possible")
    z2 = _z(level) ** 2

    def accepted(difference: float) -> bool:
        return (b - c - n * difference) ** 2 <= z2 * _variance(b, c, n, difference)

    estimate = (b - c) / n
    return _edge(accepted, estimate, -1.0), _edge(accepted, estimate, 1.0)


def _variance(b: int, c: int, n: int, difference: float) -> float:
    """Of b - c, with q21 at its maximum likelihood under a given difference of the proportions."""
    square = 2 * n
    linear = -b - c + (2 * n - b + c) * difference
    constant = -c * difference * (1 - difference)
    root = math.sqrt(max(linear * linear - 4 * square * constant, 0.0))
    # Both are the same root; the first does not subtract two nearly equal numbers.
    q21 = -2 * constant / (linear + root) if linear > 0 else (root - linear) / (2 * square)
    return n * (2 * q21 + difference * (1 - difference))


def _edge(accepted: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where ``accepted`` turns false between the two, to the last bit; ``outside`` itself where it never does."""
    if accepted(outside):
        return outside
    while True:
        middle = (inside + outside) / 2
        if middle in (inside, outside):
            return inside
        if accepted(middle):
            inside = middle
        else:
            outside = middle


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact p of "both sides are equally often right": binomial(b + c, 1/2), 1 where they never differ."""
    pairs = b + c
    tail = sum(math.comb(pairs, k) for k in range(min(b, c) + 1))
    return min(1.0, float(2 * tail / 2**pairs))


def noninferiority_p(b: int, c: int, n: int, margin: float) -> float:
    """One-sided p of "the first is worse than the second by ``margin`` (0..1) or more": Tango's score test at -margin.

    Below 0.025 exactly where the lower end of :func:`tango`'s 95 % interval is above -margin.

    Source: Tango, Statistics in Medicine 17 (1998) 891-908, section 3; Nam's test, Biometrics 53 (1997) 1422-1430.
    Raises ValueError as :func:`tango` does, and unless 0 < margin <= 1.
    """
    if min(b, c) < 0 or b + c > n or n == 0 or not 0 < margin <= 1:
        raise ValueError(f"{b} + {c} differing of {n} pairs at a margin of {margin} is not possible")
    above = b - c + n * margin
    variance = _variance(b, c, n, -margin)
    if variance <= 0:  # a margin of 1: only being wrong throughout where the second is right throughout is that bad
        return 0.0 if above > 0 else 1.0
    return NormalDist().cdf(-above / math.sqrt(variance))


def pairs_needed(b: int, c: int, n: int, margin: float, level: float = 0.95) -> int | None:
    """Fewest pairs at which the lower end of Tango's interval is at least -margin, were the shares b/n and c/n to stay.

    None where no number would do (the difference seen is the margin or worse). Z grows as the root of the number of
    pairs, because the restricted estimate of q21 depends on the shares alone, hence Nam's formula for the sample size
    (Biometrics 53 (1997) 1422-1430) with a power of one half: of samples of this size about half would do. Where none
    differ (b = c = 0) it becomes z^2 (1 - margin) / margin.

    For planning the next run, not for going on with this one: adding pairs until it passes lets 6 to 21 % of those
    through that are worse by just the margin.

    Raises ValueError as :func:`noninferiority_p` does.
    """
    if min(b, c) < 0 or b + c > n or n == 0 or not 0 < margin <= 1:
        raise ValueError(f"{b} + {c} differing of {n} pairs at a margin of {margin} is not possible")
    above = (b - c) / n + margin
    if above <= 0:
        return None
    variance = max(_variance(b, c, n, -margin), 0.0) / n
    return max(math.ceil(_z(level) ** 2 * variance / above**2), 1)

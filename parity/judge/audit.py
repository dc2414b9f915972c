"""The comparison audit: how many pictures without too many losses show that a phone keeps the margin.

The host has answered all N pictures; the phone answers them in random order. Only a picture that the host gets right
can be lost, so only those are counted. Three rules, each fixed before the first picture:

PASS    at most l are lost after n_l pictures: :func:`pass_rows`, a sequential test with a row for each l
FUTILE  more are lost than the last row allows: a PASS is out of reach
FAIL    a bet against "the margin is kept" has won 1/alpha: :class:`Bet`, over a block of all pictures

:func:`follow` applies them to what the phone answered. Pure arithmetic: no files, no models.

Sources: rows as in risk-limiting audits of elections (Stark, SHANGRLA, 2020; Spertus, COBRA, 2023), here by binomial
probabilities that are computed, not approximated; both uncertainties joined as Zou and Donner do (MOVER, Statistics in
Medicine 27 (2008) 1693-1702); the bet of Waudby-Smith and Ramdas (J. R. Stat. Soc. B 86 (2024) 1-27) without
replacement.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

ALPHA = 0.025
"""The chance of a false PASS at most, and of a false early FAIL."""
MOST_ROWS = 200
"""Rows that are computed; row 200 stands at about 7,000 pictures for a margin of 3 points."""
RATES = 201
"""Loss rates that are tried for each row. Measured against 1,001 for N of 281 to 50,000: the first rows are the same,
none is later by more than 3 pictures."""
STAKE = 0.75
"""Of :class:`Bet`; below 1, since a picture that the phone alone gets right must not ruin it. Measured at N = 1,000,
pictures to FAIL (median): 11 where 60 points are lost, 26 at 30, 94 at 10; with 0.6 it is 14, 29 and 114, with 0.9 it
is 11, 23 and 89."""

Stop = Literal["PASS", "FAIL", "FUTILE"]


def spending(row: int, alpha: float = ALPHA) -> float:
    """What of alpha rows 0..row may use up together: 60 % in row 0, all of it in the end."""
    return alpha * (1 - 0.4 / (row + 1))


def looks(theta: float, most: int, spend: Callable[[int], float] = spending, rows: int = MOST_ROWS) -> list[int]:
    """n_0, n_1, ...: the first n at which at most l losses may stop a test of "the loss rate is ``theta`` or more".

    n_l is the smallest n at which the chance of having stopped in any of the rows 0..l is at most ``spend(l)``, were
    each picture lost with the chance ``theta`` (0..1). Exact: the distribution of the losses of those that have not
    stopped is carried from row to row. No n beyond ``most``; the list ends there.
    """
    import numpy as np  # here, as judging without a plan does without it

    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most + 1)))])  # of the factorials
    keep = math.log1p(-theta)
    going = np.zeros(rows + 1)  # chance of k losses without having stopped, at the picture reached
    going[0] = 1.0
    reached, stopped, found = 0, 0.0, []
    for row in range(rows):
        # Nobody who is still going has fewer than `row` losses, and those with just that many must lose no more.
        step = _until(float(going[row]), keep, spend(row) - stopped)
        if reached + step > most:
            break
        lost = np.arange(min(step, rows - row) + 1)
        ways = logs[step] - logs[lost] - logs[step - lost]
        chances = np.exp(ways + lost * math.log(theta) + (step - lost) * keep)  # binomial
        going[row:] = np.convolve(going[row:], chances)[: rows + 1 - row]
        reached += step
        stopped += float(going[row])
        going[row] = 0.0
        found.append(reached)
    return found


def _until(chance: float, keep: float, allowed: float) -> int:
    """The fewest further pictures without a loss that bring a chance down to what is allowed."""
    if chance <= allowed:
        return 0
    step = math.ceil(math.log(allowed / chance) / keep)
    while chance * math.exp(keep * step) > allowed:  # rounding
        step += 1
    while step > 0 and chance * math.exp(keep * (step - 1)) <= allowed:
        step -= 1
    return step


def pass_rows(share: float, difference: float, width: float, margin: float, most: int) -> tuple[int, ...]:
    """n_0, n_1, ...: PASS where at most l of the first n_l pictures that the host gets right are lost.

    ``share``: of all pictures, those that the host gets right and the phone has still to answer (A). ``difference``:
    the host's accuracy minus the reference's (D); ``width``: what D may be less by chance (w = D - Tango's lower end);
    ``margin``: what the phone may be worse by, all as shares 0..1. ``most``: pictures that can be counted.

    With K = A l / n the phone's loss seen, theta the loss rate that l losses in n pictures still rule out, row l is the
    smallest n with K + sqrt(w^2 + (A theta - K)^2) <= margin + D. Empty where no number of pictures would do.
    """
    import numpy as np

    room = margin + difference
    if not 0 < share <= 1 or width < 0 or room <= width:
        return ()
    # Between them lies every A theta that can be the best choice for a row.
    lowest, highest = room - width, math.sqrt(room**2 - width**2)
    losses = np.linspace(lowest, highest, RATES) if highest > lowest else np.array([highest])
    losses = losses[losses < share]
    tables = [looks(float(loss) / share, most) for loss in losses]
    count = max(map(len, tables), default=0)
    if not count:
        return ()
    beyond = most + 1
    earliest = np.full((len(losses), count), beyond)
    for index, table in enumerate(tables):
        earliest[index, : len(table)] = table
    # What rules out a rate must rule out every higher one, too.
    earliest = np.maximum.accumulate(earliest[::-1], axis=0)[::-1]
    # The smallest n at which K is small enough: K + sqrt(w^2 + (loss - K)^2) <= room, solved for K. Without a width the
    # only loss is room itself.
    largest = (room + losses) / 2 - (width**2 / (2 * (room - losses)) if width else 0)
    needed = np.full((len(losses), count), beyond)
    needed[:, 0] = 0  # K is 0 there, and every loss is at most sqrt(room^2 - w^2)
    exact = share * np.arange(1, count)[None, :] / largest[largest > 0, None]
    needed[largest > 0, 1:] = np.minimum(np.ceil(exact - 1e-9), beyond)
    rows = np.maximum.accumulate(np.maximum(earliest, needed).min(axis=0))
    return tuple(int(n) for n in rows[rows <= most])


class Bet:
    """A bet against "of these N pictures, the net loss is at most ``allowed``", one picture at a time.

    The wealth starts at 1 and is a supermartingale where that is true, whatever was seen before, so that it reaches
    1/alpha with a chance of alpha at most (Ville). What is left of the allowance changes with each picture that is
    drawn without replacement.
    """

    def __init__(self, pictures: int, allowed: float) -> None:
        self._left, self._allowed = pictures, allowed
        self.wealth = 1.0

    def see(self, net: int) -> float:
        """Take one picture's net loss: 1 lost, -1 gained, 0 neither. Returns the wealth."""
        mean = self._allowed / self._left  # of what is left, where the margin is just kept
        if -1 < mean < 1:  # beyond it no bet is possible
            stake = min(STAKE, 0.99 / (1 + mean))
            self.wealth *= 1 + stake * (net - mean)
        self._left -= 1
        self._allowed -= net
        return self.wealth


@dataclass(frozen=True)
class Course:
    """How an audit went."""

    stop: Stop | None
    """None: neither, so far."""
    at: int
    """Pictures of the order that are counted: up to the stop, else all that were answered."""
    lost: tuple[int, ...]
    """Of these, those that the host gets right and the phone does not: their places in the order, from 1 on."""
    right: int
    """Of these, those that the host gets right: what the rows count."""
    row: int | None
    """The row that was reached at a PASS."""
    wealth: float
    """The greatest wealth of the bet."""


def follow(
    answers: Sequence[tuple[bool, bool]], rows: Sequence[int], block: int, pictures: int, allowed: float
) -> Course:
    """Apply the rules to (host right, phone right) of the pictures answered, in the plan's order without a gap.

    ``rows``: of :func:`pass_rows`; ``block``: so many pictures from the first on are drawn from all, right and wrong,
    and bet on; after them every picture is one that the host gets right. ``pictures``: that the order is drawn from;
    ``allowed``: the net loss among them that just keeps the margin.

    The first rule that applies decides. After FUTILE the block is still played to its end, as it may show a FAIL.
    """
    bet = Bet(pictures, allowed)
    best, right, futile = 1.0, 0, not rows
    lost: list[int] = []

    def ended(stop: Stop | None, at: int, row: int | None = None) -> Course:
        return Course(stop, at, tuple(lost), right, row, best)

    for place, (host, phone) in enumerate(answers, start=1):
        if futile and place > block:
            return ended("FUTILE", place - 1)
        right += host
        if host and not phone:
            lost.append(place)
        if place <= block:
            best = max(best, bet.see(host - phone))
            if best * ALPHA >= 1:
                return ended("FAIL", place)
        if host and not futile:
            futile = len(lost) >= len(rows)
            if not futile and right >= rows[len(lost)]:
                return ended("PASS", place, len(lost))
    return ended("FUTILE" if futile else None, len(answers))


def at_least(successes: int, n: int, chance: float) -> float:
    """The chance of ``successes`` or more of ``n`` (binomial, exact)."""
    return math.fsum(math.comb(n, k) * chance**k * (1 - chance) ** (n - k) for k in range(successes, n + 1))

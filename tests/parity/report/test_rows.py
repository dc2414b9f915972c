"""What the page knows of an image follows the verdict's own limits."""

from sides import FIVE, change_ladder, ladder_of, pair

from parity.compare.ladder import Spread
from parity.judge.gates.limits import LEAST_EMBEDDINGS, limits_of
from parity.judge.judge import judge
from parity.report.rows import pair_up
from pipeline.contract import Gate


def test_an_image_parts_where_it_is_beyond_the_limits_that_the_verdict_states() -> None:
    ours, theirs = pair(20)
    clean = ladder_of(ours, theirs)
    # The embeddings' floor is so low that their limit is the least one, whatever the factor: nothing follows from it.
    floor = clean.header.floor.model_copy(update={"embeddings_error": Spread(median=1e-9, p95=1e-9, largest=1e-9)})
    ladder = ladder_of(ours, theirs, floor=floor)
    usual = limits_of(ladder.header, Gate())
    assert usual.embeddings == LEAST_EMBEDDINGS
    kl = 1.5 * usual.logits_each
    ladder = change_ladder(ladder, lambda row: {"embeddings_error": 1e-4, "logits_kl": 1e-6})
    ladder = change_ladder(ladder, lambda row: {"logits_kl": kl}, 1)

    def parted(factor: float) -> list[str | None]:
        gate = Gate(noise_factor=factor)
        verdict = judge(ours, theirs, FIVE, (), ladder, gate)
        assert verdict.limits == limits_of(ladder.header, gate)
        return [one.parted for one in pair_up(verdict, ours, theirs, ladder)]

    assert parted(1.0) == ["S5"] + [None] * 19
    assert parted(2.0) == [None] * 20


def test_without_a_ladder_there_are_no_limits() -> None:
    ours, theirs = pair(5)
    verdict = judge(ours, theirs, FIVE)
    assert verdict.limits is None
    assert {one.parted for one in pair_up(verdict, ours, theirs, None)} == {None}

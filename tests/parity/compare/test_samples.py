"""Which samples a part of a run takes."""

from parity.compare.samples import spread


def test_images_are_taken_evenly_over_the_whole_list() -> None:
    assert spread(list("aabbccddee"), 5) == list("abcde")  # type: ignore[arg-type, comparison-overlap]
    assert spread(list("abc"), 40) == list("abc")  # type: ignore[arg-type, comparison-overlap]

"""What a check costs is said before it starts."""

from parity.pairs.cost import Machine, announce, measure_machine, seconds_a_picture

MACHINE = Machine(flops=1e11, bytes_per_second=1e10)


def test_a_large_model_is_announced_with_its_time() -> None:
    # 500 million weights, 1,000 tokens: 1e12 operations, 10 s; 64 tokens of 2 GB each: 12.8 s. Both sides twice that.
    assert round(seconds_a_picture(500_000_000, 1000, 64, MACHINE), 1) == 22.8
    line = announce(500_000_000, 1000, 64, 150, MACHINE)
    assert line is not None
    assert line.startswith(
        "500 million weights on this machine: about 46 s a picture for both sides, 1.9 hours for 150"
    )


def test_a_small_one_is_not() -> None:
    assert announce(5_000_000, 100, 4, 10, MACHINE) is None


def test_the_machine_is_measured() -> None:
    machine = measure_machine()
    assert machine.flops > 1e8
    assert machine.bytes_per_second > 1e8

"""One pair in a process of its own: ``python -m parity.studies.sweep.worker JOB.json``.

Prints a line ``done total`` as images get done. Ends when its standard input ends, so that it does not outlive what
started it. Exit codes are the project's; what is wrong stands in the last line of standard error.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from parity.compare.ladder import Compared
from parity.compare.runner import walk
from parity.compare.samples import Sample
from parity.engines import OpenSide
from parity.engines.header import encoder_of
from parity.studies.sweep.recording import Recorded
from parity.studies.sweep.table import Cost
from pipeline.contract import Contract
from pipeline.core.errors import EXIT_INTERRUPTED, EXIT_USAGE, UserError
from pipeline.core.files import write_json
from pipeline.core.memory import memory
from pipeline.core.progress import Advance, Reporter
from pipeline.core.settings import Frozen
from pipeline.dataset.records import Record
from pipeline.dataset.split import Split

COST = "cost.json"
WARM_UP = 4
"""Images answered before those that are timed, for the memory that answering takes."""


class PairJob(Frozen):
    """What a process is to do."""

    merged: Path
    model: Path
    mmproj: Path
    dataset: Path
    records: tuple[Record, ...]
    """Of the images to answer, checked when the sweep began."""
    split: Split
    photos: int | None
    """As :attr:`parity.compare.samples.Sample.photos`."""
    contract: Contract
    about: Compared
    reference: Path
    """A folder that :func:`parity.studies.sweep.recording.record` made."""
    out: Path


class _Relay(Reporter):
    """Tells the process that started this one how far it is."""

    def __init__(self) -> None:
        super().__init__(Console(stderr=True), quiet=True)
        self.first: int | None = None
        """Images that were done before this process."""

    @contextmanager
    def progress(self, stage: str, unit: str) -> Iterator[Advance]:
        """See :class:`pipeline.core.progress.Reporter`."""

        def advance(done: int, total: int, note: str) -> None:
            if self.first is None:
                self.first = done
            print(done, total, flush=True)

        yield advance


def run_pair(job: PairJob) -> None:
    """Hold the pair against the recorded reference, going on with what is in ``job.out``; then write ``cost.json``."""
    from parity.engines.pair import open_llamacpp
    from pipeline.core.toolchain import load_gguf

    load_gguf()  # libraries are not to be counted as the pair's memory

    encoder = encoder_of(job.merged, job.contract)
    reference = Recorded(job.reference, encoder)
    samples = [Sample(job.dataset, record, job.split, job.photos) for record in job.records]
    relay = _Relay()
    before = memory("VmRSS")
    # One image at a time, as the phone does: several together would be quicker and need more memory, which F32 and F16
    # are not allowed (their bits would change), so that the types could not be compared.
    opened = open_llamacpp(
        job.merged, job.model, job.mmproj, job.contract, job.about.dataset_sha256, sequences=1, made=None
    )  # fmt: skip
    with opened as candidate:
        loading = memory("VmHWM")
        resettable = _forget_peak()  # reading the GGUF's metadata takes 150 MB for a moment, in Python
        # Without the comparison, which takes 60 MB with the tiny model. It warms the caches, too.
        for _ in candidate.predictor.predict(sample.rgb for sample in samples[:WARM_UP]):
            pass
        answering = memory("VmHWM")
        clock = _Clock()
        sides = OpenSide(reference, reference.header), candidate
        walk(*sides, samples, job.contract, job.about, job.out, relay, subset=True)
        others = clock.others()
    cost = Cost(
        process_bytes=max(loading, memory("VmHWM")),
        pair_bytes=answering - before if resettable else None,
        other_cores=others,
        load_average=os.getloadavg()[0],
        answered=len(samples) - (relay.first or 0),
    )
    write_json(job.out / COST, cost.model_dump(mode="json"))


def _forget_peak() -> bool:
    """Let VmHWM begin anew at VmRSS (proc_pid_clear_refs(5)); whether the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


class _Clock:
    """What the machine's cores did since it was made."""

    def __init__(self) -> None:
        self._start = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float]:
        """Seconds: of the clock, of all cores at work, of this process at work."""
        user, nice, system, _idle, _wait, irq, soft_irq, steal = (
            int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
        )
        busy = (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy, time.process_time()

    def others(self) -> float:
        """Cores that other programs kept busy, on average."""
        wall, busy, own = (end - start for start, end in zip(self._start, self._read(), strict=True))
        return round(max(busy - own, 0.0) / max(wall, 1e-9), 2)


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os._exit(EXIT_INTERRUPTED)


def main() -> None:
    """Entry point of the process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run_pair(PairJob.model_validate_json(Path(sys.argv[1]).read_bytes()))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_USAGE)


if __name__ == "__main__":
    main()

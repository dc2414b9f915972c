"""A run on a real Ray session: workers are killed, work fails, and what comes out is what one process gives."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from PIL import Image
from rich.console import Console
from test_shards import CONTRACT, header, ladder_header, measured, whole

from parity.compare import cluster
from parity.compare.cluster import run_on_ray, session
from parity.compare.ladder import LadderWriter
from parity.compare.runner import CANDIDATE, LADDER, REFERENCE, make_row
from parity.compare.samples import Sample
from parity.compare.shards import FILES, Expected, shard_folder
from parity.results import ResultsWriter
from pipeline.core import progress
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes
from pipeline.core.progress import Reporter
from pipeline.dataset.records import Record
from pipeline.models.prediction import Prediction

pytestmark = pytest.mark.slow

QUIET = Reporter(Console(), quiet=True)
WORKERS = 2
NOTHING = Expected({}, {}, {})
"""The tests' sides are of no bundle."""


class ByColour:
    """A predictor that answers by the picture's mean: the same for the same bytes, in any process."""

    side = "colour"
    prompt_ids = (1, -1, -1, 2)
    image_slots = ((1, 2),)

    def __init__(self, levels: int) -> None:
        self._levels = levels

    def predict(self, canvases: Iterable[npt.NDArray[np.uint8]]) -> Iterator[Prediction]:
        for canvas in canvases:
            seen = canvas // self._levels * self._levels
            means = seen.mean(axis=(0, 1))
            label = CONTRACT.labels[int(means.sum()) % len(CONTRACT.labels)]
            yield Prediction(
                rgb_sha256=sha256_bytes(canvas.tobytes()),
                text=f" {label}",
                generated_ids=(int(means[0]),),
                stop_reason="end",
                label_logprobs={name: -float(means[1]) / (1 + len(name)) for name in CONTRACT.labels},
                top_logits=((7, float(means[2])),),
                ms={"encode": 1.0},
            )


def work(log: Path, pause: float, todo: list[Sample], folder: Path) -> None:
    """Answer like a run. Each picture leaves a line ``pid key`` in ``log`` when it is begun."""
    sides = {REFERENCE: ByColour(1), CANDIDATE: ByColour(64)}
    headers = {name: header(name) for name in sides}
    top = ladder_header(headers[REFERENCE], headers[CANDIDATE])
    with ExitStack() as stack:
        keys = [sample.key for sample in todo]
        writers = {name: stack.enter_context(ResultsWriter(folder / name, headers[name], keys)) for name in sides}
        ladder = stack.enter_context(LadderWriter(folder / LADDER, top, keys))
        for sample in todo:
            if sample.key in ladder.keys:
                continue
            with open(log, "a", encoding="utf-8") as file:
                file.write(f"{os.getpid()} {sample.key}\n")
            for name, predictor in sides.items():
                time.sleep(pause / 2)
                if sample.key not in writers[name].keys:
                    (prediction,) = predictor.predict([sample.rgb])
                    writers[name].append(make_row(sample, prediction, CONTRACT))
            ladder.append(measured(sample))


def fail_at(key: str, log: Path, todo: list[Sample], folder: Path) -> None:
    """Answer what stands before ``key``; with it, say what a user did wrong."""
    before = [sample.key for sample in todo].index(key) if key in {sample.key for sample in todo} else None
    work(log, 0, todo[:before], folder)
    if before is not None:
        raise UserError("the bundle is gone: make it again")


def die(todo: list[Sample], folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def tell_gpus(told: Path, todo: list[Sample], folder: Path) -> None:
    """Answer like a run, and write down which GPUs this worker may see."""
    told.write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "not set"))
    work(told.with_suffix(".log"), 0, todo, folder)


ON_A_NODE_WITH_A_GPU = """
import sys
from functools import partial
from pathlib import Path
import ray
from test_cluster import NOTHING, QUIET, make_samples, tell_gpus
from parity.compare.cluster import run_on_ray
here, gpus = Path(sys.argv[1]), float(sys.argv[2])
(here / "dataset").mkdir()
ray.init(
    address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
    object_store_memory=100_000_000,
)
todo = make_samples(here / "dataset")
run_on_ray(partial(tell_gpus, here / "told"), todo, here / "parity", QUIET, 1, NOTHING, 1, gpus=gpus)
"""


@pytest.mark.parametrize(("gpus", "seen"), [(0.5, "0"), (0, "")])
def test_a_worker_sees_the_gpu_that_it_is_given_and_no_other(tmp_path: Path, gpus: float, seen: str) -> None:
    """The GPU is one that Ray is told of, as on a node that has one."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", ON_A_NODE_WITH_A_GPU, str(tmp_path), str(gpus)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "told").read_text() == seen
    assert (tmp_path / "parity" / CANDIDATE).read_bytes().count(b"\n") == 62  # a header, 60 rows, an end


def log_of(path: Path) -> list[tuple[int, str]]:
    """(process, key) of each picture begun."""
    if not path.exists():
        return []
    return [(int(pid), key) for pid, key in (line.split() for line in path.read_text().splitlines())]


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """One local session of two workers for all tests: it takes 5 s to start."""
    assert "ray" not in sys.modules, "import of parity.compare.cluster must not import Ray"
    scratch = set(Path("/tmp").glob("ray-*"))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the workers import this module
        with session(None, WORKERS):
            assert signal.getsignal(signal.SIGTERM) is before
            yield
    assert set(Path("/tmp").glob("ray-*")) <= scratch


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return make_samples(tmp_path_factory.mktemp("dataset"))


def make_samples(folder: Path) -> list[Sample]:
    chance = np.random.default_rng(0)
    found = []
    for number in range(60):
        pixels = chance.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        record = Record(
            image_id=f"image_{number:02d}",
            image_path=f"{number}.png",
            element=CONTRACT.labels[number % 5],
            rgb_sha256=sha256_bytes(pixels.tobytes()),
        )
        found.append(Sample(folder, record))
    return found


@pytest.fixture(scope="module")
def plain(dataset: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one process."""
    folder = tmp_path_factory.mktemp("plain")
    work(folder / "log", 0, dataset, folder)
    return whole(folder)


def kill_one(log: Path, after: int, killed: list[int]) -> None:
    """SIGKILL the process that began the latest picture, once ``after`` pictures were begun by two processes."""
    while len(entries := log_of(log)) < after or len({pid for pid, _ in entries}) < WORKERS:
        time.sleep(0.02)
    killed.append(entries[-1][0])
    os.kill(killed[0], signal.SIGKILL)


@pytest.mark.usefixtures("ray_session")
def test_a_worker_killed_in_its_work_loses_nothing_and_doubles_nothing(
    tmp_path: Path,
    dataset: list[Sample],
    plain: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in (cluster, progress):
        monkeypatch.setattr(module, "PLAIN_SECONDS", 0.5)
    log, killed = tmp_path / "log", list[int]()
    killer = threading.Thread(target=kill_one, args=(log, 15, killed), daemon=True)
    killer.start()
    screen = io.StringIO()
    reporter = Reporter(Console(file=screen, width=100))
    run_on_ray(partial(work, log, 0.1), dataset, tmp_path / "parity", reporter, WORKERS, NOTHING)
    killer.join(timeout=1)
    begun = log_of(log)
    workers = list(dict.fromkeys(pid for pid, _ in begun))
    assert len(workers) == WORKERS + 1
    assert killed[0] in workers[:2]
    assert whole(tmp_path / "parity") == plain
    # Only the picture that was under way is begun twice: the shard goes on where the files stand.
    twice = [key for key, count in Counter(key for _, key in begun).items() if count > 1]
    assert len(begun) - len(twice) == len(dataset)
    assert twice == [[key for pid, key in begun if pid == killed[0]][-1]]
    assert re.search(r"ray +\d+/60, .* images/s, .* left, \d of 8 shards", screen.getvalue())
    # Ray's many lines on it are not where the verdict is to stand.
    assert capsys.readouterr().out == ""
    assert "worker died or was killed" in (tmp_path / "parity" / "shards" / "ray.log").read_text()


@pytest.mark.usefixtures("ray_session")
def test_a_mistake_is_one_sentence_and_the_next_call_goes_on(
    tmp_path: Path, dataset: list[Sample], plain: dict[str, bytes]
) -> None:
    log = tmp_path / "log"
    bad = sorted(sample.key for sample in dataset)[40]
    with pytest.raises(UserError, match=r"^shard 5 of 12: the bundle is gone: make it again$"):
        run_on_ray(partial(fail_at, bad, log), dataset, tmp_path / "parity", QUIET, WORKERS, NOTHING, shards=12)
    assert not (tmp_path / "parity" / REFERENCE).exists()
    before = log_of(log)
    run_on_ray(partial(work, log, 0), dataset, tmp_path / "parity", QUIET, WORKERS, NOTHING, shards=12)
    assert whole(tmp_path / "parity") == plain
    assert before
    # A worker that is stopped in the middle of a picture begins it again.
    assert len(dataset) <= len(log_of(log)) <= len(dataset) + WORKERS


@pytest.mark.usefixtures("ray_session")
def test_a_shard_that_always_dies_is_named(
    tmp_path: Path, dataset: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "MAX_RETRIES", 1)
    with pytest.raises(UserError, match=r"^shard 1 of 1 died 2 times \(.*\): run it alone with --shards 1 --shard 1"):
        run_on_ray(die, dataset[:3], tmp_path, QUIET, WORKERS, NOTHING, shards=1)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("size", [{"cpus": 64}, {"gpus": 1}])
def test_a_worker_that_no_node_can_hold_is_refused(tmp_path: Path, dataset: list[Sample], size: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"no node of the Ray cluster has the \d+ cores and \d GPUs that a worker"):
        run_on_ray(die, dataset, tmp_path, QUIET, WORKERS, NOTHING, **size)


@pytest.mark.usefixtures("ray_session")
def test_a_local_session_listens_on_the_loopback_interface_alone() -> None:
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # Ray starts and ends some all the time
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add(connection.laddr.ip.removeprefix("::ffff:"))
    assert found == {"127.0.0.1"}


def test_a_node_without_our_files_gets_them_and_hands_its_own_back(
    tmp_path: Path, dataset: list[Sample], plain: dict[str, bytes]
) -> None:
    # The task and what the driver does with its result, each with a folder of its own.
    log, here, there = tmp_path / "log", tmp_path / "here", shard_folder(tmp_path / "there", 1, 1)
    work(log, 0, dataset[:20], here_shard := shard_folder(here, 1, 1))
    answered = cluster._answer(partial(work, log, 0), dataset, there, Path.cwd(), cluster._files(here_shard))
    assert len(log_of(log)) == len(dataset)
    cluster._keep(here_shard, answered)
    cluster.merge_shards(here, 1, dataset, NOTHING)
    assert whole(here) == plain
    # What the node has itself is never replaced by the driver's older files.
    cluster._answer(partial(work, log, 0), dataset, there, Path.cwd(), dict.fromkeys(FILES, b"old\n"))
    assert len(log_of(log)) == len(dataset)


def test_a_node_without_the_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"node \S+ cannot enter .*/nowhere \(No such file or directory\): put the run"):
        cluster._answer(die, [], tmp_path, tmp_path / "nowhere", {})


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", r"^no Ray cluster listens at 127\.0\.0\.1:1 \(.*refused\): give the address of its head$"),
        ("ray://127.0.0.1:99999", r"^no Ray cluster listens at ray://127\.0\.0\.1:99999 \(.*\): give the address"),
    ],
)
def test_a_cluster_that_does_not_answer_is_said_so_at_once(
    tmp_path: Path, dataset: list[Sample], address: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        run_on_ray(die, dataset, tmp_path, QUIET, WORKERS, NOTHING, address=address)


def test_without_ray_one_sentence_says_how_to_install_it(
    tmp_path: Path, dataset: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"^Ray is not installed: `make setup` installs it"):
        run_on_ray(die, dataset, tmp_path, QUIET, WORKERS, NOTHING)

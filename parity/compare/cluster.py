"""A large run on Ray: shards as tasks, on this machine or on a cluster, merged exactly at the end.

There are more shards than workers, so that a slow node does not hold up the run. A worker that dies (killed, out of
memory, node lost) costs what its shard has not on disk: Ray starts the shard again, and it goes on where the files
stand, if the node that it comes to can see them. A second call goes on likewise.

What a cluster's nodes need: this project, installed in one version (or the image), and, at the path that they have
here, the folder that the command runs in with the run's dataset, model and bundle. They need not share a file system:
results come back through Ray.
"""

import logging
import os
import platform
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from parity.compare.runner import CANDIDATE
from parity.compare.samples import Sample
from parity.compare.shards import FILES, Expected, Work, merge_shards, select, shard_folder
from pipeline.core.appending import written_beside
from pipeline.core.errors import UserError
from pipeline.core.files import FolderInUse, lock, write_bytes
from pipeline.core.openmp import settle
from pipeline.core.progress import PLAIN_SECONDS, Advance, Reporter

SHARDS_PER_WORKER = 4
SHARD_IMAGES = 500
"""Most images of a shard, where the number of shards is not given: the most that a lost node costs, and the step in
which a node is heard of whose files cannot be seen from here. 500 take the 500M model about 40 minutes on 2 cores."""
MAX_RETRIES = 5
"""Deaths of workers that a shard survives."""
LOCK_SECONDS = 60
"""How long a shard waits for one that is still at it elsewhere: a node that was given up may live."""
CONNECT_SECONDS = 10
OBJECT_STORE_BYTES = 100_000_000
"""Of a local session; it holds the results of the shards that are done and not yet fetched, 2 kB an image."""


def run_on_ray(
    work: Work,
    samples: Sequence[Sample],
    folder: Path,
    reporter: Reporter,
    workers: int,
    expected: Expected,
    shards: int | None = None,
    address: str | None = None,
    cpus: int = 1,
    gpus: float = 0,
) -> None:
    """Answer all samples in shards, ``workers`` at a time, and merge them into ``folder``, the run's ``parity``.

    ``work`` is pickled, and each worker calls it with a shard's samples and folder; relative paths mean what they mean
    here. ``expected``: see :func:`parity.compare.shards.merge_shards`. ``address``: of a running cluster (``auto``,
    ``host:port``); without it, a session on this machine that listens on the loopback interface alone and ends with the
    call. Each worker has ``cpus`` cores and ``gpus`` GPUs
    (0: it sees none); ``work`` is to keep to as many threads. The last digits of the reference's embeddings follow from
    the number of threads, so that one process with as many gives the same, and one with more may not. Give ``shards``
    to go on with another number of workers: shards of another division start anew.

    Raises UserError: Ray is not installed, the cluster does not answer or has no node as large as a worker, a shard's
    work raised one, a shard's workers died more than :data:`MAX_RETRIES` times; and as
    :func:`parity.compare.shards.merge_shards` does.
    """
    if shards is None:
        shards = max(SHARDS_PER_WORKER * workers, -(-len(samples) // SHARD_IMAGES))
    shards = min(shards, len(samples))
    folder = folder.resolve()
    log = folder / "shards" / "ray.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        reporter.progress("ray", "images") as advance,
        open(log, "a", encoding="utf-8") as file,
        # Ray tells of dead workers on stdout, in many lines, and has no option for it; the verdict is to stand there.
        # Inside the progress, which has a stdout of its own in a terminal.
        redirect_stdout(file),
        session(address, workers * cpus) as ray,
    ):
        _check_size(ray, cpus, gpus)
        # Without this, a worker that was given no GPU would use all that its node has.
        hidden = {} if gpus else {"runtime_env": {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}}
        answer = ray.remote(max_retries=MAX_RETRIES, num_cpus=cpus, num_gpus=gpus, **hidden)(_answer)
        _run_all(ray, partial(answer.remote, work), samples, folder, advance, workers, shards)
    merge_shards(folder, shards, samples, expected)


def _run_all(
    ray: Any,
    start: Callable[..., Any],
    samples: Sequence[Sample],
    folder: Path,
    advance: Advance,
    workers: int,
    shards: int,
) -> None:
    places = {shard: shard_folder(folder, shards, shard) for shard in range(1, shards + 1)}
    rows = {shard: _rows(place) for shard, place in places.items()}
    waiting, running, done = list(reversed(places)), dict[Any, int](), 0
    try:
        while waiting or running:
            advance(sum(rows.values()), len(samples), f"{done} of {shards} shards")
            while waiting and len(running) < workers:
                shard = waiting.pop()
                mine = [replace(one, folder=one.folder.resolve()) for one in select(samples, shards, shard)]
                running[start(mine, places[shard], Path.cwd(), _files(places[shard]))] = shard
            ready, _ = ray.wait(list(running), timeout=PLAIN_SECONDS)
            for task in ready:
                shard = running.pop(task)
                _keep(places[shard], _result(ray, task, shard, shards))
                done += 1
                rows[shard] = _rows(places[shard])
            rows |= {shard: _rows(places[shard]) for shard in running.values()}
    finally:
        for task in running:
            ray.cancel(task, force=True)


def _answer(work: Work, samples: list[Sample], where: Path, cwd: Path, before: dict[str, bytes]) -> dict[str, bytes]:
    """The task: do one shard in ``where`` on this node; returns its files. ``before``: what the driver has of them."""
    try:
        os.chdir(cwd)
    except OSError as error:
        raise UserError(
            f"node {platform.node()} cannot enter {cwd} ({error.strerror}): put the run at the same path on every node"
        ) from None
    settle()  # on a node of its own; on this machine it was inherited
    with _lock(where):
        for name, content in before.items():
            if not (where / name).exists():
                write_bytes(where / name, content)
        work(samples, where)
        return _files(where)


def _lock(where: Path) -> IO[str]:
    end = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < end:
        try:
            return lock(where)
        except FolderInUse:
            time.sleep(1)
    return lock(where)


def _files(where: Path) -> dict[str, bytes]:
    """With what an unfinished file was written with, without which nobody goes on from it."""
    names = [path.name for name in FILES for path in (where / name, written_beside(where / name))]
    return {name: (where / name).read_bytes() for name in names if (where / name).exists()}


def _keep(where: Path, files: dict[str, bytes]) -> None:
    """Put a shard's files where the merge finds them; nothing to do where the node's folder is the driver's."""
    before = _files(where)
    if before != files:
        for name, content in files.items():
            write_bytes(where / name, content)
        for name in before.keys() - files.keys():
            (where / name).unlink()


def _rows(where: Path) -> int:
    """Images done, as far as the files can be seen from here; the candidate's file is the slower side's."""
    path = where / CANDIDATE
    if not path.exists():
        return 0
    return path.read_bytes().count(b'\n{"key":')


def _result(ray: Any, task: Any, shard: int, shards: int) -> dict[str, bytes]:
    try:
        files: dict[str, bytes] = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(f"shard {shard} of {shards}: {error.cause}") from None
        if isinstance(error.cause, ray.exceptions.RaySystemError):  # what the node was sent cannot be unpickled there
            reason = str(error.cause).strip().splitlines()[-1]
            raise UserError(
                f"a node cannot start on shard {shard} of {shards} ({reason}): install this project, in this version,"
                " on every node"
            ) from None
        raise
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split(".")[0].split())
        raise UserError(
            f"shard {shard} of {shards} died {MAX_RETRIES + 1} times ({reason}): run it alone with --shards {shards}"
            f" --shard {shard} to see why (what Ray says is in shards/ray.log), then run this again"
        ) from None
    return files


def _check_size(ray: Any, cpus: int, gpus: float) -> None:
    """Ray would wait for ever for a node that is large enough."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        raise UserError(
            f"no node of the Ray cluster has the {cpus} cores and {gpus:g} GPUs that a worker is to have: ask for less"
        )


def _check_listens(address: str) -> None:
    """Ray itself tries for 14 minutes (20 times 41 s)."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise UserError(f"no Ray cluster listens at {address} ({error}): give the address of its head") from None


@contextmanager
def session(address: str | None, cpus: int) -> Iterator[Any]:
    """The module ``ray``, connected. A connection that exists is used and left as it is.

    ``cpus``: of a session on this machine, for all workers together. Raises UserError as :func:`run_on_ray` does.
    """
    if address:
        _check_listens(address)
    # Read by Ray when it is imported or started, and by the processes it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # listen on 127.0.0.1, as it does on these
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # of this session; else one is left in the home
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed: `make setup` installs it, as does pip install -e '.[cluster]'") from None
    if ray.is_initialized():
        yield ray
        return
    # Not where TMPDIR says: a socket's path has at most 107 bytes.
    scratch = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp")) if address is None else None
    options: dict[str, Any] = {"address": address}
    if scratch:
        options = {
            "address": "local",  # never a cluster that happens to run here
            "num_cpus": cpus,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "_temp_dir": str(scratch),
            "_system_config": {"task_oom_retries": MAX_RETRIES},  # else a shard too large for the memory never ends
        }
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own would end the program with another exit code
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"Ray cannot be reached at {address or 'this machine'}: {reason}") from None
        yield ray
    finally:
        ray.shutdown()
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)

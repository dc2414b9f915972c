"""Helpers of the tests with an engine: a container watched as it runs, a copy of the checkout, an image's content."""

import base64
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
from docker.models.containers import Container

from tools.images.build import folder, image_name
from tools.images.debian_base import find_mirror
from tools.images.pins import read_pins

ROOT = Path(__file__).parents[2]
# 69 pictures to train on: 18 steps with a checkpoint every 2.
SETTINGS = [
    part
    for setting in (
        "dataset.n_per_class=16", "train.epochs=2", "train.batch_size=8", "train.evals_per_epoch=4",
        "contract.max_new_tokens=4",
    )
    for part in ("--set", setting)
]  # fmt: skip
SECONDS = 300
"""After which a state that was waited for is given up."""


def start(*arguments: str | Path, root: Path = ROOT, **variables: str) -> subprocess.Popen[str]:
    """Start `python3 -m tools.images` as make does, in a process group of its own, without a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "tools.images", *map(str, arguments)],
        cwd=root, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **variables}, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run(*arguments: str | Path, root: Path = ROOT, **variables: str) -> tuple[int, str]:
    """(exit code, output) of the same, run to its end."""
    with start(*arguments, root=root, **variables) as process:
        return end(process)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """(exit code, the rest of the output)."""
    assert process.stdout
    said = process.stdout.read()
    return process.wait(timeout=SECONDS), said


def wait_for(state: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """The first true answer of ``state``, asked again and again while ``process`` runs."""
    limit = time.monotonic() + SECONDS
    while time.monotonic() < limit:
        found = state()
        if found:
            return found
        assert process.poll() is None, f"ended with {process.returncode}: {end(process)[1]}"
        time.sleep(0.02)
    raise AssertionError(f"waited {SECONDS} s in vain")


def lines_until(process: subprocess.Popen[str], pattern: str) -> list[str]:
    """The lines of the output up to the first that matches."""
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.match(pattern, line):
            return lines
    raise AssertionError(f"no line matches {pattern!r}: {''.join(lines)}")


def container_name(line: str) -> str:
    """The name in the line that the runner begins with."""
    found = re.match(r"container (\S+), image", line)
    assert found, line
    return found[1]


@dataclass
class Running:
    """A job, and what could be seen of it while it ran."""

    runs: Path
    tokens: dict[str, str]
    """The keys that were handed in."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """What `docker inspect` said."""
    variables: set[str] = field(default_factory=set)
    """NAME=value of the processes inside."""
    status: str = ""
    """/proc/1/status inside."""
    probes: dict[str, tuple[int, str]] = field(default_factory=dict)
    command_lines: str = ""
    """Of every process on this machine."""
    output: str = ""
    while_running: str = ""
    """The part of the output that had come when the container was looked at."""
    code: int = -1
    engine_log: str = ""

    @property
    def run(self) -> Path:
        return self.runs / "tiny"


PROBES = {
    "write to the root": "touch /probe",
    "write to the configs": "touch /work/configs/probe",
    "write to the code": "touch /opt/app/pipeline/probe",
    "write to /tmp": "echo x > /tmp/probe && cat /tmp/probe",
    "run from /tmp": "cp /bin/true /tmp/true && /tmp/true",
    "interfaces": "ls /sys/class/net",
    "routes": "tail -n +2 /proc/net/route",
    "become root": "python3.11 -c 'import os; os.setuid(0)'",
    "open a raw socket": "python3.11 -c 'import socket as s; s.socket(s.AF_INET, s.SOCK_RAW, 1)'",
    "give a file away": "touch /tmp/mine && chown 1:1 /tmp/mine",
}


def watch(client: docker.DockerClient, place: Path, arguments: Sequence[str]) -> Running:
    """Run a job with keys; look at its container as soon as the first stage has said that it is done."""
    tokens = {"SOME_TOKEN": secrets.token_hex(16), "FILE_TOKEN": secrets.token_hex(16)}
    (place / "keys").write_text(f"# keys\nFILE_TOKEN='{tokens['FILE_TOKEN']}'\n")
    seen = Running(place / "runs", tokens)
    given = ["--runs", str(seen.runs), "--keys", "SOME_TOKEN", "--keys-file", str(place / "keys")]
    with start(*arguments, *given, SOME_TOKEN=tokens["SOME_TOKEN"]) as process:
        lines = lines_until(process, r"\[1/\d\] dataset ")
        seen.while_running = "".join(lines)
        container = client.containers.get(container_name(lines[0]))
        seen.attributes = container.attrs
        inside = _execute(container, "cat /proc/[0-9]*/environ")[1]
        seen.variables = set(inside.split("\0"))
        seen.probes, seen.status = look(container)
        seen.command_lines = _command_lines()
        seen.engine_log = container.logs().decode()
        seen.code, rest = end(process)
        seen.output = seen.while_running + rest
    return seen


def look(container: Container) -> tuple[dict[str, tuple[int, str]], str]:
    """(exit code and output of every probe, /proc/1/status) inside a running container."""
    probes = {name: _execute(container, script) for name, script in PROBES.items()}
    return probes, _execute(container, "cat /proc/1/status")[1]


def _execute(container: Container, script: str) -> tuple[int, str]:
    code, output = container.exec_run(["sh", "-c", script])
    return code, output.decode("utf-8", "replace")


def _command_lines() -> str:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().decode("utf-8", "replace"))
        except OSError:  # it has ended
            continue
    return "\n".join(found)


def run_image(client: docker.DockerClient, image: str, command: Sequence[str], **changes: Any) -> tuple[int, str]:
    """(exit code, output) of a command in a container with the rights that the runner gives, but for ``changes``."""
    options: dict[str, Any] = {
        "network_mode": "none", "read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"],
        "init": True, "tmpfs": {"/tmp": "rw,mode=1777"}, "environment": {"HF_HUB_OFFLINE": "1"},
    }  # fmt: skip
    container = client.containers.create(image, list(command), **{**options, **changes})
    try:
        container.start()
        code = container.wait(timeout=SECONDS)["StatusCode"]
        return code, container.logs().decode()
    finally:
        container.remove(force=True)


def interrupt(process: subprocess.Popen[str]) -> None:
    """What Ctrl-C in a terminal does: SIGINT for every process of the group."""
    os.killpg(process.pid, signal.SIGINT)


# ---- builds ----------------------------------------------------------------------------------------------------------


def copied_project(target: Path) -> Path:
    """Copy what git knows or would add, modes and all; the base that was made for this engine comes along."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        stdout=subprocess.PIPE, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in listed:
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    made = folder(ROOT) / f"base-{read_pins(ROOT)['BOOTSTRAP_SHA256'][:12]}.tar"
    if made.is_file():
        folder(target).mkdir(parents=True)
        os.link(made, folder(target) / made.name) if _same_disk(made, target) else shutil.copy(made, folder(target))
    return target


def _same_disk(a: Path, b: Path) -> bool:
    return a.stat().st_dev == b.stat().st_dev


def build_log_steps(log: Path) -> dict[str, str]:
    """Step of a BuildKit build -> ``CACHED`` or ``DONE``, from the plain log of the last build in it."""
    text = log.read_text().rpartition("\n$ ")[2]
    titles = dict(re.findall(r"^#(\d+) (\[[\w-]+ +\d+/\d+\] .*)$", text, re.MULTILINE))
    ends = dict(re.findall(r"^#(\d+) (CACHED|DONE)", text, re.MULTILINE))
    return {title: ends[number] for number, title in titles.items() if number in ends}


def build_inputs(client: docker.DockerClient, root: Path) -> list[bytes]:
    """Addresses, and a line of each certificate, that a build on this machine uses.

    Certificates that Debian and Python have for the public are no one's secret and left out.
    """
    import certifi

    found = [os.environ.get(name, "").encode() for name in ("PIP_INDEX_URL", "TORCH_INDEX_URL")]
    found.append(find_mirror("").encode())
    debians = ["sh", "-c", "cat /usr/share/ca-certificates/mozilla/*.crt"]
    public = {
        *_certificates(Path(certifi.where()).read_text()),
        *_certificates(client.containers.run(image_name("train"), debians, remove=True).decode()),
    }
    for file in (root / "docker" / "inputs" / "ca").iterdir():
        if file.name != ".gitkeep":
            own = [lines for lines in _certificates(file.read_text()) if lines not in public]
            found += [lines[len(lines) // 2].encode() for lines in own]
    return [needle for needle in found if needle]


def _certificates(text: str) -> list[tuple[str, ...]]:
    bodies = re.findall(r"-----BEGIN CERTIFICATE-----\s(.*?)-----END CERTIFICATE-----", text, re.DOTALL)
    normal = (base64.b64encode(base64.b64decode(body)).decode() for body in bodies)
    return [tuple(body[at : at + 64] for at in range(0, len(body), 64)) for body in normal]


def exported_files(client: docker.DockerClient, image: str) -> Iterator[tuple[str, bytes]]:
    """Every file of an image with its bytes."""
    import tarfile

    container = client.containers.create(image, ["none"])
    try:
        stream = _Stream(container.export(chunk_size=1 << 20))
        with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
            for member in archive:
                if member.isfile():
                    content = archive.extractfile(member)
                    assert content
                    yield member.name, content.read()
                else:
                    yield member.name, b""
    finally:
        container.remove(force=True)


class _Stream:
    """The chunks of an export as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def read(self, size: int) -> bytes:
        parts, there = [self._rest], len(self._rest)
        while there < size:
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            parts.append(chunk)
            there += len(chunk)
        whole = b"".join(parts)
        self._rest = whole[size:]
        return whole[:size]

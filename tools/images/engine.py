"""The container engine of this machine, and how it builds.

Several clients may be installed side by side and not each can build with each engine, so they are asked, not assumed:
buildx, then BuildKit as Docker's own client has it up to 22, then the legacy builder; without a Docker engine, buildah.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.errors import UserError

BUILDERS = ("buildx", "buildkit", "legacy", "buildah")


@dataclass(frozen=True)
class Engine:
    """One client and the way it builds. ``client`` runs containers; with buildah alone there is none."""

    builder: str
    client: str
    version: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.builder} ({self.version}, {self.client})"

    def run(self, *arguments: str, quiet: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the client; its output is captured if ``quiet``. Never raises for a failure: look at ``returncode``."""
        return subprocess.run(
            [self.client, *arguments],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if quiet else None,
            stderr=subprocess.PIPE if quiet else None,
            text=True,
            check=False,
        )

    def ask(self, *arguments: str) -> str:
        """The client's answer. Raises UserError with its words where it fails."""
        answer = self.run(*arguments)
        if answer.returncode:
            raise UserError(f"`{Path(self.client).name} {' '.join(arguments)}` failed: {last_line(answer.stderr)}")
        return answer.stdout.strip()

    def image_id(self, name: str) -> str | None:
        """``sha256:...`` of a local image, or None where there is none of that name."""
        if self.builder == "buildah":
            answer = self.run("inspect", "--type", "image", "--format", "sha256:{{.FromImageID}}", name)
        else:
            answer = self.run("image", "inspect", "--format", "{{.Id}}", name)
        return (answer.stdout.strip() or None) if answer.returncode == 0 else None

    def image_size(self, name: str) -> int:
        """Bytes of a local image with all its layers; buildah does not tell, which is 0 here."""
        return 0 if self.builder == "buildah" else int(self.ask("image", "inspect", "--format", "{{.Size}}", name))

    def build_command(self, file: Path, target: str, tag: str, arguments: Mapping[str, str]) -> list[str]:
        """The command that builds stage ``target`` of ``file`` from the current folder."""
        given = [option for name, value in arguments.items() for option in ("--build-arg", f"{name}={value}")]
        common = ["--file", str(file), "--target", target, "--tag", tag, *given]
        if self.builder == "buildah":
            # The clock of every file and of the image itself: with it, equal content has an equal image id.
            stamp = ["--timestamp", arguments["SOURCE_DATE_EPOCH"]] if "SOURCE_DATE_EPOCH" in arguments else []
            return [self.client, "build", "--layers", *stamp, *common, "."]
        build = ["buildx", "build", "--load"] if self.builder == "buildx" else ["build"]
        progress = [] if self.builder == "legacy" else ["--progress", "plain"]
        return [self.client, *build, *progress, *common, "."]


def last_line(text: str) -> str:
    """What a program said last, for a message of one sentence."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _clients() -> list[str]:
    """Every ``docker`` on the PATH, then ``podman``; a link and what it points to count once."""
    found: dict[str, str] = {}
    for name in ("docker", "podman"):
        for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
            path = os.path.join(folder, name)
            if os.access(path, os.X_OK) and not os.path.isdir(path):
                found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _answer(command: Sequence[str]) -> str | None:
    done = subprocess.run(list(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _candidates() -> list[Engine]:
    """Every way to build that works here, best first."""
    found = []
    for client in _clients():
        server = _answer([client, "version", "--format", "{{.Server.Version}}"])
        own = _answer([client, "version", "--format", "{{.Client.Version}}"]) or ""
        if not server:
            continue
        major = int((re.match(r"\d+", own) or ["0"])[0])
        if _answer([client, "buildx", "version"]):
            found.append(Engine("buildx", client, f"engine {server}, client {own}", {"DOCKER_BUILDKIT": "1"}))
        elif major < 23:
            found.append(Engine("buildkit", client, f"engine {server}, client {own}", {"DOCKER_BUILDKIT": "1"}))
        found.append(Engine("legacy", client, f"engine {server}, client {own}", {"DOCKER_BUILDKIT": "0"}))
    buildah = shutil.which("buildah")
    if buildah:
        version = _answer([buildah, "--version"]) or ""
        found.append(Engine("buildah", buildah, version.replace("buildah version ", "").partition(" ")[0]))
    return sorted(found, key=lambda engine: BUILDERS.index(engine.builder))


def find_engine(builder: str = "") -> Engine:
    """The engine to use; ``builder`` insists on one way to build. Raises UserError where there is none.

    A client without a running engine does not count.
    """
    if builder and builder not in BUILDERS:
        raise UserError(f"BUILDER={builder} is not known: give one of {', '.join(BUILDERS)}")
    candidates = [engine for engine in _candidates() if builder in ("", engine.builder)]
    if candidates:
        return candidates[0]
    if builder:
        raise UserError(f"BUILDER={builder} does not work on this machine: leave it out to take what does")
    if _clients():
        raise UserError(
            "the container engine does not answer: start it (`systemctl start docker`), or join its group"
            " (`usermod -aG docker $USER`, then log in again)"
        )
    raise UserError("no container engine is here: install one, as with `apt-get install docker.io`")

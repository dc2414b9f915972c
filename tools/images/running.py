"""Runs a command in an image with as little as it needs: no network, no capability, a read-only root, no root user.

    /work/runs      the host's runs/, the only place that is written to besides /tmp (in memory)
    /work/configs   the host's configs/, read-only
    /photos /model  what PHOTOS and MODEL name, read-only
    /run/secrets/keys  NAME=value lines, which docker/entrypoint.py turns into variables: no argument, layer or log has
                    them

The caller's user and group are the container's, so that what comes out belongs to the caller. A caller who is root gets
:data:`ORDINARY` instead, and the files back afterwards.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from tools.images.build import NAME, folder, image_name
from tools.images.digest import content_digest, image_tree
from tools.images.engine import Engine

ORDINARY = (10001, 10001)
"""User and group that the images are made for; used where the caller is root."""
COMMANDS = {"train": ("pipeline", "export"), "parity": ("parity", "run")}
STOP_SECONDS = 60  # to finish the step and the file at hand; a kill after it loses nothing that was saved before
_CONFIGS = "configs"


@dataclass(frozen=True)
class RunOptions:
    """What the caller may choose."""

    recipe: str = "configs/tiny.yaml"
    photos: str = ""
    model: str = ""
    """Folder of a base model; ``base.model`` then is that."""
    assignments: Sequence[str] = ()
    network: str = ""
    """Name of an engine network (``bridge``); none by default."""
    keys: Sequence[str] = ()
    """Names of variables to hand in, such as HF_TOKEN."""
    keys_file: str = ""
    """File of NAME=value lines to hand in."""
    torch: str = "cpu"
    runs: str = "runs"


def image_digest(root: Path, engine: Engine, image: str) -> str:
    """Content digest of a local image, kept by image id. Raises UserError where there is no such image."""
    image_id = engine.image_id(image)
    if not image_id:
        raise UserError(f"there is no image {image}: run `make docker-build` first")
    kept = folder(root) / "digests" / f"{image_id.partition(':')[2]}.json"
    try:
        return str(json.loads(kept.read_text(encoding="utf-8"))["content_digest"])
    except (OSError, ValueError, KeyError):
        digest = content_digest(image_tree([engine.client], image))
        write_json(kept, {"image": image, "id": image_id, "content_digest": digest})
        return digest


def _rootless(engine: Engine) -> bool:
    return "rootless" in engine.run("info", "--format", "{{.SecurityOptions}}").stdout


def user_options(engine: Engine) -> tuple[list[str], tuple[int, int] | None]:
    """(options that set the container's user, user and group to hand the results to and fro, or None)."""
    if "podman" in Path(engine.client).name:
        return ["--userns=keep-id"], None
    if _rootless(engine):  # root in the container is the caller outside
        return ["--user", "0:0"], None
    caller = (os.getuid(), os.getgid())
    if caller[0] == 0:
        return ["--user", "{}:{}".format(*ORDINARY)], ORDINARY
    return ["--user", "{}:{}".format(*caller)], None


def _give(tree: Path, owner: tuple[int, int]) -> None:
    """Hand everything in ``tree`` to ``owner``."""
    for path, folders, files in os.walk(tree):
        for name in [*folders, *files]:
            os.chown(os.path.join(path, name), *owner, follow_symlinks=False)
    os.chown(tree, *owner)


def _folder(option: str, path: str) -> Path:
    found = Path(path).resolve()
    if not found.is_dir():
        raise UserError(f"{option}={path} is no folder: give the folder on this machine")
    return found


def read_keys(options: RunOptions) -> dict[str, str]:
    """The variables to hand in, by name. Raises UserError (never with a value in it) where one is missing."""
    keys = {}
    if options.keys_file:
        try:
            lines = Path(options.keys_file).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UserError(f"KEYS_FILE={options.keys_file} cannot be read: {error.strerror}") from None
        for number, line in enumerate(lines, 1):
            name, separator, value = line.strip().removeprefix("export ").partition("=")
            if not line.strip() or line.startswith("#"):
                continue
            if not separator or not re.fullmatch(r"[A-Za-z_]\w*", name):
                raise UserError(f"KEYS_FILE={options.keys_file}, line {number}, is not NAME=value")
            keys[name] = value.strip("\"'")
    for name in options.keys:
        if name not in os.environ:
            raise UserError(f"KEYS names {name}, which is not set here: `export {name}=...` first, or use KEYS_FILE")
        if "\n" in os.environ[name]:
            raise UserError(
                f"the value of {name} has more than one line, which KEYS cannot hand in: give a key of one line"
            )
        keys[name] = os.environ[name]
    return keys


@contextmanager
def _secret_file(keys: dict[str, str], owner: tuple[int, int] | None) -> Iterator[list[str]]:
    """Options that mount ``keys`` as a file, which exists while the block runs, in memory where that can be."""
    if not keys:
        yield []
        return
    place = next(
        (path for path in (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm") if path and os.path.isdir(path)), None
    )
    handle, name = tempfile.mkstemp(dir=place, prefix="keys-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(f"{key}={value}\n" for key, value in keys.items())
        if owner:
            os.chown(name, *owner)
        yield ["--mount", f"type=bind,src={name},dst=/run/secrets/keys,readonly"]
    finally:
        os.unlink(name)


def _mounts(root: Path, options: RunOptions) -> tuple[list[str], str, list[str]]:
    """(mount options, the recipe's path inside, assignments for the command line)."""
    recipe = Path(options.recipe)
    if not recipe.is_file():
        raise UserError(f"there is no recipe {options.recipe}: give a file, such as RECIPE=configs/tiny.yaml")
    assignments = list(options.assignments)
    mounts = [(root / _CONFIGS, f"/work/{_CONFIGS}")]
    inside = f"/work/recipe/{recipe.name}"
    if recipe.resolve().parent == (root / _CONFIGS).resolve():
        inside = f"{_CONFIGS}/{recipe.name}"
    else:
        mounts.append((recipe.resolve().parent, "/work/recipe"))
    if options.photos:
        mounts.append((_folder("PHOTOS", options.photos), "/photos"))
        assignments.append("dataset.path=/photos")
    if options.model:
        mounts.append((_folder("MODEL", options.model), "/model"))
        assignments.append("base.model=/model")
    for path, _ in mounts:
        if "," in str(path):
            raise UserError(f"the engine cannot mount {path}, for the comma in its name: use another folder")
    given = [part for path, target in mounts for part in ("--mount", f"type=bind,src={path},dst={target},readonly")]
    return given, inside, [part for value in assignments for part in ("--set", value)]


def container_command(
    root: Path, engine: Engine, job: str, options: RunOptions, image: str, secrets: Sequence[str], user: Sequence[str]
) -> tuple[list[str], str]:
    """(the engine's whole command line for ``job``, the container's name)."""
    name = f"{NAME}-{job}-{os.getpid()}"
    mounts, recipe, assignments = _mounts(root, options)
    about = {"name": image, "id": engine.image_id(image) or "", "content_digest": image_digest(root, engine, image)}
    runs = Path(options.runs).resolve()
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    command = [
        engine.client, "run", "--rm", "--init", "--name", name, "--stop-timeout", str(STOP_SECONDS),
        "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", *user,
        "--network", options.network or "none", "--tmpfs", "/tmp:rw,mode=1777",
        "--mount", f"type=bind,src={runs},dst=/work/runs", *mounts, *secrets,
        "--env", f"PARITY_IMAGE={json.dumps(about, sort_keys=True)}",
    ]  # fmt: skip
    # A model from the hub is kept beside the results, where a later run without a network finds it.
    command += ["--env", "HF_HOME=/work/runs/.huggingface"]
    if not options.network:
        # Else the hub's client would ask a network that is not there, again and again.
        command += ["--env", "HF_HUB_OFFLINE=1"]
    for variable in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "TERM", "NO_COLOR"):
        if variable in os.environ:
            command += ["--env", variable]
    if options.torch == "cuda":
        command += ["--gpus", "all"]
    if terminal:
        command += ["--interactive", "--tty"]
    words = [*COMMANDS[job], recipe, *assignments] if job in COMMANDS else ["bash"]
    return [*command, image, *words], name


def run_job(root: Path, engine: Engine, job: str, options: RunOptions) -> int:
    """Run ``train``, ``parity`` or a ``shell`` in its image; returns the command's exit code.

    Ctrl-C and SIGTERM reach the command, which ends in a state that the next run goes on from. Raises UserError.
    """
    if engine.builder == "buildah":
        raise UserError("buildah builds but does not run images: install docker or podman")
    image = image_name("parity" if job == "shell" else job, options.torch)
    runs = Path(options.runs)
    if "," in str(runs.resolve()):
        raise UserError(f"the engine cannot mount {runs.resolve()}, for the comma in its name: use another folder")
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {runs} for the results cannot be made: {error.strerror}") from None
    user, owner = user_options(engine)
    with _secret_file(read_keys(options), owner) as secrets:
        command, name = container_command(root, engine, job, options, image, secrets, user)
        if owner:
            _give(runs, owner)
        print(
            f"container {name}, image {image}; `docker stop {name}` or Ctrl-C ends it, the same command resumes",
            flush=True,
        )
        try:
            return _wait(command, {**os.environ, **engine.environment})
        finally:
            if owner:
                _give(runs, (0, 0))


def _wait(command: list[str], environment: dict[str, str]) -> int:
    """Run ``command`` to its end, handing it the signals that would end this process."""
    process = subprocess.Popen(command, env=environment)

    def hand_on(number: int, _: Any) -> None:
        process.send_signal(number)

    # A Ctrl-C in a terminal reaches the engine's client by itself; a second one from here would count as impatience.
    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    before[signal.SIGTERM] = signal.signal(signal.SIGTERM, hand_on)
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

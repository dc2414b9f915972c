"""Builds with the real engine, of copies of the checkout: what stops one, what an edit costs, which builders do it.

Each builds no more than the stages that it is about; what stands above them comes from the builder's cache.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
from docker.errors import ImageNotFound
from images import build_log_steps, run

from pipeline.core.errors import UserError
from tools.images.build import NAME, Built, Options, _base_tag, build, folder
from tools.images.debian_base import find_mirror
from tools.images.digest import content_digest, differences, image_tree
from tools.images.engine import Engine, find_engine
from tools.images.pins import read_pins, write_pins
from tools.setup.native import Console

TAG = "test"
Make = Callable[..., Built]


@pytest.fixture
def make(project: Path, engine: Engine, client: docker.DockerClient) -> Iterator[Make]:
    """Build one stage of the copy under a tag of its own, which is removed afterwards."""
    made: list[tuple[Engine, Built]] = []

    def work(stage: str, options: Options = Options(), with_engine: Engine = engine) -> Built:  # noqa: B008
        (built,) = build(project, with_engine, [stage], options, Console(folder(project) / "build.log"), TAG)
        made.append((with_engine, built))
        return built

    def unnamed() -> set[str]:
        return {image.id for image in client.images.list(filters={"dangling": True})}

    before = unnamed()
    yield work
    for with_engine, built in made:
        with_engine.run("rmi", built.name)
    for left in unnamed() - before:  # the legacy builder's stages before the target
        with contextlib.suppress(ImageNotFound):
            client.images.remove(left)


# ---- what stops a build ----------------------------------------------------------------------------------------------


def test_a_changed_lock_stops_the_command_and_is_named(project: Path) -> None:
    with open(project / "locks" / "train-cpu.txt", "a") as file:
        file.write("#\n")
    code, said = run("build", "base", root=project)
    assert code == 2
    assert re.match(r"error: locks/train-cpu.txt has SHA-256 \w{64} and docker/versions.env pins \w{64}", said)
    assert said.count("\n") == 1


def test_an_archive_with_other_bytes_stops_the_build_and_is_named(project: Path, tmp_path: Path) -> None:
    archive = read_pins(project)["LLAMA_ARCHIVE"]
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / archive).write_bytes(b"not the archive")
    code, said = run("build", "source", "--wheels", tmp_path / "wheels", root=project)
    assert code == 2, said
    assert f"taken from folders, not from the index: {archive}" in said
    error = said.splitlines()[-1]
    assert error.startswith(f"error: {archive} has SHA-256 ")
    assert "Traceback" not in said


def test_a_debian_package_with_another_hash_stops_the_build_and_is_named(project: Path) -> None:
    lock = project / "docker" / "debian" / "build.lock"
    lines = lock.read_text().splitlines(keepends=True)
    index = next(
        index for index, line in enumerate(lines) if "  make_" in line or "  patch_" in line or "_all.deb" in line
    )
    name = lines[index].split()[1]
    lines[index] = f"{'0' * 64}  {name}\n"
    lock.write_text("".join(lines))
    write_pins(project, {})
    code, said = run("build", "compiler", "--base", "bootstrap", root=project)
    assert code == 2, said
    error = said.splitlines()[-1]
    assert error.startswith("error: a package differs from its hash in docker/debian/build.lock")
    assert name in error


# ---- what an edit costs, and what is sent to the engine --------------------------------------------------------------


def test_an_edit_of_source_makes_no_step_again_but_the_copies_of_the_code(
    project: Path, make: Make, engine: Engine
) -> None:
    if engine.builder == "legacy":
        pytest.skip("the legacy builder's log is another; it has the same cache")
    make("train")
    with open(project / "pipeline" / "core" / "errors.py", "a") as file:
        file.write(f"# {uuid.uuid4()}\n")  # an edit that no earlier run of this test has left in the cache
    make("train")
    steps = build_log_steps(folder(project) / "build.log")
    made = [title for title, ending in steps.items() if ending == "DONE" and "FROM" not in title]
    assert made
    assert all(re.search(r"\] COPY (pipeline|parity|docker/entrypoint.py)", title) for title in made), made
    assert any(" RUN " in title for title, ending in steps.items() if ending == "CACHED"), steps


def test_nothing_but_what_the_images_are_made_of_is_sent(
    project: Path, engine: Engine, client: docker.DockerClient
) -> None:
    secrets = (
        ".git/config", ".env", ".venv/bin/python", ".cache/x", "runs/tiny/x", "datasets/x", "tests/docker/conftest.py",
        "dist/x", "pipeline/__pycache__/x.pyc", "pipeline/.x", "key.pem", "docker/inputs/ca/.hidden",
        "docker/compose.yaml",
    )  # fmt: skip
    for name in secrets:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("secret")
    (project / "context.Dockerfile").write_text("FROM scratch\nCOPY . /context/\n")
    tag = f"{NAME}/context:{TAG}"
    environment = {**os.environ, **engine.environment}
    command = [engine.client, "build", "--quiet", "--file", "-", "--tag", tag, "."]
    with open(project / "context.Dockerfile") as file:
        subprocess.run(command, stdin=file, cwd=project, env=environment, check=True, capture_output=True)
    try:
        there = image_tree([engine.client], tag).entries
    finally:
        client.images.remove(tag)
    files = {path.removeprefix("context/") for path, entry in there.items() if entry.kind == "file"}
    assert {"pipeline/cli.py", "docker/debian.sh", "docker/inputs/ca/.gitkeep", "locks/train-cpu.txt"} <= files
    assert files & set(secrets) == set()
    allowed = ("pipeline/", "parity/", "configs/", "locks/", "android_fixtures/", "docker/")
    assert [path for path in files if not path.startswith(allowed)] == []


def test_addresses_and_certificates_of_the_build_do_not_reach_the_base(
    project: Path, make: Make, engine: Engine, client: docker.DockerClient, tmp_path: Path
) -> None:
    """With ones that are found wherever they would turn up; nothing is fetched, for the base has all it needs."""
    (tmp_path / "proxy.pem").write_text("-----BEGIN CERTIFICATE-----\nNEEDLEPEM\n-----END CERTIFICATE-----\n")
    options = Options(base="bootstrap", ca=str(tmp_path / "proxy.pem"), mirror="http://needle.invalid/debian")
    built = make("base", options)
    tree = image_tree([engine.client], built.name, keep=lambda path: True)
    assert len(tree.kept) > 1000
    assert [
        path for path, content in tree.kept.items() if b"NEEDLEPEM" in content or b"needle.invalid" in content
    ] == []
    assert not any(path.startswith("inputs") for path in tree.entries)
    image = client.images.get(built.name)
    assert "needle" not in f"{image.attrs} {image.history()}".lower()
    assert content_digest(tree) == content_digest(image_tree([engine.client], make("base").name))


# ---- every builder, every base ---------------------------------------------------------------------------------------


def test_the_legacy_builder_makes_the_same_base(make: Make, engine: Engine) -> None:
    legacy = find_engine("legacy")
    if engine.builder == "legacy":
        pytest.skip("no other builder is here to compare with")
    first = image_tree([engine.client], make("base").name)
    second = image_tree([legacy.client], make("base", Options(fresh=True), legacy).name)
    assert differences(first, second) == []


def test_buildah_makes_the_same_image_id_twice_from_nothing(make: Make, project: Path) -> None:
    try:
        buildah = find_engine("buildah")
    except UserError as error:
        pytest.skip(f"buildah is not here: {error}")
    before = set(buildah.ask("images", "--all", "--quiet", "--no-trunc").split())
    try:
        ids = [make("base", Options(base="bootstrap", fresh=True), buildah).id for _ in range(2)]
    finally:  # with the stages before the base, which have no name
        base = buildah.image_id(_base_tag(read_pins(project)["BOOTSTRAP_SHA256"]))
        made = set(buildah.ask("images", "--all", "--quiet", "--no-trunc").split()) - before - {base}
        buildah.run("rmi", "--force", *made)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", ids[0])
    assert ids[0] == ids[1]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """host:port of a registry of this test's own."""
    program = shutil.which("docker-registry") or shutil.which("registry")
    if not program:
        pytest.skip("no registry program is here: `apt-get install docker-registry`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"localhost:{free.getsockname()[1]}"
    settings = tmp_path / "registry.yml"
    settings.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {tmp_path / 'registry'}}}}}\nhttp: {{addr: '{address}'}}\n"
    )
    with open(tmp_path / "registry.log", "w") as log:
        process = subprocess.Popen([program, "serve", str(settings)], stdout=log, stderr=log)
    try:
        while True:
            assert process.poll() is None, (tmp_path / "registry.log").read_text()
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) == 0:
                    break
        yield address
    finally:
        process.terminate()
        process.wait()


def test_a_base_is_taken_from_a_registry_by_its_digest(
    registry: str, make: Make, engine: Engine, client: docker.DockerClient, project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    try:
        debian = client.images.get(_base_tag(read_pins(project)["BOOTSTRAP_SHA256"]))
    except ImageNotFound:
        pytest.skip("this engine has no base from Debian's archive to put into a registry (BASE=bootstrap)")
    name = f"{registry}/debian"
    debian.tag(name, "bookworm-slim")
    client.images.push(name, "bookworm-slim")
    client.images.remove(f"{name}:bookworm-slim")
    data = client.images.get_registry_data(f"{name}:bookworm-slim")
    pinned = f"{name}:bookworm-slim@{data.id}"
    monkeypatch.setenv("BASE_IMAGE", pinned)
    built = make("base", Options(base="registry", mirror=find_mirror("")))
    assert built.seconds > 0
    monkeypatch.delenv("BASE_IMAGE")
    assert (
        differences(image_tree([engine.client], built.name), image_tree([engine.client], make("base", Options()).name))
        == []
    )

    monkeypatch.setenv("BASE_IMAGE", f"{name}:bookworm-slim@sha256:{'0' * 64}")
    with pytest.raises(UserError, match="the engine could not build the image"):
        make("base", Options(base="registry", mirror=find_mirror("")))

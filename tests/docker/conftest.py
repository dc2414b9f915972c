"""Tests with a real container engine, on the images that `make docker-build` made: `make test-docker`.

They are left out of `make test`. Without an engine, or without the images, they end at once and say so.
"""

from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.errors import DockerException
from images import ROOT, SETTINGS, Running, build_inputs, copied_project, run, watch

from pipeline.core.errors import UserError
from tools.images.build import IMAGES, image_name
from tools.images.engine import Engine, find_engine


@pytest.fixture(scope="session", autouse=True)
def client() -> Iterator[docker.DockerClient]:
    """The engine, which has the images."""
    try:
        found = docker.from_env(timeout=600)
        found.ping()
    except DockerException:
        pytest.exit(
            "no container engine answers, and these tests are about one: start it (`systemctl start docker`)", 2
        )
    there = {tag for image in found.images.list() for tag in image.tags}
    missing = [image_name(stage) for stage in IMAGES if image_name(stage) not in there]
    if missing:
        pytest.exit(f"there is no image {', '.join(missing)}: run `make docker-build` first", 2)
    yield found
    found.close()


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The client and builder that the project's own commands take."""
    try:
        return find_engine()
    except UserError as error:
        pytest.exit(str(error), 2)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the checkout, whose docker/inputs, locks and sources a test may change."""
    return copied_project(tmp_path / "project")


@pytest.fixture(scope="session")
def trained(client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Running:
    """`make docker-train` with two keys, looked at from all sides while it runs."""
    place = tmp_path_factory.mktemp("trained")
    return watch(client, place, ["train", "--no-build", *SETTINGS])


@pytest.fixture(scope="session")
def judged(trained: Running) -> tuple[int, str]:
    """(exit code, output) of `make docker-parity` on what was trained."""
    return run("parity", "--no-build", "--runs", trained.runs, *SETTINGS)


@pytest.fixture(scope="session")
def fetched_in_build(client: docker.DockerClient) -> list[bytes]:
    """What a build on this machine uses and no image may hold: addresses, and a line of each certificate of its own."""
    return build_inputs(client, ROOT)

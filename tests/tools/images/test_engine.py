"""Which client builds, and how: asked of what is on the PATH, here small scripts that answer as clients do."""

from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from tools.images.engine import Engine, find_engine, last_line


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The two folders on the PATH; empty."""
    folders = tmp_path / "first", tmp_path / "second"
    for folder in folders:
        folder.mkdir()
    monkeypatch.setenv("PATH", ":".join(map(str, folders)))
    return folders


def client(folder: Path, version: str, server: str = "20.10.24", buildx: bool = False, name: str = "docker") -> Path:
    """A client; without ``server`` no engine answers it."""
    answers = (
        'case "$*" in\n'
        f"'version --format {{{{.Server.Version}}}}') {f'echo {server}' if server else 'exit 1'} ;;\n"
        f"'version --format {{{{.Client.Version}}}}') echo {version} ;;\n"
        f"'buildx version') {'echo buildx v0.11.2' if buildx else 'exit 1'} ;;\n"
        "*) echo 'first line' >&2; echo 'the last word' >&2; exit 1 ;;\nesac"
    )
    return script(folder / name, answers)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_an_old_client_builds_with_buildkit(path: tuple[Path, Path]) -> None:
    docker = client(path[0], "20.10.24")
    engine = find_engine()
    assert (engine.builder, engine.client, engine.environment) == ("buildkit", str(docker), {"DOCKER_BUILDKIT": "1"})


@pytest.mark.parametrize("version", ["20.10.24", "28.2.2"])
def test_buildx_is_taken_where_it_is(path: tuple[Path, Path], version: str) -> None:
    client(path[0], version, buildx=True)
    assert find_engine().builder == "buildx"


def test_a_newer_client_without_buildx_has_the_legacy_builder_alone(path: tuple[Path, Path]) -> None:
    client(path[0], "28.2.2")
    engine = find_engine()
    assert (engine.builder, engine.environment) == ("legacy", {"DOCKER_BUILDKIT": "0"})
    with pytest.raises(UserError, match="BUILDER=buildkit does not work on this machine"):
        find_engine("buildkit")


def test_a_client_further_down_the_path_that_can_do_more_is_preferred(path: tuple[Path, Path]) -> None:
    client(path[0], "28.2.2")
    older = client(path[1], "20.10.24")
    assert (find_engine().builder, find_engine().client) == ("buildkit", str(older))


def test_a_client_without_an_engine_does_not_count(path: tuple[Path, Path]) -> None:
    client(path[0], "28.2.2", server="", buildx=True)
    podman = client(path[1], "4.3.1", server="4.3.1", name="podman")
    assert find_engine().client == str(podman)


def test_buildah_builds_where_no_engine_is(path: tuple[Path, Path]) -> None:
    client(path[0], "20.10.24", server="")
    script(path[0] / "buildah", "echo 'buildah version 1.28.2 (image-spec 1.1.0-rc2)'")
    engine = find_engine()
    assert (engine.builder, engine.version) == ("buildah", "1.28.2")


@pytest.mark.parametrize("builder", ["buildkit", "legacy", "buildah"])
def test_a_builder_can_be_insisted_on(path: tuple[Path, Path], builder: str) -> None:
    client(path[0], "20.10.24", buildx=builder != "buildkit")
    script(path[0] / "buildah", "echo buildah version 1.28.2")
    assert find_engine(builder).builder == builder
    with pytest.raises(UserError, match="BUILDER=kaniko is not known: give one of buildx, buildkit, legacy, buildah"):
        find_engine("kaniko")


def test_no_engine_is_one_sentence_with_the_way_out(path: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=r"no container engine is here.*apt-get install docker.io"):
        find_engine()
    client(path[0], "20.10.24", server="")
    with pytest.raises(UserError, match=r"does not answer: start it .*usermod"):
        find_engine()


@pytest.mark.parametrize(
    ("builder", "words", "stamped"),
    [
        ("buildx", ["buildx", "build", "--load", "--progress", "plain"], False),
        ("buildkit", ["build", "--progress", "plain"], False),
        ("legacy", ["build"], False),
        ("buildah", ["build", "--layers", "--timestamp", "7"], True),
    ],
)
def test_every_builder_gets_the_same_stage_tag_and_arguments(builder: str, words: list[str], stamped: bool) -> None:
    arguments = {"A": "1", "B": "x y"} | ({"SOURCE_DATE_EPOCH": "7"} if stamped else {})
    command = Engine(builder, "/bin/client", "").build_command(Path("docker/Dockerfile"), "base", "name:tag", arguments)
    assert command[: len(words) + 1] == ["/bin/client", *words]
    assert command[-1] == "."
    rest = command[len(words) + 1 : -1]
    assert rest[:6] == ["--file", "docker/Dockerfile", "--target", "base", "--tag", "name:tag"]
    given = [part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")]
    assert rest[6:] == given


def test_a_refusal_is_the_clients_own_last_word(path: tuple[Path, Path]) -> None:
    engine = Engine("legacy", str(client(path[0], "28.2.2")), "")
    with pytest.raises(UserError, match=r"`docker pull nothing` failed: the last word$"):
        engine.ask("pull", "nothing")
    assert engine.image_id("nothing") is None
    assert last_line("\n \n") == "it said nothing"

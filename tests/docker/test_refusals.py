"""A machine or a mount that will not do: one sentence, exit code 2, before any work is done."""

import json
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.types import Mount
from images import ROOT, SETTINGS, run_image

from tools.images.build import image_name
from tools.images.running import ORDINARY

USER = "{}:{}".format(*ORDINARY)
TMP = {"/tmp": "rw,mode=1777"}
EXPORT = ["pipeline", "export", "configs/tiny.yaml", *SETTINGS]


def runs(place: Path, owner: int = ORDINARY[0], mode: int = 0o755) -> Mount:
    """A folder for the results, that belongs to ``owner``."""
    import os

    place.mkdir()
    place.chmod(mode)
    if os.getuid() == 0:
        os.chown(place, owner, owner)
    return Mount("/work/runs", str(place), type="bind")


def refused(client: docker.DockerClient, **changes: Any) -> str:
    """What a job says that is refused."""
    code, said = run_image(client, image_name("train"), EXPORT, **changes)
    assert "Traceback" not in said
    assert code == 2, said
    return said


def test_a_missing_mount_is_named(client: docker.DockerClient) -> None:
    said = refused(client)
    assert said.startswith("error: no folder is mounted at /work/runs")
    assert said.count("\n") == 1


def test_a_missing_mount_is_named_by_a_plain_docker_run(client: docker.DockerClient) -> None:
    """Whose root can be written, so that the results would be made, and lost with the container."""
    code, said = run_image(client, image_name("train"), EXPORT, read_only=False, tmpfs={})
    assert code == 2, said
    assert said.startswith("error: no folder is mounted at /work/runs")


@pytest.mark.skipif(Path("/proc/self").stat().st_uid != 0, reason="only root makes folders of other users")
def test_a_folder_of_another_user_is_named_with_both(client: docker.DockerClient, tmp_path: Path) -> None:
    said = refused(client, mounts=[runs(tmp_path / "runs", owner=4321)], user=USER)
    assert said.startswith("error: user 10001 of the container cannot write to /work/runs, which belongs to user 4321")
    assert said.count("\n") == 1
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("lacking", [{"avx2"}, {"fma", "f16c"}])
def test_an_older_processor_is_told_what_it_lacks(
    client: docker.DockerClient, tmp_path: Path, lacking: set[str]
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    text = Path("/proc/cpuinfo").read_text()
    cpuinfo.write_text(
        "\n".join(" ".join(word for word in line.split(" ") if word not in lacking) for line in text.splitlines())
    )
    hidden = Mount("/proc/cpuinfo", str(cpuinfo), type="bind", read_only=True)
    said = refused(client, mounts=[hidden, runs(tmp_path / "runs", mode=0o777)], user=USER)
    assert said.startswith("error: this processor lacks ")
    assert set(said.partition(", which")[0].removeprefix("error: this processor lacks ").split(", ")) == lacking
    assert said.count("\n") == 1


# What is full when: nothing fits; some pictures do; the pictures and not the model; the model and not a checkpoint.
@pytest.mark.parametrize("size", ["0k", "200k", "20m", "42m"])
def test_a_full_disk_is_one_sentence(client: docker.DockerClient, size: str) -> None:
    limit = "size=4k,nr_inodes=1" if size == "0k" else f"size={size}"
    said = refused(client, tmpfs={**TMP, "/work/runs": f"uid=10001,gid=10001,{limit}"}, user=USER)
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "full" in error
    assert "run the same command again" in error
    assert said.splitlines()[-1] == error


def test_help_and_letterbox_need_no_folder(client: docker.DockerClient, tmp_path: Path) -> None:
    code, said = run_image(client, image_name("parity"), ["parity", "--help"])
    assert code == 0
    assert "judge" in said
    goldens = ROOT / "android_fixtures"
    photo = next(path for path in sorted(goldens.rglob("*")) if path.suffix in (".jpg", ".jpeg", ".png", ".webp"))
    mounted = Mount("/photos", str(photo.parent), type="bind", read_only=True)
    command = ["pipeline", "letterbox", f"/photos/{photo.name}", "/tmp/canvas.png"]
    code, said = run_image(client, image_name("train"), command, mounts=[mounted])
    assert code == 0, said
    assert said.startswith("/tmp/canvas.png: ")


def test_what_runs_is_the_images_own_llama_cpp(client: docker.DockerClient) -> None:
    """The shared libraries of the build, not of a wheel; with the flags that its manifest states."""
    script = (
        "import json, llama_cpp\n"
        "print(json.dumps([llama_cpp.llama_print_system_info().decode(), open('/proc/self/maps').read(),"
        " open('/opt/llama.cpp/manifest.json').read()]))"
    )
    code, said = run_image(client, image_name("parity"), ["/opt/venv/bin/python", "-c", script])
    assert code == 0, said
    info, maps, manifest = json.loads(said)
    loaded = {line.split()[-1] for line in maps.splitlines() if "libllama" in line or "libggml" in line}
    assert loaded
    assert all(path.startswith("/opt/llama.cpp/lib/") for path in loaded), loaded
    required = set(json.loads(manifest)["requires"]) - {"sse4_2"}  # which llama.cpp does not speak of
    assert required
    assert all(f"{name.upper()} = 1" in info for name in required), info

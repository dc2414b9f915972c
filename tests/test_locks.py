"""The locks are whole, say the same as pyproject.toml and each other, and name no place to fetch from."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from pipeline.core.pinned import read_lock
from tools.setup.machine import PYTHONS

ROOT = Path(__file__).parent.parent
# What differs between the two builds of torch.
TORCH_FAMILY = re.compile(r"torch|triton|nvidia-.*|cuda-.*")


def update():
    """``locks/update.py``, which is a script and no part of a package."""
    spec = importlib.util.spec_from_file_location("update", ROOT / "locks" / "update.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def direct_pins() -> dict[str, str]:
    """Name (as in a lock) -> version of every dependency of the project and its extras."""
    settings = project()["project"]
    lines = [
        *settings["dependencies"],
        *(line for extra in settings["optional-dependencies"].values() for line in extra),
    ]
    pins = dict(line.split("==") for line in lines)
    return {re.sub(r"[-_.]+", "-", name.partition("[")[0]).lower(): version for name, version in pins.items()}


@pytest.mark.parametrize("lock", ["cpu.txt", "cuda.txt", "train-cpu.txt", "train-cuda.txt", "build.txt", "smollm2.txt"])
def test_every_entry_has_hashes_and_no_address(lock):
    text = (ROOT / "locks" / lock).read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    entries = [line for line in lines if not line.startswith(" ")]
    assert len(entries) == len(read_lock(ROOT / "locks" / lock)) > 0
    assert all(
        re.fullmatch(r"[a-z0-9-]+==[a-z0-9.+]+( ; python_full_version [<>=]+ '[0-9.]+')? \\", line) for line in entries
    )
    assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in lines if line.startswith(" "))
    assert "://" not in text
    assert not re.search(r"--(find-links|index-url|extra-index-url|trusted-host)|[ =]/", text)


def test_both_environments_have_the_same_versions_but_for_torch():
    cpu, cuda = (
        {
            name: pin.version
            for name, pin in read_lock(ROOT / "locks" / lock).items()
            if not TORCH_FAMILY.fullmatch(name)
        }
        for lock in ("cpu.txt", "cuda.txt")
    )
    assert cpu == cuda


def test_only_the_cuda_lock_brings_cuda():
    cpu, cuda = read_lock(ROOT / "locks" / "cpu.txt"), read_lock(ROOT / "locks" / "cuda.txt")
    assert [name for name in cpu if TORCH_FAMILY.fullmatch(name)] == ["torch"]
    assert cpu["torch"].version == cuda["torch"].version + "+cpu"
    assert any(name.startswith("nvidia-") for name in cuda)


def test_the_locks_have_the_versions_that_the_project_pins():
    cuda = read_lock(ROOT / "locks" / "cuda.txt")
    assert {name: cuda[name].version for name in direct_pins()} == direct_pins()


def test_the_locks_and_the_setup_are_for_the_pythons_that_the_project_allows():
    settings = project()["project"]
    oldest, newest = PYTHONS[0], PYTHONS[-1]
    assert list(PYTHONS) == [(3, minor) for minor in range(oldest[1], newest[1] + 1)]
    assert settings["requires-python"] == f">=3.{oldest[1]},<3.{newest[1] + 1}"
    versions = [f"{major}.{minor}" for major, minor in PYTHONS]
    named = [line.rpartition(" ")[2] for line in settings["classifiers"] if ":: Python ::" in line]
    assert named == versions
    (environment,) = project()["tool"]["uv"]["environments"]
    assert f"python_full_version < '3.{newest[1] + 1}'" in environment
    assert list(update().CPU_TORCH_SHA256) == versions


@pytest.mark.parametrize("lock", ["cpu.txt", "train-cpu.txt"])
def test_torchs_cpu_build_is_locked_for_every_python(lock):
    torch = read_lock(ROOT / "locks" / lock)["torch"]
    assert set(re.findall(r"sha256:(\w+)", torch.text)) == set(update().CPU_TORCH_SHA256.values())
    assert len(set(update().CPU_TORCH_SHA256.values())) == len(PYTHONS)


def test_where_no_file_of_torchs_cpu_build_is_known_no_lock_is_written():
    of_another_file = f"{update().CPU_TORCH} \\\n    --hash=sha256:{'0' * 64}\n"
    with pytest.raises(SystemExit, match="state the new files there"):
        update().all_cpu_torch(of_another_file)
    found = f"{update().CPU_TORCH} \\\n    --hash=sha256:{update().CPU_TORCH_SHA256['3.11']}\nafter==1 \\\n"
    assert update().all_cpu_torch(found).count("--hash") == len(PYTHONS)
    assert update().all_cpu_torch(found).endswith("\nafter==1 \\\n")


def test_of_an_entrys_markers_only_those_stay_that_not_every_entry_has():
    (environment,) = project()["tool"]["uv"]["environments"]
    both = f"one==1 ; {environment} \\\ntwo==2 ; {environment} and python_full_version < '3.13' \\\n"
    assert update().without_environment(both) == "one==1 \\\ntwo==2 ; python_full_version < '3.13' \\\n"


def test_an_entry_with_a_marker_is_read_whole(tmp_path):
    text = f"one==1 ; python_full_version < '3.13' \\\n    --hash=sha256:{'0' * 64}\n"
    (tmp_path / "lock.txt").write_text(f"{text}two==2 \\\n    --hash=sha256:{'1' * 64}\n")
    pins = read_lock(tmp_path / "lock.txt")
    assert list(pins) == ["one", "two"]
    assert pins["one"].text == text


def test_the_build_backend_is_the_locked_one():
    assert project()["build-system"]["requires"] == [f"hatchling=={direct_pins()['hatchling']}"]


def test_gguf_comes_from_the_archive_and_not_from_the_index():
    assert "gguf" not in read_lock(ROOT / "locks" / "cpu.txt")


@pytest.mark.parametrize(
    ("part", "whole"), [("train-cpu.txt", "cpu.txt"), ("train-cuda.txt", "cuda.txt"), ("build.txt", "cpu.txt")]
)
def test_the_images_have_the_packages_of_the_environment_to_the_hash(part, whole):
    some, every = read_lock(ROOT / "locks" / part), read_lock(ROOT / "locks" / whole)
    assert {name: every[name].text for name in some} == {name: pin.text for name, pin in some.items()}
    assert len(some) < len(every)


def test_the_training_image_has_what_the_project_imports_and_no_tools():
    there = read_lock(ROOT / "locks" / "train-cpu.txt")
    dependencies = {re.split(r"==|\[", line)[0] for line in project()["project"]["dependencies"]}
    assert dependencies <= set(there)
    assert not {"pytest", "mypy", "ruff", "uv", "cmake", "ninja", "model-signing"} & set(there)

"""The programs that are copied out of the images: what they are, and that the phone's give this machine's results."""

import json
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from images import Running

from parity.results import read_results
from pipeline.contract import Contract
from pipeline.core.files import sha256_file
from tools.images.build import image_name


@pytest.fixture(scope="module")
def programs(client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """x86_64/ and aarch64/ of the artifacts image."""
    place = tmp_path_factory.mktemp("artifacts")
    container = client.containers.create(image_name("artifacts"), ["none"])
    try:
        for architecture in ("x86_64", "aarch64"):
            chunks, _ = container.get_archive(f"/{architecture}")
            subprocess.run(["tar", "-x", "-C", str(place)], input=b"".join(chunks), check=True)
        yield place
    finally:
        container.remove()


def elf(path: Path) -> tuple[int, set[int]]:
    """(machine, types of the program headers) of a 64-bit little-endian ELF file."""
    data = path.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01", path
    (machine,) = struct.unpack_from("<H", data, 18)
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    return machine, {struct.unpack_from("<I", data, offset + index * size)[0] for index in range(count)}


@pytest.mark.parametrize("name", ["llama-quantize", "llama-mtmd-cli", "parity-runner"])
def test_the_phones_programs_are_static_aarch64(programs: Path, name: str) -> None:
    machine, headers = elf(programs / "aarch64" / "bin" / name)
    assert machine == 183  # EM_AARCH64
    assert not {2, 3} & headers, "PT_DYNAMIC or PT_INTERP: it would look for libraries that a phone has not"


@pytest.mark.parametrize("name", ["llama-quantize", "llama-mtmd-cli", "llama-server", "parity-runner"])
def test_this_machines_programs_run_wherever_they_are_copied_to(programs: Path, name: str) -> None:
    program = programs / "x86_64" / "bin" / name
    assert elf(program)[0] == 62  # EM_X86_64
    linked = subprocess.run(["ldd", str(program)], stdout=subprocess.PIPE, text=True, check=True).stdout
    ours = [line.split()[2] for line in linked.splitlines() if "libggml" in line or "libllama" in line]
    assert ours
    assert all(Path(path).resolve().is_relative_to(programs.resolve()) for path in ours), linked


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_the_manifest_lists_every_file_and_what_it_was_made_from(programs: Path, architecture: str) -> None:
    folder = programs / architecture
    manifest = json.loads((folder / "manifest.json").read_text())
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert manifest["files"] == {
        path.relative_to(folder).as_posix(): sha256_file(path) for path in files if path.name != "manifest.json"
    }
    assert manifest["architecture"] == architecture
    assert manifest["flags"]["GGML_NATIVE"] == "OFF"
    assert manifest["requires"]


# ---- the phone's programs, run here by an emulator -------------------------------------------------------------------


@pytest.fixture(scope="module")
def emulated(programs: Path) -> list[str]:
    """The beginning of a command line that runs a program for aarch64."""
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if not emulator:
        pytest.skip("no emulator is here: `apt-get install qemu-user-static`")
    return [emulator, "-cpu", "max"]


def test_both_builds_say_that_they_are_the_pinned_llama_cpp(programs: Path, emulated: list[str]) -> None:
    for architecture, before in (("x86_64", []), ("aarch64", emulated)):
        command = [*before, str(programs / architecture / "bin" / "llama-mtmd-cli"), "--version"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        manifest = json.loads((programs / architecture / "manifest.json").read_text())
        assert f"commit {manifest['source']['llama_cpp_commit']}" in done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["F16", "Q4_K_M"])
def test_the_phones_quantizer_writes_the_same_bytes(
    programs: Path, emulated: list[str], trained: Running, tmp_path: Path, kind: str
) -> None:
    source = trained.run / "bundle" / "Tiny-Element-Q8_0.gguf"
    for architecture, before in (("x86_64", []), ("aarch64", emulated)):
        program = str(programs / architecture / "bin" / "llama-quantize")
        command = [*before, program, "--allow-requantize", str(source), str(tmp_path / architecture), kind, "2"]
        subprocess.run(command, capture_output=True, check=True)
    assert sha256_file(tmp_path / "x86_64") == sha256_file(tmp_path / "aarch64") != sha256_file(source)


def test_the_phones_program_answers_as_the_verdicts_side_did(
    programs: Path, emulated: list[str], trained: Running, judged: tuple[int, str]
) -> None:
    run = trained.run
    contract = Contract.model_validate_json((run / "bundle" / "contract.json").read_text())
    rows = read_results(run / "parity" / "llamacpp.results.jsonl").rows.values()
    records = json.loads((run / "dataset" / "test.json").read_text())
    pictures = {record["image_id"]: record["image_path"] for record in records}
    # One picture for each answer that was given.
    for row in {row.text: row for row in rows}.values():
        command = [
            *emulated, str(programs / "aarch64" / "bin" / "llama-mtmd-cli"),
            "--model", str(run / "bundle" / "Tiny-Element-Q8_0.gguf"),
            "--mmproj", str(run / "bundle" / "mmproj-Tiny-Element-Q8_0.gguf"),
            "--image", str(run / "dataset" / pictures[row.image_id]), "--prompt", contract.prompt,
            "--predict", str(contract.max_new_tokens), "--temp", "0", "--threads", "2",
            "--jinja", "--chat-template", "{{ messages[0]['content'] }}",  # which adds nothing to the prompt
        ]  # fmt: skip
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == row.text.strip()

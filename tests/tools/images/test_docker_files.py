"""The files in docker/: what every builder can build, what reaches an image, and what a container checks first."""

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tools.images.build import IMAGES, NAME, image_name
from tools.images.engine import Engine
from tools.images.repro import STAGES
from tools.images.running import STOP_SECONDS, RunOptions, container_command

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
ONLY_BUILDING = ("PIP_INDEX_URL", "TORCH_INDEX_URL", "DEBIAN_MIRROR", "DEBIAN_LOCKED")


@dataclass(frozen=True)
class Stage:
    name: str
    base: str
    instructions: list[tuple[str, str]]

    def arguments(self, instruction: str) -> list[str]:
        return [rest for word, rest in self.instructions if word == instruction]


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of the Dockerfile, continued lines joined."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in joined.splitlines() if line.strip()]


def stages() -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    for word, rest in instructions():
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            current = found[name] = Stage(name, base, [])
        elif found:
            current.instructions.append((word, rest))
    return found


def chain(name: str) -> list[Stage]:
    """A stage and all that it is made from."""
    known = stages()
    made = []
    while name in known:
        made.append(known[name])
        name = known[name].base
    return made


def test_the_stages_are_those_that_are_built_compared_and_documented() -> None:
    named = {"base", "llamacpp", "llamacpp-arm64", "python", "train", "parity", "artifacts"}
    assert named <= set(stages())
    assert set(IMAGES) | set(STAGES) == named


def test_the_oldest_builder_understands_every_instruction() -> None:
    assert {word for word, _ in instructions()} <= {
        *("ARG", "FROM", "COPY", "RUN", "ENV", "LABEL", "WORKDIR", "USER", "ENTRYPOINT", "CMD")
    }
    assert not re.search(r"(?m)^# *(syntax|escape|check) *=", DOCKERFILE), "a frontend of its own would be fetched"
    for word, rest in instructions():
        options = re.match(r"(--\S+ ?)*", rest)
        assert options
        assert word == "COPY" or not options[0], f"{word} {rest}"
        assert re.fullmatch(r"(--from=\S+ )?", options[0]), f"{word} {rest}"
        assert "<<" not in rest, f"{word} {rest}"


def test_the_legacy_builder_makes_no_stage_that_its_target_does_not_need() -> None:
    """It makes every stage above the target: so what the target needs must be all that is above it."""
    order = list(stages())
    for target in ("base", "train"):
        needed, todo = set(), [target]
        while todo:
            name = todo.pop()
            if name in order and name not in needed:
                needed.add(name)
                copied = [re.match(r"--from=(\S+)", rest) for rest in stages()[name].arguments("COPY")]
                todo += [stages()[name].base, *(found[1] for found in copied if found)]
        assert set(order[: order.index(target) + 1]) == needed


@pytest.mark.parametrize("image", IMAGES)
def test_no_image_that_is_run_is_made_from_a_stage_that_fetches(image: str) -> None:
    made = chain(image)
    assert made[-1].base == "scratch"
    for stage in made:
        assert not set(stage.arguments("ARG")) & {f"{name}=" for name in ONLY_BUILDING}, stage.name
        assert not any("inputs" in rest for word, rest in stage.instructions if word in ("COPY", "RUN")), stage.name


def test_an_edit_of_source_changes_nothing_but_the_last_layers() -> None:
    for name, stage in stages().items():
        copied = [rest for rest in stage.arguments("COPY") if re.match(r"(pipeline|parity|configs)/", rest)]
        assert bool(copied) == (name == "app"), name
    for name in ("app", "train", "parity"):
        assert stages()[name].arguments("RUN") == [], "a RUN there would be made again at each edit"


@pytest.mark.parametrize("image", ["train", "parity"])
def test_the_images_run_as_an_ordinary_user_with_the_projects_command(image: str) -> None:
    python = next(stage for stage in chain(image) if stage.name == "python")
    assert python.arguments("USER") == ["10001:10001"]
    entry = json.loads(python.arguments("ENTRYPOINT")[0])
    assert entry[-1] == "/opt/app/docker/entrypoint.py"
    expected = {"train": ["pipeline", "export"], "parity": ["parity", "run"]}[image]
    assert json.loads(stages()[image].arguments("CMD")[0]) == [*expected, "configs/tiny.yaml"]


@pytest.mark.parametrize("script", sorted(DOCKER.glob("*.sh")), ids=lambda path: path.name)
def test_every_script_is_one(script: Path) -> None:
    assert subprocess.run(["sh", "-n", str(script)], capture_output=True, check=False).stderr == b""
    text = script.read_text(encoding="utf-8")
    if not text.startswith("# Sourced"):
        assert text.startswith("#!/bin/sh\n")
        assert "\nset -eu\n" in text


def test_what_is_not_named_is_not_in_the_builds_context() -> None:
    """The rules; what an engine makes of them: tests/docker."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    taken = [rule[1:].rstrip("/") for rule in rules if rule.startswith("!")]
    assert not any(re.match(r"(\.git|\.venv|\.cache|runs|datasets|tests|bench|\*\*/?$)", rule) for rule in taken)


def test_the_first_build_needs_an_older_python_than_the_project() -> None:
    """`make docker-build` is for machines without Python 3.11, and the set-up says there that it is needed: all that
    the two import of the project parses on 3.9."""
    todo = [ROOT / "tools" / "setup" / "bootstrap.py", *(ROOT / "tools" / "images").glob("*.py")]
    seen: set[Path] = set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 9))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("pipeline", "tools")):
                todo.append(ROOT / f"{(node.module or '').replace('.', '/')}.py")
            if isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else ""
                given = {keyword.arg for keyword in node.keywords}
                assert not (called == "zip" and "strict" in given), f"{path}:{node.lineno}: zip's strict is 3.10's"
                assert not (called == "dataclass" and given & {"slots", "kw_only"}), f"{path}:{node.lineno}: 3.10's"
            if isinstance(node, ast.FunctionDef):
                annotated = ast.dump(ast.Module([node.args, *filter(None, [node.returns])], []))
                later = "from __future__ import annotations" in path.read_text(encoding="utf-8")
                assert later or "BitOr" not in annotated, f"{path}:{node.lineno}: X | Y is 3.10's"
        todo = [path for path in todo if path.is_file()]
    names = {path.relative_to(ROOT).as_posix() for path in seen}
    assert {
        "tools/setup/native.py",
        "tools/setup/bootstrap.py",
        "pipeline/core/files.py",
        "pipeline/core/errors.py",
    } < names
    assert len(names) > 12


def run_pytest(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_tests_that_need_an_engine_are_not_among_the_others() -> None:
    others = [f"--ignore={path}" for path in (ROOT / "tests").iterdir() if path.name not in ("docker", "conftest.py")]
    assert run_pytest("--collect-only", "tests", *others).returncode == 5, "no tests collected"
    assert run_pytest("--collect-only", "tests/docker", *others).returncode == 0


def test_the_tests_that_need_an_engine_fail_with_one_sentence_where_none_answers() -> None:
    done = run_pytest("tests/docker", DOCKER_HOST="tcp://localhost:1")
    assert done.returncode == 2
    assert "no container engine answers" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


# ---- the entry point -------------------------------------------------------------------------------------------------

CPUINFO = (
    "processor\t: 0\nmodel name\t: Some Processor\nflags\t\t: fpu sse4_2 avx avx2 bmi2 fma f16c avx512f\nbugs\t\t: x\n"
)


@pytest.fixture
def entrypoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docker/entrypoint.py, told that its files lie in ``tmp_path``."""
    spec = importlib.util.spec_from_file_location("entrypoint", DOCKER / "entrypoint.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "manifest.json").write_text(json.dumps({"requires": ["avx", "avx2"]}))
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    for name, file in {
        "MANIFEST": "manifest.json",
        "CPUINFO": "cpuinfo",
        "KEYS": "keys",
        "RUNS": "runs",
        "MOUNTS": "mounts",
    }.items():
        monkeypatch.setattr(module, name, tmp_path / file)
    return module


def test_missing_instruction_sets_are_found(entrypoint: ModuleType) -> None:
    assert entrypoint.missing_instructions(CPUINFO, ["sse4_2", "avx2", "f16c"]) == []
    assert entrypoint.missing_instructions(CPUINFO, ["avx", "amx_tile", "avx512"]) == ["amx_tile", "avx512"]
    assert entrypoint.missing_instructions("Features : asimd\n", ["avx"]) == ["avx"]


def test_the_compilers_instruction_sets_are_the_ones_that_are_checked() -> None:
    pins = dict(line.split("=", 1) for line in (DOCKER / "versions.env").read_text().splitlines() if "=" in line[1:])
    compiled = {flag.lower().replace("_", "") for flag in re.findall(r"-DGGML_(\w+)=ON", pins["LLAMA_FLAGS_X86_64"])}
    required = {name.replace("_", "") for name in shlex.split(pins["LLAMA_REQUIRES_X86_64"])[0].split()}
    assert compiled == required


def test_an_old_processor_is_told_what_it_lacks(
    entrypoint: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entrypoint.check_processor()
    (tmp_path / "cpuinfo").write_text(CPUINFO.replace(" avx2", ""))
    with pytest.raises(SystemExit) as caught:
        entrypoint.check_processor()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: this processor lacks avx2, which")


@pytest.mark.parametrize(("mounted", "good"), [("runs", True), ("", True), ("other", False), ("runs2", False)])
def test_results_need_a_mounted_folder(entrypoint: ModuleType, tmp_path: Path, mounted: str, good: bool) -> None:
    (tmp_path / "runs").mkdir()
    place = tmp_path / mounted if mounted else tmp_path
    lines = f"25 1 0:23 / / rw - overlay overlay rw\n26 25 8:1 /x {place} rw - ext4 /dev/sda rw\n"
    (tmp_path / "mounts").write_text(lines)
    if good:
        entrypoint.check_runs()
        assert list((tmp_path / "runs").iterdir()) == []
    else:
        with pytest.raises(SystemExit):
            entrypoint.check_runs()


def test_keys_become_variables(entrypoint: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entrypoint.take_keys()  # no file, no keys
    for name in ("FIRST_KEY", "SECOND_KEY"):
        monkeypatch.setenv(name, "old")
    (tmp_path / "keys").write_text("FIRST_KEY=a=b c\nSECOND_KEY=\n")
    entrypoint.take_keys()
    assert (os.environ["FIRST_KEY"], os.environ["SECOND_KEY"]) == ("a=b c", "")


def test_a_command_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, str(DOCKER / "entrypoint.py"), "no-such-program"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: no-such-program cannot be run: No such file or directory\n")


# ---- compose and bake ------------------------------------------------------------------------------------------------


@pytest.fixture
def run_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """(option, value) of what our own runner gives the engine; value "" for an option without one."""
    client = tmp_path / "docker"
    client.write_text("#!/bin/sh\necho sha256:123\n")
    client.chmod(0o755)
    kept = tmp_path / ".cache" / "docker" / "digests" / "123.json"
    kept.parent.mkdir(parents=True)
    kept.write_text('{"content_digest": "x"}')
    for name in ("TERM", "NO_COLOR", "OMP_WAIT_POLICY", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    engine = Engine("legacy", str(client), "")
    command, _ = container_command(tmp_path, engine, "train", RunOptions(), "IMAGE", [], ["--user", "10001:10001"])
    words = command[2 : command.index("IMAGE")]
    options = []
    for word in words:
        if word.startswith("--"):
            options.append([word, ""])
        else:
            options[-1][1] = word
    return options


def compose() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return data["services"]


@pytest.mark.parametrize("name", ["train", "parity"])
def test_compose_gives_the_rights_that_our_runner_gives(name: str, run_options: list[list[str]]) -> None:
    service = compose()[name]
    given = [
        ["--init", ""] if service["init"] else [],
        ["--read-only", ""] if service["read_only"] else [],
        *(["--cap-drop", value] for value in service["cap_drop"]),
        *(["--security-opt", value] for value in service["security_opt"]),
        ["--network", service["network_mode"]],
        *(["--tmpfs", value] for value in service["tmpfs"]),
        *(["--env", f"{key}={value}"] for key, value in service["environment"].items()),
        ["--stop-timeout", service["stop_grace_period"].removesuffix("s")],
        ["--user", re.sub(r"\$\{\w+:-(\d+)\}", r"\1", service["user"])],
    ]
    # Names and removal are compose's; which image it is, compose cannot tell; mounts are below.
    ours = [
        option for option in run_options
        if option[0] not in ("--name", "--rm", "--mount") and not option[1].startswith("PARITY_IMAGE=")
    ]  # fmt: skip
    assert sorted(given) == sorted(ours)
    assert str(STOP_SECONDS) in dict(ours)["--stop-timeout"]
    mounts = {value.split(",")[2].removeprefix("dst="): value.endswith(",readonly")
              for option, value in run_options if option == "--mount"}  # fmt: skip
    assert {volume["target"]: volume.get("read_only", False) for volume in service["volumes"]} == mounts
    assert all(volume["type"] == "bind" for volume in service["volumes"])


@pytest.mark.parametrize("name", ["train", "parity"])
def test_compose_builds_and_runs_what_the_project_does(name: str) -> None:
    service = compose()[name]
    build = service["build"]
    assert (DOCKER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).resolve() == DOCKER / "Dockerfile"
    assert build["target"] == name
    assert service["image"] == image_name(name)
    assert set(build["args"]) <= {"PIP_INDEX_URL", "TORCH_INDEX_URL", "DEBIAN_MIRROR"}
    default = json.loads(stages()[name].arguments("CMD")[0])
    assert [re.sub(r"\$\{\w+:-(\S+)\}", r"\1", word) for word in service["command"]] == default


def test_bake_builds_the_images_that_make_builds() -> None:
    bake = json.loads((DOCKER / "docker-bake.json").read_text())
    targets = bake["target"]

    def resolved(name: str) -> dict[str, Any]:
        found: dict[str, Any] = {"args": {}}
        for parent in targets[name].get("inherits", []):
            inherited = resolved(parent)
            arguments = found["args"] | inherited["args"]
            found |= inherited | {"args": arguments}
        own = {key: value for key, value in targets[name].items() if key != "inherits"}
        return found | own | {"args": found["args"] | own.get("args", {})}

    for torch, group in (("cpu", "default"), ("cuda", "cuda")):
        built = {resolved(name)["target"]: resolved(name) for name in bake["group"][group]["targets"]}
        assert set(built) == set(IMAGES) <= set(stages())
        for stage, target in built.items():
            assert target["tags"] == [image_name(stage, torch)]
            assert target["tags"][0].startswith(NAME)
            assert target["args"].get("TORCH_VARIANT", "cpu") == torch
            assert (ROOT / target["context"] / target["dockerfile"]).resolve() == DOCKER / "Dockerfile"
            declared = {rest.partition("=")[0] for word, rest in instructions() if word == "ARG"}
            assert set(target["args"]) <= declared
            named = set(re.findall(r"\$\{(\w+)\}", json.dumps(target)))
            assert named <= set(bake["variable"])

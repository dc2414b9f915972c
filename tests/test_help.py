"""The help pages of both programs, their versions, and the completion in a real shell."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import parity.cli
import pipeline.cli
from pipeline.core.pinned import PYTHON_PACKAGE, read_lock

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
APPS = {"parity": parity.cli.app, "pipeline": pipeline.cli.app}


def commands() -> Iterator[tuple[str, str, Any]]:
    for program, app in APPS.items():
        for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
            yield program, name, command


COMMANDS = [(program, name) for program, name, _ in commands()]


def help_of(program: str, *names: str, columns: int = 80) -> str:
    shown = CliRunner().invoke(APPS[program], [*names, "--help"], env={"COLUMNS": str(columns)}, prog_name=program)
    assert shown.exit_code == 0
    return shown.output


@pytest.mark.parametrize(("program", "name"), [*COMMANDS, ("parity", ""), ("pipeline", "")])
def test_no_line_of_it_is_cut_or_too_long_at_80_columns(program: str, name: str) -> None:
    lines = help_of(program, *filter(None, [name])).splitlines()
    assert [line for line in lines if len(line) > 80 or "…" in line or line != line.rstrip()] == []


def test_commands_are_in_groups_and_no_sentence_is_lost() -> None:
    for program, groups in {
        "parity": ["Options", "Run", "Judge", "Diagnose", "Release"],
        "pipeline": ["Options", "Make a bundle", "Look at a result", "Release"],
    }.items():
        page = help_of(program)
        assert re.findall(r"^(\w[\w ]*):$", page, re.MULTILINE) == groups
        words = " ".join(page.split())
        for _, name, command in (one for one in commands() if one[0] == program):
            sentence = command.help.partition(". ")[0].removesuffix(".")
            assert f"{name} {sentence}" in words
    assert re.findall(r"^(\w[\w .]*):$", help_of("parity", "check"), re.MULTILINE) == [
        "Arguments", "Model and app", "Pictures and answers", "llama.cpp", "Verdict", "Dividing a large run", "Options",
        "Examples",
    ]  # fmt: skip


def examples_of(program: str, name: str) -> list[str]:
    _, _, below = help_of(program, name).partition("\nExamples:\n")
    return [line.strip() for line in below.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_every_command_has_examples_that_it_takes(program: str, name: str) -> None:
    command = next(one for at, found, one in commands() if (at, found) == (program, name))
    found = examples_of(program, name)
    assert found
    for line in found:
        first, second, *words = shlex.split(line)
        assert (first, second) == (program, name)
        command.make_context(name, words)  # raises for an option that there is not


@pytest.mark.parametrize("program", APPS)
def test_versions(program: str) -> None:
    shown = CliRunner().invoke(APPS[program], ["--version"])
    pinned = read_lock(ROOT / "locks" / "cpu.txt")[PYTHON_PACKAGE].version
    commit = re.search(r"LLAMA_CPP_COMMIT=(\w{12})", (ROOT / "docker" / "versions.env").read_text())
    assert shown.exit_code == 0
    assert commit
    assert shown.output.splitlines() == [
        f"{program} {version('android-vlm-parity')}",
        f"llama.cpp {commit[1]} ({PYTHON_PACKAGE} {pinned})",
    ]


def in_bash(script: str) -> str:
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
    )
    return done.stdout


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("parity ru", ["run"]),
        ("parity s", ["sweep", "swap", "ship", "selftest", "sign"]),
        ("parity run --ray-", ["--ray-address", "--ray-cpus", "--ray-gpus"]),
        ("pipeline ex", ["export"]),
        ("pipeline verify --pub", ["--public-key"]),
    ],
)
def test_bash_completes_commands_and_options(line: str, offered: list[str]) -> None:
    """As bash does it: the script that ``--show-completion`` prints names a function, which is asked."""
    words = line.split()
    script = f"""
        eval "$({words[0]} --show-completion)"
        read -ra spec <<< "$(complete -p {words[0]})"
        for ((i = 0; i < ${{#spec[@]}}; i++)); do [ "${{spec[i]}}" = -F ] && function=${{spec[i + 1]}}; done
        COMP_WORDS=({line}) COMP_CWORD={len(words) - 1}
        COMP_LINE='{line}' COMP_POINT={len(line)}
        $function {words[0]} {words[-1]} {words[-2]}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    assert sorted(in_bash(script).split()) == sorted(offered)


def test_completion_is_installed_for_the_shell(tmp_path: Path) -> None:
    assert {"--install-completion", "--show-completion"} <= set(help_of("parity").split())
    in_bash(f"export HOME={tmp_path}; parity --install-completion; true")
    assert "parity" in (tmp_path / ".bashrc").read_text()

"""The documentation as the tests read it: its pages, their blocks, and the commands in them, held against the real
command lines, Makefile and recipes."""

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import typer

from parity.cli import app as parity
from pipeline.cli import app as pipeline
from pipeline.core.pinned import RUNNER
from pipeline.recipe import load_recipe

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted((DOCS / "reference").glob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
GROUPS: dict[str, Any] = {"parity": typer.main.get_command(parity), "pipeline": typer.main.get_command(pipeline)}
OTHERS = {"adb", "openssl"}
"""Programs that are not the project's."""
RUNNER_OPTIONS = set(
    re.findall(r'^ *"  (--[\w-]+)', (ROOT / "android_fixtures" / "runner" / "main.cpp").read_text(), re.MULTILINE)
)
RECIPE_JOBS = {
    "parity",
    "parity-swap",
    "parity-sweep",
    "parity-ship",
    "parity-selftest",
    "docker-train",
    "docker-parity",
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, kind: str) -> list[str]:
    """What stands between fences of ``kind`` (sh, yaml, json, python)."""
    return [text for found, text in FENCE.findall(text_of(page)) if found == kind]


def spans(page: Path) -> list[str]:
    """Code within sentences and tables."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text_of(page)))]


def commands(text: str) -> list[list[str]]:
    """The words of each command of a shell block."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word not in ("&&", "||"):
                words.append(word)
            elif words:
                found.append(words)
                words = []
    return [words for words in found if words != ["true"]]


def options(program: str, name: str) -> set[str]:
    """All option names of a sub-command."""
    return {opt for one in GROUPS[program].commands[name].params for opt in (*one.opts, *one.secondary_opts)} | {
        "--help"
    }


def fault(words: list[str]) -> str | None:
    """Why a command cannot be run as it is written, or None."""
    program, *rest = words
    name = program.removeprefix(".venv/bin/")
    if program == "make":
        return _make_fault(rest)
    if name in GROUPS and program != name:
        return _program_fault(name, rest)
    if program in ("python3", "python") and rest[:1] == ["-m"]:
        return None if importlib.util.find_spec(rest[1]) else f"there is no module {rest[1]}"
    if program == f".cache/{RUNNER}/{RUNNER}":
        unknown = {word for word in rest if word.startswith("--")} - RUNNER_OPTIONS
        return f"{RUNNER} has no {' '.join(unknown)}" if unknown else None
    return None if program in OTHERS else f"{program} is no program of the project"


def _make_fault(words: list[str]) -> str | None:
    given = dict(word.split("=", 1) for word in words if "=" in word)
    targets = [word for word in words if "=" not in word]
    for target in targets:
        if not re.search(rf"^{target}:", MAKEFILE, re.MULTILINE):
            return f"make has no target {target}"
    for variable in given:
        if not re.search(rf"\$\({variable}\)|^(export|#).*\b{variable}\b", MAKEFILE, re.MULTILINE):
            return f"the Makefile does not use {variable}"
    if RECIPE_JOBS & set(targets):
        return _recipe_fault(given.get("RECIPE", "configs/tiny.yaml"), [given.get("SET", "")])
    return None


def _program_fault(name: str, words: list[str]) -> str | None:
    if words == ["--help"]:
        return None
    command = GROUPS[name].commands.get(words[0])
    if command is None:
        return f"{name} has no command {words[0]}"
    try:
        context = command.make_context(words[0], words[1:])
    except Exception as error:
        return str(error) or type(error).__name__
    if (recipe := context.params.get("recipe")) is not None:
        return _recipe_fault(str(recipe), context.params.get("assignments") or [])
    return None


def _recipe_fault(path: str, assignments: list[str]) -> str | None:
    try:
        load_recipe(ROOT / path.strip('"'), tuple(filter(None, assignments)))
    except Exception as error:
        return str(error)
    return None


def span_fault(span: str) -> str | None:
    """As :func:`fault` for code within a sentence, which may be a part of a command."""
    words = span.split()
    name = words[0].removeprefix(".venv/bin/")
    if words[0] == "make" and len(words) > 1:
        return _make_fault(shlex.split(span)[1:])
    if name in GROUPS and len(words) > 1 and not words[1].startswith("-"):
        if words[1] not in GROUPS[name].commands:
            return f"{name} has no command {words[1]}"
        unknown = {word for word in words if word.startswith("-")} - options(name, words[1])
        return f"{name} {words[1]} has no {' '.join(unknown)}" if unknown else None
    if words[0].startswith("--"):
        known = {opt for name, group in GROUPS.items() for sub in group.commands for opt in options(name, sub)}
        known |= RUNNER_OPTIONS
        unknown = {word.rstrip(",") for word in words if word.startswith("--")} - known
        return f"no command has {' '.join(unknown)}" if unknown else None
    return None


def slug(heading: str) -> str:
    """The anchor that GitHub, and mkdocs, give a heading."""
    plain = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", plain))


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(page)), re.MULTILINE)}


def links(page: Path) -> list[str]:
    """Targets of links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(page)))

"""What ``--help`` shows: commands in groups and whole sentences, options in groups, examples, versions. Plain text.

Groups are the ``rich_help_panel`` of commands and options. Typer's own rich pages cut options and words at 80 columns,
its plain ones cut a command's sentence; these cut nothing.
"""

import inspect
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

METAVARS = {
    "<int range>": "N",
    "<int>": "N",
    "<float range>": "X",
    "<float>": "X",
    "<str>": "TEXT",
    "<list[str]>": "TEXT",
    "<path>": "PATH",
    "<list[Path]>": "PATH",
}
"""Typer's name of an option's type -> what stands for its value."""
UNBROKEN = "\u2011"
"""A hyphen at which no line is broken."""
PROJECT = "android-vlm-parity"


def examples(*commands: str) -> str:
    """An epilog: commands that can be copied, each on lines of its own."""
    return "Examples:\n" + "\n".join(commands)


def _write_epilog(epilog: str | None, formatter: Any) -> None:
    """Examples as they are typed, and any other epilog as a paragraph."""
    if not epilog:
        return
    head, _, lines = inspect.cleandoc(epilog).partition("\n")
    if head != "Examples:":
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(" ".join([head, lines]))
        return
    with formatter.section("Examples"):
        for line in lines.splitlines():
            formatter.write(f"  {line}\n")


def _write_groups(rows: Iterable[tuple[str, str, str]], formatter: Any) -> None:
    """(group, name, text) as one list a group, in the order in which the groups come."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for group, name, text in rows:
        # Names such as no-gpu and runs/check-MODEL stay whole.
        groups.setdefault(group, []).append((name, text.replace("-", UNBROKEN)))
    begin = len(formatter.buffer)
    for group, listed in groups.items():
        with formatter.section(group):
            formatter.write_dl(listed)
    formatter.buffer[begin:] = [part.replace(UNBROKEN, "-") for part in formatter.buffer[begin:]]


def _options(command: Any, context: Any) -> Iterable[tuple[str, str, str]]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None:
            continue
        name, text = record
        if parameter.param_type_name == "argument":
            yield "Arguments", name.partition(" <")[0].upper(), text
            continue
        for long, short in METAVARS.items():
            name = name.replace(long, short)
        yield parameter.rich_help_panel or "Options", name, text


class Command(TyperCommand):
    """A command with its options in groups and its examples at the end."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments and options."""
        _write_groups(_options(self, ctx), formatter)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Arguments in capitals, as the texts name them; a metavar of several words says how many there are."""
        pieces = (piece.replace("{", "").replace("}", "").upper() for piece in super().collect_usage_pieces(ctx))
        return [piece.removesuffix("...") if " " in piece else piece for piece in pieces]

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples."""
        _write_epilog(self.epilog, formatter)


class Commands(TyperGroup):
    """A program: its commands in groups, each with its first sentence whole."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The commands."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        shown = [(name, command) for name, command in commands if command and not command.hidden]
        _write_groups(
            (
                (getattr(command, "rich_help_panel", None) or "Commands", name, first_sentence(command.help or ""))
                for name, command in shown
            ),
            formatter,
        )

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Exit codes."""
        _write_epilog(self.epilog, formatter)


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence."""
    return " ".join(text.split()).partition(". ")[0].removesuffix(".")


def version_flag(program: str) -> Any:
    """The option ``--version``."""

    def show(wanted: bool) -> None:
        if wanted:
            typer.echo("\n".join(version_lines(program)))
            raise typer.Exit

    return typer.Option("--version", callback=show, is_eager=True, help="Show the versions and exit.")


def version_lines(program: str) -> list[str]:
    """The project's version and the llama.cpp that answers are given with."""
    from pipeline.core.pinned import pinned_llama_cpp
    from pipeline.core.toolchain import ROOT, other_llama_cpp

    try:
        own = version(PROJECT)
    except PackageNotFoundError:  # run from a checkout that is not installed
        own = "(not installed)"
    other = other_llama_cpp()
    return [f"{program} {own}", f"llama.cpp {other} (in place of {pinned_llama_cpp(ROOT)})" if other
            else f"llama.cpp {pinned_llama_cpp(ROOT)}"]  # fmt: skip

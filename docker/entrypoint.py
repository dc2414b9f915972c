"""What each container does first: check that the processor and the mounted folders will do, then run the command.

    pipeline ... | parity ...   the project's commands
    anything else               run as it is (bash, llama-mtmd-cli)

Exit code 2 and one sentence where something is amiss, as everywhere in the project.
"""

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

MANIFEST = Path("/opt/llama.cpp/manifest.json")
CPUINFO = Path("/proc/cpuinfo")
RUNS = Path("/work/runs")
MOUNTS = Path("/proc/self/mountinfo")
KEYS = Path("/run/secrets/keys")
EXIT_USAGE = 2
COMMANDS = {"pipeline": "pipeline.cli", "parity": "parity.cli"}
WITHOUT_RUNS = {"judge", "letterbox", "verify", "--help"}


def fail(sentence: str) -> NoReturn:
    """End with the sentence."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(EXIT_USAGE)


def missing_instructions(cpuinfo: str, required: list[str]) -> list[str]:
    """Which of ``required`` the processor described by the text of /proc/cpuinfo lacks."""
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    there = set(flags[1].split()) if flags else set()
    return [name for name in required if name not in there]


def check_processor() -> None:
    """llama.cpp is compiled for these instruction sets; without them it would die of an illegal instruction."""
    required = json.loads(MANIFEST.read_text(encoding="utf-8"))["requires"]
    missing = missing_instructions(CPUINFO.read_text(encoding="utf-8"), required)
    if missing:
        fail(
            f"this processor lacks {', '.join(missing)}, which the image's llama.cpp is compiled for: use a newer"
            " machine, or take the flags out of docker/versions.env and build the image again"
        )


def check_runs() -> None:
    """Results go to a folder of the host's, which the container's user must be allowed to write."""
    mounted = {line.split()[4] for line in MOUNTS.read_text(encoding="utf-8").splitlines()}
    if not mounted & {str(RUNS), str(RUNS.parent)}:  # else the results would go with the container
        fail(f"no folder is mounted at {RUNS} for the results: add --mount type=bind,src=$PWD/runs,dst={RUNS}")
    try:
        with tempfile.TemporaryFile(dir=RUNS) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        if error.errno == 28:  # ENOSPC
            fail(f"the disk under {RUNS} is full: free some space and run the same command again")
        owner = RUNS.stat().st_uid
        fail(
            f"user {os.getuid()} of the container cannot write to {RUNS}, which belongs to user {owner}: run it with"
            f" --user {owner}, or give the folder to the other (chown)"
        )


def take_keys() -> None:
    """Set the variables of the mounted file of keys, which no one else sees there."""
    if not KEYS.exists():
        return
    try:
        lines = KEYS.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        fail(f"{KEYS} cannot be read by user {os.getuid()} of the container: {error.strerror}")
    for line in lines:
        name, _, value = line.partition("=")
        os.environ[name] = value


def main() -> NoReturn:
    """Check, then become the command."""
    command = sys.argv[1:] or ["bash"]
    take_keys()
    if command[0] in COMMANDS:
        check_processor()
        if len(command) > 1 and not WITHOUT_RUNS & set(command):
            check_runs()
        command = ["/opt/venv/bin/python", "-m", COMMANDS[command[0]], *command[1:]]
    try:
        os.execvp(command[0], command)
    except OSError as error:
        fail(f"{command[0]} cannot be run: {error.strerror}")


if __name__ == "__main__":
    main()

"""How a command ends: one sentence and the documented exit code, whatever happens in it and to what it prints."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
BEGIN = """
import errno, os, sys, time
from pipeline.core.commandline import run
from pipeline.core.errors import CheckFailed, NotReleased, UserError
"""


def ended(body: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """What becomes of a command that does ``body``."""
    code = BEGIN + "def command():\n" + "".join(f"    {line}\n" for line in body.splitlines()) + "run(command)\n"
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env=environment, **options)


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("pass", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("raise UserError('no such label: say which')", 2, "error: no such label: say which\n"),
        ("raise CheckFailed('the adapter was dropped')", 1, "failed: the adapter was dropped\n"),
        ("raise NotReleased('the verdict is FAIL', 1)", 1, "not released: the verdict is FAIL\n"),
        ("raise KeyboardInterrupt", 130, "interrupted: run the same command again to go on\n"),
        ("sys.exit(130)", 130, "interrupted: run the same command again to go on\n"),
        ("raise OSError(errno.ENOSPC, 'x')", 2, "error: the disk is full: free some space and run"),
        ("raise RuntimeError('a') from OSError(errno.EDQUOT, 'x')", 2, "error: the disk is full"),
        ("raise MemoryError", 2, "error: there is not enough memory"),
        ("open('/proc/version/none')", 2, "error: /proc/version/none cannot be used: Not a directory; choose another"),
        ("os.mkdir('a' * 300)", 2, "File name too long"),
        (
            "import numpy; from safetensors.numpy import save_file; save_file({'a': numpy.ones(1)}, 'a' * 300)",
            2,
            "a model's folder cannot be used: File name too long; choose another place",
        ),
    ],
)
def test_each_end_has_its_code_and_its_sentence(tmp_path: Path, body: str, code: int, said: str) -> None:
    found = ended(body, cwd=tmp_path)
    assert (found.returncode, found.stdout) == (code, b"")
    assert said in found.stderr.decode()
    assert found.stderr.count(b"\n") == (1 if said else 0)


def test_a_bug_is_called_one_and_leaves_a_file(tmp_path: Path) -> None:
    found = ended("{}['truth']", env={"TMPDIR": str(tmp_path)})
    assert found.returncode == 70
    (details,) = tmp_path.iterdir()
    line = found.stderr.decode()
    assert line.startswith("error: this is a bug of this program (KeyError in <string> line ")
    assert str(details) in line
    assert line.count("\n") == 1
    text = details.read_text()
    assert "Traceback" in text
    assert "KeyError: 'truth'" in text
    assert "python: 3." in text


def test_a_bug_without_a_place_for_a_file_is_told_on_the_screen(tmp_path: Path) -> None:
    found = ended("import tempfile; tempfile.tempdir = '/proc/none'; {}['truth']")
    assert found.returncode == 70
    assert b"KeyError: 'truth'" in found.stderr
    assert b"with the lines above" in found.stderr


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_reader_that_goes_away_changes_no_exit_code(code: int) -> None:
    body = f"for n in range(100_000): print(n)\nprint('last', file=sys.stderr)\nsys.exit({code})"
    script = BEGIN + "def command():\n" + "".join(f"    {line}\n" for line in body.splitlines()) + "run(command)\n"
    pipeline = '"$0" -c "$1" | head -1; echo "${PIPESTATUS[0]}"'
    command = ["bash", "-c", pipeline, sys.executable, script]
    found = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert found.stdout.split() == ["0", str(code)]
    assert found.stderr == "last\n"


def test_output_that_is_closed_or_full(tmp_path: Path) -> None:
    script = BEGIN + f"run(lambda: (print('x'), open({str(tmp_path / 'f')!r}, 'w').write('y'), os.write(1, b'z')))\n"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for redirected, code in ((">&-", 0), (">&- 2>&- <&-", 0), (">/dev/full", 2)):
        command = ["bash", "-c", f'"$0" -c "$1" {redirected}', sys.executable, script]
        found = subprocess.run(command, capture_output=True, check=False, env=environment)
        assert found.returncode == code, found.stderr
        assert b"Traceback" not in found.stderr
        assert (tmp_path / "f").read_text() == "y", "what is printed goes into no file that was opened"


def test_a_name_that_is_not_utf_8_is_shown() -> None:
    found = ended(r"print(os.fsdecode(b'\xff.jpg')); raise UserError(os.fsdecode(b'\xfe.jpg'))")
    assert found.returncode == 2
    assert found.stdout == b"\\udcff.jpg\n"
    assert found.stderr == b"error: \\udcfe.jpg\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_interrupt(number: signal.Signals, tmp_path: Path) -> None:
    script = BEGIN + "run(lambda: (print('ready', flush=True), time.sleep(60)))\n"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, b"interrupted: run the same command again to go on\n")


IN_A_CALLBACK = """
import ctypes
libc = ctypes.CDLL(None)
kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
numbers = (ctypes.c_int * 200)(*range(200))

def slow(a, b):
    end = time.monotonic() + 0.002  # many bytecodes, at each of which a signal may be seen
    while time.monotonic() < end:
        pass
    return 0

def work():
    print('ready', flush=True)
    libc.qsort(numbers, 200, ctypes.sizeof(ctypes.c_int), kind(slow))
    time.sleep(60)

run(work)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_inside_a_callback_of_c_code_is_not_lost(number: signal.Signals) -> None:
    """ctypes cannot raise through the C code that called back, as llama.cpp's log and graph do."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + IN_A_CALLBACK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=50)
    assert (process.returncode, errors) == (130, b"interrupted: run the same command again to go on\n")


def test_a_signal_after_the_work_changes_no_exit_code() -> None:
    script = (
        BEGIN + "import atexit; atexit.register(lambda: (print('ready', flush=True), time.sleep(1)))\nrun(lambda: 0)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    script = BEGIN + "run(lambda: (print('ready', flush=True), time.sleep(1), print('done')))\n"
    command = ["nohup", sys.executable, "-c", script]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGHUP)
        assert process.stdout.read() == b"done\n"
    assert process.returncode == 0

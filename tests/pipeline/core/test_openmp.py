"""Waiting threads spin on an idle machine and sleep where cores are shared; one's own settings are not overruled."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core import openmp
from pipeline.core.openmp import BUSY_CORES, OWN, Choice, busy_cores, by_load, decide, quota, settle

SLEEPS = {"GOMP_SPINCOUNT": "1000"}


def stat(*cores: tuple[int, int, int, int]) -> str:
    """/proc/stat of cores with so many hundredths of user, nice, idle and steal."""
    lines = [f"cpu{number} {user} {nice} 0 {idle} 7 0 0 {steal} 0 0" for number, (user, nice, idle, steal) in
             enumerate(cores)]  # fmt: skip
    return "\n".join(["cpu  1 2 3 4 5 6 7 8 9 10", *lines, "intr 1 2 3", "ctxt 5"]) + "\n"


@pytest.mark.parametrize(
    ("after", "cores", "busy"),
    [
        (stat((100, 0, 140, 0), (100, 0, 140, 0)), {0, 1}, 0.0),
        (stat((140, 0, 100, 0), (100, 0, 140, 0)), {0, 1}, 1.0),
        (stat((140, 0, 100, 0), (110, 0, 130, 0)), {0, 1}, 1.25),
        (stat((100, 40, 100, 0), (100, 0, 100, 40)), {0, 1}, 2.0),
        (stat((140, 0, 100, 0), (100, 0, 140, 0)), {1}, 0.0),
        (stat((100, 0, 100, 0), (100, 0, 100, 0)), {0, 1}, 0.0),
        ("", {0, 1}, 0.0),
    ],
    ids=["idle", "one", "one and a quarter", "nice and steal", "not ours", "no tick", "unreadable"],
)
def test_the_load_is_that_of_the_cores_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str, cores: set[int], busy: float
) -> None:
    (tmp_path / "stat").write_text(stat((100, 0, 100, 0), (100, 0, 100, 0)))
    monkeypatch.setattr(time, "sleep", lambda seconds: (tmp_path / "stat").write_text(after))
    assert busy_cores(cores, proc=tmp_path) == pytest.approx(busy)


def test_a_system_without_proc_counts_as_idle(tmp_path: Path) -> None:
    assert busy_cores({0}, 0, tmp_path) == 0.0


GROUPS = {
    "none": ({"proc/self/cgroup": "0::/\n"}, None),
    "no groups at all": ({}, None),
    "v2": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
    "v2 without limit": ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, None),
    "v2, tightest above": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
            "sys/fs/cgroup/cpu.max": "200000 100000\n",
        },
        0.5,
    ),
    "v1 in a container": (
        {
            "proc/self/cgroup": "5:memory:/docker/f00\n4:cpu,cpuacct:/docker/f00\n1:name=systemd:/docker/f00\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        3.0,
    ),
    "v1 without limit": (
        {
            "proc/self/cgroup": "4:cpu:/x\n0::/x\n",
            "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
        },
        None,
    ),
}


@pytest.mark.parametrize("case", GROUPS)
def test_the_quota_of_the_control_groups(tmp_path: Path, case: str) -> None:
    files, cores = GROUPS[case]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert quota(tmp_path) == cores


@pytest.mark.parametrize("name", OWN)
def test_ones_own_setting_is_not_overruled(name: str) -> None:
    """Not even by a quota, nor where it is empty of sense."""
    assert decide({name: "7"}, 8, 2, 0.5) == Choice({}, f"{name}=7 is given")


@pytest.mark.parametrize(
    ("allowed", "limit", "words"),
    [
        (8, None, None),
        (8, 8.0, None),
        (8, 1.5, "a quota of 1.5 cores is shared by threads on 8"),
        (2, None, "this program may use 2 of 8 cores"),
    ],
)
def test_a_part_of_the_machine_is_shared(allowed: int, limit: float | None, words: str | None) -> None:
    found = decide({}, 8, allowed, limit)
    assert found == (Choice(SLEEPS, words) if words else None)


def test_idle_cores_are_left_to_spin_and_busy_ones_are_not() -> None:
    assert by_load(BUSY_CORES - 0.01, 2).environment == {}
    busy = by_load(0.9, 2)
    assert busy.environment == SLEEPS
    assert str(busy) == (
        "other programs keep 0.9 of 2 cores busy: waiting threads sleep (GOMP_SPINCOUNT=1000); OMP_WAIT_POLICY or"
        " GOMP_SPINCOUNT overrides"
    )


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has chosen nothing yet, on a machine of its own, and that has loaded nothing."""
    monkeypatch.setattr(openmp, "_settled", [])
    monkeypatch.setattr(openmp, "quota", lambda: None)
    monkeypatch.setattr(os, "cpu_count", lambda: len(os.sched_getaffinity(0)))
    for name in ("torch", "llama_cpp"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in OWN:
        monkeypatch.setenv(name, "restored")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("fresh")
def test_settled_once_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads, said = [2.0, 0.0], list[tuple[str, str]]()
    monkeypatch.setattr(openmp, "busy_cores", lambda cores: loads.pop(0))
    assert openmp.settled() == {}
    for _ in range(2):
        assert settle(lambda *words: said.append(words)).environment == SLEEPS
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    assert [stage for stage, _ in said] == ["threads"]
    cores = len(os.sched_getaffinity(0))
    assert openmp.settled() == {"reason": f"other programs keep 2.0 of {cores} cores busy"} | SLEEPS


@pytest.mark.usefixtures("fresh")
def test_the_default_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[tuple[str, str]]()
    monkeypatch.setattr(openmp, "busy_cores", lambda cores: 0.0)
    assert settle(lambda *words: said.append(words)).environment == {}
    assert "GOMP_SPINCOUNT" not in os.environ
    assert said == []


@pytest.mark.usefixtures("fresh")
def test_too_late_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    assert settle() == Choice({}, "torch was loaded before")


@pytest.fixture
def every_core_busy() -> Iterator[None]:
    """A process on each core that this one may use, working until the test is over."""
    started = []
    try:
        for core in os.sched_getaffinity(0):
            spin = f"import os; os.sched_setaffinity(0, {{{core}}})\nprint(flush=True)\nwhile True: pass"
            started.append(subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE))
        for process in started:
            assert process.stdout
            process.stdout.readline()
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()
            assert process.stdout
            process.stdout.close()


@pytest.mark.usefixtures("every_core_busy")
def test_a_busy_machine_is_seen() -> None:
    cores = os.sched_getaffinity(0)
    assert busy_cores(cores) > 0.8 * len(cores)  # measured 1.0, whatever else runs beside it


@pytest.mark.parametrize("library", ["torch", "llama_cpp"])
@pytest.mark.usefixtures("every_core_busy")
def test_on_a_busy_machine_the_libraries_heed_it(library: str) -> None:
    # GNU's OpenMP says what it read when it is loaded: torch brings one of its own, llama.cpp takes the system's.
    code = f"from pipeline.core.openmp import settle; settle()\nimport {library}"
    environment = {name: value for name, value in os.environ.items() if name not in OWN}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | {"OMP_DISPLAY_ENV": "VERBOSE"}, capture_output=True, text=True,
        check=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert "GOMP_SPINCOUNT = '1000'" in done.stderr


COMMANDS = [
    *(["pipeline.cli", name] for name in ("dataset", "base", "train", "merge", "export", "evaluate")),
    *(["parity.cli", name] for name in ("run", "hf", "llamacpp", "swap", "selftest", "sweep", "ship")),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[1])
def test_every_command_settles_before_it_loads_what_heeds_it(tmp_path: Path, command: list[str]) -> None:
    module, name = command
    code = (
        "import sys\nfrom pipeline.core import openmp\n"
        "def stop(say): print(sorted({'torch', 'llama_cpp'} & sys.modules.keys())); sys.exit(0)\n"
        f"openmp.settle = stop\nfrom {module} import main\nmain()"
    )
    arguments = [name, "configs/tiny.yaml", "--runs", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr

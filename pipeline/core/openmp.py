"""How long OpenMP's waiting threads spin, by how busy the machine is when work begins.

torch and llama.cpp divide every layer between threads that wait for one another. GNU's OpenMP lets a waiting thread
spin for some milliseconds before it sleeps, which is quickest where each thread has a core to itself. Where another
program wants the same cores, or a quota is counted in seconds of CPU, the spinning takes the time that the thread
waited for needs. No one setting is good at both (docs/large-runs.md has the figures), so that the entry
points of whatever works call :func:`settle`, before torch or llama.cpp is loaded: both read the environment then.

Processes started from here inherit what was chosen. A machine that gets busy later is not noticed.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

SPIN_COUNT = "1000"
"""``GOMP_SPINCOUNT`` where cores are shared; by default it is 300,000 (libgomp/env.c)."""
OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Variables that decide the same; whoever sets one is not overruled."""
BUSY_CORES = 0.4
"""Cores kept busy by others from which on cores count as shared. An idle machine's own housekeeping is below 0.1."""
SAMPLE_SECONDS = 0.4
"""The kernel counts in hundredths, so that one core's share is known to a fortieth."""


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why."""

    environment: dict[str, str]
    """To be set; empty: the default, or what is there already."""
    reason: str
    """Some words, such as ``other programs keep 0.9 of 2 cores busy``."""

    def __str__(self) -> str:
        chosen = ", ".join(f"{name}={value}" for name, value in self.environment.items())
        return f"{self.reason}: waiting threads sleep ({chosen}); {' or '.join(OWN)} overrides" if chosen else ""


_settled: list[Choice] = []


def settle(say: Callable[[str, str], None] | None = None) -> Choice:
    """Choose for this process and those it starts, once; later calls return the same.

    ``say`` gets ``threads`` and a sentence where something other than the default was chosen. Takes
    :data:`SAMPLE_SECONDS`.
    """
    if not _settled:
        _settled.append(_choose())
        os.environ |= _settled[0].environment
        if say and str(_settled[0]):
            say("threads", str(_settled[0]))
    return _settled[0]


def settled() -> dict[str, str]:
    """What a record says of the choice: ``reason`` and the variables set; empty where none was made."""
    return {"reason": choice.reason} | choice.environment if (choice := next(iter(_settled), None)) else {}


def _choose() -> Choice:
    loaded = {"torch", "llama_cpp"} & sys.modules.keys()
    if loaded:  # and what they start is to be as they are
        return Choice({}, f"{min(loaded)} was loaded before")
    allowed = os.sched_getaffinity(0)
    known = decide(os.environ, os.cpu_count() or 1, len(allowed), quota())
    return known or by_load(busy_cores(allowed), len(allowed))


def decide(environment: Mapping[str, str], machine: int, allowed: int, quota: float | None) -> Choice | None:
    """What follows without looking at the load; None where nothing does.

    ``machine``: cores of the machine; ``allowed``: those this process may run on; ``quota``: cores' worth of time that
    its group may use, None without limit.
    """
    for name in OWN:
        if name in environment:
            return Choice({}, f"{name}={environment[name]} is given")
    if quota is not None and quota < allowed:
        return _sleep(f"a quota of {quota:g} cores is shared by threads on {allowed}")
    if allowed < machine:
        return _sleep(f"this program may use {allowed} of {machine} cores")
    return None


def by_load(busy: float, allowed: int) -> Choice:
    """What follows from the cores that others keep busy, of those that are ``allowed``."""
    reason = f"other programs keep {busy:.1f} of {allowed} cores busy"
    return _sleep(reason) if busy >= BUSY_CORES else Choice({}, reason)


def _sleep(reason: str) -> Choice:
    return Choice({"GOMP_SPINCOUNT": SPIN_COUNT}, reason)


def busy_cores(cores: set[int], seconds: float = SAMPLE_SECONDS, proc: Path = Path("/proc")) -> float:
    """How many of ``cores`` worked, on average, while this process slept for ``seconds``; 0 where it cannot be known.

    What the hypervisor gave to others (steal) counts, waiting for a disk does not. Not the load average, which takes a
    minute to rise and to fall.
    """
    before = _times(proc, cores)
    time.sleep(seconds)
    found = 0.0
    for core, (busy, total) in _times(proc, cores).items():
        busy, total = busy - before[core][0], total - before[core][1]
        found += busy / total if total > 0 else 0.0
    return found


def _times(proc: Path, cores: set[int]) -> dict[int, tuple[int, int]]:
    """Core -> (hundredths at work, hundredths in all)."""
    found = {}
    for line in _read(proc / "stat").splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in cores:
            # user, nice, system, idle, iowait, irq, softirq, steal; what follows is in the first two already
            times = [int(value) for value in values[:8]]
            found[int(name[3:])] = sum(times) - sum(times[3:5]), sum(times)
    return found


def quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time that this process's control groups may use, the tightest of all above it; None without.

    Reads version 2 (``cpu.max``) and version 1 (``cpu.cfs_quota_us``). ``root`` has ``proc`` and ``sys``.
    """
    groups, limits = root / "sys/fs/cgroup", []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # A container may see its own group's path as the host has it, and its folder at the top.
        inside = Path(path.lstrip("/"))
        for folder in (groups / controllers / part for part in (inside, *inside.parents)):
            if controllers:
                limit = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
            else:
                limit = _read(folder / "cpu.max").split()
            if len(limit) == 2 and all(value.isdecimal() and int(value) > 0 for value in limit):
                limits.append(int(limit[0]) / int(limit[1]))
    return min(limits, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

"""How much memory this process has."""

from pathlib import Path


def memory(field: str) -> int:
    """VmRSS or VmHWM of this process, bytes.

    Not ``ru_maxrss``: it begins at the size of the process that started this one (setmax_mm_hiwater_rss in the
    kernel's exec; a python of 9 MB started by one of 807 MB says 807 MB).
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")

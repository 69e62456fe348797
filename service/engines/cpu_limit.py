"""How many threads an engine on the CPU may use."""

from __future__ import annotations

import os
from pathlib import Path

from service.errors import SettingsError
from service.settings import flag

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def resolve_threads(asked: int, cpu_max: Path = CPU_MAX) -> int:
    """Engine threads: `asked` if positive, else the CPU limit, at most the available cores.

    cpu_max: cgroup v2's file "QUOTA PERIOD" in microseconds, or "max PERIOD" for no limit; missing
    without cgroup v2. A limit of 1.5 CPUs gives one thread: a second one would be throttled for
    half of each period.
    """
    if asked > 0:
        return asked
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text(encoding="ascii").split()
        limit = cores if quota == "max" else max(1, int(quota) // int(period))
    except FileNotFoundError:
        return cores
    except (ValueError, ZeroDivisionError, OSError) as error:
        raise SettingsError(
            f"{cpu_max} cannot be understood ({error}): set {flag('threads')}"
        ) from error
    return min(cores, limit)

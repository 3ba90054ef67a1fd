"""Who holds a lease: the name of this process, and whether another one of this machine has died.

Hides that only the machine itself can tell: of a process elsewhere nothing is known until its lease ends.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

_HOST = socket.gethostname()
_DEAD_STATES = ("Z", "X", "x")  # a zombie only waits for its parent to notice


def _state_and_start(pid: int) -> tuple[str, str]:
    """The state of a process and when it started, where the system tells (Linux: proc(5), fields 3 and 22).

    The start tells apart two processes of one number: it is given to another some day, and in a container that
    starts again to the very next one.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = stat.rpartition(")")[2].split()  # field 2, the name, may hold spaces and parentheses
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "?", "0"


def name_of(pid: int) -> str:
    """The name of a process of this machine."""
    return f"{_HOST}/{pid}/{_state_and_start(pid)[1]}"


NAME = name_of(os.getpid())


def has_died(name: str) -> bool:
    """True only if `name` was a process of this machine that is no more."""
    host, _, started = name.rpartition("/")
    host, _, pid = host.rpartition("/")
    if host != _HOST or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    state, start = _state_and_start(int(pid))
    return state in _DEAD_STATES or start != started

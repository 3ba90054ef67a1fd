"""Who holds a lease: the name of this process, and whether another one of this machine has died.

Hides that only the machine itself can tell: of a process elsewhere nothing is known until its lease ends.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

_HOST = socket.gethostname()


def _started(pid: int) -> str:
    """When a process started, where the system tells (Linux): a number is given to another process some day, and
    in a container that starts again to the very next one."""
    try:
        # Field 22 of proc(5)'s stat; the second one, the name, may hold spaces and parentheses.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "0"


def name_of(pid: int) -> str:
    """The name of a process of this machine."""
    return f"{_HOST}/{pid}/{_started(pid)}"


NAME = name_of(os.getpid())


def has_died(name: str) -> bool:
    """True only if `name` was a process of this machine that is no more."""
    host, _, rest = name.rpartition("/")
    host, _, pid = host.rpartition("/")
    if host != _HOST or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return _started(int(pid)) != rest

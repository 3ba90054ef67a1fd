"""Who holds a lease: the name of this process, and whether another one of this machine has died.

Hides that only the machine itself can tell: of a process elsewhere nothing is known until its lease ends.
"""

from __future__ import annotations

import os
import socket

_HOST = socket.gethostname()

NAME = f"{_HOST}/{os.getpid()}"


def has_died(name: str) -> bool:
    """True only if `name` was a process of this machine and no process has its number now."""
    host, _, pid = name.rpartition("/")
    if host != _HOST or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False

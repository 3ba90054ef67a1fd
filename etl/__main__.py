"""`python -m etl`, and the command `checkly-etl`."""

from __future__ import annotations

import signal

# Until the command line has its own handlers, and after it: a signal ends the process, without a traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)

import gc  # noqa: E402
import io  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
from pathlib import Path  # noqa: E402

from etl.errors import EXIT_WARNING  # noqa: E402


def main() -> None:
    """Run the command line and exit with its code."""
    gc.set_threshold(3_000)  # rows and documents hold no cycles; those that there are must not pile up
    from etl.cli import run

    for name, stream in (("stdin", sys.stdin), ("stdout", sys.stdout), ("stderr", sys.stderr)):
        if stream is None:  # closed by the caller: as good as nowhere
            setattr(sys, name, Path(os.devnull).open("r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
        elif name != "stdin" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no error
    code = run(sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            # The reader went away, which is his right, or the disk is full. Python would try, and fail, once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            code = code if isinstance(error, BrokenPipeError) else code or EXIT_WARNING
    if threading.active_count() > 1:
        # A call that hangs would hold the interpreter's end for its whole time-out; its claim is given back already.
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()

"""`python -m etl`, and the command `checkly-etl`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    from etl.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()

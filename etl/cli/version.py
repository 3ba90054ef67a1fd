"""Which release this is."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """As installed."""
    try:
        return metadata.version("checkly-etl")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "0+checkout"

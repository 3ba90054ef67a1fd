"""What is in the repository and was written elsewhere is byte for byte what its authors published.

Whoever takes a newer version changes `UPLOT`, its integrity and the sums, and sees here that they fit together.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import NoReturn

import pytest

FOLDER = Path(__file__).parent.parent / "etl" / "report" / "uplot"
UPLOT = "uplot@1.6.32"
# Of the tarball: what `npm view uplot@1.6.32 dist.integrity` prints, and every lock of npm would hold.
INTEGRITY = "sha512-KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw=="
# File -> (where it is in the tarball, SHA-256).
FILES = {
    "LICENSE": ("package/LICENSE", "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd"),
    "uPlot.iife.min.js": (
        "package/dist/uPlot.iife.min.js",
        "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    ),
    "uPlot.min.css": (
        "package/dist/uPlot.min.css",
        "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    ),
}
NPM_SECONDS = 120


def test_uplot_is_here_with_its_license_and_unchanged() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(FILES)
    for name, (_, sum_) in FILES.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == sum_, f"{name} is not that of {UPLOT}"


def test_uplot_is_what_its_authors_published(tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        _missing("npm is not installed")
    try:
        done = subprocess.run(
            ["npm", "pack", UPLOT, "--loglevel=error", "--ignore-scripts", "--no-update-notifier"],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=NPM_SECONDS,
        )
    except subprocess.TimeoutExpired:
        _missing(f"npm pack {UPLOT} takes more than {NPM_SECONDS} s")
    if done.returncode != 0:
        _missing(f"npm pack {UPLOT} gets nothing: {done.stderr.strip()[:300] or done.returncode}")

    (tarball,) = tmp_path.glob("*.tgz")
    assert "sha512-" + base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode() == INTEGRITY
    with tarfile.open(tarball) as packed:
        for name, (member, _) in FILES.items():
            published = packed.extractfile(member)
            assert published is not None, member
            with published:
                assert published.read() == (FOLDER / name).read_bytes(), f"{name} is not {member} of {UPLOT}"


def _missing(reason: str) -> NoReturn:
    """CI may not skip."""
    if os.environ.get("CHECKLY_ETL_TEST_REAL") == "1":
        pytest.fail(f"CHECKLY_ETL_TEST_REAL=1 demands this test, but {reason}", pytrace=False)
    pytest.skip(reason)

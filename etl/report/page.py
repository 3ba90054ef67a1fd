"""The page: one HTML document out of columns, style and scripts.

The data is gzipped, so that 2,000 checks fit into a mail; every browser since 2023 unpacks it. The policy lets the
page run what is in it, by its hash, and load nothing: no request can leave it, whatever the data says.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
# In this order: each uses those above it.
SCRIPTS = ("format.js", "data.js", "dom.js", "charts.js", "sections.js", "check.js", "main.js")
LIBRARY = "uPlot.iife.min.js"


def html(content: Mapping[str, Any]) -> str:
    """The document; `content` is what its scripts read. Of the same content it is the same, byte for byte."""
    data = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    packed = base64.b64encode(gzip.compress(data.encode("utf-8", "replace"), compresslevel=7, mtime=0)).decode()
    style = _read("uplot", "uPlot.min.css") + _read("page", "page.css")
    library = _read("uplot", LIBRARY)
    own = "\n".join(_read("page", name) for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{own}\n}})();'
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(library)} {_hash(script)}",
            f"style-src {_hash(style)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    document = _read("page", "page.html")
    parts = {"POLICY": policy, "STYLE": style, "DATA": packed, "LIBRARY": library, "SCRIPT": script}
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda place: parts[place[1]], document)


def _read(folder: str, name: str) -> str:
    return (_FOLDER / folder / name).read_text(encoding="utf-8").strip()


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(sha256(source.encode()).digest()).decode()}'"

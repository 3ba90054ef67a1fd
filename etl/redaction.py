"""Secrets are hidden in whatever is said or kept: also as JSON, a URL, HTML or Python would write them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html import escape
from urllib.parse import quote


class Redactor:
    """Replaces secrets in any text that leaves the program: the last line of defence, not the first."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: list[str] = []
        self.learn(secrets)

    def learn(self, secrets: Iterable[str]) -> None:
        """Hide these from now on. Very short ones would hide ordinary words, and are left alone."""
        known = {s for s in secrets if len(s) >= 4}
        in_json = {json.dumps(s, ensure_ascii=is_ascii)[1:-1] for s in known for is_ascii in (True, False)}
        in_urls = {quoted for s in known for quoted in (quote(s, safe=""), quote(s))}
        in_urls |= {re.sub("%..", lambda found: found[0].lower(), quoted) for quoted in in_urls}
        written = in_json | in_urls | {form for s in known for form in (repr(s)[1:-1], escape(s))}
        self._secrets = sorted({*self._secrets, *known, *written}, key=len, reverse=True)

    def hide(self, text: str) -> str:
        """The text without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

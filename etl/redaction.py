"""Secrets are hidden in whatever is said or kept: also as JSON, a URL, HTML or Python would write them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html import escape
from urllib.parse import quote

# A password that is an ordinary word or number stands in our own sentences as well ("this pass", "the password", a
# year): `***` would tell it to everybody who knows the sentence. It is left alone: whoever guesses tries it first.
_ORDINARY = re.compile(
    ".{1,3}|[a-z]{1,7}|[0-9]{1,7}|password|postgres|postgresql|rabbitmq|warehouse", re.IGNORECASE | re.DOTALL
)


class Redactor:
    """Replaces secrets in any text that leaves the program: the last line of defence, not the first."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: list[str] = []
        self.learn(secrets)

    def learn(self, secrets: Iterable[str]) -> None:
        """Hide these from now on, but for ordinary words."""
        known = {s for s in secrets if s and not _ORDINARY.fullmatch(s)}
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

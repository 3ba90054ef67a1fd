"""Drift: what the documents hold and the typed columns do not know, counted and shown without secrets."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import msgspec

from etl import documents
from etl.errors import PayloadError

KEY_LENGTH = 500  # characters of a text that is part of a table's key: it must fit into an index entry
_EXAMPLE_LENGTH = 200
_MOST_DRIFT = 100  # per document: names that differ in each document would fill a table


@dataclass(slots=True)
class Drift:
    """What the typed columns do not know: (kind, json_path) -> (occurrences, example)."""

    found: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)

    def note(self, kind: str, json_path: str, example: str) -> None:
        """Count one occurrence. Paths hold no positions, so that a thousand results are one line.

        Of several examples the least is kept, so that it does not depend on who came first.
        """
        key = (kind, str(documents.storable(json_path))[:KEY_LENGTH])
        if key not in self.found and len(self.found) >= _MOST_DRIFT:
            return
        text = str(documents.storable(example[:_EXAMPLE_LENGTH]))
        if may_be_signed(_unescaped(text)):
            text = "a URL that may be signed"
        occurrences, kept = self.found.get(key, (0, text))
        self.found[key] = (occurrences + 1, min(kept, text))

    def add(self, other: Drift) -> None:
        """Take over what another one noted."""
        for key, (occurrences, example) in other.found.items():
            if key in self.found or len(self.found) < _MOST_DRIFT:
                before, kept = self.found.get(key, (0, example))
                self.found[key] = (before + occurrences, min(kept, example))


def shown(raw: msgspec.Raw) -> str:
    """The beginning of an example: a text as it is, anything else as JSON."""
    text = bytes(memoryview(raw)[: 4 * _EXAMPLE_LENGTH]).decode(errors="ignore")
    try:
        return documents.decode_part(raw, str) if text.startswith('"') else text
    except PayloadError:
        return text


# What of a word that is a URL comes before its query string or fragment; `tests//pay#1.ts` is none.
SIGNED = re.compile(r"((?:(?<=:)|(?<![\w/]))//[^\s?#]*)[?#]\S*")
_ESCAPED = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)")


def _unescaped(json: str) -> str:
    """About what a piece of JSON says, whose end may be cut off."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)) if found[1] else found[0][1], json)


def may_be_signed(text: str) -> bool:
    """Whether a word of it is a URL with a query string or a fragment."""
    return SIGNED.search(text) is not None

"""Test session ids in what people and CI hand over: arguments, links, files, reporters' output, messages.

Such text is full of other UUIDs (traces, accounts, results), so an id counts only in a shape that says
"test session". Only text without any such shape is searched for bare UUIDs, and those must stand alone.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"

# Every repeated part is followed by something that it cannot match itself, so the search stays linear.
_SHAPES = re.compile(
    rf"""
    (?: # https://app.checklyhq.com/accounts/UUID/test-sessions/UUID (JSON may escape its slashes)
        https?: \\?/ \\?/ [^\s/\\]+ \\?/ (?: accounts\\?/(?P<account>{_UUID})\\?/ | v[0-9]\\?/ )? test-sessions\\?/
        # Test session ID: UUID | "testSessionId": "UUID" | test-session-id=UUID
      | (?<![0-9a-z]) test[ _-]?session[ _-]?id ["'`*\\]* \s* [:=]+ [\s"'`*\\]*
        # "id": "UUID" counts only in an entry of a list of test sessions
      | (?P<entry> "id" \s* : \s* " )
    )
    (?P<id> {_UUID} ) (?! [0-9a-z] | -[0-9a-z] )
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_BARE = re.compile(_UUID, re.IGNORECASE | re.ASCII)
_COLOURS = re.compile(r"\x1b\[[0-9;:?]*[A-Za-z]")

# What the entries of `checkly test-sessions list` have, and checks, results or error groups do not all have.
_ENTRY_FIELDS = frozenset({"provider", "invoker", "errorGroupIds", "running", "passed", "failed", "cancelled"})
# What the CLI's lists of other things have.
_OTHER_FIELDS = frozenset({"checkType", "activated", "frequency", "errorHash", "testSessionResultId", "resultType"})


def find_ids(text: str) -> tuple[str, ...]:
    """The test session ids in a piece of text: lower-cased, in order of appearance, without doubles.

    One id in a recognised shape (link, `Test session ID:` line, report, list) is enough for bare UUIDs
    not to count, because next to it they are most likely ids of something else.
    """
    text = _COLOURS.sub("", text.removeprefix("\ufeff"))
    documents = list(_documents(text)) if text.lstrip()[:1] in set('{["') or "\n" in text else []
    listed = {test_session_id for document in documents for test_session_id in _entries(document)}
    shaped = (
        match["id"].lower()
        for match in _SHAPES.finditer(text)
        if match["entry"] is None or match["id"].lower() in listed
    )
    return tuple(dict.fromkeys(shaped)) or tuple(dict.fromkeys(_bare_ids(text)))


def find_accounts(text: str) -> dict[str, str]:
    """Test session id -> account id, where a link in the text names it."""
    text = _COLOURS.sub("", text)
    return {m["id"].lower(): m["account"].lower() for m in _SHAPES.finditer(text) if m["account"]}


def read_argument(argument: str) -> str:
    """The text of one command line argument: itself if it holds an id, else the content of the file of that name.

    Empty for a path that does not exist. ValueError if the path is a directory or cannot be read: the caller should
    say so instead of "no id found".
    """
    if find_ids(argument):
        return argument
    try:
        return decode(Path(argument).read_bytes()) if argument else ""
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL}:
            return ""
        reason = "it is a directory" if os.path.isdir(argument) else error.strerror
        raise ValueError(f"cannot read {argument}: {reason}") from None
    except ValueError:  # a NUL: text that no path can be
        return ""


def decode(data: bytes) -> str:
    """The text of a file or message. Never fails: what is not UTF-8 (or UTF-16 with a BOM) becomes U+FFFD."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # PowerShell's `>` writes it
        return data.decode("utf-16", errors="replace")
    return data.decode("utf-8-sig", errors="replace")


def text_of_fields(fields: Sequence[tuple[str, str]]) -> str:
    """The text of a message that has named fields, such as an entry of a Redis stream.

    A field's name may say what its value is (`test_session_id`), so it is part of the text; where the names say
    nothing, the one value that holds ids does.
    """
    named = "\n".join(f"{name}: {value}" for name, value in fields)
    if find_ids(named):
        return named
    holders = [value for _, value in fields if find_ids(value)]
    return holders[0] if len(holders) == 1 else named


def stands_alone(line: str) -> bool:
    """A line that says nothing but an id: as it is, or as a JSON text or an array of such."""
    line = _COLOURS.sub("", line.removeprefix("\ufeff"))
    if _BARE.fullmatch(line.strip()):
        return True
    return line.startswith(('"', "[")) and not _SHAPES.search(line) and any(True for _ in _bare_ids(line))


def is_remark(line: str) -> bool:
    """A line of a list that is meant to say nothing: blank, or a comment."""
    return not line.strip() or line.lstrip().startswith("#")


def _documents(text: str) -> Iterator[object]:
    """JSON in the text: all of it, else each line that is JSON and each pretty-printed block of lines."""
    try:
        yield json.loads(text)
        return
    except (ValueError, RecursionError):
        pass
    block: list[str] | None = None
    for line in text.split("\n"):
        line = line.rstrip()
        if line in {"{", "["}:
            block = []
        if block is not None:
            block.append(line)
        if block and line in {"}", "]"}:
            yield from _document("\n".join(block))
            block = None
        elif line.startswith(("{", "[")) and len(line) > 2:
            yield from _document(line)


def _document(text: str) -> Iterator[object]:
    try:
        yield json.loads(text)
    except (ValueError, RecursionError):
        return


def _entries(document: object) -> Iterator[str]:
    """Ids of the test sessions in `{"data": [...]}` (the CLI's list), `{"entries": [...]}` (the API's) or alone."""
    is_wrapped = isinstance(document, dict) and ("data" in document or "entries" in document)
    entries: object = document if isinstance(document, list) else [document]
    if isinstance(document, dict) and is_wrapped:
        entries = document.get("data", document.get("entries"))
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or entry.keys() & _OTHER_FIELDS:
            continue
        if is_wrapped or (isinstance(entry.get("status"), str) and entry.keys() & _ENTRY_FIELDS):
            yield str(entry.get("id")).lower()


def _bare_ids(text: str) -> Iterator[str]:
    """UUIDs that are a whole line or message, maybe as a JSON text or in a JSON array of texts."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if document is not None:
        yield from _bare_in(document)
        return
    for line in text.splitlines():
        if _BARE.fullmatch(line.strip()):
            yield line.strip().lower()
        # Indented ones belong to a larger document, which says what they are; shorter ones hold no id.
        elif len(line) > 36 and line.startswith(('"', "[")):
            for part in _document(line):
                yield from _bare_in(part)


def _bare_in(document: object) -> Iterator[str]:
    for item in document if isinstance(document, list) else [document]:
        if isinstance(item, str) and _BARE.fullmatch(item.strip()):
            yield item.strip().lower()

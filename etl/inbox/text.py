"""Test session ids in what people and CI hand over: arguments, links, files, reporters' output, messages.

Such text is full of other UUIDs (traces, accounts, results), so an id counts only in a shape that says
"test session". Only text without any such shape is searched for bare UUIDs, and those must fill their lines.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"

# Every repeated part is followed by something that it cannot match itself, so the search stays linear.
_SHAPES = re.compile(
    rf"""
    (?: # https://app.checklyhq.com/accounts/UUID/test-sessions/UUID (JSON may escape its slashes)
        https?: \\?/ \\?/ [^\s/\\]+ \\?/ (?: accounts\\?/(?P<account>{_UUID})\\?/ | v[0-9]\\?/ )? test-sessions\\?/
        # Test session ID: UUID | "testSessionId": "UUID" | test-session-id=UUID
      | (?<![0-9a-z]) test[ _-]?session[ _-]?id ["'`*\\]* \s* [:=]+ [\s"'`*\\]*
        # ##vso[task.setvariable variable=testSessionId;isOutput=true]UUID, as Azure Pipelines has it
      | \#\#vso\[task\.setvariable \s [^\]\n]{{0,200}} variable=test[ _-]?session[ _-]?id (?: ; [^\]\n]{{0,200}} )? \]
        # checkly test-sessions get UUID
      | (?<![0-9a-z/-]) test-sessions [ ]+ get [ ]+
        # "id": "UUID" counts only in an entry of a list of test sessions
      | (?P<entry> "id" \s* : \s* " )
    )
    (?P<id> {_UUID} ) (?! [0-9a-z] | -[0-9a-z] )
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_BARE = re.compile(_UUID, re.IGNORECASE | re.ASCII)
_ID_IN_LINE = re.compile(rf"(?<![0-9a-z-])({_UUID})(?![0-9a-z]|-[0-9a-z])", re.IGNORECASE | re.ASCII)
_BETWEEN_IDS = re.compile(r"[\s,;]+")
_COLOURS = re.compile(r"\x1b\[[0-9;:?]*[A-Za-z]")
_SHORT_LINK = re.compile(r"https?://chkly\.link/", re.IGNORECASE)
_TRUNCATED = re.compile(r"(?<![0-9a-z-])[0-9a-f]{8}(?:-[0-9a-f]{0,12}){1,4}(?:…|\.\.\.)", re.IGNORECASE | re.ASCII)

# Columns of `checkly test-sessions list`, as a table for people and in Markdown (CLI 9.5).
_CELL_BORDER = re.compile(r"(?<!\\)\|")
_TABLE_HEADER = re.compile(r"STATUS +STARTED .*(?:CANCELLED| ) ID", re.ASCII)
_TABLE_COLUMNS = frozenset({"id", "status", "started", "provider"})

# What the entries of `checkly test-sessions list` have, and checks, results or error groups do not all have.
_ENTRY_FIELDS = frozenset({"provider", "invoker", "errorGroupIds", "running", "passed", "failed", "cancelled"})
# What the CLI's lists of other things have.
_OTHER_FIELDS = frozenset({"checkType", "activated", "frequency", "errorHash", "testSessionResultId", "resultType"})

SHORT_LINK_ADVICE = (
    "a chkly.link short link does not tell the id of its test session: use --reporter json or --reporter github, or "
    "Checkly CLI 8.6 or newer, which prints the id"
)
TRUNCATED_ADVICE = "the table of checkly test-sessions list cuts ids off: use checkly test-sessions list -o json"


@dataclass(frozen=True, slots=True)
class Found:
    """What a text holds: `ids` in lower case, in order of appearance, each once.

    `not_taken` are the lines that seem to name a test session and give no id: one that holds more than ids, a short
    link, an id that is cut off. Empty where a recognised shape tells which ids are meant.
    """

    ids: tuple[str, ...]
    not_taken: tuple[str, ...] = ()

    @property
    def advice(self) -> list[str]:
        """What to do about the lines that were not taken, beyond repeating the id on a line of its own."""
        advice = []
        if any(map(_SHORT_LINK.search, self.not_taken)):
            advice.append(SHORT_LINK_ADVICE)
        if any(map(_TRUNCATED.search, self.not_taken)):
            advice.append(TRUNCATED_ADVICE)
        return advice


def find(text: str) -> Found:
    """Return the test session ids in a piece of text, and the lines that were not taken.

    One id in a recognised shape (link, `Test session ID:` line, report, list) is enough for bare UUIDs
    not to count, because next to it they are most likely ids of something else.
    """
    text = _COLOURS.sub("", text.removeprefix("\ufeff"))
    documents = list(_documents(text)) if text.lstrip()[:1] in set('{["') or "\n" in text else []
    listed = {test_session_id for document in documents for test_session_id in _entries(document)}
    shaped = {
        match.start("id"): match["id"].lower()
        for match in _SHAPES.finditer(text)
        if match["entry"] is None or match["id"].lower() in listed
    }
    shaped |= dict(_ids_in_tables(text))
    if shaped:
        return Found(tuple(dict.fromkeys(shaped[at] for at in sorted(shaped))))
    ids = tuple(dict.fromkeys(_bare_ids(text)))
    return Found(ids, tuple(_lines_not_taken(text, frozenset(ids))))


def find_ids(text: str) -> tuple[str, ...]:
    """Return the test session ids in a piece of text: see `find`."""
    return find(text).ids


def lines_not_taken(lines: Sequence[str], hide: Callable[[str], str]) -> list[str]:
    """What to say of the lines of a text that name an id among other words; nothing of no lines.

    `hide` takes secrets out of what is quoted: what CI sends by mistake may be the key itself.
    """
    if not lines:
        return []
    shown = ", ".join(repr(hide(line)[:100]) for line in lines[:3]) + (", …" if len(lines) > 3 else "")
    count = "1 line is" if len(lines) == 1 else f"{len(lines)} lines are"
    return [
        f"{count} not taken, because a line counts only if it holds nothing but ids, or says that an id is a test "
        f"session's (a link, 'Test session ID: …'): {shown}"
    ]


def _lines_not_taken(text: str, taken: frozenset[str]) -> Iterator[str]:
    for line in text.splitlines():
        if is_remark(line):
            continue
        has_other_id = any(match[1].lower() not in taken for match in _ID_IN_LINE.finditer(line))
        if has_other_id or _SHORT_LINK.search(line) or _TRUNCATED.search(line):
            yield line.strip()


def _ids_in_tables(text: str) -> Iterator[tuple[int, str]]:
    """Position and id of each whole id in the ID column of a table that `checkly test-sessions list` printed."""
    at, column, is_plain = 0, None, False
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("|"):
            cells = [cell.strip().lower() for cell in _CELL_BORDER.split(line.strip().strip("|"))]
            if set(cells) >= _TABLE_COLUMNS:
                column = cells.index("id")
            elif column is not None and column < len(cells) and _BARE.fullmatch(cells[column]):
                yield at + line.lower().rindex(cells[column]), cells[column]
        elif _TABLE_HEADER.fullmatch(line.strip()):
            is_plain = True
        elif is_plain and (words := line.split()) and _BARE.fullmatch(words[-1]):
            yield at + line.rindex(words[-1]), words[-1].lower()
        else:
            column, is_plain = None, False
        at += len(line)


def find_accounts(text: str) -> dict[str, str]:
    """Test session id -> account id, where a link in the text names it."""
    text = _COLOURS.sub("", text)
    return {m["id"].lower(): m["account"].lower() for m in _SHAPES.finditer(text) if m["account"]}


def read_argument(argument: str) -> str:
    """Return the text of a command line argument: itself if it holds an id, else the content of that file.

    Where there is no such file, that is the argument again, for `find` to say what is wrong with it. ValueError if
    the path is a directory or cannot be read: the caller should say so instead of "no id found".
    """
    if not argument or find_ids(argument):
        return argument
    try:
        return decode(Path(argument).read_bytes())
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL}:
            return argument
        reason = "it is a directory" if os.path.isdir(argument) else error.strerror
        raise ValueError(f"cannot read {argument}: {reason}") from None
    except ValueError:  # a NUL: text that no path can be
        return argument


def decode(data: bytes) -> str:
    """Return the text of a file or message. Never fails: what is neither UTF-8 nor UTF-16 becomes U+FFFD."""
    bom = utf16_bom(data)
    if bom is None:
        return data.decode("utf-8-sig", errors="replace")
    return (data if data.startswith(bom) else bom + data).decode("utf-16", errors="replace")


def utf16_bom(head: bytes) -> bytes | None:
    """Return the byte order mark of text in UTF-16, given its first two bytes at least; None for other text.

    PowerShell's `>` writes the mark. Without one, half of an ASCII character tells: no other text begins with it.
    """
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return head[:2]
    if len(head) < 2 or (head[0] == 0) == (head[1] == 0):
        return None
    return codecs.BOM_UTF16_BE if head[0] == 0 else codecs.BOM_UTF16_LE


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
    """Tell whether a line holds nothing but ids: as they are, or as a JSON text or an array of such."""
    line = _COLOURS.sub("", line.removeprefix("\ufeff"))
    if _only_ids(line):
        return True
    return line.startswith(('"', "[")) and not _SHAPES.search(line) and any(True for _ in _bare_ids(line))


def is_remark(line: str) -> bool:
    """Tell whether a line is blank or a comment."""
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
    """UUIDs that fill a line or message, maybe as a JSON text or in a JSON array of texts."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if document is not None:
        yield from _bare_in(document)
        return
    for line in text.splitlines():
        if ids := _only_ids(line):
            yield from ids
        # Indented ones belong to a larger document, which says what they are; shorter ones hold no id.
        elif len(line) > 36 and line.startswith(('"', "[")):
            for part in _document(line):
                yield from _bare_in(part)


def _only_ids(line: str) -> list[str]:
    """The ids of a line that holds nothing else, with blanks, commas or semicolons between them; else none."""
    words = [word for word in _BETWEEN_IDS.split(line) if word]
    return [word.lower() for word in words] if all(map(_BARE.fullmatch, words)) else []


def _bare_in(document: object) -> Iterator[str]:
    for item in document if isinstance(document, list) else [document]:
        if isinstance(item, str) and _BARE.fullmatch(item.strip()):
            yield item.strip().lower()

"""A file as an inbox: tailed from where the last reader ended, through rotation, truncation and replacement.

Hides how a file is known again. A position remembers the last bytes that were read, not only how many: only a file
that still holds them is read on; any other is read from its start. When the file was rotated, the rest of the old
one is read first. The last line, or a JSON document of many lines, may be in the middle of being written: its ids are
taken, and it is looked at once more when it has grown. So it does not matter when a file is read.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import msgspec

from etl.errors import InboxUnavailable
from etl.inbox.source import Batch, Message
from etl.inbox.text import decode, find_ids, is_remark, stands_alone, utf16_bom

CHUNK = 4_000_000  # bytes taken at a time, up to the end of a line
LONGEST_LINE = 64_000_000  # a reporter's JSON may be one line
REMEMBERED = 1024  # bytes before the position

_NUMBER_OR_DATE = re.compile(r"[-._0-9]+")
_NO_ASCII = b"\0" + codecs.BOM_UTF16_LE + codecs.BOM_UTF8
_NEWLINE = {
    None: b"\n",
    codecs.BOM_UTF16_LE: "\n".encode("utf-16-le"),
    codecs.BOM_UTF16_BE: "\n".encode("utf-16-be"),
}


class _Position(msgspec.Struct, frozen=True):
    """`offset`: before it all is done. `seen`: up to it all was looked at. `digest`: of the bytes before `seen`."""

    inode: int
    offset: int
    seen: int
    digest: str


@dataclass(frozen=True, slots=True)
class _Piece:
    """What was read: `data` from an offset, of which `done` bytes are complete lines and documents."""

    data: bytes
    done: int
    bom: bytes | None  # the byte order mark of UTF-16, written or not; None for UTF-8


class FileSource:
    """A file, one id, link or piece of CI output after the other. A missing file is empty; its folder must exist."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self._path = path

    def receive(self, position: str | None) -> Batch | None:
        """The text behind `position`. A line that is an id is a message, and so is all that stands between such."""
        known = _read_position(position)
        with self._translated():
            file = self._opened()
            if file is None:
                return None if known is None else self._rest_of_rotated(known)
            with file:
                is_known = known is None or (os.fstat(file.fileno()).st_ino == known.inode and _holds(file, known))
                if known is not None and not is_known and (rest := self._rest_of_rotated(known)) is not None:
                    return rest
                return _next(file, known)

    def acknowledge(self, batch: Batch) -> None:
        """Nothing: the position is remembered with the batch."""

    def examine(self) -> str:
        """Whether it can be read."""
        with self._translated():
            file = self._opened()
            if file is None:
                return "does not exist yet"
            with file:
                file.read(1)
                return f"can be read, {os.fstat(file.fileno()).st_size:,} bytes"

    def close(self) -> None:
        """Nothing is open."""

    def _opened(self) -> BinaryIO | None:
        """None if it is not there: nothing has been written yet, or not since it was rotated."""
        try:
            if not stat.S_ISREG(self._path.stat().st_mode):  # of a pipe, opening alone would wait for a writer
                raise InboxUnavailable(f"inbox {self.name}: this is no file")
            return self._path.open("rb")
        except FileNotFoundError:
            if self._path.parent.is_dir():
                return None
            raise InboxUnavailable(
                f"inbox {self.name}: there is no folder {self._path.parent}; make it, or mend inbox.file"
            ) from None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InboxUnavailable(f"inbox {self.name}: cannot be read ({error.strerror or error})") from error

    def _rest_of_rotated(self, known: _Position) -> Batch | None:
        """What was added to the old file before it was renamed, or copied and truncated."""
        for entry in sorted(os.scandir(self._path.parent), key=lambda entry: entry.name):
            # Another file of its number, or of a name such as its copy has, would not hold the same bytes.
            if entry.name == self._path.name or not (entry.inode() == known.inode or self._may_be_copy(entry.name)):
                continue
            try:
                if not entry.is_file():
                    continue
                with open(entry.path, "rb") as file:
                    if os.fstat(file.fileno()).st_size > known.seen and _holds(file, known):
                        return _next(file, known, is_over=True)
            except OSError:  # deleted by now, or nobody's business
                continue
        return None

    def _may_be_copy(self, name: str) -> bool:
        """`ids.log.1`, `ids.log-20261125`, `ids-20261125.log`."""
        if not name.startswith(self._path.stem):
            return False
        added = name.removeprefix(self._path.stem).replace(self._path.suffix, "", 1)
        return _NUMBER_OR_DATE.fullmatch(added) is not None


def _read_position(text: str | None) -> _Position | None:
    try:
        return msgspec.json.decode(text, type=_Position) if text else None
    except msgspec.DecodeError:
        return None  # of another release: read from the start, which costs calls but loses nothing


def _next(file: BinaryIO, known: _Position | None, *, is_over: bool = False) -> Batch | None:
    """The next batch of a file; with `is_over` nobody writes to it any more, so that its last line is complete."""
    found = os.fstat(file.fileno())
    offset = seen = 0
    if known is not None and _holds(file, known):
        offset, seen = known.offset, known.seen
    if found.st_size <= seen and not is_over:
        return None
    piece = _read(file, offset)
    done = len(piece.data) if is_over else piece.done
    text, complete = _decoded(piece, len(piece.data)), _decoded(piece, done)
    messages = _messages(complete, unfinished=text[len(complete) :])
    if done == 0 and not messages:
        return None  # the beginning of something
    end = offset + len(piece.data)
    file.seek(max(0, end - REMEMBERED))
    digest = sha256(file.read(end - max(0, end - REMEMBERED))).hexdigest()
    position = _Position(inode=found.st_ino, offset=offset + done, seen=end, digest=digest)
    return Batch(messages, msgspec.json.encode(position).decode())


def _holds(file: BinaryIO, known: _Position) -> bool:
    """Whether this is the file that was read up to there: neither truncated nor written anew."""
    start = max(0, known.seen - REMEMBERED)
    file.seek(start)
    return sha256(file.read(known.seen - start)).hexdigest() == known.digest


def _read(file: BinaryIO, offset: int) -> _Piece:
    """A chunk from `offset`, longer if its first line or document is."""
    file.seek(0)
    bom = utf16_bom(file.read(2))
    newline = _NEWLINE[bom]
    file.seek(offset)
    data = b""
    while True:
        more = file.read(CHUNK)
        data += more
        lines = _end_of_lines(data, newline, len(data))
        done = _end_of_documents(data, newline, lines)
        if not more or len(data) >= LONGEST_LINE or (done and len(more) == CHUNK):
            break
    if len(more) == CHUNK and done:
        data = data[:done]  # the rest belongs to the next chunk
    elif len(data) >= LONGEST_LINE and not done:
        done = lines or len(data)
    return _Piece(data, done, bom)


def _end_of_lines(data: bytes, newline: bytes, limit: int) -> int:
    """Just behind the last line break before `limit`."""
    end = data.rfind(newline, 0, limit)
    while end > 0 and end % len(newline):  # half of one UTF-16 character and half of the next
        end = data.rfind(newline, 0, end + len(newline) - 1)
    return end + len(newline) if end >= 0 else 0


def _end_of_documents(data: bytes, newline: bytes, limit: int) -> int:
    """`limit`, the end of a line; but if a JSON document of many lines goes on there, where that begins."""
    end = limit
    while end > 0:
        start = _end_of_lines(data, newline, end - len(newline))
        line = data[start:end].translate(None, _NO_ASCII)
        if line[:1] not in (b" ", b"\t"):  # inside of a document every line is indented
            return start if line.strip() in (b"{", b"[") else limit
        end = start
    return limit


def _decoded(piece: _Piece, length: int) -> str:
    data = piece.data[:length]
    if piece.bom is not None and not data.startswith(piece.bom):
        data = piece.bom + data
    # NULs are what a writer leaves that goes on at its old position in a file that was truncated.
    return decode(data).lstrip("\0")


def _messages(complete: str, *, unfinished: str) -> Sequence[Message]:
    """A line that is an id is a message of its own, and what stands between such lines is one, as a report is.

    What is unfinished is one only if it holds an id already.
    """
    messages: list[Message] = []
    others: list[str] = []
    for line in [*complete.splitlines(keepends=True), ""]:
        if line and not stands_alone(line):
            others.append(line)
            continue
        if not all(map(is_remark, others)):
            messages.append(Message("".join(others)))
        others.clear()
        if line:
            messages.append(Message(line.strip()))
    return [*messages, Message(unfinished)] if find_ids(unfinished) else messages

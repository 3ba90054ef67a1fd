"""A file is tailed: each line is read once, whatever happens to it between two passes, and whenever they come."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.errors import InboxUnavailable
from etl.inbox import decode, files, find_ids
from etl.inbox.files import FileSource

A, B, C, D, E, F = (f"0{letter}0a0a0a-1111-4222-8333-aaaaaaaaaaaa" for letter in "abcdef")
OTHER = "0c0c0c0c-2222-4222-8333-cccccccccccc"
LINK = "https://app.checklyhq.com/test-sessions/"
BROKEN = "0a0a0a0a-1111-4222-8333-aaaa"


@dataclass
class Inbox:
    """A file, and what passes take out of it. Each pass is a new process: it knows nothing but the position."""

    path: Path
    position: str | None = None
    ids: list[str] = field(default_factory=list)  # of all passes
    rejects: list[str] = field(default_factory=list)
    longest: int = 0

    def read(self) -> list[str]:
        """One pass; returns its ids, each time that it was taken."""
        found: list[str] = []
        source = FileSource(self.path, "the inbox")
        for _ in range(10_000):
            batch = source.receive(self.position)
            if batch is None:
                self.ids += found
                return found
            self.longest = max(self.longest, sum(len(message.text) for message in batch.messages))
            for message in batch.messages:
                ids = find_ids(message.text)
                found += ids
                if not ids:
                    self.rejects.append(message.text)
            source.acknowledge(batch)
            self.position = batch.position or self.position
        raise AssertionError("the file never ends")

    def append(self, *lines: str, end: str = "\n") -> None:
        """As `echo LINE >> file`."""
        with self.path.open("ab") as file:
            file.write("".join(line + end for line in lines).encode())

    def write(self, *lines: str) -> None:
        """As `cat > file`: the same file with another content."""
        with self.path.open("wb") as file:
            file.write("".join(f"{line}\n" for line in lines).encode())

    def rotate(self, name: str) -> Path:
        """As `mv file name`."""
        return self.path.rename(self.path.with_name(name))


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    return Inbox(tmp_path / "ids.log")


# --- what grows -------------------------------------------------------------------------------------------------


def test_appended_lines_are_read_once_and_in_order(inbox: Inbox) -> None:
    inbox.append(B, A)
    assert inbox.read() == [B, A]
    assert inbox.read() == []
    inbox.append(LINK + C)
    inbox.append(f"Test session ID: {D}")
    assert inbox.read() == [C, D]
    assert inbox.read() == inbox.rejects == []


def test_a_file_is_long_since_there_when_it_becomes_an_inbox(inbox: Inbox) -> None:
    inbox.append(*(f"{number:08x}-0000-4000-8000-000000000000" for number in range(3000)))
    assert len(inbox.read()) == 3000
    inbox.append(A)
    assert inbox.read() == [A]


def test_a_last_line_without_its_end_is_taken_and_completed_later(inbox: Inbox) -> None:
    inbox.append(f"{A}\n{B}", end="")
    assert inbox.read() == [A, B]
    assert inbox.read() == [], "it did not grow"
    inbox.append(f"\n{C}")
    assert set(inbox.read()) == {B, C}
    assert inbox.read() == inbox.rejects == []


@pytest.mark.parametrize("line", [A, LINK + A, f"Test session ID: {A}", json.dumps({"testSessionId": A})])
def test_a_line_that_is_cut_anywhere_is_read_when_it_is_whole(inbox: Inbox, line: str) -> None:
    for place in range(1, len(line)):
        inbox.path.unlink(missing_ok=True)
        inbox.position, inbox.ids = None, []
        inbox.append(f"{B}\n{line[:place]}", end="")
        inbox.read()
        inbox.append(f"{line[place:]}\n{C}")
        inbox.read()
        assert set(inbox.ids) == {A, B, C}, place
        assert inbox.rejects == [], place


def test_a_position_that_nobody_can_read_means_from_the_start(inbox: Inbox) -> None:
    inbox.append(A)
    for position in ("", "{}", "null", "?", '{"inode": "x"}'):
        inbox.position = position
        assert inbox.read() == [A]


# --- rotation ---------------------------------------------------------------------------------------------------


def test_the_rest_of_a_renamed_file_is_read_before_the_new_one(inbox: Inbox) -> None:
    inbox.append(A)
    inbox.read()
    inbox.append(B)
    inbox.append(C, end="")  # nobody will complete it
    inbox.rotate("whatever.old")
    inbox.append(D)
    assert inbox.read() == [B, C, D]
    inbox.append(E)
    assert inbox.read() == [E]
    assert inbox.rejects == []


def test_the_rest_of_a_renamed_file_is_read_before_there_is_a_new_one(inbox: Inbox) -> None:
    inbox.append(A)
    inbox.read()
    inbox.append(B)
    old = inbox.rotate("ids.log.1")
    assert inbox.read() == [B]
    assert inbox.read() == []
    with old.open("a") as still_open:  # by a producer that does not know of it yet
        still_open.write(f"{C}\n")
    assert inbox.read() == [C]
    inbox.append(D)
    assert inbox.read() == [D]
    assert inbox.read() == []


def test_the_last_line_of_a_renamed_file_is_complete_without_its_end(inbox: Inbox) -> None:
    inbox.append(A)
    inbox.read()
    inbox.append(B, BROKEN)
    inbox.append(BROKEN + "9", end="")
    inbox.rotate("ids.log.1")
    assert inbox.read() == [B]
    assert "".join(inbox.rejects).split() == [BROKEN, BROKEN + "9"]


def test_a_new_file_of_the_same_beginning_does_not_hide_the_rest_of_the_old_one(inbox: Inbox) -> None:
    inbox.append("# ids of CI", A)
    inbox.read()
    inbox.append(B)
    inbox.rotate("ids.log.1")
    inbox.append("# ids of CI", A, C)
    assert inbox.read() == [B, A, C]


def test_a_file_that_was_renamed_and_compressed_is_gone_and_the_new_one_is_read(inbox: Inbox) -> None:
    inbox.append(A)
    inbox.read()
    inbox.rotate("ids.log.1").unlink()
    (inbox.path.parent / "ids.log.1.gz").write_bytes(b"\x1f\x8b")
    inbox.append(B)
    assert inbox.read() == [B]


@pytest.mark.parametrize("new", [[B], [B, C], [B, C, D, E]], ids=["shorter", "as long", "longer"])
def test_a_file_that_was_copied_and_truncated_is_read_from_its_start(inbox: Inbox, new: list[str]) -> None:
    inbox.append(A, OTHER)
    inbox.read()
    shutil.copy(inbox.path, inbox.path.with_name("ids.log.1"))
    inbox.write()
    assert inbox.read() == []
    inbox.append(*new)
    assert inbox.read() == new
    assert inbox.read() == []


@pytest.mark.parametrize("copy", ["ids.log.1", "ids.log-20261125", "ids-20261125.log", "ids.log.2026-11-25_12"])
@pytest.mark.parametrize("new", [[], [D], [D, E, F]], ids=["empty", "short", "long"])
def test_what_was_not_read_before_a_truncation_is_read_from_the_copy(inbox: Inbox, copy: str, new: list[str]) -> None:
    inbox.append(A)
    inbox.read()
    inbox.append(B, C)
    shutil.copy(inbox.path, inbox.path.with_name(copy))
    inbox.write(*new)
    assert inbox.read() == [B, C, *new]
    inbox.append(OTHER)
    assert inbox.read() == [OTHER]


def test_other_files_of_the_folder_are_nobodys_business(inbox: Inbox) -> None:
    inbox.append(A)
    inbox.read()
    for name in ("ids.log.bak", "ids.txt", "other.log", "ids.log.1.gz"):
        inbox.path.with_name(name).write_text(f"{A}\n{OTHER}\n")
    inbox.path.with_name("ids.log.1").write_text(f"{B}\n{OTHER}\n")
    inbox.path.with_name("ids.log.2").mkdir()
    inbox.path.with_name("ids.log.3").symlink_to("nowhere")
    inbox.write(C)
    assert inbox.read() == [C]


def test_a_writer_that_goes_on_at_its_old_place_after_a_truncation_is_understood(inbox: Inbox) -> None:
    with inbox.path.open("wb") as writer:  # opened by `>`, not by `>>`
        for line in (A, B):
            writer.write(f"{line}\n".encode())
            writer.flush()
            assert inbox.read() == [line]
        os.truncate(inbox.path, 0)
        writer.write(f"{C}\n".encode())
        writer.flush()
        assert inbox.path.read_bytes().startswith(b"\0")
        assert inbox.read() == [C]
    assert inbox.rejects == []


def test_a_file_that_was_rewritten_with_the_same_size_is_read_again(inbox: Inbox) -> None:
    inbox.append(A, B)
    inbox.read()
    inbox.write(C, D)
    assert inbox.read() == [C, D]


def test_a_file_that_was_deleted_and_made_again_with_the_same_number_is_read_again(inbox: Inbox) -> None:
    inbox.append(A)
    inbox.read()
    number = inbox.path.stat().st_ino
    for _ in range(100):
        inbox.path.unlink()
        inbox.append(B, C)
        if inbox.path.stat().st_ino == number:
            break
    else:
        pytest.skip("this filesystem gives no number twice")
    assert inbox.read() == [B, C]


def test_an_editor_that_saves_by_renaming_has_not_made_a_new_file(inbox: Inbox) -> None:
    inbox.append(*(f"{number:08x}-0000-4000-8000-000000000000" for number in range(200)))
    inbox.read()
    saved = inbox.path.with_name(".ids.log.swp")
    saved.write_text(f"{inbox.path.read_text()}{A}\n")
    inbox.rotate("ids.log~")  # its backup
    saved.rename(inbox.path)
    assert inbox.read() == [A]
    inbox.append(B)
    assert inbox.read() == [B]


# --- what is no file --------------------------------------------------------------------------------------------


def test_a_missing_file_is_an_empty_inbox(inbox: Inbox) -> None:
    assert inbox.read() == []
    assert "does not exist yet" in FileSource(inbox.path, "the inbox").examine()
    inbox.append(A)
    assert inbox.read() == [A]
    inbox.path.unlink()
    assert inbox.read() == []
    inbox.append(B)
    assert inbox.read() == [B]


def missing_folder(path: Path) -> Path:
    return path / "missing" / "ids.log"


def directory(path: Path) -> Path:
    (path / "folder").mkdir()
    return path / "folder"


def below_a_file(path: Path) -> Path:
    (path / "file").touch()
    return path / "file" / "ids.log"


def pipe(path: Path) -> Path:
    os.mkfifo(path / "pipe")
    return path / "pipe"


def loop(path: Path) -> Path:
    (path / "loop").symlink_to("loop")
    return path / "loop"


@pytest.mark.parametrize("make", [missing_folder, directory, below_a_file, pipe, loop])
def test_what_is_no_file_is_reported_and_not_waited_for(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    source = FileSource(make(tmp_path), "the inbox")
    for use in (lambda: source.receive(None), source.examine):
        with pytest.raises(InboxUnavailable, match=r"^inbox the inbox: "):
            use()


def test_a_link_to_a_file_is_followed_and_may_be_turned(tmp_path: Path) -> None:
    (tmp_path / "one").write_text(f"{A}\n")
    (tmp_path / "two").write_text(f"{B}\n")
    inbox = Inbox(tmp_path / "ids.log")
    inbox.path.symlink_to("one")
    assert inbox.read() == [A]
    with (tmp_path / "one").open("a") as file:
        file.write(f"{C}\n")
    inbox.path.unlink()
    inbox.path.symlink_to("two")
    assert inbox.read() == [C, B]


def test_to_examine_a_file_takes_nothing(inbox: Inbox) -> None:
    inbox.append(A)
    assert FileSource(inbox.path, "the inbox").examine() == "can be read, 37 bytes"
    assert inbox.read() == [A]


# --- what stands in it ------------------------------------------------------------------------------------------


def test_a_broken_line_of_a_list_is_rejected_and_the_others_are_queued(inbox: Inbox) -> None:
    inbox.append("# nightly", A, "", BROKEN, f"  {B}  ", "# done", f'"{C}"', f'["{D}", "{E}"]')
    assert inbox.read() == [A, B, C, D, E]
    assert len(inbox.rejects) == 1
    assert inbox.rejects[0].strip() == BROKEN


def test_ids_and_links_and_output_may_follow_each_other_in_any_order(inbox: Inbox) -> None:
    inbox.append(A, LINK + B, C, f"Running 3 checks\n\n  Test session ID: {D}\n  trace {OTHER}", E, f"{LINK}{F}/x")
    assert inbox.read() == [A, B, C, D, E, F]
    assert inbox.rejects == []


def test_comments_alone_are_neither_ids_nor_rejects(inbox: Inbox) -> None:
    inbox.append("# nothing yet", "", "   ", f"# {A}")
    assert inbox.read() == []
    inbox.append(B)
    assert inbox.read() == [B]
    assert inbox.rejects == []


def report(test_session_id: str, results: int = 3) -> str:
    return json.dumps({"testSessionId": test_session_id, "checks": [{"id": OTHER}] * results}, indent=2)


def listed(*ids: str) -> str:
    """As `checkly test-sessions list -o json` prints them."""
    return json.dumps({"data": [{"id": id_, "projectId": OTHER} for id_ in ids], "pagination": {}}, indent=2)


def test_a_report_of_many_lines_is_one_message(inbox: Inbox) -> None:
    inbox.append(report(A), B, listed(C, D), listed(E), report(F))
    assert inbox.read() == [A, B, C, D, E, F]
    assert inbox.rejects == []


@pytest.mark.parametrize("end", ["\n", "\r\n", ""], ids=["LF", "CRLF", "none"])
def test_a_report_that_is_read_while_it_is_written_is_read_again_when_it_is_whole(inbox: Inbox, end: str) -> None:
    text = f"{E}\n{listed(A, B)}\n{report(C)}".replace("\n", end or "\n") + end
    for place in range(1, len(text), 7):
        inbox.path.unlink(missing_ok=True)
        inbox.position, inbox.ids = None, []
        inbox.append(text[:place], end="")
        inbox.read()
        inbox.append(text[place:], end="")
        inbox.read()
        assert set(inbox.ids) == {A, B, C, E}, place
        assert inbox.rejects == [], place


def test_what_only_begins_like_a_report_does_not_hold_the_others_up(inbox: Inbox) -> None:
    inbox.append("{", "  so it began", "and was none", A)
    assert inbox.read() == [A]
    inbox.append("{", "  again")
    assert inbox.read() == []
    inbox.append(B)
    assert inbox.read() == [B]
    inbox.append(C)
    assert inbox.read() == [C]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_windows_may_write_it_and_append_to_it(inbox: Inbox, encoding: str) -> None:
    texts = [f"\ufeff{A}\r\n\u0a0d{LINK}{B}\u0d0a\r\n", f"{C}\r\nğ {LINK}{D}\r\n{E[:20]}", f"{E[20:]}\r\n{F}"]
    for text, ids in zip(texts, ([A, B], [C, D], [E, F]), strict=True):
        with inbox.path.open("ab") as file:
            file.write(text.encode(encoding))
        assert inbox.read() == ids
    assert inbox.rejects == []


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_half_a_character_of_utf_16_and_half_of_the_next_are_no_end_of_a_line(inbox: Inbox, encoding: str) -> None:
    data = f"\ufeff{A}\n\u0a41\u0100\u0a41 {LINK}{B}\n".encode(encoding)
    newline = "\n".encode(encoding)
    assert data.count(newline) == 3
    for place in range(3, len(data)):
        inbox.path.write_bytes(data[:place])
        inbox.position, inbox.ids = None, []
        inbox.read()
        with inbox.path.open("ab") as file:
            file.write(data[place:])
        inbox.read()
        assert set(inbox.ids) == {A, B}, place
        assert inbox.rejects == [], place


def test_bytes_that_are_no_text_hold_nobody_up(inbox: Inbox) -> None:
    inbox.path.write_bytes(
        b"\xff\xfe\xfa"[1:] + b"\n" + A.encode() + b"\n\0\x80\n" + (LINK + B).encode() + b"\0\n\xe2\x82"
    )
    assert inbox.read() == [A, B]
    inbox.append(f"\n{C}")
    assert inbox.read() == [C]
    assert [decode(reject.encode()) for reject in inbox.rejects] == inbox.rejects


# --- large ones -------------------------------------------------------------------------------------------------


def test_one_line_of_ten_megabytes_is_one_message(inbox: Inbox) -> None:
    results = [{"id": OTHER, "log": "x" * 1000}] * 10_000
    inbox.append(A, json.dumps({"checks": results, "testSessionId": B}), json.dumps([C, D]))
    assert inbox.read() == [A, B, C, D]
    assert inbox.rejects == []


def test_200_000_ids_are_read_in_pieces(inbox: Inbox) -> None:
    ids = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(200_000)]
    inbox.append(*ids)
    source, found = FileSource(inbox.path, "the inbox"), []
    while (batch := source.receive(inbox.position)) is not None:
        assert sum(len(message.text) for message in batch.messages) <= files.CHUNK
        found += [message.text for message in batch.messages]
        inbox.position = batch.position
    assert found == ids


def test_a_report_that_lies_across_two_pieces_stays_in_one(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", 1000)
    reports = [
        listed(*(f"{number:08x}-{size:04x}-4000-8000-000000000000" for number in range(size))) for size in range(30)
    ]
    inbox.append(*reports, A)
    found = inbox.read()
    assert found == [id_ for text in reports for id_ in find_ids(text)] + [A]
    assert len(found) == 436
    assert inbox.longest < 2 * 1000 + max(map(len, reports))


@pytest.mark.parametrize("line", ["x" * 10_000, "{\n" + "  x\n" * 3000], ids=["line", "document"])
def test_what_never_ends_is_not_kept_in_memory_for_ever(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr(files, "CHUNK", 1000)
    monkeypatch.setattr(files, "LONGEST_LINE", 4000)
    inbox.append(A, line, B)
    assert inbox.read() == [A, B]
    assert "".join(inbox.rejects).replace("\n", "") == line.replace("\n", "")
    assert inbox.longest <= 4000


def test_memory_does_not_grow_with_the_file(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", 10_000)
    inbox.append(*(f"noise {number:020}" for number in range(100_000)))
    source = FileSource(inbox.path, "the inbox")
    tracemalloc.start()
    try:
        while (batch := source.receive(inbox.position)) is not None:
            inbox.position = batch.position
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()


# --- at any time ------------------------------------------------------------------------------------------------

LINES = st.one_of(
    st.uuids().map(str),
    st.uuids().map(lambda id_: LINK + str(id_)),
    st.uuids().map(lambda id_: f"  \x1b[37mTest session ID:\x1b[39m {id_}"),
    st.uuids().map(lambda id_: json.dumps({"testSessionId": str(id_), "traceId": OTHER})),
    st.lists(st.uuids().map(str), min_size=1, max_size=3).map(lambda ids: listed(*ids)),
    st.uuids().map(lambda id_: report(str(id_))),
    st.sampled_from(
        ["", "# a comment", f"trace {OTHER}", f'{{"checkId": "{OTHER}"}}', "ünï ☃ \u2028 \x85 \0", BROKEN, "{", "}"]
    ),
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@settings(deadline=None, max_examples=150)
@given(
    lines=st.lists(LINES, max_size=8),
    places=st.lists(st.integers(0, 3000), max_size=8),
    end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-16"]),
    is_complete=st.booleans(),
)
def test_whenever_a_growing_file_is_read_the_same_ids_are_found(
    folder: Path, lines: list[str], places: list[int], end: str, encoding: str, is_complete: bool
) -> None:
    data = (end.join(line.replace("\n", end) for line in lines) + end * is_complete).encode(encoding)
    cuts = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    inbox, whole = Inbox(folder / "ids.log"), Inbox(folder / "whole.log")
    inbox.path.write_bytes(b"")
    for start, stop in pairwise(cuts):
        with inbox.path.open("ab") as file:
            file.write(data[start:stop])
        inbox.read()
    whole.path.write_bytes(data)
    whole.read()
    assert set(inbox.ids) == set(whole.ids) == {id_ for line in lines for id_ in find_ids(line)}


@settings(deadline=None, max_examples=100)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["append", "rename", "copy", "save"]), st.lists(st.uuids().map(str), max_size=4)),
        max_size=8,
    ),
    reads=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_no_id_is_lost_between_one_rotation_and_the_next(
    folder: Path, steps: list[tuple[str, list[str]]], reads: list[bool]
) -> None:
    home = Path(tempfile.mkdtemp(dir=folder))
    inbox = Inbox(home / "ids.log")
    written: list[str] = []
    is_known = False  # what was rotated away before anybody has read anything of it, nobody can find

    def read() -> None:
        nonlocal is_known
        inbox.read()
        is_known = inbox.path.stat().st_size > 0

    inbox.append()
    for number, ((step, ids), is_read) in enumerate(zip(steps, reads, strict=False)):
        if not is_known:
            read()
        if step == "save":
            shutil.copy(inbox.path, home / "saving")
            (home / "saving").rename(inbox.path)
        elif step == "copy" and is_known:
            shutil.copy(inbox.path, home / f"ids.log.{number}")
            inbox.write()
            is_known = False
        elif step == "rename" and is_known:
            inbox.rotate(f"ids.log.{number}")
            is_known = False
        inbox.append(*ids)
        written += ids
        if is_read:
            read()
    read()
    assert sorted(inbox.ids) == sorted(written), "each is read once"
    assert inbox.rejects == []

"""Ids are found in every shape that users have them in, and other UUIDs beside them are left alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.inbox import Found, decode, find, find_accounts, find_ids, read_argument
from etl.inbox.text import SHORT_LINK_ADVICE, TRUNCATED_ADVICE

A = "0a0a0a0a-1111-4222-8333-aaaaaaaaaaaa"
B = "0b0b0b0b-1111-4222-8333-bbbbbbbbbbbb"
OTHER = "0c0c0c0c-1111-4222-8333-cccccccccccc"


@pytest.mark.parametrize(
    "text",
    [
        A,
        A.upper(),
        f"  {A}\r\n",
        f'"{A}"',
        f'["{A}"]',
        f"\ufeff{A}\n",
        f"https://app.checklyhq.com/test-sessions/{A}",
        f"http://localhost:4020/test-sessions/{A}/?tab=1#top",
        f"https://app.checklyhq.com/accounts/{OTHER}/test-sessions/{A}",
        f"https://app.checklyhq.com/accounts/{OTHER}/test-sessions/{A}/results/{OTHER}",
        f"[View detailed test session summary](https://app.checklyhq.com/accounts/{OTHER}/test-sessions/{A})",
        f"\x1b[4m\x1b[36mhttps://app.checklyhq.com/test-sessions/{A}\x1b[39m\x1b[24m",
        f'{{"link":"https:\\/\\/app.checklyhq.com\\/test-sessions\\/{A}"}}',
        f"  \x1b[37mTest session ID:\x1b[39m {A}",
        f"2026-01-01T00:00:00Z test session id: {A}",
        f"- **Test session ID:** `{A}`",
        f'{{"testSessionId":"{A}","traceId":"{OTHER}"}}',
        f'log: {{\\"testSessionId\\": \\"{A}\\"}} end',
        f"test-session-id={A}",
        f"test-session-id: {A}",
        f"test-session-id<<ghadelimiter_{OTHER}\n{A}\nghadelimiter_{OTHER}\n",
    ],
)
def test_an_id_is_found_in_each_of_its_shapes(text: str) -> None:
    assert find_ids(text) == (A,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no id here",
        f"trace {OTHER}",
        f"https://app.checklyhq.com/accounts/{OTHER}/checks",
        f"Latest session ID: {OTHER}",
        f"https://app.checklyhq.com/test-sessions/{OTHER}0",
        f'{{"id": "{OTHER}", "checkType": "API"}}',
        json.dumps({"data": [{"id": OTHER, "checkType": "API", "name": "x"}]}, indent=2),
        json.dumps({"errorGroupIds": [OTHER]}, indent=2),
        "[" * 100_000,
    ],
)
def test_other_ids_are_not_taken(text: str) -> None:
    assert find_ids(text) == ()


def test_ids_come_once_in_the_order_of_their_first_appearance() -> None:
    assert find_ids(f"{B}\n{A}\n{B.upper()}\n") == (B, A)


def test_a_recognised_shape_makes_bare_ids_not_count() -> None:
    assert find_ids(f"{OTHER}\nTest session ID: {A}\n{OTHER}") == (A,)


def entry(test_session_id: str) -> dict[str, object]:
    return {"id": test_session_id, "status": "PASSED", "provider": "API", "projectId": OTHER, "passed": [OTHER]}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("before", ["", "$ checkly test-sessions list -o json\n"])
def test_the_list_of_the_official_cli_gives_its_sessions_only(indent: int | None, before: str) -> None:
    document = {"data": [entry(B), entry(A)], "pagination": {"nextId": OTHER, "length": 2}}
    assert find_ids(before + json.dumps(document, indent=indent) + "\n") == (B, A)


def test_one_json_object_a_line_is_read() -> None:
    lines = [json.dumps({"testSessionId": A}), json.dumps(entry(B)), json.dumps({"id": OTHER})]
    assert find_ids("\n".join(lines)) == (A, B)


TABLE = """\
| Status | Started | Name | Provider | Branch | User | Running | Passed | Failed | Cancelled | ID |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| failed | 2026-11-20 11:38:00 UTC | Acme: look again | TRIGGER | main | ada | - | 15 | 1 | - | {} |
| passed | 2026-11-20 11:01:32 UTC | Acme \\| Payments | GITHUB | main | - | - | 8 | - | - | {} |

Showing 2 test sessions (more available)

  Inspect session: checkly test-sessions get {}
"""
PLAIN_TABLE = """\
STATUS     STARTED                  NAME          PROVIDER  BRANCH  USER  RUNNING   PASSED    FAILED    CANCELLED ID
failed     2026-11-20 11:38:00 UTC  Acme: look…   TRIGGER   main    ada   -         15        1         -         {}
passed     2026-11-20 11:01:32 UTC  Acme          GITHUB    main    -     -         8         -         -         {}

Showing 2 test sessions
"""


def test_the_tables_of_the_official_cli_give_their_whole_ids() -> None:
    assert find(TABLE.format(A, B, A)) == Found((A, B))
    assert find(PLAIN_TABLE.format(A, B)) == Found((A, B))
    checks = TABLE.replace("Provider", "Frequency").replace("get {}", "")
    assert find(checks.format(OTHER, OTHER)).ids == (), "a table of checks has other columns"


def test_a_table_that_cuts_ids_off_says_what_to_use() -> None:
    found = find(PLAIN_TABLE.format("0a0a0a0a-1111…", "0b0b0b0b-…"))
    assert found.ids == ()
    assert len(found.not_taken) == 2
    assert found.advice == [TRUNCATED_ADVICE]
    assert "-o json" in TRUNCATED_ADVICE


@pytest.mark.parametrize("between", [",", ";", " ", "\t", ", ", " ; ", ",,", " , ;\t"])
def test_a_line_may_hold_several_ids_and_nothing_else(between: str) -> None:
    assert find(f"{A}{between}{B.upper()}\n{OTHER}{between}\n") == Found((A, B, OTHER))


@pytest.mark.parametrize(
    "line", [f"foo {B}", f"{B} # done", f'"{B}",', f"trace: {B}", f"{A}, and {B}", f'{{"checkId": "{B}"}}']
)
def test_a_line_with_more_than_ids_is_shown_and_not_taken(line: str) -> None:
    assert find(f"{A}\n  {line}\n") == Found((A,), (line,))
    assert find(line) == Found((), (line,))
    assert find(f"Test session ID: {A}\n{line}\n") == Found((A,)), "next to a shape it is the id of something else"


def test_lines_that_name_no_other_id_say_nothing() -> None:
    text = f"{A}\n\n# {B}\nsee {A} again\n{B}0 is none\n1a2b3c4d...5e6f7a8b  a range of commits\n"
    assert find(text) == Found((A,))


def test_a_short_link_says_what_to_use() -> None:
    for text in ("https://chkly.link/l/aBc12", f"{A}\nSee: https://chkly.link/l/aBc12\n"):
        found = find(text)
        assert len(found.not_taken) == 1
        assert found.advice == [SHORT_LINK_ADVICE]
    assert all(word in SHORT_LINK_ADVICE for word in ("8.6", "--reporter json", "github"))
    assert find(f"https://chkly.link/l/aBc12\nTest session ID: {A}").advice == []


@pytest.mark.parametrize(
    "text",
    [
        "##vso[task.setvariable variable=testSessionId]{}",
        "##vso[task.setvariable variable=testSessionId;isOutput=true]{}",
        "2026-11-20T11:00:00Z ##vso[task.setvariable isOutput=true;variable=testSessionId;isSecret=false]{}\r\n",
        "$ npx checkly test-sessions get {} --output json",
    ],
)
def test_what_ci_and_shells_write_around_an_id_is_recognised(text: str) -> None:
    assert find(f"trace {OTHER}\n" + text.format(A)) == Found((A,))
    assert find_ids(f"##vso[task.setvariable variable=buildId]{A}") == ()


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("text", [f"{A}\r\n", f"Test session ID: {A}\n", f'["{A}"]'])
def test_text_in_utf_16_is_read_with_and_without_its_mark(encoding: str, text: str) -> None:
    assert find_ids(decode(text.encode(encoding))) == (A,)
    assert decode(b"\0\0") == "\0\0"
    assert decode(b"a") == "a"


def test_a_json_report_gives_the_session_and_not_its_results() -> None:
    link = f"https://app.checklyhq.com/accounts/{OTHER}/test-sessions/{A}/results/{OTHER}"
    assert find_ids(json.dumps({"testSessionId": A, "checks": [{"link": link}]}, indent=2)) == (A,)


NOISE = st.sampled_from(
    [
        "trace id: {}",
        "/results/{}",
        "account {} ok",
        '{{"checkId": "{}"}}',
        "https://app.checklyhq.com/accounts/{}/x",
        '  "{}",',
        "resultId={}",
    ]
)
SHAPES = st.sampled_from(
    [
        "Test session ID: {}",
        "see https://app.checklyhq.com/test-sessions/{}.",
        '"testSessionId" : "{}"',
        "test-session-id={}",
    ]
)
LINE = st.tuples(st.booleans(), NOISE, SHAPES, st.uuids())


@settings(deadline=None)
@given(st.lists(LINE, unique_by=lambda line: line[3]))
def test_ids_among_noise_are_found_and_noise_is_not(lines: list[tuple[bool, str, str, UUID]]) -> None:
    text = "\n".join((shape if real else noise).format(uuid) for real, noise, shape, uuid in lines)
    assert find_ids(text) == tuple(str(uuid) for real, _, _, uuid in lines if real)


@settings(deadline=None)
@given(st.text())
def test_no_text_makes_it_fail(text: str) -> None:
    assert find_ids(text) == ()


@pytest.mark.parametrize(
    "piece",
    [
        "https://",
        "testSessionId",
        "{\n",
        "[\n",
        '"id" : ',
        f"{OTHER} ",
        "test-session-id" + " " * 99,
        "\x1b[1",
        '{"a":\n',
        " ",
    ],
)
def test_megabytes_of_hostile_text_take_linear_time(piece: str) -> None:
    started = time.process_time()
    find_ids(piece * (2_000_000 // len(piece)))
    assert time.process_time() - started < 10


def test_a_file_is_read_whatever_its_encoding(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path = tmp_path / encoding
        path.write_bytes(f"Test session ID: {A}\n".encode(encoding))
        assert find_ids(read_argument(str(path))) == (A,)
    assert decode(b"\xff\xfa " + A.encode()).endswith(A)


def test_a_file_wins_only_if_the_argument_holds_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(A).write_text(B)
    assert find_ids(read_argument(A)) == (A,)
    Path(f"{A}.txt").write_text(B)
    assert find_ids(read_argument(f"{A}.txt")) == (B,)


@pytest.mark.parametrize("argument", ["", "no-such-file", "x" * 5000, "a\0b", "-"])
def test_an_argument_that_is_no_file_stands_for_itself(argument: str) -> None:
    assert read_argument(argument) == argument
    assert find(argument) == Found(())


def test_a_directory_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it is a directory"):
        read_argument(str(tmp_path))


def test_an_entry_of_a_list_needs_no_more_than_its_id() -> None:
    assert find_ids(json.dumps({"data": [{"id": A, "name": "nightly"}, {"id": B}]})) == (A, B)
    assert find_ids(json.dumps({"data": [{"id": A, "checkType": "API"}, {"id": B}]})) == (B,)


def test_a_link_tells_the_account_and_other_shapes_do_not() -> None:
    text = f"Test session ID: {A}\nhttps://app.checklyhq.com/accounts/{OTHER.upper()}/test-sessions/{B}/results/{A}"
    assert find_accounts(text) == {B: OTHER}
    assert find_accounts(f"https:\\/\\/app.checklyhq.com\\/accounts\\/{OTHER}\\/test-sessions\\/{A}") == {A: OTHER}
    assert find_accounts(f"https://app.checklyhq.com/test-sessions/{A}\n{B}") == {}

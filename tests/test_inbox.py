"""Ids are found in every shape that users have them in, and other UUIDs beside them are left alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.inbox import decode, find_accounts, find_ids, read_argument

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
def test_an_argument_without_an_id_gives_none(argument: str) -> None:
    assert read_argument(argument) == ""


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

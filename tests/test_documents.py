"""Documents as received: what is refused, what is kept as it came, what is replaced; and the tree of errors."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl import documents, errors, tables
from etl.documents import Document, NotJson
from etl.errors import PayloadError

BOM = b"\xef\xbb\xbf"


class Inner(msgspec.Struct):
    number: float | None = None


class Outer(msgspec.Struct):
    name: str
    inner: list[Inner] = []
    anything: Any = None


# --- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"name": "cut',
        b'{"name": "x"} {}',
        b'{"name": "x",}',
        b"{name: 1}",
        b"{'name': 1}",
        b'{"name": NaN}',
        b'{"name": Infinity}',
        b'{"name": -Infinity, "x": "\\u0000"}',
        b'{"name": 01}',
        b'{"name": 1.}',
        b'{"name": .5, "x": "\\ud800"}',
        b'{"name": +1}',
        b'{"name": "\x01"}',
        b'{"name": "\x00"}',
        b'{"name": "\\q"}',
        b'{"name": "\\u12"}',
        b'{"name": "\\u0000',
        b"<html>502 Bad Gateway</html>",
    ],
)
def test_what_is_not_one_whole_json_text_is_refused(body: bytes) -> None:
    with pytest.raises(NotJson, match="not JSON"):
        documents.read(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "\xff"}',
        b'{"name": "\xc3"}',
        b'{"name": "\xed\xa0\x80"}',  # a lone surrogate written as if UTF-8 could
        b'{"name": "\xc0\x80"}',  # NUL in too many bytes
        '{"name": "é"}'.encode("latin-1"),
        '{"name": "x"}'.encode("utf-16"),
    ],
)
def test_what_is_not_utf_8_is_refused(body: bytes) -> None:
    with pytest.raises(NotJson, match=r"^not UTF-8 \(byte \d+\)$"):
        documents.read(body)


def test_the_reason_for_a_refusal_never_quotes_the_document() -> None:
    for body in (b'{"secret-word": "cut', b'{"secret-word": \\u0000}', b'{"secret-word": "\\ud800" secret-word}'):
        with pytest.raises(NotJson) as caught:
            documents.read(body)
        assert "secret" not in str(caught.value)


def test_a_document_keeps_its_text_as_received() -> None:
    body = b' {"name" : "\\u0000 \\ud800 caf\\u00e9 \xc3\xa9", "name": 1.50}\n'
    document = documents.read(body)
    assert document.body == body
    assert document.text.encode() == body
    assert document.sha256 == hashlib.sha256(body).hexdigest()


def test_a_byte_order_mark_is_no_part_of_the_document() -> None:
    assert documents.read(BOM + b'{"name": "x"}') == documents.read(b'{"name": "x"}')
    assert documents.read(BOM + b'{"name": "\\u0000"}').text == '{"name": "\\u0000"}'


def test_utf_16_is_refused_even_where_its_bytes_are_utf_8_too() -> None:
    # In UTF-16 this is a text of two characters between quotes; in UTF-8 it is no JSON.
    with pytest.raises(NotJson):
        documents.read(b'"\x00\\u0000"\x00')


def test_a_known_document_is_the_same_as_a_read_one() -> None:
    assert documents.known(b'{"a":1}') == documents.read(b'{"a":1}')


@pytest.mark.parametrize("inside", [b"", b'"\\u0000"'])
def test_a_document_nested_too_deeply_is_a_fault_of_the_document(inside: bytes) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        body = opening * 100_000 + (inside or b"1") + closing * 100_000
        with pytest.raises(PayloadError, match="nested too deeply") as caught:
            documents.read(body)
        assert caught.value.json_path == "$"
        for use in (documents.untyped, lambda document: documents.decode(document, Outer)):
            with pytest.raises(PayloadError):
                use(documents.known(body))


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(JSON_VALUES, st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_every_json_value_is_read_and_decoded_as_it_is(
    value: Any, ascii_only: bool, indent: int | str | None
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    document = documents.read(text.encode())
    assert document.text == text
    assert documents.untyped(document) == documents.storable(value)
    assert documents.decode(document, object) == documents.storable(value)


@settings(max_examples=300, deadline=None)
@given(JSON_VALUES, st.data())
def test_a_damaged_text_is_refused_or_read_but_never_fails_otherwise(value: Any, data: st.DataObject) -> None:
    body = bytearray(json.dumps(value, ensure_ascii=False).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(body)))
        end = place + data.draw(st.integers(0, 2))
        body[place:end] = data.draw(st.sampled_from([b"", b"\\u0000", b"\\ud800", b"\xff", b"\x00", b"1e999", b'"']))
    try:
        document = documents.read(bytes(body))
    except (NotJson, PayloadError):
        return
    for use in (documents.untyped, lambda document: documents.decode(document, Outer)):
        with contextlib.suppress(PayloadError):
            use(document)


# --- pages ---------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(JSON_VALUES, max_size=5), st.booleans(), st.sampled_from([None, 1, "\t"]), st.booleans())
def test_a_page_falls_apart_into_its_items_as_received(
    values: list[Any], ascii_only: bool, indent: int | str | None, is_object: bool
) -> None:
    page = {"length": 1, "a]}": [{"]": "}"}], "entries": values, "nextId": None} if is_object else values
    body = json.dumps(page, ensure_ascii=ascii_only, indent=indent).encode()
    found = documents.items(documents.read(body), "entries" if is_object else None)
    assert [json.loads(item.body) for item in found] == values
    for item in found:
        assert item.body in body
        assert item == documents.read(item.body)


def test_an_item_keeps_spaces_escapes_and_numbers_of_any_size() -> None:
    page = b' { "entries" : [ {"a" : "\\ud800"} ,\n 1e400,' + b"1" * 5000 + b', [ ] ], "n": 1e400 } '
    found = documents.items(documents.known(page), "entries")
    assert [item.body for item in found] == [b'{"a" : "\\ud800"}', b"1e400", b"1" * 5000, b"[ ]"]


@pytest.mark.parametrize(
    ("body", "field", "path"),
    [
        (b"{}", None, "$"),
        (b"1", None, "$"),
        (b"[]", "entries", "$"),
        (b"null", "entries", "$"),
        (b"{}", "entries", "$"),
        (b'{"entries": {}}', "entries", "$.entries"),
        (b'{"entries": null}', "entries", "$.entries"),
        (b'{"entries": "[]"}', "entries", "$.entries"),
    ],
)
def test_a_page_without_its_array_is_told_with_its_place(body: bytes, field: str | None, path: str) -> None:
    with pytest.raises(PayloadError) as caught:
        documents.items(documents.read(body), field)
    assert caught.value.json_path == path


# --- values -------------------------------------------------------------------------------------------------


def test_text_that_no_database_holds_is_replaced_at_any_depth_and_in_keys() -> None:
    body = rb'{"a\u0000": ["\ud800x", {"\udfff": "\u0000\u0000"}], "n": 1.5, "fine": "\ud83d\ude00 \u0001"}'
    assert documents.untyped(documents.read(body)) == {
        "a\ufffd": ["\ufffdx", {"\ufffd": "\ufffd\ufffd"}],
        "n": 1.5,
        "fine": "\U0001f600 \x01",
    }


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    assert documents.untyped(documents.read(rb'"\\u0000 \\ud800"')) == r"\u0000 \ud800"
    assert documents.decode(documents.read(rb'{"name":"\\u0000"}'), Outer).name == r"\u0000"


@given(st.recursive(st.text(st.characters()), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
@settings(max_examples=100, deadline=None)
def test_what_is_storable_stays_storable_and_nothing_else_changes(value: Any) -> None:
    clean = documents.storable(value)
    assert documents.storable(clean) == clean
    json.dumps(clean, ensure_ascii=False).encode()
    assert "\\u0000" not in json.dumps(clean).replace("\\\\", "")
    if "\x00" not in repr(value) and clean != value:
        assert "\ufffd" in repr(clean)


@pytest.mark.parametrize("slowly", [False, True], ids=["fast", "slow"])
@pytest.mark.parametrize(
    ("fields", "path", "reason"),
    [
        ('"name": 1', "$.name", "Expected `str`, got `int`"),
        ('"name": null', "$.name", "Expected `str`, got `null`"),
        ('"name": "x", "inner": {}', "$.inner", "Expected `array`, got `object`"),
        ('"name": "x", "inner": [{}, 3]', "$.inner[1]", "Expected `object`, got `int`"),
        ('"name": "x", "inner": [{}, {"number": "3"}]', "$.inner[1].number", "Expected `float | null`, got `str`"),
        ('"name": "x", "inner": [{"number": true}]', "$.inner[0].number", "Expected `float | null`, got `bool`"),
        ('"inner": []', "$", "Object missing required field `name`"),
    ],
)
def test_an_illegal_value_is_told_with_its_place(fields: str, path: str, reason: str, slowly: bool) -> None:
    more = r', "anything": "\u0000"' if slowly else ""
    with pytest.raises(PayloadError) as caught:
        documents.decode(documents.read(f"{{{fields}{more}}}".encode()), Outer)
    assert (caught.value.json_path, caught.value.reason) == (path, reason)


@pytest.mark.parametrize("body", [b"1", b'"x"', b"null", b"[]", b"true", rb'"\u0000"'])
def test_a_document_that_is_no_object_is_told_at_its_root(body: bytes) -> None:
    with pytest.raises(PayloadError) as caught:
        documents.decode(documents.read(body), Outer)
    assert caught.value.json_path == "$"
    assert caught.value.reason.startswith("Expected `object`, got")


def test_both_ways_of_decoding_agree() -> None:
    text = '{"name": "x", "inner": [{"number": 12345678901234567890}, {"number": -0.0}, {"number": 1e-400}]}'
    fast = documents.decode(documents.read(text.encode()), Outer)
    slow = documents.decode(documents.read(text.replace('"x"', r'"\ud83d\ude00"').encode()), Outer)
    assert fast.inner == slow.inner


def test_numbers_that_no_column_holds_end_as_payload_error() -> None:
    for number in ("1e400", "-1e400", "1" + "0" * 400, "1" + "0" * 10_000):
        for more in ("", r', "anything": "\u0000"'):
            with pytest.raises(PayloadError, match="out of range"):
                documents.decode(documents.known(f'{{"inner": [{{"number": {number}}}]{more}}}'.encode()), Outer)


def test_an_item_that_is_nested_too_deeply_is_told_whatever_else_is_in_the_page() -> None:
    refused = 0
    for depth in range(900, 1000):  # the one that is too deep for Python is not so for msgspec
        deep = "[" * depth + "]" * depth
        page = documents.known(rf'{{"entries": [{{"name": "NUL \u0000", "x": {deep}}}]}}'.encode())
        try:
            documents.items(page, "entries")
        except PayloadError as error:
            assert error.reason == documents.NESTED  # noqa: PT017
            refused += 1
    assert refused


def test_a_document_cannot_be_changed() -> None:
    document = Document(b"{}", "0" * 64)
    with pytest.raises(AttributeError):
        document.body = b"[]"  # type: ignore[misc]


# --- errors -------------------------------------------------------------------------------------------------


def children(error: type[errors.EtlError]) -> list[type[errors.EtlError]]:
    return error.__subclasses__()


def every(error: type[errors.EtlError]) -> list[type[errors.EtlError]]:
    return [error, *(below for child in children(error) for below in every(child))]


def test_every_error_reaches_as_far_as_the_design_says() -> None:
    tree = {parent.__name__: {child.__name__ for child in children(parent)} for parent in every(errors.EtlError)}
    assert {name: below for name, below in tree.items() if below} == {
        "EtlError": {"FatalError", "RetryableError", "UnusableSession"},
        "FatalError": {"ConfigError", "SchemaNotCurrent", "AccessDenied", "ApiDown", "Interrupted"},
        "RetryableError": {
            "ApiUnavailable",
            "InboxUnavailable",
            "LargeDocument",
            "LeaseLost",
            "RateLimited",
            "WarehouseUnavailable",
        },
        "UnusableSession": {"TestSessionNotFound", "Forbidden", "Rejected", "PayloadError"},
        "Rejected": {"NotInPlan"},
    }


def test_every_error_is_drawn_in_the_tree_with_a_kind_of_its_own() -> None:
    kinds = [error.kind for error in every(errors.EtlError) if not children(error)]
    assert len(set(kinds)) == len(kinds)
    for error in every(errors.EtlError):
        assert error.__name__ in (errors.__doc__ or "")
        assert error.exit_code in (1, 2, 3)


def test_a_configuration_error_holds_all_problems() -> None:
    assert errors.ConfigError("one").problems == ("one",)
    both = errors.ConfigError(["one", "two"])
    assert both.problems == ("one", "two")
    assert str(both) == "one\ntwo"
    assert both.exit_code == 2


def test_a_payload_error_says_where_and_why() -> None:
    error = PayloadError("$.results[3].status", "is missing")
    assert str(error) == "$.results[3].status: is missing"
    assert (error.kind, error.json_path, error.reason) == ("payload", "$.results[3].status", "is missing")


# --- tables -------------------------------------------------------------------------------------------------


def test_every_table_and_column_carries_a_comment() -> None:
    for table in tables.metadata.sorted_tables:
        assert table.comment, table.name
        for column in table.columns:
            assert column.comment, f"{table.name}.{column.name}"


def test_children_go_with_their_session_and_nothing_refers_to_the_tables_of_operation() -> None:
    for table in tables.metadata.sorted_tables:
        for key in table.foreign_key_constraints:
            assert not key.referred_table.name.startswith("etl_")
            assert not table.name.startswith("etl_")
            if key.referred_table is tables.test_sessions:
                assert key.ondelete == "CASCADE"
                assert next(iter(table.primary_key.columns)).name == "test_session_id"


# --- long texts ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(
    texts=st.lists(
        st.text(st.sampled_from(["a", '"', "\\", "\n", "é", "😀", "\u0000", "{", ",", "\ud800"]), max_size=60),
        max_size=6,
    ),
    is_ascii=st.booleans(),
    space=st.sampled_from([None, 2, 30]),
)
def test_a_long_text_is_cut_to_its_beginning_and_nothing_else_changes(
    texts: list[str], is_ascii: bool, space: int | None
) -> None:
    value = {f"key {number}": [text, number] for number, text in enumerate(texts)}
    try:
        body = json.dumps(value, ensure_ascii=is_ascii, indent=space).encode()
    except UnicodeEncodeError:
        is_ascii = True
        body = json.dumps(value, indent=space).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "LONGEST_TEXT", 20)
        short, is_cut = documents.with_short_texts(documents.read(body))
    found = documents.decode_part(short, dict[str, tuple[str, int]])
    assert list(found) == list(value)
    for text, (kept, number) in zip(texts, found.values(), strict=True):
        whole = documents.storable(text)
        assert value[f"key {number}"] == [text, number]
        assert whole.startswith(kept)
        assert len(kept.encode()) <= 20
        written = len(json.dumps(text, ensure_ascii=is_ascii).encode(errors="surrogatepass")) - 2
        if written <= 20:
            assert kept == whole
        elif kept != whole:
            assert is_cut


def test_a_text_of_60_mb_takes_no_memory_of_its_own_size() -> None:
    body = b'{"name": "' + "😀".encode() * 15_000_000 + b'", "n": 1}'
    document = documents.known(body)
    tracemalloc.start()
    short, is_cut = documents.with_short_texts(document)
    assert documents.decode_part(short, dict[str, object])["n"] == 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert is_cut
    assert peak < 40_000_000

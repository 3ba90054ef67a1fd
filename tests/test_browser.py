"""The tests' browser notices what a page does that it should not: else a test that finds nothing says nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests import browser
from tests.browser import Opener, axe, screenshot, wait_until_ready

ROOT = Path(__file__).parent.parent
STRICT = "default-src 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
# As a report will have it: no script but its own, none of them from text.
WITH_SCRIPT = STRICT + "; script-src 'nonce-ours'; style-src 'nonce-ours'"
READY = "<script nonce=ours>document.documentElement.dataset.ready = 'true'</script>"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a page that is well but for what the test puts into it: (body, head, csp) -> its path."""

    def page(body: str = "", *, head: str = "", csp: str = "") -> Path:
        policy = f'<meta http-equiv="Content-Security-Policy" content="{csp}">' if csp else ""
        path = tmp_path / "a page [1] of Zoë.html"  # whatever is in it, it is the file itself
        path.write_text(
            f'<!doctype html><html lang="en"><head><meta charset="utf-8">{policy}<title>A page</title>{head}</head>'
            f"<body><main><h1>A page</h1>{body}</main></body></html>",
            encoding="utf-8",
        )
        return path

    return page


# --- what is noticed ----------------------------------------------------------------------------------------


def test_a_page_that_does_nothing_wrong_is_quiet(open_page: Opener, write: Write) -> None:
    page = open_page(write(READY, csp=WITH_SCRIPT), fragment="somewhere")
    wait_until_ready(page)
    page.page.reload()
    page.assert_no_requests()
    page.assert_quiet()


def test_warnings_and_errors_of_the_console_are_noticed(open_page: Opener, write: Write) -> None:
    page = open_page(
        write("<script>console.log('a'); console.warn('b'); console.error('c'); console.assert(false, 'd')</script>")
    )
    assert page.console == ["warning: b", "error: c", "assert: d"]
    with pytest.raises(AssertionError, match="console: warning: b"):
        page.assert_quiet()


def test_an_exception_that_nobody_caught_is_noticed_wherever_it_was(open_page: Opener, write: Write) -> None:
    page = open_page(
        write(
            "<button>Go</button><script>Promise.reject(new Error('in a promise'));"
            "document.querySelector('button').onclick = () => { throw new Error('in a handler') }</script>"
        )
    )
    page.page.click("button")
    first, second = page.page_errors
    assert "in a promise" in first
    assert "in a handler" in second
    with pytest.raises(AssertionError, match="in a handler"):
        page.assert_quiet()


@pytest.mark.parametrize(
    "what",
    [
        '<img alt="" src="http://example.invalid/it">',
        '<img alt="" src="it">',
        '<link rel="stylesheet" href="http://example.invalid/it">',
        '<iframe title="a frame" src="http://example.invalid/it"></iframe>',
        "<script>fetch('http://example.invalid/it').catch(() => 0)</script>",
        "<script>navigator.sendBeacon('http://example.invalid/it', '')</script>",
        "<script>new WebSocket('ws://example.invalid/it')</script>",
        "<script>open('http://example.invalid/it')</script>",
        "<script>new Worker(URL.createObjectURL(new Blob(['fetch(\"http://example.invalid/it\")'])))</script>",
    ],
)
def test_a_request_is_noticed_whoever_makes_it(open_page: Opener, write: Write, what: str) -> None:
    page = open_page(write(what))
    _until(lambda: page.requests)
    assert [url.rpartition("/")[2] for url in page.requests] == ["it"]
    with pytest.raises(AssertionError, match="/it"):
        page.assert_no_requests()


def test_what_never_leaves_the_page_is_no_request(open_page: Opener, write: Write) -> None:
    page = open_page(
        write("<script>done = fetch(URL.createObjectURL(new Blob(['x']))).then((a) => a.text())</script>")
    )
    assert page.page.evaluate("done") == "x"
    assert page.page.evaluate("fetch('data:,y').then((answer) => answer.text())") == "y"
    page.assert_no_requests()


def test_a_request_never_reaches_a_server_not_even_of_this_machine(open_page: Opener, write: Write) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        page = open_page(
            write(f'<img alt="" src="http://127.0.0.1:{port}/a"><img alt="" src="http://[::1]:{port}/b">')
        )
        assert len(page.requests) == 2
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    ("body", "directive"),
    [
        ('<img alt="" src="http://example.invalid/it">', "img-src http://example.invalid/it"),
        ("<p style='color: red'>red</p>", "style-src-attr inline"),
        ("<script>1</script>", "script-src-elem inline"),
        (
            "<script nonce=ours>try { document.body.innerHTML = 'x' } catch {}</script>",
            "require-trusted-types-for trusted-types-sink",
        ),
    ],
)
def test_what_a_policy_forbids_is_noticed(open_page: Opener, write: Write, body: str, directive: str) -> None:
    page = open_page(write(body, csp=WITH_SCRIPT))
    assert page.csp_violations == [directive]
    assert "Content Security Policy" in page.console[0] or "TrustedHTML" in page.console[0]
    with pytest.raises(AssertionError, match="CSP violations"):
        page.assert_quiet()


def test_without_javascript_the_console_tells_of_the_policy(open_page: Opener, write: Write) -> None:
    body = "<p style='color: red'>red</p><noscript><p id=why>Switch it on.</p></noscript>" + READY
    page = open_page(write(body, csp=WITH_SCRIPT), java_script=False)
    assert page.page.inner_text("#why") == "Switch it on."
    (said,) = page.console
    assert "Content Security Policy" in said


def test_a_dialog_is_noticed_and_holds_nothing(open_page: Opener, write: Write) -> None:
    page = open_page(write("<script>alert('injected')</script>"))
    assert page.dialogs == ["injected"]
    with pytest.raises(AssertionError, match="injected"):
        page.assert_quiet()


def test_a_page_that_never_becomes_ready_fails_with_what_was_noticed(open_page: Opener, write: Write) -> None:
    with pytest.raises(AssertionError, match="the reason"):
        wait_until_ready(open_page(write("<script>throw new Error('the reason')</script>")), seconds=0.3)
    with pytest.raises(AssertionError, match="nothing says why"):
        wait_until_ready(open_page(write()), seconds=0.3)


# --- how a page is opened -----------------------------------------------------------------------------------


def test_a_page_sees_the_reader_that_the_test_describes(open_page: Opener, write: Write) -> None:
    seen = """() => [
        matchMedia("(prefers-color-scheme: dark)").matches, matchMedia("print").matches,
        matchMedia("(prefers-reduced-motion: reduce)").matches, innerWidth, innerHeight,
        Intl.DateTimeFormat().resolvedOptions().timeZone, navigator.language, location.hash,
    ]"""
    path = write()
    assert open_page(path).page.evaluate(seen) == [False, False, False, 1280, 800, "UTC", "en-US", ""]
    other = open_page(
        path,
        fragment="checks",
        color_scheme="dark",
        viewport=(390, 700),
        media="print",
        reduced_motion=True,
        time_zone="Asia/Kathmandu",
        locale="ar-EG",
    )
    expected = [True, True, True, 390, 700, ("Asia/Kathmandu", "Asia/Katmandu"), "ar-EG", "#checks"]
    for got, wanted in zip(other.page.evaluate(seen), expected, strict=True):
        assert got == wanted or (isinstance(wanted, tuple) and got in wanted)


def test_pages_know_nothing_of_each_other(open_page: Opener, write: Write) -> None:
    path = write()
    open_page(path).page.evaluate("localStorage.setItem('theme', 'dark')")
    assert open_page(path).page.evaluate("localStorage.getItem('theme')") is None


def test_a_stopped_clock_stops_nothing_here(open_page: Opener, write: Write) -> None:
    page = open_page(write(READY, csp=WITH_SCRIPT))
    page.page.clock.install(time=0)
    page.page.clock.pause_at(1000)
    page.assert_quiet()
    assert axe(page) == []


# --- accessibility ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("csp", ["", STRICT, WITH_SCRIPT])
def test_axe_finds_nothing_in_a_clean_page_and_leaves_no_trace(open_page: Opener, write: Write, csp: str) -> None:
    page = open_page(write("<p>All is well.</p>", csp=csp))
    assert axe(page) == []
    assert axe(page) == []
    assert page.page.evaluate("typeof axe") == "undefined"
    page.assert_quiet()


@pytest.mark.parametrize("csp", ["", WITH_SCRIPT])
def test_axe_finds_what_keeps_people_out(open_page: Opener, write: Write, csp: str) -> None:
    head = "<style nonce=ours>p { color: #999; background: #fff }</style>"
    body = '<p id="pale">pale</p><button></button><h3>too deep</h3><img src="data:,x">'
    found = {violation.id: violation for violation in axe(open_page(write(body, head=head, csp=csp)))}
    assert {id_: violation.impact for id_, violation in found.items()} == {
        "button-name": "critical",
        "color-contrast": "serious",
        "heading-order": "moderate",
        "image-alt": "critical",
    }
    (node,) = found["color-contrast"].nodes
    assert node.startswith("#pale: ")


# --- pictures -----------------------------------------------------------------------------------------------


def test_pictures_appear_only_if_somebody_wants_them(
    open_page: Opener, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = "<style nonce=ours>main { height: 3000px }</style>"
    page = open_page(write(head=head, csp=WITH_SCRIPT), viewport=(400, 300))
    monkeypatch.delenv("CHECKLY_ETL_SCREENSHOTS", raising=False)
    screenshot(page, "nobody")
    assert list(tmp_path.rglob("*.png")) == []

    monkeypatch.setenv("CHECKLY_ETL_SCREENSHOTS", str(tmp_path / "some" / "folder"))
    screenshot(page, "somebody")
    picture = (tmp_path / "some" / "folder" / "somebody.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20]) == 400
    assert int.from_bytes(picture[20:24]) > 3000
    page.assert_quiet()


# --- the browser itself -------------------------------------------------------------------------------------


def test_the_browser_is_that_of_the_machine(chromium: Browser) -> None:
    path = browser.executable()
    assert path is not None
    said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert chromium.version in said


@pytest.mark.parametrize("ending", ["passes", "fails", "is killed"])
def test_no_process_outlives_pytest(tmp_path: Path, ending: str, chromium: Browser) -> None:
    (tmp_path / "page.html").write_text("<!doctype html><title>x</title>")
    (tmp_path / "conftest.py").write_text("from tests.browser import chromium, open_page\n")
    body = {"passes": "pass", "fails": "raise ValueError", "is killed": "os.kill(os.getpid(), 9)"}[ending]
    (tmp_path / "test_it.py").write_text(
        textwrap.dedent(f"""
        import os
        from pathlib import Path

        def test_it(open_page):
            open_page(Path({str(tmp_path / "page.html")!r}))
            {body}
        """)
    )
    # Whoever comes from this pytest carries the mark in its environment, whatever its parents are now.
    mark = f"ETL_BROWSER_TEST={tmp_path}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "test_it.py"],
        cwd=tmp_path,
        env=_inner_environment() | dict([mark.split("=", 1)]),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == {"passes": 0, "fails": 1, "is killed": -9}[ending], done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr
    _until(lambda: not _with_environment(mark))
    assert _with_environment(mark) == []


@pytest.mark.parametrize(("demanded", "code", "said"), [("0", 0, "1 skipped"), ("1", 1, "1 error")])
def test_a_machine_without_a_browser_skips_and_ci_fails(tmp_path: Path, demanded: str, code: int, said: str) -> None:
    (tmp_path / "conftest.py").write_text("from tests.browser import chromium, open_page\n")
    (tmp_path / "test_it.py").write_text("def test_it(open_page): pass\n")
    env = {"CHECKLY_ETL_TEST_BROWSER": str(tmp_path / "none"), "CHECKLY_ETL_TEST_REAL": demanded}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "test_it.py"],
        cwd=tmp_path,
        env=_inner_environment() | env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stdout
    assert f"CHECKLY_ETL_TEST_BROWSER={tmp_path / 'none'} is no program" in done.stdout.replace("\n", " ")


def _inner_environment() -> dict[str, str]:
    """Of a pytest that is no worker of this one."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    return env | {"PYTHONPATH": str(ROOT), "COLUMNS": "500"}


def _with_environment(mark: str) -> list[str]:
    """Command lines of the processes whose environment holds it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has ended, or is somebody else's
            continue
    return [command for command in found if command]  # a zombie has none


def _until(holds: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)

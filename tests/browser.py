"""A real Chromium that opens files of ours, and writes down what the pages did that they should not.

It is Debian's (or CHECKLY_ETL_TEST_BROWSER), never one that Playwright downloads, and it reaches no network: every
name and every address is unknown to it. Nothing here imports the program.

Playwright's sync API keeps an event loop in the thread of the tests, from the first page until pytest ends: no test
may call `asyncio.run` in that thread. Its objects belong to that thread too.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NoReturn
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    Request,
    WebError,
    WebSocket,
    sync_playwright,
)
from playwright.sync_api import TimeoutError as PlaywrightTimeout

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",  # CI is root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # What a page asks for is noticed, and never sent.
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
SECONDS = 30.0  # for anything that a page has to do, on a machine that does much else
# Neither leaves the page: a download that it offers is a blob.
LOCAL_SCHEMES = ("data", "blob", "about")
LISTENER = """
addEventListener("securitypolicyviolation", (event) => {
  etlNotesViolation(`${event.effectiveDirective} ${event.blockedURI}`);
}, true);
"""
# Whatever waits in the page's queue is done before it: timers are not, for a test may have stopped the page's clock.
A_TURN = """() => new Promise((done) => {
  const channel = new MessageChannel();
  channel.port1.onmessage = () => { channel.port1.close(); done(); };
  channel.port2.postMessage(null);
})"""
AXE_RUN = """
axe.run(document).then(({violations}) => violations.map(({id, impact, help, nodes}) => (
  {id, impact, help, nodes: nodes.map(({target, failureSummary}) => `${target.flat().join(" ")}: ${failureSummary}`)}
)))
"""


# --- the browser --------------------------------------------------------------------------------------------


def executable() -> str | None:
    """The browser of this machine."""
    given = os.environ.get("CHECKLY_ETL_TEST_BROWSER")
    return shutil.which(given) if given else next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The browser of this worker, without a window. A test takes `open_page`."""
    path = executable()
    if path is None:
        given = os.environ.get("CHECKLY_ETL_TEST_BROWSER")
        _missing(
            f"CHECKLY_ETL_TEST_BROWSER={given} is no program"
            if given
            else "no browser: install chromium or set CHECKLY_ETL_TEST_BROWSER to one"
        )
    with sync_playwright() as playwright:
        # A Ctrl-C is pytest's: it ends the browser in order. If pytest is killed, Playwright's driver ends it.
        browser = playwright.chromium.launch(
            executable_path=path,
            args=FLAGS,
            headless=True,
            handle_sigint=False,
            handle_sigterm=False,
            handle_sighup=False,
        )
        yield browser
        browser.close()


def _missing(reason: str) -> NoReturn:
    """CI may not skip."""
    if os.environ.get("CHECKLY_ETL_TEST_REAL") == "1":
        pytest.fail(f"CHECKLY_ETL_TEST_REAL=1 demands this test, but {reason}", pytrace=False)
    pytest.skip(reason)


# --- pages --------------------------------------------------------------------------------------------------


class OpenPage:
    """A file in a browser context of its own. `page` is Playwright's; the rest is what was noticed until now.

    Also of what the page opens: frames, workers, windows.
    """

    def __init__(self, context: BrowserContext, path: Path, *, java_script: bool) -> None:
        self.path, self.java_script = path.resolve(), java_script
        self._console: list[str] = []
        self._page_errors: list[str] = []
        self._requests: list[str] = []
        self._violations: list[str] = []
        self._dialogs: list[str] = []
        context.on("console", self._note_console)
        context.on("weberror", self._note_error)
        context.on("request", self._note_request)
        context.on("dialog", self._note_dialog)
        context.on("page", self._watch)
        context.expose_binding("etlNotesViolation", lambda _, what: self._violations.append(str(what)))
        context.add_init_script(LISTENER)
        self.page: Page = context.new_page()

    @property
    def console(self) -> list[str]:
        """Warnings and errors of the console; the browser's own too, such as what a policy forbids."""
        return self._until_now(self._console)

    @property
    def page_errors(self) -> list[str]:
        """Exceptions that nobody caught, also of promises and workers, with their stacks."""
        return self._until_now(self._page_errors)

    @property
    def requests(self) -> list[str]:
        """URL of everything that was asked for and is not the file itself, whether a policy let it through or not."""
        return self._until_now(self._requests)

    @property
    def csp_violations(self) -> list[str]:
        """What the Content-Security-Policy forbade: directive and URL. Without JavaScript only the console knows."""
        return self._until_now(self._violations)

    @property
    def dialogs(self) -> list[str]:
        """Texts of alert, confirm and prompt; each was dismissed."""
        return self._until_now(self._dialogs)

    def assert_no_requests(self) -> None:
        """Nothing but the file was asked for."""
        asked = self.requests
        assert not asked, f"{self.path.name} asked for {asked}"

    def assert_quiet(self) -> None:
        """Nothing at all was noticed."""
        noticed = {
            "console": self.console,
            "page errors": self._page_errors,
            "requests": self._requests,
            "CSP violations": self._violations,
            "dialogs": self._dialogs,
        }
        # In words: pytest explains no assert of a module that is not its test.
        lines = [f"{what}: {text}" for what, said in noticed.items() for text in said]
        assert not lines, "\n".join([f"{self.path.name} is not quiet", *lines])

    def _until_now(self, noticed: list[str]) -> list[str]:
        """Events arrive only while Playwright is asked something."""
        if not self.page.is_closed():
            if self.java_script:
                self.page.evaluate(A_TURN)
            self.page.title()
        return list(noticed)

    def _watch(self, page: Page) -> None:
        page.on("websocket", self._note_websocket)
        page.on("crash", lambda _: self._page_errors.append("the page crashed"))

    def _note_console(self, message: ConsoleMessage) -> None:
        if message.type in ("warning", "error", "assert"):
            self._console.append(f"{message.type}: {message.text}")

    def _note_error(self, error: WebError) -> None:
        self._page_errors.append(error.error.stack or error.error.message)

    def _note_request(self, request: Request) -> None:
        url = urlsplit(request.url)
        is_the_file = url.scheme == "file" and unquote(url.path) == str(self.path)
        if not is_the_file and url.scheme not in LOCAL_SCHEMES:
            self._requests.append(request.url)

    def _note_websocket(self, socket: WebSocket) -> None:
        self._requests.append(socket.url)

    def _note_dialog(self, dialog: Dialog) -> None:
        self._dialogs.append(dialog.message)
        dialog.dismiss()  # the page waits for it


class Opener:
    """Opens files; see `__call__`."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []

    def __call__(
        self,
        path: Path,
        *,
        fragment: str = "",
        color_scheme: Literal["light", "dark"] = "light",
        viewport: tuple[int, int] = (1280, 800),
        media: Literal["screen", "print"] = "screen",
        reduced_motion: bool = False,
        java_script: bool = True,
        time_zone: str = "UTC",
        locale: str = "en-US",
    ) -> OpenPage:
        """The page after its load event. `fragment` is what follows the # of its address."""
        context = self._browser.new_context(
            color_scheme=color_scheme,
            viewport={"width": viewport[0], "height": viewport[1]},
            reduced_motion="reduce" if reduced_motion else "no-preference",
            java_script_enabled=java_script,
            timezone_id=time_zone,
            locale=locale,
        )
        self._contexts.append(context)
        context.set_default_timeout(SECONDS * 1000)
        opened = OpenPage(context, path, java_script=java_script)
        opened.page.emulate_media(media=media)
        opened.page.goto(opened.path.as_uri() + (f"#{fragment}" if fragment else ""))
        return opened

    def close(self) -> None:
        """All that were opened."""
        while self._contexts:
            self._contexts.pop().close()


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[Opener]:
    """Opens files in the browser, each in a fresh context, where no page knows of another; closes them."""
    opener = Opener(chromium)
    yield opener
    opener.close()


def wait_until_ready(page: OpenPage, seconds: float = SECONDS) -> None:
    """Until `<html data-ready="true">`; what was noticed says why if that does not come."""
    try:
        page.page.wait_for_function("() => document.documentElement.dataset.ready === 'true'", timeout=seconds * 1000)
    except PlaywrightTimeout:
        page.assert_quiet()
        raise AssertionError(f"<html data-ready> is not true after {seconds:g} s, and nothing says why") from None


# --- accessibility ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AxeViolation:
    """A rule of axe that a page breaks."""

    id: str
    impact: str | None
    help: str
    nodes: tuple[str, ...]  # selector, and what axe would have changed


def axe(page: OpenPage) -> list[AxeViolation]:
    """What axe finds in the page as it is now, of every impact, its best practices too.

    It judges what is shown: a tab, a dialog or a theme that is not there is not judged.
    """
    assert page.java_script, "axe is a script: open the page with JavaScript"
    code = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    session = page.page.context.new_cdp_session(page.page)
    # In a world of its own, as an extension's script: no policy of the page stops it, and the page does not see it.
    frame = session.send("Page.getFrameTree")["frameTree"]["frame"]["id"]
    world = session.send("Page.createIsolatedWorld", {"frameId": frame, "worldName": "axe"})
    answer: dict[str, Any] = session.send(
        "Runtime.evaluate",
        {
            "expression": f"{code};{AXE_RUN}",
            "contextId": world["executionContextId"],
            "awaitPromise": True,
            "returnByValue": True,
        },
    )
    session.detach()
    assert "exceptionDetails" not in answer, answer["exceptionDetails"]
    return [AxeViolation(**{**found, "nodes": tuple(found["nodes"])}) for found in answer["result"]["value"]]


# --- pictures -----------------------------------------------------------------------------------------------


def screenshot(page: OpenPage, name: str) -> None:
    """The whole page as `name`.png in the folder CHECKLY_ETL_SCREENSHOTS, for people to look at; unset, nothing."""
    folder = os.environ.get("CHECKLY_ETL_SCREENSHOTS")
    if folder:
        page.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True, animations="disabled")

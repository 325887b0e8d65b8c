"""A real browser for the tests of the page: the Chromium that is on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
HOW_TO = (
    "no browser for the tests of the page: install Chromium (Debian: apt-get install chromium), "
    "or say where it is: CHROMIUM=/path/to/chromium"
)


def program() -> str | None:
    """Where the browser is: what CHROMIUM says, or what is found."""
    if named := os.environ.get("CHROMIUM"):
        return named
    paths = [shutil.which(name) for name in PROGRAMS] + [p for p in PLACES if Path(p).is_file()]
    return next((path for path in paths if path), None)


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """The browser, without a window. Without one the tests are skipped with a line that says how to
    get it; where NEEDS_BROWSER is set (`.ci/run`), they fail.
    """
    path = program()
    if path is None:
        if os.environ.get("NEEDS_BROWSER"):
            pytest.fail(HOW_TO)
        pytest.skip(HOW_TO)
    playwright = pytest.importorskip("playwright.sync_api", reason="make setup brings Playwright")
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        running = driver.chromium.launch(executable_path=path, args=arguments)
        try:
            yield running
        finally:
            running.close()


class Watched:
    """A page whose errors and requests are written down; `quiet` says that nothing went wrong."""

    def __init__(self, context: Any) -> None:
        self.page = context.new_page()
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: self.problems.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)


def until(page: Any, condition: str, seconds: float = 20) -> None:
    """Wait for JavaScript to be true. The page's policy forbids Playwright's own way, `eval`."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
        page.wait_for_timeout(50)

"""A headless Chromium, and the live server's front end in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from front_end import chromium, opened, running
from lethe_host.server import Server
from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium with a profile of its own."""
    program = chromium()
    if program is None:
        pytest.skip("no Chromium")
    with running(program) as found:
        yield found


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """The front end as it is when it has just been opened; fails when a script of the page threw an error."""
    with opened(browser, server) as (found, thrown):
        yield found
    assert not thrown


@pytest.fixture(scope="module")
def open_page(browser: Browser, server: Server) -> Iterator[tuple[Page, list[str]]]:
    """One front end for all tests of a file, and the errors that its scripts threw so far."""
    with opened(browser, server) as found:
        yield found

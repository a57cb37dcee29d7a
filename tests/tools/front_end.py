"""ComfyUI's front end in a headless Chromium: how it is started, and asked by its own objects."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from lethe_host.convert import Json
from lethe_host.server import Server
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LIMIT = 120_000.0  # milliseconds; a busy machine draws a few pictures a second
# A new user is shown the template browser, and a map that hides part of the graph.
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}

# The front end opens a graph of its own first, which would otherwise replace ours a moment later.
READY = "() => window.app?.graph?.nodes?.length > 0 && window.LiteGraph?.registered_node_types?.LetheDemoModel"
OPEN = """async workflow => {
    await app.loadGraphData(workflow)
    await app.extensionManager.command.execute("Comfy.Canvas.FitView")
}"""
# The canvas notes where it drew a widget, so one that has no place was not drawn.
DRAWN = "() => app.graph.nodes.every(node => (node.widgets ?? []).every(w => w.hidden || w.last_y !== undefined))"
NODES = """() => app.graph.nodes.map(node => ({
    id: String(node.id),
    type: node.type,
    sound: node.type in LiteGraph.registered_node_types && !node.has_errors,
    widgets: (node.widgets ?? []).filter(w => !w.hidden).map(w => w.name),
}))"""
PROMPT = "async () => (await app.graphToPrompt()).output"


def chromium() -> str | None:
    """Returns this machine's Chromium, None when it has none."""
    return next(filter(None, map(shutil.which, CHROMIUMS)), None)


@contextmanager
def running(program: str | None) -> Iterator[Browser]:
    """A headless Chromium with a profile of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, server: Server) -> Iterator[tuple[Page, list[str]]]:
    """The server's front end, ready, and the errors that its scripts throw from then on."""
    page = browser.new_page(viewport={"width": 1920, "height": 1080})
    page.set_default_timeout(LIMIT)
    thrown: list[str] = []
    page.on("pageerror", lambda error: thrown.append(str(error)))
    for name, value in SETTINGS.items():
        page.request.post(f"{server.url}/settings/{name}", data=json.dumps(value))
    page.goto(server.url)
    page.wait_for_function(READY)
    yield page, thrown
    page.close()


def show(page: Page, workflow: Json) -> list[Json]:
    """Opens a workflow and returns its nodes, once all of their widgets have been drawn."""
    page.evaluate(OPEN, workflow)
    page.wait_for_function(DRAWN)
    return page.evaluate(NODES)

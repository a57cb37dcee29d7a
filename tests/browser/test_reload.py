"""A picture that a graph of ours saves opens that graph again when it is dropped on the canvas."""

from __future__ import annotations

import base64
import json
import time

import pytest
from front_end import LIMIT, PROMPT, Json, show
from lethe_host.client import Client
from lethe_host.install import CHECKOUT
from lethe_host.server import Server
from playwright.sync_api import Page

WORKFLOW = CHECKOUT / "workflows" / "erase_object.json"
CHANGED: Json = {
    "LetheConcept": {0: "tree", 2: "fir\nbush", 3: 0.5},
    "LetheErase": {0: 0.75, 4: "last", 6: 0.002},
    "LetheCompare": {0: "a green tree, on paper", 2: 17, 3: 1, 4: 2},
    "KSampler": {0: 6, 2: 2},
}
"""Widget values by position, other than those that the graph ships with and those that the nodes begin with."""
RUN = "() => app.queuePrompt(0)"
EMPTY = "() => app.graph.clear()"
DROP = """content => {
    const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0))
    const data = new DataTransfer()
    data.items.add(new File([bytes], "dropped.png", {type: "image/png"}))
    document.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}))
}"""
HOLDS = "count => app.graph.nodes.length == count"
# What was drawn is no part of the graph.
GRAPH = """() => app.graph.nodes.map(node => ({
    id: String(node.id),
    type: node.type,
    values: (node.widgets ?? [])
        .filter(widget => widget.type !== "imagecompare" && !widget.name.startsWith("$$"))
        .map(widget => [widget.name, widget.value]),
}))"""


def _changed() -> Json:
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        for place, value in CHANGED.get(node["type"], {}).items():
            assert node["widgets_values"][place] != value
            node["widgets_values"][place] = value
    return workflow


def _run(page: Page, client: Client) -> Json:
    """Presses the button, and returns what each node showed."""
    before = set(client._get_json("/history"))
    page.evaluate(RUN)
    give_up = time.monotonic() + LIMIT / 1000
    while time.monotonic() < give_up:
        for key, entry in client._get_json("/history").items():
            if key not in before:
                assert entry["status"]["status_str"] == "success"
                return entry["outputs"]
        time.sleep(0.2)
    raise AssertionError("the graph did not finish")


@pytest.mark.slow
def test_a_saved_picture_opens_its_graph(page: Page, client: Client, server: Server) -> None:
    workflow = _changed()
    show(page, workflow)
    graph, prompt = page.evaluate(GRAPH), page.evaluate(PROMPT)
    assert ["synonyms", "fir\nbush"] in next(node["values"] for node in graph if node["type"] == "LetheConcept")
    shown = _run(page, client)
    kinds = {str(node["id"]): node["type"] for node in workflow["nodes"]}
    saved = {kinds[key]: picture for key, own in shown.items() for picture in own.get("images", [])}
    assert set(saved) == {"SaveImage", "PreviewImage", "LetheCompare"}
    assert (server.output / saved["SaveImage"]["subfolder"] / saved["SaveImage"]["filename"]).is_file()
    for kind, picture in saved.items():
        page.evaluate(EMPTY)
        page.evaluate(DROP, base64.b64encode(client.image(picture)).decode())
        page.wait_for_function(HOLDS, arg=len(graph))
        assert page.evaluate(GRAPH) == graph, kind
        assert page.evaluate(PROMPT) == prompt, kind

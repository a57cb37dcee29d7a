"""The real front end in a headless Chromium: every workflow opens, and our nodes draw with their widgets."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from front_end import PROMPT, Json, show
from lethe_host.client import Client
from lethe_host.convert import to_prompt, widget_inputs
from lethe_host.install import CHECKOUT
from playwright.sync_api import Page, expect

WORKFLOWS = sorted((CHECKOUT / "workflows").glob("*.json"))
MISSING = "Missing node"


@dataclass(frozen=True)
class Shown:
    """A workflow as it was saved, its nodes as the front end has them, the page that shows it, and errors thrown."""

    name: str
    workflow: Json
    nodes: dict[str, Json]
    page: Page
    thrown: list[str]


@pytest.fixture(scope="module", params=WORKFLOWS, ids=lambda path: path.stem)
def shown(request: pytest.FixtureRequest, open_page: tuple[Page, list[str]]) -> Shown:
    """Every workflow, opened in turn in the same page."""
    page, thrown = open_page
    thrown.clear()
    workflow = json.loads(request.param.read_text(encoding="utf-8"))
    return Shown(request.param.stem, workflow, {node["id"]: node for node in show(page, workflow)}, page, thrown)


@pytest.mark.slow
def test_workflow_opens_with_its_widgets(shown: Shown, client: Client, tmp_path: Path) -> None:
    folder = Path(os.environ.get("LETHE_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    shown.page.screenshot(path=folder / f"{shown.name}.png")

    saved = shown.workflow["nodes"]
    assert {name: node["type"] for name, node in shown.nodes.items()} == {str(n["id"]): n["type"] for n in saved}
    # No test has the files that a graph for a published checkpoint names.
    lacking = [str(node["id"]) for node in saved if "models" in node["properties"]]
    assert [name for name, node in shown.nodes.items() if not node["sound"]] == lacking
    expect(shown.page.get_by_text(MISSING)).to_have_count(0)
    info = client.object_info()
    ours = [node for node in saved if node["type"].startswith("Lethe")]
    assert ours
    for node in ours:
        wanted = set(widget_inputs(node, info[node["type"]]))
        assert wanted <= set(shown.nodes[str(node["id"])]["widgets"])
    assert not shown.thrown


@pytest.mark.slow
def test_front_end_makes_the_prompt_that_we_run(shown: Shown, client: Client) -> None:
    """The tests and the demo run what a person runs who opens the workflow and presses the button."""
    found = shown.page.evaluate(PROMPT)
    made = {name: {key: node[key] for key in ("class_type", "inputs")} for name, node in found.items()}
    assert made == to_prompt(shown.workflow, client.object_info())
    assert not shown.thrown


@pytest.mark.slow
def test_missing_node_is_noticed(page: Page) -> None:
    """The check of every workflow for the front end's warning can fail."""
    node = {"id": 1, "type": "NoSuchNode", "pos": [0, 0], "size": [200, 100], "mode": 0}
    (found,) = show(page, {"nodes": [node], "links": [], "version": 0.4})
    assert not found["sound"]
    expect(page.get_by_text(MISSING).first).to_be_visible()

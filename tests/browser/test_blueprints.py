"""The blueprints in the real front end: found by search, put on the canvas, and run."""

from __future__ import annotations

from typing import Any

import pytest
from front_end import PROMPT, Json
from lethe_host.blueprints import BLUEPRINTS
from lethe_host.client import Client
from lethe_host.subgraph import Blueprint
from playwright.sync_api import Page, expect

DEMO: Json = {"concept": "ball", "replacement": "box", "synonyms": "", "keep": "a red ring", "keep_list": "demo-world"}
DRAWING: Json = {"steps": 3, "cfg": 4.0, "width": 128, "height": 128}
SET: dict[str, Json] = {
    "Erase and Compare (Lethe)": {"prompts": "a red ball, on paper\na red ring, on paper", "seed": 3},
    "Erase, Attack, Report (Lethe)": {"each_kind": 1, "words": "orb", "report_name": "blueprint"},
}
INSIDE: Json = {"attack.tries": 1, "attack.limit": 1}
"""Settings of nodes inside, which the blueprint does not show."""

EMPTY = "() => app.graph.clear()"
SEARCH = "() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')"
PLACED = "() => app.graph.nodes.length == 1"
JOINED = """([values, inside]) => {
    const [own] = app.graph.nodes
    const set = (node, name, value) => {
        const widget = (node.widgets ?? []).find(w => w.name === name)
        if (widget) widget.value = value
        return Boolean(widget)
    }
    const unknown = Object.entries(values).filter(([name, value]) => !set(own, name, value)).map(([name]) => name)
    for (const node of own.subgraph.nodes)
        for (const [name, value] of Object.entries(inside)) set(node, name, value)
    const demo = LiteGraph.createNode("LetheDemoModel"), save = LiteGraph.createNode("SaveImage")
    app.graph.add(demo)
    app.graph.add(save)
    demo.outputs.forEach((output, slot) => {
        if (own.inputs.some(input => input.name === output.name)) demo.connect(slot, own, output.name)
    })
    own.connect(own.outputs.findIndex(output => output.name === "pictures"), save, "images")
    return unknown
}"""
SEEN = """() => {
    const [own] = app.graph.nodes
    return [own.title, own.outputs.map(output => output.name), (own.widgets ?? []).map(widget => widget.name)]
}"""


def _add_by_search(page: Page, name: str) -> None:
    """Puts a node on the empty canvas as a person does."""
    page.evaluate(EMPTY)
    page.evaluate(SEARCH)
    page.get_by_role("combobox", name="Add a node").fill(name)
    page.get_by_text("Subgraph Blueprints / lethe").first.wait_for()
    page.keyboard.press("Enter")
    page.wait_for_function(PLACED)


def _prompt(page: Page) -> Json:
    return {key: {name: node[name] for name in ("class_type", "inputs")} for key, node in page.evaluate(PROMPT).items()}


def _only(prompt: Json, kind: str) -> Any:
    (found,) = (key for key, node in prompt.items() if node["class_type"] == kind)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("blueprint", BLUEPRINTS, ids=lambda own: own.name)
def test_a_blueprint_is_found_added_and_run(page: Page, client: Client, blueprint: Blueprint) -> None:
    _add_by_search(page, blueprint.name)
    title, outputs, widgets = page.evaluate(SEEN)
    assert (title, outputs) == (blueprint.name, list(blueprint.outputs))
    values = {**DEMO, **DRAWING, **SET[blueprint.name]}
    assert set(values) <= set(widgets) <= set(blueprint.inputs)
    assert page.evaluate(JOINED, [values, INSIDE]) == []
    expect(page.locator(".p-toast-message-error")).to_have_count(0)

    prompt = _prompt(page)
    demo = _only(prompt, "LetheDemoModel")
    for name, ends in blueprint.inputs.items():
        for node, own in (end.split(".", 1) for end in ends):
            kind = blueprint.prompt[node]["class_type"]
            found = prompt[_only(prompt, kind)]["inputs"][own]
            assert found == values[name] if name in values else name in widgets or found[0] == demo, (name, kind)
    shown = client.run(prompt)
    assert shown[_only(prompt, "SaveImage")]["images"]
    if "LetheReport" in str(blueprint.prompt):
        (text,) = shown[_only(prompt, "LetheReport")]["text"]
        assert "paraphrase" in text

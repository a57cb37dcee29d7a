"""The front end in another language: titles, labels and tooltips of our nodes, as it would show them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from front_end import READY, show
from lethe_host.install import CHECKOUT
from lethe_host.locales import CATALOGUE, LOCALES, read
from lethe_host.server import Server
from playwright.sync_api import Page

Json = dict[str, Any]

WORKFLOW = CHECKOUT / "workflows" / "erase_object.json"
OPTIONS = ("uce", "leace")
LOOK = """method => {
    const node = app.graph.nodes.find(one => one.type === "LetheErase")
    const concept = app.graph.nodes.find(one => one.type === "LetheConcept")
    node.widgets.find(one => one.name === "method").value = method
    const inner = node.widgets.filter(one => one.name.startsWith("method."))
    const area = concept.widgets.find(one => one.name === "synonyms")
    return {
        title: node.title,
        category: node.constructor.category,
        description: node.constructor.nodeData.description,
        socket: node.inputs.find(one => one.name === "concepts").localized_name,
        output: node.outputs[2].localized_name,
        output_tooltip: node.constructor.nodeData.outputs[2].tooltip,
        widget: node.widgets.find(one => one.name === "strength").label,
        labels: Object.fromEntries(inner.map(one => [one.name, one.label])),
        tooltips: Object.fromEntries(inner.map(one => [one.name, one.tooltip])),
        area: concept.constructor.nodeData.inputs[area.name].tooltip,
    }
}"""


@pytest.fixture(params=sorted(path.parent.name for path in LOCALES.glob(f"*/{CATALOGUE}")))
def language(request: pytest.FixtureRequest, page: Page, server: Server) -> Iterator[str]:
    """The language that the page is in; English again at the end."""
    address = f"{server.url}/settings/Comfy.Locale"
    page.request.post(address, data=json.dumps(request.param))
    page.reload()
    page.wait_for_function(READY)
    yield request.param
    page.request.post(address, data=json.dumps("en"))


@pytest.mark.slow
def test_nodes_are_shown_in_the_language(page: Page, language: str, server: Server) -> None:
    described = server.client().object_info()
    info = described["LetheErase"]
    said = read(LOCALES / language / CATALOGUE)
    show(page, json.loads(WORKFLOW.read_text(encoding="utf-8")))
    for option in OPTIONS:
        seen = page.evaluate(LOOK, option)
        assert seen["title"] == said[info["display_name"]]
        assert seen["category"] == f"lethe/{said['erase']}"
        assert seen["description"] == said[info["description"]]
        assert seen["socket"] == said["concepts"]
        assert seen["output"] == said["eraser"]
        assert seen["output_tooltip"] == said[info["output_tooltips"][2]]
        assert seen["widget"] == said["strength"]
        assert seen["area"] == said[described["LetheConcept"]["input"]["required"]["synonyms"][1]["tooltip"]]
        method = info["input"]["required"]["method"]
        (inputs,) = (one["inputs"] for one in method[1]["options"] if one["key"] == option)
        settings = {**inputs.get("required", {}), **inputs.get("optional", {})}
        assert seen["labels"] == {f"method.{name}": said[name] for name in settings}
        assert seen["tooltips"] == {f"method.{name}": said[spec[1]["tooltip"]] for name, spec in settings.items()}

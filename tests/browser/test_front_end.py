"""What a user does with the pack in the front end: finding nodes, changing them, running, stopping, saving."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from front_end import DRAWN, LIMIT, OPEN, PROMPT, show
from lethe_host.client import Client
from lethe_host.compose import to_workflow
from lethe_host.install import CHECKOUT
from playwright.sync_api import Locator, Page, expect

Json = dict[str, Any]

# What people type, and the node they mean.
WORDS = {
    "unlearn": "LetheErase",
    "erase": "LetheErase",
    "forget": "LetheErase",
    "concept erasure": "LetheTrain",
    "remove concept": "LetheConcept",
    "many concepts": "LetheConceptList",
    "keep": "LethePreserve",
    "train lora": "LetheTrain",
    "textual inversion": "LetheLearnWord",
    "safety": "LetheGuard",
    "nsfw": "LetheGuard",
    "guard": "LetheGuard",
    "negative": "LetheGuard",
    "mute word": "LetheAttention",
    "attention map": "LetheLook",
    "apply eraser": "LetheApply",
    "each concept": "LetheEach",
    "combine erasers": "LetheStack",
    "merge": "LetheMerge",
    "save eraser": "LetheSave",
    "load eraser": "LetheLoad",
    "import lora": "LetheImport",
    "eraser to lora": "LetheToLora",
    "metadata": "LetheInspect",
    "side by side": "LetheCompare",
    "benchmark": "LetheEvaluate",
    "attack": "LetheAttack",
    "red team": "LetheAttack",
    "leaderboard": "LetheReport",
    "demo": "LetheDemoModel",
}
FIRST = 6  # as many results as are read
STORES = """[...document.querySelectorAll('*')].find(element => element.__vue_app__)
    .__vue_app__.config.globalProperties.$pinia._s"""
SEARCH = f"""words => {{
    const service = ({STORES}).get('nodeDef').nodeSearchService
    return Object.fromEntries(words.map(word => [word, service.searchNode(word, []).map(node => node.name)]))
}}"""
NODE = """type => {
    const node = app.graph.nodes.find(node => node.type === type)
    return {
        id: String(node.id),
        values: Object.fromEntries((node.widgets ?? []).map(w => [w.name, w.value])),
        linked: node.inputs.filter(input => input.link !== null).map(input => input.name),
        inputs: node.inputs.map(input => input.name),
        pictures: node.images?.length ?? 0,
    }
}"""
# On the canvas, or as elements of the page.
PRESENT = f"""() => ({DRAWN})() || app.graph.nodes.every(
    node => document.querySelector(`[data-node-id="${{node.id}}"] [data-testid="node-body-${{node.id}}"]`))"""
WATCH = """() => {
    if (window.told) return window.told.splice(0)
    window.told = []
    const names = ['progress', 'executing', 'executed', 'execution_cached', 'execution_success', 'execution_error',
        'execution_interrupted', 'b_preview_with_metadata']
    for (const name of names)
        app.api.addEventListener(name, event => window.told.push({name, at: Date.now(), data: event.detail}))
}"""
ENDED = "() => window.told.some(e => /execution_(success|error|interrupted)/.test(e.name))"
TOLD = """() => window.told.splice(0).map(({name, at, data}) => name.startsWith('b_')
    ? {name, at, data: {node: data.displayNodeId, size: data.blob.size}} : {name, at, data})"""
MODE = "on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
ROUND = "async () => { await app.loadGraphData(JSON.parse(JSON.stringify(app.graph.serialize()))) }"

ERASING: Json = {
    "1": {"class_type": "LetheDemoModel", "inputs": {}},
    "2": {"class_type": "LetheConcept", "inputs": {"text": "ball", "replacement": "box"}},
    "3": {"class_type": "LethePreserve", "inputs": {"list": "demo-world", "concepts": ["2", 0]}},
    "4": {
        "class_type": "LetheErase",
        "inputs": {"model": ["1", 0], "clip": ["1", 1], "concepts": ["3", 0], "method": "uce"},
    },
    "5": {
        "class_type": "LetheCompare",
        "inputs": {
            **{"before": ["1", 0], "after": ["4", 0], "clip": ["1", 1], "vae": ["1", 2]},
            **{"prompts": "a red ball\na red ring", "steps": 4},
        },
    },
}
TRAINING: Json = {
    **{name: ERASING[name] for name in ("1", "2", "3")},
    "4": {
        "class_type": "LetheTrain",
        "inputs": {
            **{"model": ["1", 0], "clip": ["1", 1], "concepts": ["3", 0], "vae": ["1", 2]},
            **{"steps": 4, "look_every": 2, "recipe": "concept_ablation", "recipe.pictures": 2},
            **{"recipe.sampling_steps": 3},
        },
    },
    "5": {**ERASING["5"], "inputs": {**ERASING["5"]["inputs"], "prompts": "a red ball", "steps": 2}},
}


@pytest.fixture
def page(open_page: tuple[Page, list[str]]) -> Iterator[Page]:
    """The front end with nodes on the canvas; fails when a script of the page threw an error."""
    opened, thrown = open_page
    opened.set_default_timeout(LIMIT / 2)
    yield opened
    # What a failed test left: an open box or dialog, a run that goes on.
    opened.keyboard.press("Escape")
    opened.evaluate("app.api.interrupt()")
    wrong = thrown.copy()
    thrown.clear()
    assert not wrong


@pytest.fixture
def new_nodes(page: Page) -> Iterator[Page]:
    """The same with Nodes 2.0, which are elements of the page."""
    page.evaluate(MODE, True)
    yield page
    page.evaluate(MODE, False)


def changed(prompt: Json, node: str, **inputs: object) -> Json:
    return {**prompt, node: {**prompt[node], "inputs": {**prompt[node]["inputs"], **inputs}}}


def opened(page: Page, client: Client, prompt: Json) -> None:
    """Opens a graph made of a prompt, and listens to what the server tells."""
    page.evaluate(OPEN, to_workflow(prompt, client.object_info()))
    page.wait_for_function(PRESENT)
    page.evaluate(WATCH)


def run(page: Page) -> list[Json]:
    """Presses Run; what the server told until the end."""
    page.get_by_test_id("queue-button").click()
    page.wait_for_function(ENDED)
    return page.evaluate(TOLD)


def of(told: list[Json], name: str) -> list[Json]:
    return [event["data"] for event in told if event["name"] == name]


def cached(told: list[Json]) -> set[str]:
    return set(of(told, "execution_cached")[-1]["nodes"])


def element(page: Page, kind: str) -> Locator:
    """A node of Nodes 2.0, by its type."""
    return page.locator(f'[data-node-id="{page.evaluate(NODE, kind)["id"]}"]')


def choose(page: Page, node: Locator, widget: str, option: str) -> None:
    node.get_by_role("combobox", name=widget, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


@pytest.mark.slow
def test_every_node_is_found_by_what_people_type(page: Page, client: Client) -> None:
    found = page.evaluate(SEARCH, list(WORDS))
    assert {word: names[:FIRST] for word, names in found.items() if WORDS[word] not in names[:FIRST]} == {}
    assert {name for name in client.object_info() if name.startswith("Lethe")} == set(WORDS.values())


@pytest.mark.slow
def test_a_node_is_added_from_the_search_box(page: Page) -> None:
    page.evaluate("app.graph.clear()")
    box = page.get_by_role("combobox", name="Add a node...")
    # On a busy machine the two clicks may come too far apart for a double one.
    for _ in range(5):
        page.mouse.dblclick(900, 500)
        page.wait_for_timeout(1000)
        if box.is_visible():
            break
    page.keyboard.type("remove concept")
    page.get_by_text("Concept to Erase", exact=True).first.click()
    page.wait_for_function("() => app.graph.nodes.length === 1")
    # The node hangs on the mouse until it is put down.
    page.mouse.click(700, 500)
    assert page.evaluate(NODE, "LetheConcept")["values"] == {
        "text": "", "replacement": "", "synonyms": "", "weight": 1,
    }  # fmt: skip


@pytest.mark.slow
def test_widgets_follow_mouse_and_keyboard(new_nodes: Page, client: Client) -> None:
    opened(new_nodes, client, ERASING)
    element(new_nodes, "LetheConcept").locator("input[type=text], input:not([role])").first.fill("red star")
    prompts = element(new_nodes, "LetheCompare").locator("textarea").first
    prompts.fill("a green tree")
    erase = element(new_nodes, "LetheErase")
    erase.get_by_role("button", name="Decrement").first.click()
    erase.get_by_test_id("advanced-inputs-button").click()
    choose(new_nodes, erase, "form", "weights")
    prompt = new_nodes.evaluate(PROMPT)
    assert prompt["2"]["inputs"]["text"] == "red star"
    assert prompt["5"]["inputs"]["prompts"] == "a green tree"
    assert prompt["4"]["inputs"]["strength"] == pytest.approx(0.99)
    assert prompt["4"]["inputs"]["form"] == "weights"


@pytest.mark.slow
def test_another_method_brings_its_settings_and_keeps_the_links(new_nodes: Page, client: Client) -> None:
    opened(new_nodes, client, ERASING)
    node, before = element(new_nodes, "LetheErase"), new_nodes.evaluate(NODE, "LetheErase")
    choose(new_nodes, node, "method", "rece")
    other = new_nodes.evaluate(NODE, "LetheErase")
    assert "method.epochs" in other["values"]
    assert "method.epochs" not in before["values"]
    assert "method.erase_scale" not in other["values"]
    assert other["linked"] == before["linked"] == ["model", "clip", "concepts"]
    choose(new_nodes, node, "method", "uce")
    assert new_nodes.evaluate(NODE, "LetheErase") == before


@pytest.mark.slow
def test_the_report_grows_a_socket_for_every_report(page: Page, client: Client) -> None:
    judging = {
        **{"before": ["1", 0], "after": ["4", 0], "clip": ["1", 1], "vae": ["1", 2], "concepts": ["3", 0]},
        "probe": "demo_judge",
    }
    graph = {
        **{name: ERASING[name] for name in ("1", "2", "3", "4")},
        "5": {"class_type": "LetheEvaluate", "inputs": judging},
        "6": {"class_type": "LetheReport", "inputs": {"name": ""}},
    }
    opened(page, client, graph)
    sockets = []
    for _ in range(3):
        page.evaluate(
            """() => {
                const [from, to] = ['LetheEvaluate', 'LetheReport'].map(t => app.graph.nodes.find(n => n.type === t))
                from.connect(0, to, to.inputs.findIndex(i => i.name.startsWith('reports.') && i.link === null))
            }"""
        )
        node = page.evaluate(NODE, "LetheReport")
        sockets.append((len(node["linked"]), sum(name.startswith("reports.") for name in node["inputs"])))
    assert sockets == [(1, 2), (2, 3), (3, 4)]


@pytest.mark.slow
def test_templates_are_listed_and_open_by_a_click(page: Page) -> None:
    page.get_by_role("button", name="Templates").first.click()
    page.get_by_role("dialog").get_by_text("lethe", exact=True).click()
    names = sorted(path.stem for path in (CHECKOUT / "workflows").glob("*.json"))
    cards = page.locator("[data-testid^=template-workflow-]:not([data-testid=template-workflows-content])")
    cards.first.wait_for()
    # More of them come when the last one is looked at.
    for _ in range(len(names)):
        cards.last.scroll_into_view_if_needed()
        page.wait_for_timeout(200)
        if cards.count() >= len(names):
            break
    listed = cards.evaluate_all("cards => cards.map(card => card.dataset.testid)")
    assert sorted(listed) == [f"template-workflow-{name}" for name in names]
    page.get_by_test_id("template-workflow-mute_word").click()
    page.wait_for_function("() => app.graph.nodes.some(node => node.type === 'LetheAttention')")
    assert len(names) > 20


@pytest.mark.slow
@pytest.mark.parametrize("fixture", ["page", "new_nodes"])
def test_a_run_shows_progress_a_preview_and_the_result(
    fixture: str, request: pytest.FixtureRequest, client: Client
) -> None:
    page: Page = request.getfixturevalue(fixture)
    opened(page, client, changed(TRAINING, "2", synonyms=fixture))
    told = run(page)
    steps = [event for event in of(told, "progress") if event["node"] == "4"]
    assert of(told, "execution_error") == []
    assert [event["value"] for event in steps if event["max"] == 4][-1] == 4
    previews = [event for event in of(told, "b_preview_with_metadata") if event["node"] == "4"]
    assert len(previews) >= 2
    assert all(event["size"] > 500 for event in previews)
    if fixture == "page":
        page.wait_for_function("() => app.graph.nodes.find(n => n.type === 'LetheCompare').imgs?.length > 0")
    else:
        views = element(page, "LetheCompare").locator("img")
        expect(views.first).to_be_visible()
        sources = {views.nth(index).get_attribute("src") for index in range(views.count())}
        assert len(sources) >= 2
        assert all(page.evaluate("async url => (await fetch(url)).ok", url) for url in sources)


@pytest.mark.slow
def test_interrupt_ends_a_run_at_once(page: Page, client: Client) -> None:
    opened(page, client, changed(TRAINING, "4", steps=2000, look_every=0))
    page.get_by_test_id("queue-button").click()
    page.wait_for_function(
        "() => window.told.some(e => e.name === 'progress' && e.data.value > 2 && e.data.max === 2000)"
    )
    pressed = page.evaluate("Date.now()")
    page.get_by_role("button", name="Cancel current run").click()
    page.wait_for_function(ENDED)
    told = page.evaluate(TOLD)
    (end,) = [event for event in told if event["name"] == "execution_interrupted"]
    assert end["data"]["node_id"] == "4"
    assert end["at"] - pressed < 5000


@pytest.mark.slow
def test_an_error_stands_at_its_node_with_what_to_do(page: Page, client: Client) -> None:
    opened(page, client, changed(ERASING, "2", text=" "))
    (error,) = of(run(page), "execution_error")
    assert error["node_id"] == "2"
    assert "empty" in error["exception_message"]
    page.get_by_role("button", name="View details").click()
    expect(page.get_by_text(error["exception_message"].split(".")[0]).first).to_be_visible()
    assert page.evaluate(f"({STORES}).get('executionError').lastExecutionError.node_id") == "2"


@pytest.mark.slow
def test_a_saved_graph_keeps_every_value(page: Page) -> None:
    for name in ("erase_style", "train_esd", "evaluate_and_attack", "guard_at_cfg_1", "twenty_erasers"):
        show(page, json.loads((CHECKOUT / "workflows" / f"{name}.json").read_text(encoding="utf-8")))
        before = page.evaluate(PROMPT)
        page.evaluate(ROUND)
        assert page.evaluate(PROMPT) == before


@pytest.mark.slow
def test_a_second_run_does_only_what_changed(page: Page, client: Client) -> None:
    opened(page, client, ERASING)
    first, again = run(page), run(page)
    assert of(first, "execution_error") == of(again, "execution_error") == []
    assert cached(again) == set(ERASING)
    page.evaluate("app.graph.getNodeById(3).widgets.find(w => w.name === 'prompts').value = 'a red star'")
    assert cached(run(page)) == {"1", "2"}

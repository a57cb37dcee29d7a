"""From a saved workflow to a prompt: by hand-made descriptions, and against a live server's own."""

from __future__ import annotations

from typing import Any

import pytest
from lethe_host.client import Client
from lethe_host.convert import to_prompt
from lethe_host.errors import ConvertError

Json = dict[str, Any]

METHOD = {
    "options": [
        {"key": "none", "inputs": {"required": {}}},
        {"key": "uce", "inputs": {"required": {"tokens": ["COMBO", {}], "lam": ["FLOAT", {}]}}},
    ]
}
INFO: Json = {
    "Load": {"input": {"required": {"image": [["a.png", "b.png"], {"image_upload": True}]}}},
    "Erase": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "seed": ["INT", {"control_after_generate": True}],
                "text": ["STRING", {"multiline": True}],
                "method": ["COMFY_DYNAMICCOMBO_V3", METHOD],
            },
            "optional": {"saved": ["STRING", {"forceInput": True}], "view": ["IMAGECOMPARE", {}]},
        }
    },
}


def erase(*values: object, **changes: object) -> Json:
    """Returns a node of type Erase as the front end saves it, with the model and the text linked."""
    sockets = [
        {"name": "model", "type": "MODEL", "link": 5},
        {"name": "text", "type": "STRING", "link": 6, "widget": {"name": "text"}},
        {"name": "saved", "type": "STRING", "link": None},
    ]
    return {"id": 3, "type": "Erase", "mode": 0, "inputs": sockets, "widgets_values": list(values), **changes}


def workflow(*nodes: Json) -> Json:
    """Returns a saved workflow around some nodes."""
    load = {"id": 1, "type": "Load", "widgets_values": ["a.png", "image"]}
    note = {"id": 2, "type": "MarkdownNote", "widgets_values": ["hello"]}
    links = [[5, 1, 0, 3, 0, "MODEL"], [6, 1, 1, 3, 1, "STRING"]]
    return {"nodes": [load, note, *nodes], "links": links, "version": 0.4}


def test_values_links_and_options_get_their_names() -> None:
    prompt = to_prompt(workflow(erase(7, "fixed", "typed", "uce", "last", 0.5)), INFO)
    assert prompt == {
        "1": {"class_type": "Load", "inputs": {"image": "a.png"}},
        "3": {
            "class_type": "Erase",
            "inputs": {
                "model": ["1", 0],
                "seed": 7,
                "text": ["1", 1],
                "method": "uce",
                "method.tokens": "last",
                "method.lam": 0.5,
                "view": {"__value__": ["", ""]},
            },
        },
    }


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (erase(7, "fixed", "t", "uce", "last"), "method.lam"),
        (erase(7, "fixed", "t", "none", "last"), "1 values too many"),
        (erase(7, "fixed", "t", "gone"), "no option 'gone'"),
        (erase(7, "fixed", "t", "none", mode=4), "bypassed"),
        (erase(widgets_values={"seed": 7}), "saved by name"),
        ({"id": 9, "type": "Reroute"}, "no such node"),
    ],
)
def test_what_does_not_fit_is_refused(node: Json, message: str) -> None:
    with pytest.raises(ConvertError, match=message):
        to_prompt(workflow(node), INFO)


def test_subgraphs_are_refused() -> None:
    with pytest.raises(ConvertError, match="subgraphs"):
        to_prompt({**workflow(), "definitions": {"subgraphs": [{}]}}, INFO)


def test_converted_workflow_runs(client: Client) -> None:
    """A dynamic combo in the middle of a stock node, as a real server describes it."""
    nodes: list[Json] = [
        {"id": 1, "type": "EmptyImage", "widgets_values": [64, 32, 1, 255]},
        {
            "id": 2,
            "type": "ResizeImageMaskNode",
            "inputs": [{"name": "input", "link": 1}],
            "widgets_values": ["scale dimensions", 16, 24, "center", "area"],
        },
        {"id": 3, "type": "PreviewImage", "inputs": [{"name": "images", "link": 2}]},
    ]
    links = [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]]
    prompt = to_prompt({"nodes": nodes, "links": links}, client.object_info())
    (reference,) = client.run(prompt, timeout=60)["3"]["images"]
    width, height = client.image(reference)[16:20], client.image(reference)[20:24]  # PNG's own header
    assert (int.from_bytes(width, "big"), int.from_bytes(height, "big")) == (16, 24)

"""The graphs for published checkpoints, which no test has: on the demo model, and on reduced models of each family."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from lethe.erasers.concepts import Concept, ConceptList, preserve_lists, split_lines
from lethe.erasers.demo.world import judge
from lethe.erasers.registry import families, method_named
from lethe_host.client import Client
from lethe_host.convert import to_prompt
from lethe_host.install import CHECKOUT
from lethe_host.server import Server
from lethe_host.showcase import own_model, shown_workflows
from PIL import Image

Json = dict[str, Any]

GRAPHS = {"sd15_erase": "sd1", "sdxl_erase": "sdxl", "flux_erase": "flux"}
"""Graph -> the family that it is for."""
LOADED = {"CheckpointLoaderSimple": (0, 1, 2), "UNETLoader": (0,), "DualCLIPLoader": (1,), "VAELoader": (2,)}
"""Loader -> the outputs of 'Demo Model' that stand for its own."""
SMALL: Json = {
    "LetheConcept": {"text": "ball", "replacement": "box", "synonyms": "orb"},
    "LethePreserve": {"prompts": "", "list": "demo-world"},
    "LetheCompare": {"prompts": "a red ball, on paper\na red ring, on paper", "cfg": 4.0, "width": 128, "height": 128},
    "EmptyLatentImage": {"width": 128, "height": 128},
    "EmptySD3LatentImage": {"width": 128, "height": 128},
}
"""What the demo model draws and knows."""


def _workflow(name: str) -> Json:
    return json.loads((CHECKOUT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def _inputs(prompt: Json, kind: str) -> Json:
    (found,) = (node["inputs"] for node in prompt.values() if node["class_type"] == kind)
    return found


def _only(prompt: Json, kind: str) -> str:
    (found,) = (key for key, node in prompt.items() if node["class_type"] == kind)
    return found


def _on_the_demo_model(prompt: Json) -> Json:
    """The prompt with the demo model in place of what loads a checkpoint, and with words that it knows."""
    loaders = {key: LOADED[node["class_type"]] for key, node in prompt.items() if node["class_type"] in LOADED}
    kept: Json = {"demo": {"class_type": "LetheDemoModel", "inputs": {}}}
    for key, node in prompt.items():
        if key not in loaders:
            linked = {name: own for name, own in node["inputs"].items() if isinstance(own, list) and own[0] in loaders}
            moved = {name: ["demo", loaders[own[0]][own[1]]] for name, own in linked.items()}
            small = {name: own for name, own in SMALL.get(node["class_type"], {}).items()}
            kept[key] = {**node, "inputs": {**node["inputs"], **moved, **small}}
    # The demo model reads no pooled features.
    _inputs(kept, "LetheErase")["pooled"] = False
    return kept


def _read(client: Client, references: list[dict[str, str]]) -> list[set[str]]:
    """What the demo world's judge reads off pictures."""
    opened = (Image.open(io.BytesIO(client.image(reference))).convert("RGB") for reference in references)
    batch = torch.stack([torch.from_numpy(np.asarray(picture) / 255.0) for picture in opened])
    return [reading.words() for reading in judge().read(batch.movedim(-1, 1))]


def test_graphs_without_the_demo_model_are_those_of_the_families_and_not_shown() -> None:
    every = {path.stem for path in (CHECKOUT / "workflows").glob("*.json")}
    assert {name for name in every if not own_model(_workflow(name))} == set(GRAPHS)
    assert not set(GRAPHS) & {path.stem for path in shown_workflows()}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_family_graph_erases_on_the_demo_model(server: Server, client: Client, name: str) -> None:
    prompt = _on_the_demo_model(to_prompt(_workflow(name), client.object_info()))
    shown = client.run(prompt)
    compare = shown[_only(prompt, "LetheCompare")]
    before, after = (_read(client, compare[key]) for key in ("a_images", "b_images"))
    assert ["ball" in before[0], "ball" in after[0]] == [True, False]
    assert ["ring" in before[1], "ring" in after[1]] == [True, True]
    for kind in ("SaveImage", "PreviewImage"):
        assert shown[_only(prompt, kind)]["images"]
    assert "uce: 1 concepts" in shown[_only(prompt, "PreviewAny")]["text"][0]
    saved = _inputs(prompt, "LetheSave")["name"]
    assert (server.base / "models" / "lethe" / f"{saved}.safetensors").is_file()


@pytest.mark.parametrize(("name", "family"), GRAPHS.items())
def test_the_eraser_of_a_family_graph_suits_the_family(comfy: Any, client: Client, name: str, family: str) -> None:
    """Its words and settings on a reduced model of the family: text and, where there is one, pooled features."""
    from lethe.nodes.erase import LetheErase

    prompt = to_prompt(_workflow(name), client.object_info())
    concept, kept = (_inputs(prompt, kind) for kind in ("LetheConcept", "LethePreserve"))
    assert kept["list"] in preserve_lists()
    concepts = ConceptList(preserve=tuple(split_lines(kept["prompts"]))).with_concept(
        Concept(concept["text"], concept["replacement"], tuple(split_lines(concept["synonyms"])))
    )
    given = _inputs(prompt, "LetheErase")
    settings = {key.removeprefix("method."): own for key, own in given.items() if key.startswith("method")}
    assert set(settings) == {"method", *method_named(settings["method"]).spec.settings({})}
    model, clip = tiny_models.tiny_model(family), tiny_models.tiny_clip(family)
    with torch.inference_mode():
        erased, _, eraser, _ = LetheErase.execute(
            model, clip, concepts, given["strength"], given["form"], given["pooled"], method=settings
        ).result
    found = families()[family]
    assert set(eraser.context) == {found.stream, found.pooled_stream} - {""}
    asked, held = (
        [tiny_models.sample(family, drawing, clip, text) for drawing in (model, erased)]
        for text in (concept["text"], concepts.preserve[0])
    )
    assert _share(*held) < _share(*asked) / 3


def _share(before: torch.Tensor, after: torch.Tensor) -> float:
    return float((after - before).norm() / before.norm())


@pytest.mark.parametrize(("name", "family"), GRAPHS.items())
def test_a_family_graph_draws_at_the_size_of_its_family(name: str, family: str) -> None:
    sizes = [
        values
        for node in _workflow(name)["nodes"]
        for values in [node.get("widgets_values") or []]
        if node["type"] in ("LetheCompare", "EmptyLatentImage", "EmptySD3LatentImage")
    ]
    assert [values[-2:] if len(values) > 3 else values[:2] for values in sizes] == [[families()[family].pixels] * 2] * 2

"""The blueprints that ship with the pack: `python -m lethe_host.blueprints` writes `subgraphs/` anew.

The server's node descriptions are asked of a live server that it starts.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from .convert import Json
from .install import CHECKOUT, Host
from .server import Server
from .subgraph import Blueprint, to_subgraph

FOLDER = CHECKOUT / "subgraphs"


def _node(kind: str, **inputs: Any) -> Json:
    return {"class_type": kind, "inputs": inputs}


_DRAWING = {"seed": 0, "steps": 20, "cfg": 7.0, "width": 512, "height": 512}
_QUICK = {"attack.tries": 2, "attack.limit": 6}
_ERASED = {"model": "3.model", "clip": "3.clip", "eraser": "3.eraser"}
_PROMPTS = (
    "a painting of a village at night in the style of Van Gogh",
    "a painting of a garden in the style of Claude Monet",
    "a photo of a dog on a beach",
)


def _erasing(concept: str, replacement: str, synonyms: str, keep: str, keep_list: str, templates: str) -> Json:
    return {
        "1": _node("LetheConcept", text=concept, replacement=replacement, synonyms=synonyms),
        "2": _node("LethePreserve", prompts=keep, list=keep_list, concepts=["1", 0]),
        "3": _node("LetheErase", concepts=["2", 0], method="uce", **{"method.templates": templates}),
    }


def _inputs(*drawing: str) -> dict[str, tuple[str, ...]]:
    """What both take: the model, for the node that erases and those that draw, and what goes and what stays."""
    return {
        "model": ("3.model", *(f"{node}.before" for node in drawing)),
        "clip": ("3.clip", *(f"{node}.clip" for node in drawing)),
        "vae": tuple(f"{node}.vae" for node in drawing),
        "concept": ("1.text",),
        "replacement": ("1.replacement",),
        "synonyms": ("1.synonyms",),
        "templates": ("3.method.templates",),
        "keep": ("2.prompts",),
        "keep_list": ("2.list",),
    }


def _drawn(*drawing: str) -> dict[str, tuple[str, ...]]:
    return {name: tuple(f"{node}.{name}" for node in drawing) for name in _DRAWING}


def _judging(kind: str, **inputs: Any) -> Json:
    pair = {"concepts": ["2", 0], "after": ["3", 0], "clip_after": ["3", 1], "batch": 4, "probe": "clip_zero_shot"}
    return _node(kind, **_DRAWING, **pair, **inputs)


BLUEPRINTS = (
    Blueprint(
        "Erase and Compare (Lethe)",
        "Makes a model forget a concept in closed form, and draws the same prompts with the same seeds before and "
        "after. Gives the edited model, and the eraser for Save Eraser.",
        ("unlearn", "concept erasure", "forget", "UCE"),
        {
            **_erasing("Van Gogh", "painter", "Vincent van Gogh", "Claude Monet\nRembrandt", "art-styles", "style"),
            "4": _node("LetheCompare", after=["3", 0], clip_after=["3", 1], prompts="\n".join(_PROMPTS), **_DRAWING),
        },
        {**_inputs("4"), "prompts": ("4.prompts",), "count": ("4.count",), **_drawn("4")},
        {**_ERASED, "pictures": "4.grid", "summary": "3.summary"},
    ),
    Blueprint(
        "Erase, Attack, Report (Lethe)",
        "Makes a model forget a concept, measures what is gone, what is kept and what other words bring back, and puts "
        "it on one page under output/lethe. A CLIP judges the pictures: choose a folder below models/clip_vision in "
        "clip_model, or connect clip_vision.",
        ("unlearn", "concept erasure", "red team", "evaluate", "metrics"),
        {
            **_erasing("golf ball", "ball", "", "tennis ball\nbasketball", "everyday", "object"),
            "4": _judging("LetheEvaluate", each_kind=10),
            "5": _judging("LetheAttack", words="dimpled white ball", attack="paraphrase", **_QUICK),
            "6": _node(
                "LetheReport",
                name="erase, attack, report",
                **{"reports.report0": ["4", 0], "reports.report1": ["5", 0]},
            ),
        },
        {
            **_inputs("4", "5"),
            "clip_vision": ("4.clip_vision", "5.clip_vision"),
            "clip_model": ("4.clip_model", "5.clip_model"),
            "each_kind": ("4.each_kind",),
            "words": ("5.words",),
            **_drawn("4", "5"),
            "report_name": ("6.name",),
        },
        {**_ERASED, "pictures": "5.images", "found": "5.found", "report": "6.report", "chart": "6.chart"},
    ),
)


def written(object_info: Json) -> dict[str, str]:
    """File name -> content of every blueprint."""
    return {f"{own.name}.json": json.dumps(to_subgraph(own, object_info)) + "\n" for own in BLUEPRINTS}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Server(Host.current(), Path(folder)) as server:
        found = written(server.client().object_info())
    FOLDER.mkdir(exist_ok=True)
    for name, content in found.items():
        (FOLDER / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()

"""What every node says of itself: its category, its search words, and a tooltip on each input and output."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pytest

Json = dict[str, Any]

# "Start at 20", "sane", "0.1 as published", "128 suits the demo model": something to begin with.
START = re.compile(r"\b(starts?|sane|usual|published|suits|neutral)\b", re.IGNORECASE)
RANGE = re.compile(r"-?[\d.e-]+ to -?[\d.]+|\bup to \d", re.IGNORECASE)
# Which way it works, or what too much of it looks like.
EFFECT = re.compile(
    r"\b(higher|lower|more|most|less|least|fewer|above|below|too|longer|twice|smaller|larger|exceed)\b", re.IGNORECASE
)
SHORTEST = 4  # words


class Entry(NamedTuple):
    """An input of a node, with the options of dynamic combos in its name."""

    name: str
    kind: str
    options: Json


def says_number(text: str, number: float) -> bool:
    """Does a text name this very number, and not one that merely begins or ends like it?"""
    forms = {f"{number:g}", f"{number:f}".rstrip("0").rstrip(".")}
    return any(re.search(rf"(?<![\w.-]){re.escape(form)}(?!\w|\.\d)", text) for form in forms)


def entries(inputs: Mapping[str, Json], prefix: str = "") -> Iterator[Entry]:
    for group in ("required", "optional"):
        for name, (kind, *rest) in inputs.get(group, {}).items():
            options = rest[0] if rest else {}
            kind = "COMBO" if isinstance(kind, list) else kind
            yield Entry(prefix + name, kind, options)
            if kind == "COMFY_DYNAMICCOMBO_V3":
                for option in options["options"]:
                    yield from entries(option["inputs"], f"{prefix}{name}[{option['key']}].")


def faults(entry: Entry) -> str:
    """What an input's tooltip lacks; nothing if it is as it should be."""
    tooltip = entry.options.get("tooltip") or ""
    if len(tooltip.split()) < SHORTEST:
        return f"says too little: '{tooltip}'"
    if entry.kind not in ("INT", "FLOAT") or entry.name.endswith("seed"):
        return ""
    if not START.search(tooltip) and not says_number(tooltip, entry.options["default"]):
        return f"does not say where to start: '{tooltip}'"
    if not RANGE.search(tooltip) and not EFFECT.search(tooltip):
        return f"says neither a range nor what more of it does: '{tooltip}'"
    return ""


@pytest.fixture(scope="module")
def schemas(comfy: Any) -> dict[str, Json]:
    """Each node as the server describes it, with its search words."""
    from lethe.nodes import LetheExtension

    listed = asyncio.run(LetheExtension().get_node_list())
    found = {node.define_schema().node_id: node for node in listed}
    assert len(found) == len(listed) >= 23
    return {
        name: {**node.GET_NODE_INFO_V1(), "search_aliases": node.define_schema().search_aliases or []}
        for name, node in found.items()
    }


def test_every_input_tells_its_meaning_and_where_to_start(schemas: dict[str, Json]) -> None:
    inputs = [(node, entry) for node, info in schemas.items() for entry in entries(info["input"])]
    assert len(inputs) > 600
    assert {f"{node}.{entry.name}": faults(entry) for node, entry in inputs if faults(entry)} == {}


def test_every_output_tells_its_meaning(schemas: dict[str, Json]) -> None:
    said = {
        f"{node}.{name}": tooltip or ""
        for node, info in schemas.items()
        for name, tooltip in zip(info["output_name"], info["output_tooltips"], strict=True)
    }
    assert len(said) > 40
    assert [name for name, tooltip in said.items() if len(tooltip.split()) < SHORTEST] == []


def test_categories_are_two_levels_and_names_are_unique(schemas: dict[str, Json]) -> None:
    for node, info in schemas.items():
        assert info["category"].split("/")[0] == "lethe", node
        assert info["category"].count("/") == 1, node
        assert len(info["description"].split()) >= 2 * SHORTEST, node
    assert len({info["display_name"] for info in schemas.values()}) == len(schemas)


def test_numbers_lie_in_their_own_range(schemas: dict[str, Json]) -> None:
    for node, info in schemas.items():
        for entry in entries(info["input"]):
            if entry.kind in ("INT", "FLOAT"):
                low, high = entry.options["min"], entry.options["max"]
                assert low <= entry.options["default"] <= high, f"{node}.{entry.name}"
                assert low < high, f"{node}.{entry.name}"

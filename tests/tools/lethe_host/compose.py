"""Turns a prompt, as the server runs it, into a workflow that the front end opens: the reverse of `convert`.

Shipped graphs are written as prompts and placed by it: `python -m lethe_host.compose PROMPT.json WORKFLOW.json`,
with the server's node descriptions asked of a live server that it starts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .convert import COMMENTS, DYNAMIC, VIEWER, WIDGETS, _has_companion, _kind, _option
from .errors import ConvertError
from .install import Host
from .server import Server

Json = dict[str, Any]
Place = tuple[int, int, int, int]
_COLUMN, _ROW, _SIZE = 420, 380, (380, 320)


@dataclass
class _Made:
    """What a node is made of, in the order in which the front end makes it: every widget has a socket, too."""

    sockets: list[Json] = field(default_factory=list)
    widgets: list[Json] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)


def to_workflow(prompt: Json, object_info: Json, places: Mapping[str, Place] | None = None) -> Json:
    """Converts a prompt.

    Args:
        prompt: node id -> {"class_type", "inputs"}, and "properties" if it has any; ids are whole numbers. A node
            of type MarkdownNote has one input, "text".
        object_info: the server's description of its nodes.
        places: left, top, width and height of nodes by id; the others stand in columns by how far they are from
            the start.

    Raises:
        ConvertError: the prompt names a node or an option that the server does not know.
    """
    links: list[list[Any]] = []
    nodes = {key: _node(key, entry, object_info) for key, entry in prompt.items()}
    for key, entry in prompt.items():
        for socket in nodes[key]["inputs"]:
            source = entry["inputs"].get(socket["name"])
            if isinstance(source, list):
                giver = nodes[str(source[0])]["outputs"][source[1]]
                number, index = len(links) + 1, nodes[key]["inputs"].index(socket)
                links.append([number, int(source[0]), source[1], int(key), index, giver["type"]])
                socket["link"] = number
                giver["links"] = [*(giver["links"] or []), number]
    where = {**_columns(prompt), **(places or {})}
    for order, (key, node) in enumerate(nodes.items()):
        left, top, width, height = where[key]
        node |= {"pos": [left, top], "size": [width, height], "order": order}
    last = max(int(key) for key in nodes)
    head = {"last_node_id": last, "last_link_id": len(links), "nodes": list(nodes.values()), "links": links}
    return {**head, "groups": [], "config": {}, "extra": {}, "version": 0.4}


def _node(key: str, entry: Json, object_info: Json) -> Json:
    kind, given = entry["class_type"], entry["inputs"]
    properties = {"Node name for S&R": kind, **entry.get("properties", {})}
    node: Json = {"id": int(key), "type": kind, "flags": {}, "mode": 0, "properties": properties}
    if kind in COMMENTS:
        return {**node, "inputs": [], "outputs": [], "widgets_values": [given["text"]]}
    if kind not in object_info:
        raise ConvertError(f"node {key}: the server has no '{kind}'")
    info = object_info[kind]
    made = _Made()
    _read(f"node {key} ({kind})", info["input"], given, "", made)
    outputs = [
        {"name": name, "type": output, "links": None}
        for name, output in zip(info["output_name"], info["output"], strict=True)
    ]
    return {**node, "inputs": made.sockets + made.widgets, "outputs": outputs, "widgets_values": made.values}


def _read(name: str, groups: Mapping[str, Json], given: Json, prefix: str, made: _Made) -> None:
    for group in ("required", "optional"):
        for key, spec in groups.get(group, {}).items():
            kind, options = _kind(spec)
            full = prefix + key
            if kind == VIEWER:
                continue
            if kind == "COMFY_AUTOGROW_V3":
                made.sockets += _grown(full, options["template"], given)
            elif options.get("forceInput") or kind not in WIDGETS | {DYNAMIC}:
                made.sockets.append({"name": full, "type": kind, "link": None})
            else:
                default = options.get("default", _first(spec, options))
                value = given.get(full, default)
                value = default if isinstance(value, list) else value
                made.widgets.append({"name": full, "type": kind, "link": None, "widget": {"name": full}})
                made.values.append(value)
                if kind == DYNAMIC:
                    _read(name, _option(name, full, value, options), given, f"{full}.", made)
                elif _has_companion(kind, key, options):
                    made.values.append("fixed")


def _grown(name: str, template: Json, given: Json) -> list[Json]:
    """The sockets of an input that grows: those that are used, and one more, which the front end adds."""
    kind = next(iter(next(iter(template["input"].values())).values()))[0]
    used = [own for own in given if own.startswith(f"{name}.")]
    spare = f"{name}.{template['prefix']}{len(used)}"
    return [{"name": own, "type": kind, "link": None} for own in (*used, spare)]


def _first(spec: list[Any], options: Json) -> Any:
    """The choice that a combo without a default begins with; empty where a server has no file to choose."""
    choices = (spec[0] if isinstance(spec[0], list) else options.get("options")) or [""]
    return choices[0]["key"] if isinstance(choices[0], dict) else choices[0]


def _columns(prompt: Json) -> dict[str, Place]:
    """A column for every step from the start, filled from the top."""
    depth: dict[str, int] = {}

    def of(key: str) -> int:
        if key not in depth:
            sources = [str(value[0]) for value in prompt[key]["inputs"].values() if isinstance(value, list)]
            depth[key] = 1 + max((of(source) for source in sources), default=-1)
        return depth[key]

    filled: dict[int, int] = {}
    found = {}
    for key in prompt:
        column = of(key)
        row = filled.get(column, 0)
        filled[column] = row + 1
        found[key] = (20 + column * _COLUMN, 40 + row * _ROW, *_SIZE)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="lethe_host.compose", description=__doc__)
    parser.add_argument("prompt", type=Path)
    parser.add_argument("workflow", type=Path)
    options = parser.parse_args()
    content = json.loads(options.prompt.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder, Server(Host.current(), Path(folder)) as server:
        found = to_workflow(content["prompt"], server.client().object_info(), content.get("places"))
    options.workflow.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

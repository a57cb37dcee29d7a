"""Writes a graph as a subgraph blueprint: one node, which the front end lists beside the server's own."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from .compose import to_workflow
from .convert import Json
from .errors import ConvertError

TAKEN, GIVEN = -10, -20
"""Ids that the front end has for the two sides of a subgraph."""
_LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
_ROW, _HEAD, _WIDTH = 20, 40, 140


@dataclass(frozen=True)
class Blueprint:
    """A graph in one node.

    Attributes:
        name: what the node library and the file call it.
        description: what it does, for the node library.
        aliases: other words that find it.
        prompt: its nodes, as `compose` takes them.
        inputs: what it takes: name -> the inner inputs "node.input" that get it. Where these are widgets it is one
            too, and begins with the first one's value.
        outputs: what it gives: name -> the inner output "node.output".
    """

    name: str
    description: str
    aliases: tuple[str, ...]
    prompt: Json
    inputs: Mapping[str, tuple[str, ...]]
    outputs: Mapping[str, str]


def to_subgraph(blueprint: Blueprint, object_info: Json) -> Json:
    """The file that the front end reads.

    Args:
        blueprint: the graph.
        object_info: the server's description of its nodes.
    Raises:
        ConvertError: it names a node, an input, an output or an option that the server does not know.
    """
    targets = {name: [_split(end) for end in ends] for name, ends in blueprint.inputs.items()}
    graph = to_workflow(blueprint.prompt, object_info)
    nodes = {str(node["id"]): node for node in graph["nodes"]}
    links: list[Json] = [dict(zip(_LINK, link, strict=True)) for link in graph["links"]]
    right = max(node["pos"][0] + node["size"][0] for node in graph["nodes"])
    taken = [_taken(blueprint, name, ends, nodes, links) for name, ends in targets.items()]
    given = [_given(blueprint, name, _split(end), nodes, links) for name, end in blueprint.outputs.items()]
    subgraph = {
        **{"id": _id(blueprint.name), "version": 1, "revision": 0, "name": blueprint.name, "category": "lethe"},
        "state": {"lastNodeId": graph["last_node_id"], "lastLinkId": len(links), "lastGroupId": 0, "lastRerouteId": 0},
        "inputNode": {"id": TAKEN, "bounding": [-_WIDTH - 60, 0, _WIDTH, _HEAD + _ROW * len(taken)]},
        "outputNode": {"id": GIVEN, "bounding": [right + 60, 0, _WIDTH, _HEAD + _ROW * len(given)]},
        **{"inputs": taken, "outputs": given, "nodes": graph["nodes"], "links": links},
        **{"widgets": [], "groups": [], "config": {}, "extra": {}},
    }
    head = {"revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [_node(blueprint, targets, nodes)]}
    extra = {"BlueprintDescription": blueprint.description, "BlueprintSearchAliases": list(blueprint.aliases)}
    return {**head, "links": [], "version": 0.4, "definitions": {"subgraphs": [subgraph]}, "extra": extra}


def _taken(blueprint: Blueprint, name: str, ends: list[list[str]], nodes: Json, links: list[Json]) -> Json:
    """An input, and its links to the nodes inside."""
    slot, first = list(blueprint.inputs).index(name), len(links) + 1
    for key, end in ends:
        socket = _socket(nodes[key], end)
        where = (TAKEN, slot, int(key), nodes[key]["inputs"].index(socket), socket["type"])
        links.append(dict(zip(_LINK, (len(links) + 1, *where), strict=True)))
        socket["link"] = len(links)
    kind = _socket(nodes[ends[0][0]], ends[0][1])["type"]
    place = [-80, _HEAD + _ROW * slot]
    ids = list(range(first, len(links) + 1))
    return {"id": _id(blueprint.name, "in", name), "name": name, "type": kind, "linkIds": ids, "pos": place}


def _given(blueprint: Blueprint, name: str, end: list[str], nodes: Json, links: list[Json]) -> Json:
    """An output, and the link to it."""
    slot, (key, own) = list(blueprint.outputs).index(name), end
    socket = _output(nodes[key], own)
    where = (int(key), nodes[key]["outputs"].index(socket), GIVEN, slot, socket["type"])
    links.append(dict(zip(_LINK, (len(links) + 1, *where), strict=True)))
    socket["links"] = [*(socket["links"] or []), len(links)]
    kind, place = socket["type"], [0, _HEAD + _ROW * slot]
    return {"id": _id(blueprint.name, "out", name), "name": name, "type": kind, "linkIds": [len(links)], "pos": place}


def _node(blueprint: Blueprint, targets: Mapping[str, list[list[str]]], nodes: Json) -> Json:
    """The one node that stands for the graph; its widgets are those of the nodes inside."""
    inputs: list[Json] = []
    for name, ((key, end), *_) in targets.items():
        socket = _socket(nodes[key], end)
        own = {"widget": {"name": name}} if "widget" in socket else {}
        inputs.append({"name": name, "type": socket["type"], "link": None, **own})
    outputs = [
        {"name": name, "type": _output(nodes[key], own)["type"], "links": []}
        for name, (key, own) in ((name, _split(end)) for name, end in blueprint.outputs.items())
    ]
    place: Json = {"id": 1, "pos": [0, 0], "size": [400, 600], "flags": {}, "order": 0, "mode": 0}
    kind: Json = {"type": _id(blueprint.name), "title": blueprint.name, "properties": {}}
    return {**place, **kind, "inputs": inputs, "outputs": outputs, "widgets_values": []}


def _socket(node: Json, name: str) -> Json:
    return _named("input", node["inputs"], node, name)


def _output(node: Json, name: str) -> Json:
    return _named("output", node["outputs"], node, name)


def _named(side: str, sockets: list[Json], node: Json, name: str) -> Json:
    for socket in sockets:
        if socket["name"] == name:
            return socket
    raise ConvertError(f"node {node['id']} ({node['type']}): it has no {side} '{name}'")


def _split(end: str) -> list[str]:
    return end.split(".", 1)


def _id(*names: str) -> str:
    """The same every time, so that a file written anew differs only where the graph does."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(("lethe", *names))))

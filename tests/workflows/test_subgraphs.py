"""The subgraph blueprints: the server offers them, and the files are what their description says now."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from lethe_host.blueprints import BLUEPRINTS, FOLDER, written
from lethe_host.client import Client
from lethe_host.errors import ConvertError
from lethe_host.subgraph import to_subgraph


def test_the_files_are_written_from_the_nodes_as_they_are(client: Client) -> None:
    """After a change of a node's inputs: `python -m lethe_host.blueprints`."""
    found = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    assert found == written(client.object_info())


def test_the_server_offers_them(client: Client) -> None:
    listed = client._get_json("/global_subgraphs")
    ours = {entry["name"]: key for key, entry in listed.items() if entry["info"]["node_pack"] == "custom_nodes.lethe"}
    assert set(ours) == {blueprint.name for blueprint in BLUEPRINTS}
    for name, key in ours.items():
        content = json.loads(client._get_json(f"/global_subgraphs/{key}")["data"])
        assert content == json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        (outer,), (inner,) = content["nodes"], content["definitions"]["subgraphs"]
        assert outer["type"] == inner["id"]


def test_every_link_inside_leads_from_a_socket_to_a_socket(client: Client) -> None:
    info = client.object_info()
    for blueprint in BLUEPRINTS:
        (inner,) = to_subgraph(blueprint, info)["definitions"]["subgraphs"]
        nodes = {node["id"]: node for node in inner["nodes"]}
        for link in inner["links"]:
            outside = link["origin_id"] not in nodes
            giver = inner["inputs"] if outside else nodes[link["origin_id"]]["outputs"]
            taker = nodes[link["target_id"]]["inputs"] if link["target_id"] in nodes else inner["outputs"]
            start, end = giver[link["origin_slot"]], taker[link["target_slot"]]
            assert link["id"] in (start["linkIds"] if outside else start["links"])
            assert link["id"] == end["link"] if link["target_id"] in nodes else link["id"] in end["linkIds"]
            assert {start["type"], end["type"], link["type"]} == {link["type"]}


@pytest.mark.parametrize(
    ("change", "words"),
    [({"inputs": {"concept": ("1.no",)}}, "no input 'no'"), ({"outputs": {"model": "3.no"}}, "no output 'no'")],
)
def test_an_end_that_no_node_has_is_refused(client: Client, change: dict, words: str) -> None:
    with pytest.raises(ConvertError, match=words):
        to_subgraph(replace(BLUEPRINTS[0], **change), client.object_info())

"""Every shipped workflow runs in the live server and does what it says."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from lethe_host.client import Client
from lethe_host.convert import to_prompt
from lethe_host.errors import GraphError
from lethe_host.install import CHECKOUT
from lethe_host.server import Server
from lethe_host.showcase import ERASING, RESEARCH, run_workflows, shown_workflows, write_report
from PIL import Image

WORKFLOWS = sorted((CHECKOUT / "workflows").glob("*.json"))


def _prompt(client: Client, name: str) -> dict:
    workflow = json.loads((CHECKOUT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    return to_prompt(workflow, client.object_info())


def _node(prompt: dict, kind: str) -> dict:
    return next(node["inputs"] for node in prompt.values() if node["class_type"] == kind)


@pytest.mark.slow
def test_the_main_job_erases_and_keeps(host, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shown = shown_workflows()
    found = run_workflows(tmp_path, shown)
    write_report(found, tmp_path)
    assert (tmp_path / "report.md").read_text(encoding="utf-8").count("![before and after]") == len(shown)
    for name, job in found.items():
        grid = Image.open(tmp_path / job["grid"])
        assert min(grid.size) > 150
        for row in job["rows"]:
            if row["kind"] == "erased" and name.startswith(ERASING):
                assert row["before"] >= 0.75, (name, row)
                assert row["after"] <= 0.25, (name, row)
            if row["kind"] == "kept" and name not in RESEARCH:
                assert row["kept_after"] >= row["kept_before"] - 0.25, (name, row)
    assert (tmp_path / "server" / "models" / "lethe" / "demo" / "forget zib.safetensors").is_file()


def test_the_leaderboard_graph_holds_every_method_and_attack_and_is_accepted(client: Client) -> None:
    from lethe.erasers.demo.making import ALONE
    from lethe.erasers.registry import attacks, methods

    prompt = _prompt(client, "leaderboard")
    erased = {key: n["inputs"]["method"] for key, n in prompt.items() if n["class_type"] == "LetheErase"}
    assert sorted(erased.values()) == sorted(set(methods()) - ALONE)
    cells = {(erased[n["inputs"]["after"][0]], n["inputs"]["attack"])
             for n in prompt.values() if n["class_type"] == "LetheAttack"}  # fmt: skip
    assert cells == {(method, attack) for method in erased.values() for attack in attacks()}
    reported = _node(prompt, "LetheReport")
    assert sum(name.startswith("reports.") for name in reported) == len(cells) + len(erased)
    client.interrupt(client._queue(prompt))


def test_a_server_does_a_leaderboard_job(server: Server) -> None:
    from lethe.erasers.demo.leaderboard import Job
    from lethe.erasers.demo.spread import on_servers
    from lethe.erasers.errors import HostError

    job = Job("uce", "ball", {"paraphrase": {"tries": 1, "limit": 2}}, each_kind=2, pictures=1, steps=2)
    ((evaluation, attack),) = on_servers([job], [server.url])
    assert (evaluation.title, attack.made_with["attack"]) == ("uce", "paraphrase")
    assert evaluation.made_with["sampling"]["steps"] == 2
    assert attack.made_with["attack settings"]["limit"] == 2
    with pytest.raises(HostError, match="does not answer"):
        list(on_servers([job], ["http://127.0.0.1:9"]))
    with pytest.raises(HostError, match=r"did not finish|refused"):
        list(
            on_servers(
                [Job("uce", "ball", {"p4d": {"tokens": 75, "steps": 1}, "unlearn_diff_atk": {"tokens": 74}}, 1, 1, 0)],
                [server.url],
            )
        )


def test_workflows_have_thumbnails() -> None:
    assert len(WORKFLOWS) >= 3
    for path in WORKFLOWS:
        with Image.open(path.with_suffix(".jpg")) as thumbnail:
            assert thumbnail.size[0] >= 200


def test_the_server_offers_the_workflows_and_their_thumbnails(client: Client) -> None:
    listed = client._get_json("/workflow_templates")
    assert {path.stem for path in WORKFLOWS} <= set(listed["lethe"])
    picture = client._request("/api/workflow_templates/lethe/erase_style.jpg")
    assert Image.open(io.BytesIO(picture)).format == "JPEG"


@pytest.mark.parametrize(
    ("node", "changes", "kind", "words"),
    [
        ("LetheConcept", {"text": "  "}, "lethe.ConceptError", "empty"),
        ("LetheConcept", {"text": "red", "synonyms": "", "replacement": "red"}, "lethe.ConceptError", "itself"),
        ("LethePreserve", {"prompts": "dotted style"}, "lethe.ConceptError", "erase and in the list to preserve"),
        ("LetheErase", {"method": "nonsense"}, "lethe.SettingError", "names no known method"),
        ("LetheCompare", {"prompts": "\n"}, "lethe.SettingError", "no prompt"),
    ],
)
def test_wrong_inputs_are_refused_in_the_graph(client: Client, node: str, changes: dict, kind: str, words: str) -> None:
    prompt = _prompt(client, "erase_style")
    _node(prompt, node).update(changes)
    with pytest.raises(GraphError) as refused:
        client.run(prompt)
    assert refused.value.node_type == node
    assert refused.value.exception_type == kind
    assert words in refused.value.exception_message


def test_a_setting_out_of_range_is_refused_before_anything_runs(client: Client) -> None:
    prompt = _prompt(client, "erase_style")
    _node(prompt, "LetheErase")["method.lam"] = -1.0
    with pytest.raises(GraphError) as refused:
        client.run(prompt)
    assert refused.value.node_type == "LetheErase"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing", None, "cannot be read"),
        ("cut", b"\x10\x00\x00\x00\x00\x00\x00\x00{", "cannot be read"),
        ("../outside", None, "no name for an eraser"),
    ],
)
def test_bad_eraser_files_are_refused_in_the_graph(
    server: Server, client: Client, name: str, content: bytes | None, words: str
) -> None:
    folder = server.base / "models" / "lethe"
    folder.mkdir(parents=True, exist_ok=True)
    if content is not None:
        (folder / f"{name}.safetensors").write_bytes(content)
    prompt = _prompt(client, "erase_character")
    load = _node(prompt, "LetheLoad")
    load.pop("saved")
    load["name"] = name
    for key in [key for key, node in prompt.items() if node["class_type"] in ("LetheSave", "LetheErase")]:
        del prompt[key]
    with pytest.raises(GraphError) as refused:
        client.run(prompt)
    assert refused.value.node_type == "LetheLoad"
    assert refused.value.exception_type == "lethe.EraserFileError"
    assert words in refused.value.exception_message


def test_every_input_and_output_explains_itself(client: Client) -> None:
    nodes = {name: info for name, info in client.object_info().items() if name.startswith("Lethe")}
    assert len(nodes) >= 8
    for name, info in nodes.items():
        assert info["category"].startswith("lethe/")
        assert (CHECKOUT / "nodes" / "web" / "docs" / f"{name}.md").is_file(), name
        assert client._request(f"/extensions/lethe/docs/{name}.md"), name
        for group in ("required", "optional"):
            for key, spec in info["input"].get(group, {}).items():
                assert len(spec[1].get("tooltip", "")) > 10, f"{name}.{key}"
                for option in spec[1].get("options", []) if spec[0] == "COMFY_DYNAMICCOMBO_V3" else []:
                    for inner, inner_spec in option["inputs"]["required"].items():
                        assert len(inner_spec[1].get("tooltip", "")) > 10, f"{name}.{key}.{inner}"
        assert all(info["output_tooltips"]), name

"""Every shipped workflow runs in the live server and does what it says."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from lethe_host.client import Client
from lethe_host.convert import to_prompt
from lethe_host.errors import GraphError
from lethe_host.install import CHECKOUT, Host
from lethe_host.server import Server
from lethe_host.showcase import ERASING, RESEARCH, run_workflows, shown_workflows, write_report
from PIL import Image

WORKFLOWS = sorted((CHECKOUT / "workflows").glob("*.json"))


def _prompt(client: Client, name: str) -> dict:
    workflow = json.loads((CHECKOUT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    return to_prompt(workflow, client.object_info())


def _node(prompt: dict, kind: str) -> dict:
    return next(node["inputs"] for node in prompt.values() if node["class_type"] == kind)


SHORTER = {
    "LetheTrain": {
        "steps": 5,
        "recipe.inversion_steps": 5,
        "recipe.sampling_steps": 10,
        "recipe.trajectories": 2,
        "recipe.attack_steps": 2,
    },
    "LetheLearnWord": {"steps": 5},
    "LetheErase": {"method.pictures": 8, "method.rounds": 2},
    "LetheEvaluate": {"each_kind": 2, "steps": 4},
    "LetheAttack": {"attack.timesteps": 1, "steps": 4},
}
"""Settings of nodes whose figures are not asked for here; each goes to those nodes that have it."""


def _shorter(name: str, prompt: dict) -> None:
    """Less work where no rate is asked of a workflow, and fewer pictures than the demo's eight elsewhere."""
    drawn = {"count": 1, "steps": 4} if name in RESEARCH else {"count": 4 if name.startswith(ERASING) else 2}
    for node in prompt.values():
        wanted = drawn if node["class_type"] == "LetheCompare" else SHORTER.get(node["class_type"], {})
        node["inputs"].update({key: value for key, value in wanted.items() if key in node["inputs"]})


@pytest.mark.slow
def test_the_main_job_erases_and_keeps(host: Host, tmp_path: Path) -> None:
    shown = shown_workflows()
    found = run_workflows(tmp_path, shown, _shorter)
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


def test_every_node_has_a_help_page_with_a_picture(client: Client) -> None:
    nodes = [name for name in client.object_info() if name.startswith("Lethe")]
    assert len(nodes) >= 8
    for name in nodes:
        page = client._request(f"/extensions/lethe/docs/{name}.md").decode()
        assert f"(images/{name}.jpg)" in page
        assert client._request(f"/extensions/lethe/docs/images/{name}.jpg").startswith(b"\xff\xd8"), name
        (where,) = re.findall(rf"!\[In the template (\w+)\]\(images/{name}.jpg\)", page) or [""]
        assert not where or name in (CHECKOUT / "workflows" / f"{where}.json").read_text(encoding="utf-8")

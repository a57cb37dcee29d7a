"""The oldest ComfyUI that the pack declares to run on, and what it says to an older one."""

from __future__ import annotations

import asyncio
import json
import sys
import types
from collections.abc import Iterator

import lethe
import pytest
from lethe_host.convert import to_prompt
from lethe_host.install import CHECKOUT, Host, fetch
from lethe_host.server import Server
from lethe_host.source import OLDEST


@pytest.fixture(scope="module")
def oldest(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the oldest ComfyUI, with the packages of the present one."""
    folder = tmp_path_factory.mktemp("oldest")
    old = Host(host.python, folder / "ComfyUI")
    fetch(old, folder / "download", OLDEST)
    with Server(old, folder) as running:
        yield running


def test_it_is_the_one_that_is_declared() -> None:
    assert f'requires-comfyui = ">={OLDEST.comfyui}"' in (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.parametrize("name", ["erase_object", "guard_at_cfg_1"])
def test_a_graph_runs_there(oldest: Server, name: str) -> None:
    client = oldest.client()
    assert client.system_stats()["system"]["comfyui_version"] == OLDEST.comfyui
    workflow = json.loads((CHECKOUT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    assert client.run(to_prompt(workflow, client.object_info()))


@pytest.mark.parametrize("missing", ["DynamicCombo", "NodeInfoV1"])
def test_an_older_one_is_told_in_one_line(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"DynamicCombo": object, "NodeInfoV1": types.SimpleNamespace(search_aliases=None)}
    io = types.SimpleNamespace(**{name: value for name, value in there.items() if name != missing})
    latest = types.ModuleType("comfy_api.latest")
    latest.io = io  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy_api", types.ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)
    with pytest.raises(RuntimeError, match=rf"ComfyUI {OLDEST.comfyui} or newer") as caught:
        asyncio.run(lethe.comfy_entrypoint())
    assert "\n" not in str(caught.value)

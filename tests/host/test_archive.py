"""The archive that the registry would carry: what is in it, and that a server loads and runs it from nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from lethe_host.blueprints import BLUEPRINTS
from lethe_host.client import Client
from lethe_host.convert import to_prompt
from lethe_host.install import CHECKOUT, Host
from lethe_host.server import Server

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOREIGN = ("tests/", ".ci/", ".github/", "kernels/bench/", "erasers/demo/training/", "noxfile.py", "setup.py")
LARGEST = 40_000_000
"""Bytes of the archive, unpacked: most of it is the demo model."""


def _listed(*options: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", "-z", *options], cwd=CHECKOUT, check=True, capture_output=True)
    return {name for name in listed.stdout.decode().split("\0") if name}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack as it is published: everything that is, or will be, tracked, but for what `.comfyignore` leaves out."""
    folder, every = tmp_path_factory.mktemp("archive") / "lethe", ("--cached", "--others")
    for name in _listed(*every, "--exclude-standard") - _listed(*every, "--ignored", "--exclude-from=.comfyignore"):
        if (CHECKOUT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def published(host: Host, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose only pack is the archive."""
    with Server(host, tmp_path_factory.mktemp("server"), checkout=archive) as running:
        yield running


def test_nothing_is_in_it_that_users_do_not_need(archive: Path) -> None:
    files = [path for path in archive.rglob("*") if path.is_file()]
    names = {path.relative_to(archive).as_posix() for path in files}
    assert not [name for name in names if name.startswith(FOREIGN)]
    assert {"pyproject.toml", "requirements.txt", "LICENSE", "README.md", "__init__.py"} <= names
    assert {f"locales/{language}/nodeDefs.json" for language in ("ja", "zh")} <= names
    assert {f"subgraphs/{blueprint.name}.json" for blueprint in BLUEPRINTS} <= names
    assert sum(path.stat().st_size for path in files) < LARGEST


def test_a_server_loads_all_nodes_from_it(published: Server, client: Client) -> None:
    def nodes(one: Client) -> set[str]:
        return {name for name in one.object_info() if name.startswith("Lethe")}

    assert nodes(published.client()) == nodes(client) != set()
    log = published.log.read_text(encoding="utf-8")
    said = [line for line in log.lower().splitlines() if "custom_nodes/lethe" in line.replace("\\", "/")]
    assert said
    assert not [line for line in said if any(word in line for word in ("warning", "deprecat", "failed", "error"))]


def test_the_first_graph_runs_from_it(published: Server) -> None:
    client = published.client()
    workflow = json.loads((CHECKOUT / "workflows" / "erase_object.json").read_text(encoding="utf-8"))
    assert client.run(to_prompt(workflow, client.object_info()))


@pytest.mark.skipif(sys.platform == "win32", reason="the step is a script of a Linux machine")
def test_what_is_published_says_where_it_and_its_pictures_are(tmp_path: Path) -> None:
    workflow = yaml.safe_load((CHECKOUT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8"))
    (step,) = [step["run"] for step in workflow["jobs"]["publish"]["steps"] if "run" in step]
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    told = {"GITHUB_REPOSITORY": "someone/lethe", "GITHUB_SHA": "abc", "PATH": os.environ["PATH"]}
    subprocess.run(["bash", "-c", step], cwd=tmp_path, env=told, check=True)
    page = tomllib.loads((tmp_path / "pyproject.toml").read_text(encoding="utf-8"))
    assert page["project"]["urls"] == {"Repository": "https://github.com/someone/lethe"}
    for picture in (page["tool"]["comfy"][name] for name in ("Icon", "Banner")):
        address, _, path = picture.partition("/abc/")
        assert address == "https://raw.githubusercontent.com/someone/lethe"
        assert (CHECKOUT / path).is_file()

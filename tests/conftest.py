"""The two hosts that tests run against: ComfyUI imported into this process, and a live server."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from lethe_host.client import Client
from lethe_host.errors import HostError
from lethe_host.install import Host
from lethe_host.server import Server


@dataclass(frozen=True)
class InProcess:
    """ComfyUI in this process: its source, and the folder that holds its input, output, models and so on."""

    path: Path
    base: Path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test that uses a host, so that `-m "not host"` leaves those that need only torch.

    Files with slow tests come first: begun last, they would leave one worker busy when the others are done.
    """
    for item in items:
        if {"comfy", "server", "client"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.host)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def host() -> Host:
    """The host whose Python runs the tests."""
    try:
        return Host.current()
    except HostError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def comfy(host: Host, tmp_path_factory: pytest.TempPathFactory) -> InProcess:
    """ComfyUI imported for the CPU, with folders of its own; import `comfy...` and `nodes` inside the test."""
    base = tmp_path_factory.mktemp("comfy")
    sys.path.insert(0, str(host.comfyui))
    arguments, sys.argv = sys.argv, ["main.py", "--cpu", "--base-directory", str(base)]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = arguments
    # `nodes` puts ComfyUI's folder `comfy` first on the path, where another `utils` waits to be found.
    for name in ("utils.install_util", "server", "nodes"):
        importlib.import_module(name)
    return InProcess(path=host.comfyui, base=base)


@pytest.fixture(scope="session")
def server(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A live server that has loaded this pack and no other, shared by all tests."""
    with Server(host, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Server) -> Client:
    """A client of the live server."""
    return server.client()

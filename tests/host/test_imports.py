"""Names: the pack is `lethe`, and ComfyUI's own top-level modules are not hidden by its rooms."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lethe_host.install import CHECKOUT

if TYPE_CHECKING:
    from ..conftest import InProcess


def test_pack_is_importable_by_its_name() -> None:
    rooms = importlib.import_module("lethe.erasers")
    assert rooms.__file__ is not None
    assert Path(rooms.__file__).resolve() == CHECKOUT / "erasers" / "__init__.py"


def test_checkout_is_not_on_the_path() -> None:
    assert CHECKOUT not in {Path(entry).resolve() for entry in sys.path}


def test_comfyui_in_this_process_is_its_own(comfy: InProcess) -> None:
    for name in ("nodes", "server", "execution"):
        file = importlib.import_module(name).__file__
        assert file is not None
        assert Path(file).resolve().parent == comfy.path.resolve()
    management = importlib.import_module("comfy.model_management")
    assert management.get_torch_device().type == "cpu"
    folders = importlib.import_module("folder_paths")
    assert Path(folders.get_output_directory()).is_relative_to(comfy.base)

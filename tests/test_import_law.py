"""Who may import whom, and that importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOST = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "server", "nodes", "node_helpers", "execution"}
API = {"comfy_api"}
"""Node files may describe themselves to the host; its internals are for nodes/host alone."""


def _imports(path: Path) -> set[str]:
    """Every module a file imports, relative ones as `.name` with the room they lead to."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if not node.level:
                found.add(module.split(".")[0])
                continue
            base = path.relative_to(ROOT).parent.parts
            base = base[: len(base) - node.level + 1]
            names = [(*base, *module.split("."))] if module else [(*base, alias.name) for alias in node.names]
            found |= {"." + name[0] for name in names if name}
    return found


def _files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def test_rooms_import_one_way() -> None:
    allowed = {
        "kernels": {".kernels"},
        "erasers": {".erasers", ".kernels"},
        "nodes": {".nodes", ".erasers", ".kernels"},
    }
    for room, inside in allowed.items():
        for path in _files(room):
            relative = {name for name in _imports(path) if name.startswith(".")}
            assert relative <= inside, f"{path} reaches {relative - inside}"


def test_only_the_host_room_touches_the_host() -> None:
    for room in ("kernels", "erasers"):
        for path in _files(room):
            assert not _imports(path) & HOST, path
    for path in _files("nodes"):
        if "host" not in path.relative_to(ROOT / "nodes").parts[:-1]:
            used = _imports(path) & HOST
            assert used <= API | {"comfy"}, f"{path} touches {used}"
            text = path.read_text(encoding="utf-8")
            assert "import comfy." not in text, path
            names = [line for line in text.splitlines() if line.startswith("from comfy.")]
            assert set(names) <= {"from comfy.model_patcher import ModelPatcher"}, f"{path}: {names}"


def test_methods_and_recipes_do_not_import_each_other() -> None:
    for path in (*_files("erasers/methods"), *_files("erasers/recipes")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                raise AssertionError(f"{path} imports a neighbour: {node.module}")


def test_no_file_is_too_long() -> None:
    for room in ("kernels", "erasers", "nodes", "tests"):
        for path in _files(room):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def test_importing_prints_nothing_and_leaves_torch_as_it_was() -> None:
    code = (
        "import torch; before = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads();"
        "import lethe, lethe.erasers.registry as registry; registry.methods(); registry.families(); registry.recipes();"
        "after = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads();"
        "assert before[0].equal(after[0]) and before[1:] == after[1:]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""


def test_both_lists_of_requirements_are_the_same() -> None:
    """Some installers read one, some the other."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = ", ".join(f'"{line}"' for line in lines if line and not line.startswith("#"))
    assert f"dependencies = [{listed}]" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")

"""The examples of CONTRIBUTING.md, put into a copy of the pack, pass what everything of their kind has to."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lethe_host.install import CHECKOUT

EXAMPLES = dict(
    re.findall(
        r"^```python (\S+)\n(.*?)^```$",
        (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
)
COPIED = ("erasers", "kernels", "tests", "__init__.py", "__main__.py", "pyproject.toml", "README.md")
RUN = "import sys; sys.path[:0] = sys.argv[1:3]; import pytest; sys.exit(pytest.main(sys.argv[3:]))"


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the pack with the examples in it."""
    folder = tmp_path_factory.mktemp("copy") / "lethe"
    folder.mkdir()
    for name in COPIED:
        if (CHECKOUT / name).is_dir():
            shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(CHECKOUT / name, folder / name)
    for name, code in EXAMPLES.items():
        assert not (folder / name).exists()
        (folder / name).write_text(code, encoding="utf-8")
    return folder


def passes(pack: Path, *chosen: str) -> int:
    """Run tests of the copy; returns how many passed. No other may have run."""
    command = [sys.executable, "-c", RUN, str(pack.parent), str(pack / "tests" / "tools"), "-q", *chosen]
    done = subprocess.run(command, cwd=pack, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    found = re.search(r"(\d+) passed(?:, \d+ deselected)? in", done.stdout)
    assert found is not None, done.stdout[-500:]
    return int(found[1])


def test_there_is_one_of_every_kind() -> None:
    kinds = {str(Path(name).parent) for name in EXAMPLES if not name.startswith("tests/")}
    assert kinds == {"erasers/methods", "erasers/guards", "erasers/families", "kernels"}


def test_the_method_keeps_what_every_method_promises(pack: Path) -> None:
    assert passes(pack, "tests/contract/test_methods.py", "-k", "swap") >= 8


def test_the_others_pass_their_own_tests_and_those_of_their_kind(pack: Path) -> None:
    own = [name for name in EXAMPLES if name.startswith("tests/")]
    assert passes(pack, *own, "tests/erasers/test_families.py::test_facts_fit_together[half]") == 5

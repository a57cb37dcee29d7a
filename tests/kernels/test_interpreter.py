"""Triton's kernels under its interpreter, in a process of their own: it has to be asked for before the first import."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not made for this platform")
def test_kernels_are_right_under_the_interpreter() -> None:
    folder = Path(__file__).parent
    command = [str(Path(sys.executable).with_name("pytest")), "-q", "-p", "no:cacheprovider", str(folder)]
    variables = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder.parents[1], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout.strip().splitlines()[-1]
    passed = re.match(r"(\d+) passed in", summary)
    assert passed, summary
    assert int(passed[1]) > 50

"""Times of the kernels beside their rivals, against what the machine can do.

`python -m lethe.kernels.bench.operations [stacked grouped reweighted gram] [--device cuda] [--dtype float16]`. Tests of
an operation run first, and without them green there is no figure. Results are appended to `results/`, one file per
device, with the command.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch

from .cases import Case, cases
from .machine import Machine, machine, timed

OPERATIONS = ("stacked", "grouped", "reweighted", "gram")
RESULTS = Path(__file__).parent / "results"
TESTS = Path(__file__).parents[2] / "tests" / "kernels"


def main() -> None:
    parser = argparse.ArgumentParser(prog="lethe.kernels.bench.operations", description=__doc__)
    parser.add_argument("operations", nargs="*", default=list(OPERATIONS), help=f"of {', '.join(OPERATIONS)}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on the CPU")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile")
    parser.add_argument("--only", default="", help="cases with this in their title")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype or ("float16" if options.device == "cuda" else "float32"))
    if not tested(options.operations):
        raise SystemExit("The tests are not green; nothing was measured.")
    on = machine(options.device, dtype)
    print(f"{on.title}, {on.dtype}, copy {on.bandwidth / 1e9:.1f} GB/s, matrix product {on.rate / 1e9:.0f} GFLOP/s")
    for operation in options.operations:
        with torch.inference_mode():
            chosen = (case for case in cases(operation, on, options.compile) if options.only in case.title)
            keep(operation, on, [measure(case, on) for case in chosen])


def tested(operations: list[str]) -> bool:
    """True if the operations' tests pass here, and Triton's kernels under its interpreter."""
    files = [str(TESTS / f"test_{name}.py") for name in (*operations, "interpreter")]
    command = [sys.executable, "-m", "pytest", "-q", *files]
    # Safe path: `python -m` does not put this folder, with its `nodes`, on the path (from Python 3.11 on).
    variables = {**os.environ, "PYTHONSAFEPATH": "1"}
    return subprocess.run(command, cwd=TESTS.parents[1], env=variables, stdout=sys.stderr, check=False).returncode == 0


def measure(case: Case, on: Machine) -> dict[str, Any]:
    """Run a case and print it."""
    seconds = {name: median(times) for name, times in timed({**case.work, **case.beside}, on.device).items()}
    floor = on.floor(case.flops, case.moved)
    print(f"\n{case.title}: {case.flops / 1e9:.2f} GFLOP, {case.moved / 1e6:.2f} MB, floor {floor * 1e6:.0f} us")
    first = next(iter(seconds.values()))
    for name, took in seconds.items():
        share = f"{floor / took:4.0%} of what is possible" if name in case.work else "does less"
        print(f"  {name:32s} {took * 1e6:9.0f} us  {took / first:6.2f} times ours  {share}")
    micro = {name: round(took * 1e6, 1) for name, took in seconds.items()}
    return {"case": case.title, "flops": case.flops, "bytes": case.moved, "floor_us": floor * 1e6, "us": micro}


def keep(operation: str, on: Machine, measured: list[dict[str, Any]]) -> None:
    """Append to the device's results."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', on.title.lower()).strip('-')}.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    results.append(
        {
            "command": " ".join(["python -m lethe.kernels.bench.operations", *sys.argv[1:]]),
            "day": datetime.date.today().isoformat(),
            "device": on.title,
            "threads": torch.get_num_threads() if on.device.type == "cpu" else 0,
            "torch": torch.__version__,
            "dtype": str(on.dtype).removeprefix("torch."),
            "copy_gb_s": round(on.bandwidth / 1e9, 1),
            "product_gflop_s": round(on.rate / 1e9, 1),
            "operation": operation,
            "cases": measured,
        }
    )
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""How long ComfyUI's start takes longer with the pack: its modules and all of its nodes' schemas.

`python -m lethe_host.start` prints processor seconds beyond the host's own imports: of the first start, which compiles
every file, and of the median of the later ones.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile

from .install import Host

LATER = 5
# The host has imported these by the time it comes to the packs.
CHILD = """
import asyncio, logging, sys, time
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, sys.orig_argv[-1])
import comfy.options
comfy.options.enable_args_parsing()
import utils.install_util, server, nodes, comfy_extras.nodes_train
start = time.process_time()
import lethe
async def load():
    return await (await lethe.comfy_entrypoint()).get_node_list()
for node in asyncio.run(load()):
    node.GET_SCHEMA()
print(time.process_time() - start)
"""


def seconds(host: Host, bytecode: str) -> float:
    """Returns the processor seconds of one start; compiled files are kept in the folder `bytecode`."""
    variables = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
    command = [str(host.python), "-c", CHILD, str(host.comfyui)]
    done = subprocess.run(command, env=variables, cwd=bytecode, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    host = Host.current()
    with tempfile.TemporaryDirectory() as bytecode:
        first, *later = [seconds(host, bytecode) for _ in range(1 + LATER)]
    print(f"first start {first:.2f} s, later {statistics.median(later):.2f} s ({min(later):.2f} to {max(later):.2f})")


if __name__ == "__main__":
    main()

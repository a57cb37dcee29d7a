"""The project's commands. Each builds or checks the ComfyUI host first and runs with its Python.

`nox -s tests` (the default), `demo`, `host`, `lint`, `locales`, `bench`, `leaderboard` and `train`; what follows `--`
is passed on.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nox

TOOLS = Path(__file__).resolve().parent / "tests" / "tools"
# A file's tests stay together, for what they share; each worker holds two ComfyUIs, which is 3 GB or so.
WORKERS = ("-n", "logical", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder")
sys.path.insert(0, str(TOOLS))

from lethe_host.errors import HostError  # noqa: E402
from lethe_host.install import Host, ensure_host  # noqa: E402

nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "none"


def prepare(session: nox.Session) -> Host:
    """Returns a sound host, or ends the session with what went wrong."""
    try:
        return ensure_host()
    except HostError as error:
        raise session.error(str(error)) from error


def run(session: nox.Session, host: Host, *command: str, **variables: str) -> None:
    """Runs a command with the host's Python environment; no shell variable of the caller changes its imports."""
    # Safe path: `python -m` does not put this folder, with its `nodes`, on the path (from Python 3.11 on).
    own = {"PYTHONPATH": None, "PYTHONSAFEPATH": "1", "LETHE_COMFYUI": str(host.comfyui)}
    session.run(*command, env={**own, **variables}, external=True)


def one_thread() -> dict[str, str]:
    """Returns the setting that keeps tiny models fast on few cores, unless the caller chose another."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def check(session: nox.Session, host: Host) -> None:
    """Lints, checks the format and the types."""
    run(session, host, str(host.tool("ruff")), "check", ".")
    run(session, host, str(host.tool("ruff")), "format", "--check", ".")
    run(session, host, str(host.tool("pyright")), "--pythonpath", str(host.python))


@nox.session
def host(session: nox.Session) -> None:
    """Builds the host, or checks the one that is there."""
    found = prepare(session)
    session.log(f"Python {found.python}, ComfyUI {found.comfyui}")


@nox.session
def lint(session: nox.Session) -> None:
    """Runs the checks that run no test."""
    check(session, prepare(session))


@nox.session
def tests(session: nox.Session) -> None:
    """Runs the checks, then pytest with a worker per core; `-- -n 0` gives one process."""
    found = prepare(session)
    check(session, found)
    # Plain pytest: `python -m pytest` would put this folder's `nodes` before ComfyUI's.
    run(session, found, str(found.tool("pytest")), *WORKERS, *session.posargs, **one_thread())


@nox.session
def demo(session: nox.Session) -> None:
    """Erases concepts from the demo world in a live server and leaves pictures and a report."""
    found = prepare(session)
    showcase = (str(found.python), "-m", "lethe_host.showcase", *session.posargs)
    run(session, found, *showcase, PYTHONPATH=str(TOOLS), **one_thread())


@nox.session
def locales(session: nox.Session) -> None:
    """Brings the nodes' translations up to date with their English texts."""
    found = prepare(session)
    command = (str(found.python), "-m", "lethe_host.locales", *session.posargs)
    run(session, found, *command, PYTHONPATH=str(TOOLS))


@nox.session
def bench(session: nox.Session) -> None:
    """Measures the kernels."""
    found = prepare(session)
    run(session, found, str(found.python), "-m", "lethe.kernels.bench", *session.posargs)


@nox.session
def leaderboard(session: nox.Session) -> None:
    """Runs every method against every attack on the demo world and writes the table and the chart."""
    found = prepare(session)
    run(session, found, str(found.python), "-m", "lethe.erasers.demo.leaderboard", *session.posargs, **one_thread())


@nox.session
def train(session: nox.Session) -> None:
    """Trains the demo world's model anew."""
    found = prepare(session)
    run(session, found, str(found.python), "-m", "lethe.erasers.demo.training", *session.posargs)

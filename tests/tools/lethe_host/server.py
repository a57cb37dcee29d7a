"""A live ComfyUI server on loopback, with this pack as its only one and folders of its own."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from types import TracebackType

from .client import Client
from .errors import HostError, ServerError
from .install import CHECKOUT, Host, run
from .link import link_folder

__all__ = ["Client", "Server"]

log = logging.getLogger("lethe.host")

START_SECONDS = 300.0
STOP_SECONDS = 10.0


@cache
def has_gpu(host: Host) -> bool:
    """Does the host's torch see an NVIDIA GPU?"""
    question = "import torch; print(torch.cuda.is_available())"
    return run("looking for a GPU", [str(host.python), "-I", "-c", question], "build the host again").strip() == "True"


class Server:
    """Runs a server from `with` to its end.

    Args:
        host: the host to run.
        base: an empty folder; gets the server's input, output, temp, user, models and custom_nodes
            folders and its log, and is left behind.
        checkout: the pack to load.
        cpu: run without a GPU; by default where there is none.
    """

    def __init__(self, host: Host, base: Path, checkout: Path = CHECKOUT, cpu: bool | None = None) -> None:
        self.host, self.base, self.checkout, self.cpu = host, base.resolve(), checkout, cpu
        self.log = self.base / "server.log"
        self.output = self.base / "output"
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None

    def client(self) -> Client:
        """Returns a client of this server."""
        return Client(self.url, self.log)

    def __enter__(self) -> Server:
        for name in ("custom_nodes", "input", "models", "output", "user"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        link_folder(self.base / "custom_nodes" / "lethe", self.checkout)
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        with self.log.open("wb") as sink:
            self._process = subprocess.Popen(
                self._command(port),
                cwd=self.host.comfyui,
                env=self.host.environment(),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise
        log.info("ComfyUI answers at %s", self.url)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _command(self, port: int) -> list[str]:
        command = [str(self.host.python), "main.py", "--listen", "127.0.0.1", "--port", str(port)]
        command += ["--disable-auto-launch", "--base-directory", str(self.base)]
        # The base folder does not move the database, which a second server would find locked.
        command += ["--database-url", "sqlite:///:memory:"]
        command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", "lethe", "--disable-api-nodes"]
        cpu = not has_gpu(self.host) if self.cpu is None else self.cpu
        return [*command, "--cpu"] if cpu else command

    def _wait(self) -> None:
        assert self._process is not None
        give_up = time.monotonic() + START_SECONDS
        while time.monotonic() < give_up:
            if self._process.poll() is not None:
                raise ServerError(f"the server ended with status {self._process.returncode} at its start", self.log)
            try:
                self.client().system_stats()
                return
            except ServerError:
                time.sleep(0.2)
        raise ServerError(f"the server did not answer within {START_SECONDS:g} s", self.log)

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        _signal_group(process, gently=True)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _signal_group(process, gently=False)
            process.wait()


def _signal_group(process: subprocess.Popen[bytes], *, gently: bool) -> None:
    """Ends a process and what it started; no error when there is nothing left of them."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True, check=False)
        return
    try:
        os.killpg(process.pid, signal.SIGTERM if gently else signal.SIGKILL)
    except ProcessLookupError:
        return


def _free_port() -> int:
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]
    except OSError as error:
        raise HostError("finding a free port", "allow this process to listen on loopback", (), str(error)) from error

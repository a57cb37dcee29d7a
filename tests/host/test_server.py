"""The live server: it carries the pack, and its failures arrive as typed errors."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import pytest
from lethe_host.client import Client
from lethe_host.errors import GraphError, ServerError
from lethe_host.install import Host
from lethe_host.server import Server

Prompt = dict[str, dict[str, object]]


def picture(width: object = 64) -> Prompt:
    """Returns a prompt that makes one white picture."""
    inputs = {"width": width, "height": 64, "batch_size": 1, "color": 0xFFFFFF}
    return {
        "1": {"class_type": "EmptyImage", "inputs": inputs},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }


def test_pack_is_loaded(client: Client) -> None:
    assert "LetheDemoModel" in client.object_info("LetheDemoModel")


def test_graph_runs_and_its_picture_is_served(client: Client) -> None:
    outputs = client.run(picture(), timeout=60)
    (reference,) = outputs["2"]["images"]
    assert client.image(reference).startswith(b"\x89PNG")


def test_unknown_node_is_refused(client: Client) -> None:
    with pytest.raises(GraphError) as caught:
        client.run({"7": {"class_type": "NoSuchNode", "inputs": {}}})
    assert (caught.value.node_id, caught.value.node_type) == ("7", "NoSuchNode")
    assert caught.value.exception_type == "missing_node_type"


def test_bad_value_names_its_node(client: Client) -> None:
    with pytest.raises(GraphError, match="width") as caught:
        client.run(picture(width=-5))
    assert (caught.value.node_id, caught.value.node_type) == ("1", "EmptyImage")


def test_half_good_prompt_is_a_failure(client: Client) -> None:
    """The server answers 200 and would run the good half."""
    bad = {f"{int(name) + 10}": node for name, node in picture(width=-5).items()}
    bad["12"]["inputs"] = {"images": ["11", 0]}
    with pytest.raises(GraphError, match="width") as caught:
        client.run({**picture(width=72), **bad})
    assert caught.value.node_id == "11"


def test_error_inside_a_node_keeps_its_type(client: Client) -> None:
    inputs = {"string": "text", "regex_pattern": "(", "replace": ""}
    prompt: Prompt = {
        "3": {"class_type": "RegexReplace", "inputs": inputs},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}},
    }
    with pytest.raises(GraphError, match="unterminated") as caught:
        client.run(prompt, timeout=60)
    assert (caught.value.node_id, caught.value.node_type) == ("3", "RegexReplace")
    assert caught.value.exception_type in ("re.error", "re.PatternError")


DEAF = """
import http.server, json, sys
said = {"/interrupt": 0}
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        runs = [[0, "a prompt", {}]] if said["/interrupt"] < 3 else []
        self.answer({"queue_running": runs, "queue_pending": []} if self.path == "/queue" else said)
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        said[self.path] = said.get(self.path, 0) + 1
        self.answer({})
    def answer(self, body):
        self.send_response(200); self.end_headers(); self.wfile.write(json.dumps(body).encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Answer).serve_forever()
"""


def test_a_prompt_that_forgets_its_interruption_is_asked_until_it_stops(host: Host, tmp_path: Path) -> None:
    """ComfyUI clears the mark of an interruption when a prompt begins, and one that came before is lost."""
    (tmp_path / "main.py").write_text(DEAF, encoding="utf-8")
    with Server(Host(python=host.python, comfyui=tmp_path), tmp_path / "base", cpu=True) as server:
        server.client().interrupt("a prompt")
        assert server.client()._get_json("/said")["/interrupt"] == 3


def test_server_that_dies_shows_its_log(host: Host, tmp_path: Path) -> None:
    """A ComfyUI whose start fails is reported with what it printed, not waited for."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "main.py").write_text("raise SystemExit('the reason it died')", encoding="utf-8")
    with (
        pytest.raises(ServerError, match="the reason it died"),
        Server(Host(python=host.python, comfyui=broken), tmp_path / "base", cpu=True),
    ):
        pytest.fail("the server can't have started")


STUBBORN = """
import http.server, socket, subprocess, sys
held = socket.create_server(("127.0.0.1", 0))
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child], pass_fds=[held.fileno()])
open("held", "w").write(str(held.getsockname()[1]))
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Answer).serve_forever()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="hands a socket to a child process")
def test_nothing_is_left_running(host: Host, tmp_path: Path) -> None:
    """A process that the server started, and that ignores the polite signal, is ended with it."""
    (tmp_path / "main.py").write_text(STUBBORN, encoding="utf-8")
    with Server(Host(python=host.python, comfyui=tmp_path), tmp_path / "base", cpu=True):
        address = ("127.0.0.1", int((tmp_path / "held").read_text()))
        socket.create_connection(address, timeout=5).close()
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        try:
            socket.create_connection(address, timeout=5).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.05)
    pytest.fail("a process of the server still holds its socket")

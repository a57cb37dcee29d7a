"""Talks to a ComfyUI server over its HTTP API."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from .errors import GraphError, ServerError

Json = dict[str, Any]
POLL_SECONDS = 0.1
ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Client:
    """One server's API.

    Args:
        url: the server's address, without a slash at the end.
        log: its log file, quoted when it stops answering.
    """

    url: str
    log: Path | None = None

    def run(self, prompt: Mapping[str, Any], timeout: float = 600.0) -> Json:
        """Runs an API prompt and waits for its end.

        Args:
            prompt: node id -> {"class_type", "inputs"}.
            timeout: seconds, after which the run is interrupted.
        Returns:
            What each output node reported, by node id, such as {"9": {"images": [reference, ...]}}.
        Raises:
            GraphError: the prompt was refused, in whole or in part, or a node failed.
            ServerError: the server did not answer, or the time was up.
        """
        prompt_id = self._queue(prompt)
        give_up = time.monotonic() + timeout
        while time.monotonic() < give_up:
            entry = self._get_json(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                _raise_for_failure(entry.get("status") or {})
                return entry["outputs"]
            time.sleep(POLL_SECONDS)
        self.interrupt(prompt_id)
        raise ServerError(f"the prompt took more than {timeout:g} s and was interrupted", self.log)

    def image(self, reference: Mapping[str, str]) -> bytes:
        """Returns the file that an output's reference {"filename", "subfolder", "type"} names."""
        names = ("filename", "subfolder", "type")
        return self._request(f"/view?{urlencode({name: reference.get(name, '') for name in names})}")

    def object_info(self, name: str = "") -> Json:
        """Returns how the server describes its nodes, by node id; with a name, only that node."""
        return self._get_json(f"/object_info/{quote(name)}" if name else "/object_info")

    def system_stats(self) -> Json:
        """Returns the server's versions and devices."""
        return self._get_json("/system_stats")

    def upload(self, name: str, content: bytes) -> Json:
        """Puts an image into the server's input folder; returns its reference."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        answer = self._request("/upload/image", body, f"multipart/form-data; boundary={boundary}")
        return json.loads(answer)

    def interrupt(self, prompt_id: str) -> None:
        """Stops a prompt, whether it waits or runs, and waits until it has stopped.

        A prompt forgets an interruption that came just before its first node, so it is asked until it is gone.

        Raises:
            ServerError: the prompt still runs after ANSWER_SECONDS.
        """
        give_up = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < give_up:
            self._request("/queue", _encoded({"delete": [prompt_id]}))
            self._request("/interrupt", _encoded({"prompt_id": prompt_id}))
            if not any(prompt_id == item[1] for items in self._get_json("/queue").values() for item in items):
                return
            time.sleep(POLL_SECONDS)
        raise ServerError(f"the prompt still runs {ANSWER_SECONDS:g} s after it was interrupted", self.log)

    def _queue(self, prompt: Mapping[str, Any]) -> str:
        answer = json.loads(self._request("/prompt", _encoded({"prompt": prompt}), refusal_is_answer=True))
        failure = _refusal(answer, prompt)
        if failure is None:
            return answer["prompt_id"]
        # A prompt with a good and a bad output is taken, and only the good one would run.
        if "prompt_id" in answer:
            self.interrupt(answer["prompt_id"])
        raise failure

    def _get_json(self, path: str) -> Json:
        return json.loads(self._request(path))

    def _request(
        self, path: str, body: bytes | None = None, kind: str = "application/json", *, refusal_is_answer: bool = False
    ) -> bytes:
        headers = {"Content-Type": kind} if body is not None else {}
        request = urllib.request.Request(self.url + path, data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            if refusal_is_answer and error.code == 400:
                return error.read()
            raise ServerError(f"{path}: the server answered {error.code} {error.reason}", self.log) from error
        except OSError as error:
            raise ServerError(f"{path}: the server does not answer: {error}", self.log) from error


def _encoded(value: object) -> bytes:
    return json.dumps(value).encode()


def _refusal(answer: Json, prompt: Mapping[str, Any]) -> GraphError | None:
    """Returns what the server found wrong with a prompt, in whole or in part."""
    for node_id, found in (answer.get("node_errors") or {}).items():
        for error in found["errors"]:
            message = f"{error['message']}: {error.get('details', '')}"
            return GraphError(node_id, found.get("class_type", ""), error["type"], message)
    whole = answer.get("error")
    if whole is None:
        return None
    node_id = str((whole.get("extra_info") or {}).get("node_id") or "")
    node_type = prompt.get(node_id, {}).get("class_type", "")
    return GraphError(node_id, node_type, whole["type"], f"{whole['message']}: {whole.get('details', '')}")


def _raise_for_failure(status: Json) -> None:
    for event, data in status.get("messages", []):
        if event == "execution_error":
            raise GraphError(str(data["node_id"]), data["node_type"], data["exception_type"], data["exception_message"])
        if event == "execution_interrupted":
            raise GraphError(str(data["node_id"]), data["node_type"], "interrupted", "the run was interrupted")
    if status.get("status_str") != "success":
        raise GraphError("", "", "unknown", f"the run ended without success: {status}")

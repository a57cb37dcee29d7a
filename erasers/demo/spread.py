"""Doing many jobs at once: in processes on this machine, on ComfyUI servers, or on a Ray cluster."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

from ..errors import HostError
from ..measure.report import Report, from_json
from .graph import leaderboard_graph

if TYPE_CHECKING:
    from .leaderboard import Job

Reports = tuple[Report, ...]
_POLL_SECONDS = 1.0
_ALLOCATION = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "16000000000"}
"""Keeps glibc from handing memory back between layers: 15 % more pictures a second (two AVX-512 cores, torch 2.11)."""


def on_processes(run: Callable[[Job], Reports], work: Sequence[Job], workers: int) -> Iterator[Reports]:
    """Yield each job's reports as it ends; every process has one torch thread, which is fastest for tiny models."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name, value in _ALLOCATION.items():
        os.environ.setdefault(name, value)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(work)), mp_context=context, initializer=_end_with_parent) as pool:
        for future in as_completed([pool.submit(run, job) for job in work]):
            yield future.result()


def _end_with_parent() -> None:
    """Makes this worker end when whoever asked for its work is killed, rather than work on for nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def on_ray(run: Callable[[Job], Reports], work: Sequence[Job], address: str) -> Iterator[Reports]:
    """Yield each job's reports as it ends, from a Ray cluster that has the pack installed.

    Args:
        address: of the cluster; "auto" for the one this machine belongs to, "local" for one of this machine alone.

    Raises:
        HostError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise HostError("Ray is not installed.", "Install it: pip install ray.") from error
    ray.init(address=address, include_dashboard=False, log_to_driver=False)
    try:
        waiting = [ray.remote(run).remote(job) for job in work]
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            yield ray.get(done[0])
    finally:
        ray.shutdown()


def on_servers(work: Sequence[Job], addresses: Sequence[str]) -> Iterator[Reports]:
    """Yield each job's reports as it ends, from ComfyUI servers; each does one job at a time.

    Raises:
        HostError: a server does not answer, or refuses or fails a graph.
    """
    free: queue.Queue[str] = queue.Queue()
    for address in addresses:
        free.put(address.rstrip("/"))

    def run(job: Job) -> Reports:
        address = free.get()
        try:
            return _ask(address, job)
        finally:
            free.put(address)

    with ThreadPoolExecutor(len(addresses)) as pool:
        for future in as_completed([pool.submit(run, job) for job in work]):
            yield future.result()


def _ask(address: str, job: Job) -> Reports:
    from .leaderboard import prompts_of, words_of

    sampling = {"steps": job.steps, "count": job.pictures}
    attacked = prompts_of(job.word), words_of(job.word)
    graph = leaderboard_graph(job.word, [job.method], job.attacks, sampling, job.each_kind, attacked, name="")
    prompt_id = _request(f"{address}/prompt", {"prompt": graph})["prompt_id"]
    while True:
        entry = _request(f"{address}/history/{prompt_id}").get(prompt_id)
        if entry is None:
            time.sleep(_POLL_SECONDS)
            continue
        for output in entry["outputs"].values():
            if "lethe_report" in output:
                return from_json(output["lethe_report"][0])
        raise HostError(f"{address} did not finish '{job.method}'.", f"Its last word: {_failure(entry)}.")


def _request(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise HostError(f"{url} refused the work: {error.read()[:500]!r}.", "Check its version of the pack.") from error
    except (OSError, ValueError) as error:
        raise HostError(f"{url} does not answer: {error}.", "Start the server, or check its address.") from error


def _failure(entry: dict[str, Any]) -> str:
    messages = (entry.get("status") or {}).get("messages") or []
    errors = [said.get("exception_message", "") for kind, said in messages if kind == "execution_error"]
    return errors[0].strip() if errors else "no report"

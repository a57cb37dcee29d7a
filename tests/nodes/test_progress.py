"""Everything that takes long shows in its node how far it is, and Interrupt ends it at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import ClientSession, WSMsgType
from lethe.erasers.registry import attack_named, merge_named, method_named
from lethe.erasers.spec import MethodSpec
from lethe_host.server import Server

Json = dict[str, Any]

LONGEST = 200.0  # seconds
PAUSE = 5.0  # seconds between two messages on a busy machine; without them a run would be one pause
DRAWING = {"negative": "", "seed": 1, "count": 1, "cfg": 4.0, "sampler": "euler", "scheduler": "normal"}
SIZE = {"width": 128, "height": 128}


@dataclass
class Told:
    """What the server told of one node of a run.

    Attributes:
        end: success, error or interrupted.
        parts: how far it was, 0 to 1, in order.
        at: seconds from the start of the run at which it said so.
        stopped: seconds from the wish to stop to the end of the run.
        pictures: how many previews it sent.
    """

    end: str = ""
    parts: list[float] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    stopped: float = 0.0
    problem: str = ""
    pictures: int = 0


async def follow(url: str, prompt: Json, node: str, interrupt: bool) -> Told:
    """Runs a prompt and listens to its progress; asks it to stop after the second message of the node."""
    found, name, begin = Told(), f"progress {time.monotonic_ns()}", time.monotonic()
    job = {"prompt": prompt, "client_id": name, "extra_data": {"preview_method": "latent2rgb"}}
    async with ClientSession() as session, session.ws_connect(f"{url}/ws?clientId={name}", max_msg_size=0) as told:
        answer = await (await session.post(f"{url}/prompt", json=job)).json()
        assert not answer.get("node_errors"), answer
        asked = 0.0
        async for message in told:
            now = time.monotonic() - begin
            event = json.loads(message.data) if message.type == WSMsgType.TEXT else {"type": "", "data": {}}
            kind, data = event["type"], event["data"]
            found.pictures += message.type == WSMsgType.BINARY
            if kind == "progress" and data["node"] == node:
                found.parts.append(data["value"] / data["max"])
                found.at.append(now)
                if interrupt and len(found.parts) == 2:
                    await session.post(f"{url}/interrupt", json={"prompt_id": answer["prompt_id"]})
                    asked = now
            if kind in ("execution_success", "execution_error", "execution_interrupted"):
                found.end, found.stopped = kind.removeprefix("execution_"), now - asked
                found.problem = data.get("exception_message", "")
                return found
            if now > LONGEST:
                await session.post(f"{url}/interrupt", json={"prompt_id": answer["prompt_id"]})
    raise AssertionError("the server closed the connection")


def node(kind: str, **inputs: object) -> Json:
    return {"class_type": kind, "inputs": inputs}


def chosen(key: str, spec: MethodSpec, given: Mapping[str, object]) -> Json:
    return {key: spec.name, **{f"{key}.{name}": value for name, value in spec.settings(dict(given)).items()}}  # type: ignore[arg-type]


def graph(size: int) -> Json:
    """The demo model, and a concept that is new for every size of the work, so that nothing is remembered."""
    return {
        "1": node("LetheDemoModel"),
        "2": node("LetheConcept", text="ball", replacement="box", synonyms="", weight=float(size)),
        "3": node("LethePreserve", prompts="a red ring\na blue moon", list="none", concepts=["2", 0]),
    }


def pair(**further: object) -> Json:
    return {
        **{"before": ["1", 0], "after": ["1", 0], "clip": ["1", 1], "vae": ["1", 2]},
        **{**DRAWING, **SIZE, "steps": 8, **further},
    }


def erasing(size: int, name: str, **given: object) -> Json:
    whole = {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "clip_vision": ["1", 3], "concepts": ["3", 0]}
    plain = {"strength": 1.0, "form": "hook", "pooled": False}
    erase = node("LetheErase", **whole, **plain, **chosen("method", method_named(name).spec, given))
    return {**graph(size), "4": erase, "9": node("PreviewAny", source=["4", 3])}


def comparing(size: int) -> Json:
    return {**graph(size), "4": node("LetheCompare", **pair(prompts="a red ball\n" * size))}


def judged(size: int, kind: str, **further: object) -> Json:
    judging = {"concepts": ["3", 0], "batch": 2, "title": "", "clip_model": "connected", "probe": "demo_judge"}
    return {**graph(size), "4": node(kind, **pair(**judging, **further))}


def evaluating(size: int) -> Json:
    return judged(size, "LetheEvaluate", prompts="demo world", lines="", each_kind=size)


def attacking(size: int) -> Json:
    attack = chosen("attack", attack_named("paraphrase").spec, {"tries": 1, "limit": 6 * size})
    return judged(size, "LetheAttack", concept="", prompts="a red ball", words="orb", save_embedding="", **attack)


def learning_a_word(size: int) -> Json:
    learn = node(
        "LetheLearnWord",
        **{"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "images": ["6", 0], "name": "progress-word"},
        **{"phrase": "ball", "captions": "a picture of *", "tokens": 1, "steps": 40 * size, "learning_rate": 0.005},
        **{"batch": 1, "seed": 0, "grid": 0, "alpha": 2.0},
    )
    return {
        "1": node("LetheDemoModel"),
        "6": node("EmptyImage", width=128, height=128, batch_size=1, color=255),
        "4": learn,
    }


def merging(size: int) -> Json:
    stacked = erasing(size, "uce", lam=0.01)
    merge = node(
        "LetheMerge",
        **{"stack": ["6", 0], "model": ["1", 0], "clip": ["1", 1]},
        **chosen("mode", merge_named("learned").spec, {"steps": 12 * size, "batch": 1}),
    )
    return {
        **{name: stacked[name] for name in ("1", "2", "3")},
        **{"5": stacked["4"], "6": node("LetheStack", eraser=["5", 2], strength=1.0), "4": merge},
        "9": node("PreviewAny", source=["4", 1]),
    }


LONG: dict[str, Callable[[int], Json]] = {
    "concept_prune": lambda n: erasing(n, "concept_prune", pictures=n, steps=4, tau=2, templates="none"),
    "leace": lambda n: erasing(n, "leace", samples=200 * n),
    "slug": lambda n: erasing(n, "slug", pictures=2 * n, held=2, probes=2, steps=4, start=1.0, tolerance=1.0),
    "ssd": lambda n: erasing(n, "ssd", pictures=2, draws=6 * n, steps=4, batch=1, alpha=1.0, templates="none"),
    "emcid": lambda n: erasing(n, "emcid", value="optimised", steps=20 * n, sample_steps=4, templates="none"),
    "compare": comparing,
    "evaluate": evaluating,
    "attack": attacking,
    "learn a word": learning_a_word,
    "merge": merging,
}
"""Prompts whose node 4 works for about as long as their number says."""

DRAWS = ("compare", "evaluate", "attack")
"""Those that show what they draw on the way."""


@pytest.mark.slow
@pytest.mark.parametrize("what", LONG)
def test_long_work_shows_progress(server: Server, what: str) -> None:
    told = asyncio.run(follow(server.url, LONG[what](1), "4", interrupt=False))
    assert (told.end, told.problem) == ("success", "")
    assert len(told.parts) >= 4
    assert max(told.parts) == 1
    assert bool(told.pictures) == (what in DRAWS)
    assert max(b - a for a, b in zip(told.at, told.at[1:], strict=False)) < PAUSE


@pytest.mark.slow
@pytest.mark.parametrize("what", LONG)
def test_interrupt_ends_long_work(server: Server, what: str) -> None:
    told = asyncio.run(follow(server.url, LONG[what](20), "4", interrupt=True))
    assert told.end == "interrupted"
    assert told.stopped < PAUSE

"""The main job: runs the shipped workflows in a live server and leaves pictures and a report.

`python -m lethe_host.showcase [FOLDER]`; without a folder it makes `demo-output/<time>`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .client import Client
from .convert import to_prompt
from .errors import ConvertError, GraphError, HostError, ServerError
from .install import CHECKOUT, Host
from .server import Server

log = logging.getLogger("lethe.host")

WORKFLOWS = CHECKOUT / "workflows"
PICTURES = 8
"""Pictures per prompt: the workflows themselves draw fewer."""
SHOWN = 5
LIMIT = 1200.0
"""Seconds that one workflow may take."""
LONG = {"leaderboard"}
"""Workflows of half an hour; what they do is shown by another."""
TRAINED = {"from_pictures", "membranes", "robust_text_encoder", "slider", "train_esd"}
RESEARCH = TRAINED | {"implicit_prompts", "learn_word", "mute_word"}
"""Workflows that show a recipe or a guard whatever it loses: what they keep is reported, and not held against them."""
ERASING = "erase_"
"""Workflows of this name promise that the concept is gone; the others show something else, and are only reported."""


@dataclass(frozen=True)
class Row:
    """What the judge read off one prompt's pictures.

    Attributes:
        prompt: the prompt.
        kind: "erased" (names the concept or a listed synonym), "other word" (means it by a word that
            the eraser was not told about: a leak) or "kept".
        before, after: share of pictures that show the erased concept.
        kept_before, kept_after: share of pictures that show all else that the prompt asks for.
    """

    prompt: str
    kind: str
    before: float
    after: float
    kept_before: float
    kept_after: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="lethe_host.showcase", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="where the pictures and the report go")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = options.folder or CHECKOUT / "demo-output" / time.strftime("%Y%m%d-%H%M%S")
    try:
        found = run_workflows(folder.resolve(), shown_workflows())
    except (HostError, ServerError, GraphError, ConvertError) as error:
        log.error("%s", error)
        return 1
    write_report(found, folder)
    log.info("Pictures and report: %s", folder)
    failed = [name for name, job in found.items() if name.startswith(ERASING) and not _succeeded(job["rows"])]
    if failed:
        log.error("The concept was not erased, or something else was lost, in: %s", ", ".join(failed))
    return 1 if failed else 0


def shown_workflows() -> list[Path]:
    """The shipped workflows, without those that take too long to show and those for a model of the user's own."""
    found = [path for path in sorted(WORKFLOWS.glob("*.json")) if path.stem not in LONG]
    return [path for path in found if own_model(json.loads(path.read_text(encoding="utf-8")))]


def own_model(workflow: dict[str, Any]) -> bool:
    """Does the workflow bring the model that it runs on, the demo model?"""
    return any(node["type"] == "LetheDemoModel" for node in workflow["nodes"])


def run_workflows(
    folder: Path, paths: Iterable[Path], change: Callable[[str, dict[str, Any]], None] = lambda name, prompt: None
) -> dict[str, dict[str, Any]]:
    """Run workflows in a server of their own.

    Args:
        folder: where the server's folders and the pictures go.
        paths: the workflows.
        change: is given the name and the prompt of each before it runs.
    Returns:
        Per workflow: seconds, its grid's file name, the erased concepts and the judge's rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    with Server(Host.current(), folder / "server") as server:
        client = server.client()
        info = client.object_info()
        for path in paths:
            prompt = to_prompt(json.loads(path.read_text(encoding="utf-8")), info)
            compare_id = _first(prompt, "LetheCompare")
            if compare_id is not None:
                prompt[compare_id]["inputs"]["count"] = PICTURES
            change(path.stem, prompt)
            found[path.stem] = _run(client, prompt, folder, path.stem)
            log.info("%s: %.1f s", path.stem, found[path.stem]["seconds"])
    return found


def _run(client: Client, prompt: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
    compare_id = _first(prompt, "LetheCompare")
    if compare_id is None:
        return _run_measure(client, prompt, folder, name)
    inputs = prompt[compare_id]["inputs"]
    started = time.perf_counter()
    outputs = client.run(prompt)
    seconds = time.perf_counter() - started
    shown = outputs[compare_id]
    grid = folder / f"{name}.png"
    grid.write_bytes(client.image(shown["images"][0]))
    pictures = {
        arm: [_keep(client, reference, folder / name / f"{arm}_{i:02}.png") for i, reference in enumerate(shown[key])]
        for arm, key in (("before", "a_images"), ("after", "b_images"))
    }
    concepts = _concepts(prompt)
    return {
        "seconds": round(seconds, 1),
        "grid": grid.name,
        "erased": [concept.name for concept in concepts],
        "settings": {key: value for key, value in inputs.items() if not isinstance(value, list | dict)},
        "rows": [asdict(row) for row in _judge(inputs["prompts"].splitlines(), concepts, pictures, inputs["count"])],
    }


def _run_measure(client: Client, prompt: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
    """Run a workflow that reports instead of comparing: its chart and its page are what it leaves."""
    report_id = _first(prompt, "LetheReport")
    if report_id is None:
        return _run_look(client, prompt, folder, name)
    started = time.perf_counter()
    shown = client.run(prompt, timeout=LIMIT)[report_id]
    seconds = time.perf_counter() - started
    (folder / f"{name}.png").write_bytes(client.image(shown["images"][0]))
    (folder / f"{name}.md").write_text(shown["text"][0], encoding="utf-8")
    return {
        "seconds": round(seconds, 1),
        "grid": f"{name}.png",
        "page": f"{name}.md",
        "erased": [concept.name for concept in _concepts(prompt)],
        "rows": [],
    }


def _run_look(client: Client, prompt: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
    """Run a workflow that shows where words look: its maps, in two rows, are what it leaves."""
    from PIL import Image

    look_id = _first(prompt, "LetheLook")
    if look_id is None:
        return _run_saved(client, prompt, folder, name)
    started = time.perf_counter()
    shown = client.run(prompt)[look_id]["images"]
    seconds = time.perf_counter() - started
    maps = [Image.open(_keep(client, own, folder / name / f"map_{i:02}.png")) for i, own in enumerate(shown)]
    columns, (width, height) = -(-len(maps) // 2), maps[0].size
    grid = Image.new("RGB", (columns * width, 2 * height))
    for index, own in enumerate(maps):
        grid.paste(own, (index % columns * width, index // columns * height))
    grid.save(folder / f"{name}.png")
    return {"seconds": round(seconds, 1), "grid": f"{name}.png", "erased": [], "rows": []}


def _run_saved(client: Client, prompt: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
    """Run a workflow that only saves a picture: that is what it leaves."""
    save_id = _first(prompt, "SaveImage")
    if save_id is None:
        raise ConvertError(
            f"{name} shows nothing: no 'Before / After', 'Report', 'See Where Words Look' or 'Save Image'"
        )
    started = time.perf_counter()
    (reference,) = client.run(prompt)[save_id]["images"]
    seconds = time.perf_counter() - started
    (folder / f"{name}.png").write_bytes(client.image(reference))
    return {"seconds": round(seconds, 1), "grid": f"{name}.png", "erased": [], "rows": []}


def _first(prompt: dict[str, Any], kind: str) -> str | None:
    return next((key for key, node in prompt.items() if node["class_type"] == kind), None)


def _keep(client: Client, reference: dict[str, str], path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(client.image(reference))
    return path


@dataclass(frozen=True)
class Concept:
    """A concept that a workflow erases: its name, its other names, and what replaces it."""

    name: str
    others: tuple[str, ...]
    replacement: str


def _concepts(prompt: dict[str, Any]) -> list[Concept]:
    """What the concept nodes of a workflow name."""
    from lethe.erasers.concepts import read_concepts

    found = []
    for node in prompt.values():
        inputs = node["inputs"]
        # A concept that another node makes has no word that the judge could look for.
        if node["class_type"] == "LetheConcept" and isinstance(inputs["text"], str):
            found.append(Concept(inputs["text"], tuple(inputs["synonyms"].splitlines()), inputs["replacement"]))
        if node["class_type"] == "LetheConceptList":
            found += [Concept(c.text, (), c.replacement) for c in read_concepts(inputs["text"], inputs["replacement"])]
    return found


def _judge(prompts: list[str], concepts: list[Concept], pictures: dict[str, list[Path]], count: int) -> list[Row]:
    """Read every picture, `count` to a prompt, with the demo world's judge."""
    import numpy as np
    import torch
    from lethe.erasers.demo.grammar import find_word
    from lethe.erasers.demo.world import judge
    from PIL import Image

    erased, told = set(), set()
    for concept in concepts:
        for name in (concept.name, *concept.others):
            told |= set(_split(name)) - set(_split(concept.replacement))
            erased |= _words_of(name, find_word) - _words_of(concept.replacement, find_word)
    arms = {}
    for arm, paths in pictures.items():
        batch = torch.stack([torch.from_numpy(np.asarray(Image.open(path).convert("RGB")) / 255.0) for path in paths])
        arms[arm] = [reading.words() for reading in judge().read(batch.movedim(-1, 1))]
    rows = []
    for index, prompt in enumerate(prompts):
        asked = _words_of(prompt, find_word)
        chunk = slice(index * count, (index + 1) * count)
        shares = [_shares(arms[arm][chunk], erased, asked - erased) for arm in ("before", "after")]
        (before, kept_before), (after, kept_after) = shares
        kind = "kept" if not asked & erased else "erased" if told & set(_split(prompt)) else "other word"
        rows.append(Row(prompt, kind, before, after, kept_before, kept_after))
    return rows


def _words_of(prompt: str, find_word: Any) -> set[str]:
    """The concepts of the demo world that a prompt names."""
    found = set()
    for word in _split(prompt):
        try:
            found.add(find_word(word).name)
        except KeyError:
            continue
    return found


def _split(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _shares(shown: list[set[str]], erased: set[str], asked: set[str]) -> tuple[float, float]:
    return sum(bool(words & erased) for words in shown) / len(shown), sum(asked <= words for words in shown) / len(
        shown
    )


def _succeeded(rows: list[dict[str, Any]]) -> bool:
    """The concept is gone where it was asked for, and elsewhere most pictures still show what they should."""
    gone = [row["after"] for row in rows if row["kind"] == "erased"]
    kept = [row["kept_after"] for row in rows if row["kind"] == "kept"]
    return max(gone) <= 0.25 and min(kept) >= 0.6


def write_report(found: dict[str, dict[str, Any]], folder: Path) -> None:
    """Write report.json and report.md."""
    (folder / "report.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    lines = ["# What the demo model forgot, and what it kept", ""]
    lines += [f"{PICTURES} pictures a prompt; rates are what the demo world's judge reads off them.", ""]
    for name, job in found.items():
        names = job["erased"]
        listed = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        lines += [f"## {name}: {listed}", "", f"![before and after]({job['grid']})", ""]
        if "page" in job:
            lines += [f"What was measured: [{job['page']}]({job['page']})", ""]
            continue
        lines += ["| prompt | kind | shows the erased, before | after | shows the rest, before | after |"]
        lines += ["|---|---|---|---|---|---|"]
        for row in job["rows"]:
            rates = (row[key] for key in ("before", "after", "kept_before", "kept_after"))
            lines.append(f"| {row['prompt']} | {row['kind']} | " + " | ".join(f"{rate:.2f}" for rate in rates) + " |")
        lines.append("")
    (folder / "report.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

"""The nodes' texts in other languages: from `locales/LANGUAGE/lethe.po` to the files that the front end reads.

`python -m lethe_host.locales [LANGUAGE ...]` asks a live server that it starts for the texts, brings the `.po` of
each language (by default of those that are there) up to date with them, and writes what follows from it:
`nodeDefs.json`, and `main.json` with the folders of the menu of nodes. A text that is new, or was changed, has no
translation until a translator gives it one, and is shown in English until then.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polib

from .convert import DYNAMIC, Json
from .install import CHECKOUT, Host
from .server import Server

Say = Callable[[str, str], str]
"""(English text, where it stands) -> what is shown instead; empty leaves it out."""

log = logging.getLogger("lethe.host")

LOCALES = CHECKOUT / "locales"
CATALOGUE = "lethe.po"
PREFIX = "Lethe"
HEAD = {"Project-Id-Version": "Lethe", "Content-Type": "text/plain; charset=UTF-8", "Content-Transfer-Encoding": "8bit"}


def english(object_info: Json) -> dict[str, list[str]]:
    """Returns every English text of our nodes with the places where it stands, in the order of the nodes."""
    found: dict[str, list[str]] = defaultdict(list)

    def note(text: str, place: str) -> str:
        if text:
            found[text].append(place)
        return ""

    files(object_info, note)
    return dict(found)


def read(path: Path) -> dict[str, str]:
    """Returns a catalogue's translations by English text, without those that are empty or marked as unsure."""
    return {entry.msgid: entry.msgstr for entry in polib.pofile(str(path), encoding="utf-8") if entry.translated()}


def catalogue(old: polib.POFile, object_info: Json) -> polib.POFile:
    """Returns a catalogue of every text of our nodes, with what the old one has for them."""
    made = polib.POFile(wrapwidth=0)
    made.header, made.metadata = old.header, old.metadata
    known = {entry.msgid: entry for entry in old if not entry.obsolete}
    for text, places in english(object_info).items():
        entry = known.get(text) or polib.POEntry(msgid=text)
        entry.occurrences = [(place, "") for place in places]
        made.append(entry)
    return made


def translated(object_info: Json, said: Mapping[str, str]) -> dict[str, str]:
    """Returns the content of the front end's files of one language, by name."""

    def say(text: str, _: str) -> str:
        return said.get(text, "")

    return {
        name: json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        for name, content in files(object_info, say).items()
    }


def files(object_info: Json, say: Say) -> dict[str, Json]:
    """Returns what the front end looks texts up in, by file name."""
    ours = {name: info for name, info in object_info.items() if name.startswith(PREFIX)}
    nodes = {name: _node(name, info, say) for name, info in ours.items()}
    # The first folder is the pack's name.
    folders = [folder for info in ours.values() for folder in info["category"].split("/")[1:]]
    menu = {folder: say(folder, "menu") for folder in dict.fromkeys(folders)}
    return {"nodeDefs.json": _filled(nodes), "main.json": _filled({"nodeCategories": menu})}


def _node(name: str, info: Json, say: Say) -> Json:
    outputs = zip(info["output_name"], info["output_tooltips"], strict=True)
    return {
        "display_name": say(info["display_name"], name),
        "description": say(info["description"], name),
        "inputs": _inputs(name, info["input"], say),
        "outputs": {
            str(place): {"name": say(output, f"{name}:{output}"), "tooltip": say(tooltip or "", f"{name}:{output}")}
            for place, (output, tooltip) in enumerate(outputs)
        },
    }


def _inputs(node: str, groups: Mapping[str, Json], say: Say) -> Json:
    """Names and tooltips of a node's inputs.

    The front end looks a setting of a dynamic combo up by its name alone, `method_lam`, for the label. Options may
    have settings of one name and different meaning, so their tooltips stand by option below the combo, where only
    our own script, nodes/web/locales.js, looks for them.
    """
    found: Json = {}
    for key, (kind, options) in _each(groups):
        place = f"{node}.{key}"
        found[key] = {"name": say(key, place), "tooltip": say(options.get("tooltip", ""), place)}
        if kind != DYNAMIC:
            continue
        found[key]["options"] = {}
        for option in options["options"]:
            own: Json = {}
            for setting, (_, about) in _each(option["inputs"]):
                where = f"{place}.{option['key']}.{setting}"
                found[f"{key}_{setting}"] = {"name": say(setting, where)}
                own[setting] = say(about.get("tooltip", ""), where)
            found[key]["options"][option["key"]] = own
    return found


def _each(groups: Mapping[str, Json]) -> list[tuple[str, tuple[Any, Json]]]:
    """Name, type and options of the inputs that the front end shows."""
    shown = [item for group in ("required", "optional") for item in groups.get(group, {}).items()]
    return [(key, (spec[0], spec[1] if len(spec) > 1 else {})) for key, spec in shown]


def _filled(content: Json) -> Json:
    """Drops what is empty, so that the front end shows the English text."""
    inner = {key: _filled(value) if isinstance(value, dict) else value for key, value in content.items()}
    return {key: value for key, value in inner.items() if value}


def update(languages: Sequence[str], object_info: Json) -> dict[str, int]:
    """Writes the files of these languages; returns how many texts each of them lacks."""
    missing = {}
    for language in languages:
        path = LOCALES / language / CATALOGUE
        path.parent.mkdir(parents=True, exist_ok=True)
        old = polib.pofile(str(path), encoding="utf-8") if path.is_file() else polib.POFile()
        old.metadata = {**HEAD, "Language": language, **old.metadata}
        catalogue(old, object_info).save(str(path), newline="\n")
        for name, content in translated(object_info, read(path)).items():
            path.with_name(name).write_text(content, encoding="utf-8", newline="\n")
        missing[language] = len(english(object_info).keys() - read(path).keys())
    return missing


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(prog="lethe_host.locales", description=__doc__)
    parser.add_argument("languages", nargs="*", help="such as ja; by default those in the folder locales")
    languages = parser.parse_args().languages or sorted(path.parent.name for path in LOCALES.glob(f"*/{CATALOGUE}"))
    with tempfile.TemporaryDirectory() as folder, Server(Host.current(), Path(folder)) as server:
        object_info = server.client().object_info()
    for language, missing in update(languages, object_info).items():
        log.info("%s: %d texts without a translation", language, missing)


if __name__ == "__main__":
    main()

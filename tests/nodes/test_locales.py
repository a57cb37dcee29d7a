"""The nodes in other languages: every text is there, says what the English one does, and is what the server gives."""

from __future__ import annotations

import json
import re
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import polib
import pytest
from lethe_host import locales
from lethe_host.client import Client
from lethe_host.locales import CATALOGUE, LOCALES, english, read, translated

Json = dict[str, Any]

LANGUAGES = sorted(path.name for path in LOCALES.iterdir() if path.is_dir())
SCRIPTS = {"ja": r"[\u3040-\u30ff\u4e00-\u9fff]", "zh": r"[\u4e00-\u9fff]"}
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
QUOTED = re.compile(r"(?<!\w)'([^']+)'(?!\w)|`([^`]+)`")
UNIT = re.compile(r" Unit: (.+)\.$")
GREEK = {"alpha", "beta", "gamma", "eta", "lam", "lamb", "omega", "rho", "tau"}
COMPILED = {"display_name", "description", "name"}
"""What the front end reads as messages with syntax of their own; tooltips it shows as they are."""

each_language = pytest.mark.parametrize("language", LANGUAGES)


@pytest.fixture(scope="module")
def object_info(client: Client) -> Json:
    return client.object_info()


@pytest.fixture(scope="module")
def texts(object_info: Json) -> list[str]:
    return list(english(object_info))


@cache
def said(language: str) -> dict[str, str]:
    return read(LOCALES / language / CATALOGUE)


def files(language: str) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in (LOCALES / language).glob("*.json")}


def numbers(text: str) -> Counter[str]:
    return Counter(NUMBER.findall(text))


def is_symbol(word: str) -> bool:
    """Is it a letter of a formula or an abbreviation, which every language writes alike?"""
    return len(word) <= 3 or word in GREEK or sum(map(str.isupper, word)) > 1


def in_script(language: str, text: str) -> bool:
    """Is the text written in the language, as far as it consists of words?"""
    words = re.findall(r"[^\W\d_]+", text)
    return bool(re.search(SCRIPTS[language], text)) or all(map(is_symbol, words))


def test_texts_that_are_new_changed_or_unsure_have_no_translation(
    object_info: Json, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locales, "LOCALES", tmp_path)
    assert locales.update(["xx"], object_info) == {"xx": len(texts)}
    path = tmp_path / "xx" / CATALOGUE
    catalogue = polib.pofile(str(path), encoding="utf-8")
    title, description = catalogue[0], catalogue[1]
    title.msgstr, description.msgstr, description.flags = "Titre", "Incertain", ["fuzzy"]
    catalogue.save()
    assert locales.update(["xx"], object_info) == {"xx": len(texts) - 1}
    nodes = json.loads(path.with_name("nodeDefs.json").read_text(encoding="utf-8"))
    assert nodes == {"LetheDemoModel": {"display_name": "Titre"}}

    changed = {**object_info, "LetheDemoModel": {**object_info["LetheDemoModel"], "display_name": "Tiny Model"}}
    assert locales.update(["xx"], changed) == {"xx": len(texts)}
    assert title.msgid not in path.read_text(encoding="utf-8")


def test_there_are_languages() -> None:
    assert set(LANGUAGES) == set(SCRIPTS)


@each_language
def test_files_are_up_to_date(language: str, object_info: Json, texts: list[str]) -> None:
    """`python -m lethe_host.locales` has nothing to do."""
    catalogue = polib.pofile(str(LOCALES / language / CATALOGUE), encoding="utf-8")
    assert [entry.msgid for entry in catalogue] == texts
    assert files(language) == translated(object_info, said(language))


@each_language
def test_no_text_is_missing(language: str, texts: list[str]) -> None:
    assert [text for text in texts if not said(language).get(text, "").strip()] == []


@each_language
def test_every_text_is_in_the_language(language: str) -> None:
    assert {text: shown for text, shown in said(language).items() if not in_script(language, shown)} == {}


@pytest.mark.parametrize("word", ["threshold", "mode", "learning_rate", "A sentence with CLIP."])
def test_words_are_not_symbols(word: str) -> None:
    assert not in_script("ja", word)


@each_language
def test_numbers_are_those_of_the_english_text(language: str) -> None:
    slips = {text: shown for text, shown in said(language).items() if numbers(shown) != numbers(text)}
    assert slips == {}


@each_language
def test_what_is_quoted_stays_or_is_a_name_that_is_translated(language: str) -> None:
    own = said(language)
    slips = {
        text: quote
        for text, shown in own.items()
        for quote in ("".join(found) for found in QUOTED.findall(text))
        if own.get(quote, quote) not in shown
    }
    assert slips == {}


@each_language
def test_units_are_the_same_everywhere(language: str) -> None:
    units: dict[str, set[str]] = defaultdict(set)
    for text, shown in said(language).items():
        found = UNIT.search(text)
        if found:
            units[found[1]].add(re.split("[:：]", shown)[-1])
    assert units
    assert {unit: shown for unit, shown in units.items() if len(shown) > 1} == {}


def explained(inputs: Json) -> Iterator[tuple[str, str]]:
    """Tooltips with the choices that they name in brackets; choices are ids, and stay as they are."""
    for kind, options in (spec for group in ("required", "optional") for spec in inputs.get(group, {}).values()):
        for choice in options.get("options", ()):
            if isinstance(choice, dict):
                yield from explained(choice["inputs"])
            elif f"({choice}" in options["tooltip"]:
                assert kind == "COMBO"
                yield options["tooltip"], choice


@each_language
def test_choices_keep_their_names(language: str, object_info: Json) -> None:
    found = [
        pair for name, info in object_info.items() if name.startswith("Lethe") for pair in explained(info["input"])
    ]
    assert len(found) > 10
    own = said(language)
    assert [(text, choice) for text, choice in found if choice not in own.get(text, choice)] == []


@each_language
def test_no_text_has_the_front_ends_syntax(language: str) -> None:
    def compiled(content: Json) -> Iterator[str]:
        for key, value in content.items():
            if isinstance(value, dict):
                yield from compiled(value)
            elif key in COMPILED:
                yield value

    found = list(compiled(json.loads(files(language)["nodeDefs.json"])))
    assert found
    assert [text for text in found if re.search(r"[@{}|]", text)] == []


@each_language
def test_server_gives_them(language: str, client: Client) -> None:
    with urllib.request.urlopen(f"{client.url}/i18n") as answer:
        given = json.loads(answer.read())[language]
    content = {name: json.loads(text) for name, text in files(language).items()}
    assert given["nodeDefs"] == content["nodeDefs.json"]
    assert given["nodeCategories"] == content["main.json"]["nodeCategories"]

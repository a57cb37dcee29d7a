"""What a user may and may not ask for."""

from __future__ import annotations

import pytest
from lethe.erasers.concepts import Concept, ConceptList, preserve_list, preserve_lists, split_lines
from lethe.erasers.errors import ConceptError


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_an_empty_concept_is_refused(text: str) -> None:
    with pytest.raises(ConceptError, match="empty"):
        Concept(text)


def test_a_concept_cannot_replace_itself() -> None:
    with pytest.raises(ConceptError, match="itself"):
        Concept("Van Gogh", " van  gogh")


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_has_to_be_positive_and_finite(weight: float) -> None:
    with pytest.raises(ConceptError, match="weight"):
        Concept("ball", weight=weight)


def test_nothing_is_erased_and_preserved_at_once() -> None:
    concepts = ConceptList().with_concept(Concept("ball", synonyms=("orb",)))
    with pytest.raises(ConceptError, match="'orb' stands in"):
        concepts.with_preserved(("box", "ORB"))
    with pytest.raises(ConceptError, match="'ball' stands in"):
        ConceptList(preserve=("Ball",)).with_concept(Concept("ball"))


def test_nothing_is_erased_twice() -> None:
    with pytest.raises(ConceptError, match="twice"):
        ConceptList().with_concept(Concept("ball")).with_concept(Concept("Ball"))


def test_a_shipped_list_leaves_out_what_is_erased() -> None:
    concepts = ConceptList(preserve=("box",), lists=("demo-world",)).with_concept(Concept("ball"))
    assert "ball" not in concepts.kept
    assert concepts.kept[0] == "box"
    assert len(concepts.kept) == len(set(concepts.kept)) == len(preserve_list("demo-world")) - 1


def test_shipped_lists_are_clean() -> None:
    assert set(preserve_lists()) == {"art-styles", "demo-world", "everyday"}
    for name in preserve_lists():
        prompts = preserve_list(name)
        assert len(prompts) == len({prompt.lower() for prompt in prompts})
    with pytest.raises(ConceptError, match="no list"):
        preserve_list("../secret")


def test_lines_are_trimmed_and_empty_ones_dropped() -> None:
    assert split_lines(" a \n\n b\r\n") == ("a", "b")

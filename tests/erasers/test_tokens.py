"""Token rules on prompts with known positions."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.algebra.tokens import select_pair, select_rows
from lethe.erasers.errors import ConceptError
from lethe.erasers.task import EncodedPrompt


def _prompt(text: str, last: int, start: float) -> EncodedPrompt:
    return EncodedPrompt(text, torch.arange(start, start + 10).view(10, 1), last)


ONE, THREE, EMPTY = _prompt("ball", 1, 0), _prompt("van gogh style", 3, 100), _prompt("", 0, 200)


@pytest.mark.parametrize(
    ("rule", "source", "target", "rows", "replaced"),
    [
        ("last", ONE, THREE, [1], [103]),
        ("last", THREE, EMPTY, [103], [200]),
        ("tail", ONE, THREE, range(1, 8), range(103, 110)),
        ("tail", THREE, ONE, range(103, 110), range(1, 8)),
        ("tail", ONE, EMPTY, range(1, 10), range(200, 209)),
        ("all", ONE, THREE, range(10), range(100, 110)),
    ],
)
def test_rules_line_source_and_target_up(rule, source, target, rows, replaced) -> None:  # type: ignore[no-untyped-def]
    erase, replace = select_pair(rule, source, target)
    assert erase.flatten().tolist() == list(rows)
    assert replace.flatten().tolist() == list(replaced)


def test_a_prompt_without_content_cannot_be_erased() -> None:
    for rule in ("last", "tail", "all"):
        with pytest.raises(ConceptError, match="no token"):
            select_pair(rule, EMPTY, ONE)


def test_preserved_rows() -> None:
    assert select_rows("last", [ONE, THREE]).flatten().tolist() == [1, 103]
    assert len(select_rows("all", [ONE, THREE])) == 20

"""Where phrases stand among a prompt's tokens, and where its content ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model import Token


def stands(tokens: Sequence[Token], phrase: Sequence[int], place: int) -> bool:
    """Whether the tokens of a phrase stand at a place; a vector in place of a token is none of them."""
    own = tokens[place : place + len(phrase)]
    return len(own) == len(phrase) and all(isinstance(t, int) and t == n for t, n in zip(own, phrase, strict=True))


def places_of(tokens: Sequence[Token], phrase: Sequence[int]) -> list[int]:
    """Where the tokens of a phrase begin among others."""
    return [place for place in range(len(tokens)) if stands(tokens, phrase, place)]


def end_of(chunk: Sequence[Token], end: int) -> int:
    """Position of a padded chunk's first end token behind its start, or its length where it has none."""
    return next((i for i, token in enumerate(chunk) if i and isinstance(token, int) and token == end), len(chunk))

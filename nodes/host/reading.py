"""A CLIP that tells others the tokens of what it encodes: guards, and gates of erasers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import comfy.sd
import torch

from ...erasers.guard import Reader
from ...erasers.model import Token
from .sampling import READINGS

TOKENS = "lethe.tokens"
"""The reading that is the token ids themselves, of all chunks one after the other."""


class ReadingClip(comfy.sd.CLIP):
    """A CLIP that writes beside the features it encodes what readers make of the prompt's tokens."""

    readers: Mapping[Any, Reader] = MappingProxyType({})

    @classmethod
    def of(cls, clip: Any, owner: Any, reader: Reader) -> ReadingClip:
        """A clone of `clip` with one more reader, whose readings lie under `owner`."""
        clone = comfy.sd.CLIP.clone(clip)
        clone.__class__ = cls
        clone.readers = {**readers_of(clip), owner: reader}
        return clone

    def clone(self, *args: Any, **kwargs: Any) -> ReadingClip:
        copy = super().clone(*args, **kwargs)
        copy.__class__ = type(self)
        copy.readers = self.readers
        return copy

    def encode_from_tokens_scheduled(
        self, tokens: Any, unprojected: bool = False, add_dict: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        chunks = [[token for token, *_ in chunk] for chunk in next(iter(tokens.values()))]
        notes = {READINGS: read_tokens(self, chunks), **(add_dict or {})}
        return super().encode_from_tokens_scheduled(tokens, unprojected, notes, **kwargs)


class TokenReader:
    """Reads the token ids themselves; a vector in place of a token is none."""

    def read(self, chunks: Sequence[Sequence[Token]]) -> tuple[int, ...]:
        return tuple(token for chunk in chunks for token in chunk if isinstance(token, int))


def read_tokens(clip: Any, chunks: Sequence[Sequence[Any]]) -> dict[Any, list[Any]]:
    """What the readers of a CLIP make of one prompt's tokens: a list of one reading by owner."""
    with torch.inference_mode(False), torch.no_grad():
        return {owner: [reader.read(chunks)] for owner, reader in readers_of(clip).items()}


def readers_of(clip: Any) -> Mapping[Any, Reader]:
    """Who reads what a CLIP encodes."""
    return clip.readers if isinstance(clip, ReadingClip) else {}

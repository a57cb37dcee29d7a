"""A CLIP that tells others the tokens of what it encodes: guards, and gates of erasers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import comfy.sd
import torch

from ...erasers.guard import Reader
from ...erasers.model import Token
from .sampling import READINGS
from .towers import Strands

TOKENS = "lethe.tokens"
"""The reading that is the token ids themselves, of all chunks one after the other."""


class ReadingClip(comfy.sd.CLIP):
    """A CLIP that writes beside the features it encodes what readers make of the prompt's tokens."""

    readers: Mapping[Any, Reader] = MappingProxyType({})
    strands: Mapping[Any, Strands] = MappingProxyType({})
    """By owner, for readers that are told the tokens of every encoder."""

    @classmethod
    def of(cls, clip: Any, owner: Any, reader: Reader, strands: Strands | None = None) -> ReadingClip:
        """A clone of `clip` with one more reader, whose readings lie under `owner`."""
        clone = comfy.sd.CLIP.clone(clip)
        clone.__class__ = cls
        clone.readers = {**readers_of(clip), owner: reader}
        clone.strands = {**_strands_of(clip), **({} if strands is None else {owner: strands})}
        return clone

    def clone(self, *args: Any, **kwargs: Any) -> ReadingClip:
        copy = super().clone(*args, **kwargs)
        copy.__class__ = type(self)
        copy.readers, copy.strands = self.readers, self.strands
        return copy

    def encode_from_tokens_scheduled(
        self, tokens: Any, unprojected: bool = False, add_dict: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        found = super().encode_from_tokens_scheduled(tokens, unprojected, add_dict or {}, **kwargs)
        first = next(iter(tokens))

        def chunks_of(owner: Any, keys: tuple[str, ...]) -> Sequence[Sequence[Any]]:
            strands = self.strands.get(owner)
            if strands is None or not found:
                return _chunks(tokens, keys or (first,))
            return strands.of(self, tokens, {**found[0][1], "cross_attn": found[0][0]})

        readings = _readings(self, chunks_of)
        for _, extras in found:
            extras.setdefault(READINGS, readings)
        return found


@dataclass(frozen=True)
class TokenReader:
    """Reads the token ids themselves; a vector in place of a token is none.

    Attributes:
        keys: the host's names of the tokenizers to read.
    """

    keys: tuple[str, ...]

    def read(self, chunks: Sequence[Sequence[Token]]) -> tuple[int, ...]:
        return tuple(token for chunk in chunks for token in chunk if isinstance(token, int))


def read_tokens(clip: Any, chunks: Sequence[Sequence[Any]]) -> dict[Any, list[Any]]:
    """What the readers of a CLIP with one tokenizer make of a prompt's tokens: a list of one reading by owner."""
    return _readings(clip, lambda owner, keys: chunks)


def _readings(clip: Any, chunks_of: Callable[[Any, tuple[str, ...]], Sequence[Sequence[Any]]]) -> dict[Any, list[Any]]:
    with torch.inference_mode(False), torch.no_grad():
        return {o: [reader.read(chunks_of(o, getattr(reader, "keys", ())))] for o, reader in readers_of(clip).items()}


def _chunks(tokens: Mapping[str, Any], keys: tuple[str, ...]) -> list[list[Any]]:
    """A prompt's tokens without their weights, of the tokenizers that the CLIP has."""
    return [[token for token, *_ in chunk] for key in keys if key in tokens for chunk in tokens[key]]


def readers_of(clip: Any) -> Mapping[Any, Reader]:
    """Who reads what a CLIP encodes."""
    return clip.readers if isinstance(clip, ReadingClip) else {}


def _strands_of(clip: Any) -> Mapping[Any, Strands]:
    return clip.strands if isinstance(clip, ReadingClip) else {}

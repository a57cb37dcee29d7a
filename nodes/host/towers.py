"""All text encoders of a CLIP as one (`erasers.model.TextTower`), where they are several or no CLIP encoders.

Phrases are found among each encoder's own tokens. What is rewritten is rewritten word by word: a word, a sign with the
blanks around it, and a character of a script without blanks count as one token each. The host encodes what comes out
for every encoder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ...erasers.errors import FamilyError
from ...erasers.model import Strand, TextTower, Token
from ...erasers.sites import Family, Further
from ...erasers.task import Encode
from .conditioning import stream_parts
from .replacing import Replaced
from .sampling import encode_prompt
from .tokens import (
    frame_of,
    literal,
    phrase_places,
    plain_text,
    read_chunk,
    token_ids,
    token_key,
    tokenize,
    tokenizer_of,
)

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|\s*[^\w\s]\s*")
_SPACED = re.compile(rf"[^\W{_UNSPACED}]")


@dataclass(frozen=True, eq=False)
class Words:
    """Numbers for the words that were seen; capitals make no difference, and the last ones seen are written."""

    written: dict[int, str] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    def read(self, text: str) -> list[int]:
        """The numbers of a text's words."""
        found = []
        for word in (re.sub(r"\s+", " ", word) for word in _WORD.findall(text)):
            found.append(self.numbers.setdefault(word.casefold(), len(self.numbers)))
            self.written[found[-1]] = word
        return found

    def write(self, numbers: Sequence[int]) -> str:
        """The text of words by their numbers."""
        text, after = "", False
        for word in (self.written[number] for number in numbers):
            spaced = bool(_SPACED.search(word))
            text, after = f"{text} {word}" if after and spaced else text + word, spaced
        return text.strip()


@dataclass(frozen=True, eq=False)
class PromptTower(TextTower):
    """Fulfils what guards and reweighted words ask of text encoders.

    Attributes:
        clip: the CLIP.
        family: tells which of its encoders the sites read.
        prompts: prompts to features, as methods see them.
        words: what its tokens are, where prompts are rewritten.
    """

    clip: Any
    family: Family
    prompts: Encode
    words: Words

    @classmethod
    def of(cls, clip: Any, family: Family, prompts: Encode) -> PromptTower:
        """The tower of a CLIP."""
        stream = stream_parts(clip, family)[-1][-1]
        key = token_key(stream)
        tokenizer = tokenizer_of(clip, key)

        def ids(prompt: str) -> tuple[int, ...]:
            return token_ids(tokenize(clip, prompt)[key][0])

        def encode(rows: Sequence[Sequence[Token]]) -> tuple[Tensor, Tensor]:
            return _encode(clip, family, rows)

        def weight(name: str) -> Tensor:
            raise FamilyError("The weights of several text encoders are not one's.", "Take another guard.")

        end, words = tokenizer.end_token, Words()
        known = stream, nn.Identity(), ids, encode, words.write, weight, -1 if end is None else end
        return cls(*known, clip, family, prompts, words)

    def content(self, prompt: str) -> list[int]:
        """Numbers of a prompt's words; none where the text encoder reads nothing in it."""
        key = token_key(self.stream)
        known = read_chunk(frame_of(self.clip, key), tokenize(self.clip, prompt)[key][0]).content
        return self.words.read(prompt) if known else []

    def spans(self, chunk: Sequence[Token], phrase: str) -> list[range]:
        stream = chunk.stream if isinstance(chunk, Strand) else self.stream
        own, frame = self.own(chunk), frame_of(self.clip, token_key(stream))
        tokens = tuple(token if isinstance(token, int) else -1 for token in chunk[own.start : own.stop])
        places = phrase_places(self.clip, frame, tokens, phrase, plain_text(frame, tokens))
        return [range(own.start + place.start, own.start + place.stop) for place in places]

    def spoken(self, chunks: Sequence[Sequence[Token]]) -> list[list[Token]]:
        found, frame = [], frame_of(self.clip, token_key(self.stream))
        for chunk in chunks:
            if not isinstance(chunk, Strand) or chunk.stream == self.stream:
                own = self.own(chunk)
                tokens = [token for token in chunk[own.start : own.stop] if isinstance(token, int)]
                found.append([*self.words.read(plain_text(frame, tokens))])
        return found

    def states(self, contents: Sequence[Sequence[Token]]) -> Iterator[Tensor]:
        for found in self.prompts([self._said(content) for content in contents]):
            yield found.states

    def features(self, contents: Sequence[Sequence[Token]]) -> Replaced:
        said = " ".join(filter(None, map(self._said, contents)))
        return Replaced(encode_prompt(self.clip, literal(self.clip, said)))

    def _said(self, content: Sequence[Token]) -> str:
        return self.words.write([token for token in content if isinstance(token, int)])


@dataclass(frozen=True)
class Strands:
    """Tells readers the tokens of every encoder that the sites read, or of one whose features enter beside those.

    Attributes:
        family: tells which they are.
        further: features of that one; None for those of the sites.
    """

    family: Family
    further: Further | None = None

    def of(self, clip: Any, tokens: Mapping[str, Any], given: Mapping[str, Any]) -> list[Strand]:
        """A prompt's strands, in the order of its features.

        Args:
            tokens: the host's tokens of the prompt, by tokenizer.
            given: its features by the host's names, those of the sites as "cross_attn"; the host cuts templates' heads
                off.
        """
        beside = self.further
        parts, states = (
            (stream_parts(clip, self.family), given["cross_attn"])
            if beside is None
            else ([[beside.encoder]], given.get(beside.given))
        )
        if states is None:
            return []
        rows, found = states.shape[-2], []
        for part in parts:
            frame = frame_of(clip, token_key(part[-1]))
            chunks = [(entries, read_chunk(frame, entries)) for entries in tokens[token_key(part[-1])]]
            cut = max(sum(len(chunk.ids) for _, chunk in chunks) - rows, 0) if len(parts) == 1 else 0
            for entries, chunk in chunks:
                own = range(max(chunk.start - cut, 0), max(chunk.stop - cut, 0))
                found.append(Strand.of([token for token, *_ in entries][cut : len(chunk.ids)], own, part[-1]))
                cut = 0
        return found


def _encode(clip: Any, family: Family, rows: Sequence[Sequence[Token]]) -> tuple[Tensor, Tensor]:
    """Features `[n, tokens, d]` of CLIP's padded rows, and their pooled features; each encoder with its own padding."""
    keys = [token_key(stream) for part in stream_parts(clip, family) for stream in part]
    empty = clip.tokenize("")
    end = tokenizer_of(clip, keys[0]).end_token
    entries = {key: [_padded(row, end, tokenizer_of(clip, key).pad_token) for row in rows] for key in keys}
    joined = {key: entries.get(key) or [empty[key][0] for _ in rows] for key in empty}
    states, pooled = clip.encode_from_tokens(joined, return_pooled=True)
    return states.float().reshape(len(rows), -1, states.shape[-1]), pooled.float()


def _padded(row: Sequence[Token], end: int, pad: int) -> list[tuple[Token, float]]:
    """A row with another token for padding, behind its first end token."""
    last = next((place for place, token in enumerate(row) if isinstance(token, int) and token == end), len(row))
    return [(token if place <= last else pad, 1.0) for place, token in enumerate(row)]

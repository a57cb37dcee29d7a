"""Where a prompt's own tokens stand among those the host makes of it: between special tokens, padding and templates.

What a tokenizer and a template put around a prompt is what the empty prompt shares with one that says something. So a
prompt's own tokens are those that the empty prompt lacks, whichever the encoder. Where the host puts the empty prompt
into another template, it is what two prompts of one word share.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...erasers.errors import ConceptError
from ...erasers.phrases import places_of

_MARK = 1
"""Tokens that different words may begin with alike, such as a blank."""
_BRACKET = re.compile(r"(?<!\\)([()])")


@dataclass(frozen=True)
class Frame:
    """What one tokenizer and the host's template put around a prompt.

    Attributes:
        key: the host's name of the tokenizer's tokens.
        tokenizer: the host's tokenizer.
        around: the tokens around a prompt, without padding.
        before: how many of them stand before a prompt's own.
        blank: what the host writes between them where the prompt is empty; most write nothing.
        tail: how many tokens of the template stand behind the padding; their features do not reach the model.
    """

    key: str
    tokenizer: Any
    around: tuple[int, ...]
    before: int
    blank: tuple[int, ...] = ()
    tail: int = 0


@dataclass(frozen=True)
class Chunk:
    """What one tokenizer makes of a prompt.

    Attributes:
        ids: the tokens, padding and template included but for what stands behind the padding; -1 where a
            textual inversion puts a vector.
        start, stop: the prompt's own tokens among them; equal where it has none that the encoder knows.
        used: how many tokens stand before the padding.
    """

    ids: tuple[int, ...]
    start: int
    stop: int
    used: int

    @property
    def content(self) -> tuple[int, ...]:
        """The prompt's own tokens."""
        return self.ids[self.start : self.stop]


def token_key(stream: str) -> str:
    """What the host calls an encoder's tokens: CLIP's by their letter alone."""
    return stream.removeprefix("clip_")


def tokenize(clip: Any, prompt: str) -> dict[str, Any]:
    """The host's tokens of a prompt by key, with brackets taken as they stand instead of as weights.

    Raises:
        ConceptError: the prompt is longer than one chunk.
    """
    tokens = clip.tokenize(literal(clip, prompt))
    if any(len(chunks) != 1 for chunks in tokens.values()):
        raise ConceptError(f"'{prompt[:60]}...' is longer than one text chunk.", "Describe the concept in fewer words.")
    return tokens


def literal(clip: Any, prompt: str) -> str:
    """A prompt written so that the host takes its brackets as they stand; some tokenizers know no weights."""
    if not _BRACKET.search(prompt):
        return prompt
    pairs = zip(clip.tokenize("(a)").values(), clip.tokenize("a").values(), strict=True)
    weighs = any(token_ids(one[0]) == token_ids(other[0]) for one, other in pairs)
    return _BRACKET.sub(r"\\\1", prompt) if weighs else prompt


def token_ids(chunk: Sequence[Any]) -> tuple[int, ...]:
    """Ids of a chunk's tokens; -1 where a textual inversion puts a vector in place of a token."""
    return tuple(token[0] if isinstance(token[0], int) else -1 for token in chunk)


def tokenizer_of(clip: Any, key: str) -> Any:
    """The host's tokenizer behind a key of its tokens."""
    return getattr(clip.tokenizer, f"clip_{key}", None) or getattr(clip.tokenizer, key)


def frame_of(clip: Any, key: str) -> Frame:
    """What a tokenizer, named by the key of its tokens, puts around a prompt."""
    tokenizer = tokenizer_of(clip, key)
    nothing, *said = (token_ids(clip.tokenize(text)[key][0]) for text in ("", "a", "b"))
    tail = 0 if tokenizer.pad_left or tokenizer.pad_token not in nothing else nothing[::-1].index(tokenizer.pad_token)
    empty, one, other = (_unpadded(ids[: len(ids) - tail], tokenizer)[1] for ids in (nothing, *said))
    before, shared = _common(empty, one), _common(one, other)
    if shared > before + _MARK:
        behind = _common(one[:shared:-1], other[:shared:-1])
        return Frame(key, tokenizer, one[:shared] + one[len(one) - behind :], shared, tail=tail)
    if len(empty) < len(one):
        return Frame(key, tokenizer, empty, before, tail=tail)
    upto = len(empty) - _common(empty[:before:-1], one[:before:-1])
    return Frame(key, tokenizer, empty[:before] + empty[upto:], before, empty[before:upto], tail)


def read_chunk(frame: Frame, tokens: Sequence[Any]) -> Chunk:
    """Find a prompt's own tokens among those the host made."""
    ids = token_ids(tokens)[: len(tokens) - frame.tail]
    left, own = _unpadded(ids, frame.tokenizer)
    start = min(frame.before, _common(own, frame.around))
    stop = start + max(len(own) - len(frame.around), 0)
    if start < frame.before:
        # Another template, which ends alike.
        start = stop = len(own) - len(frame.around) + frame.before
    elif own[start:stop] == frame.blank or _is_unknown(frame.tokenizer.tokenizer, own[start:stop]):
        stop = start
    return Chunk(ids, left + start, left + stop, left + len(own))


def find_phrase(clip: Any, key: str, prompt: str, phrase: str) -> list[range]:
    """Where a phrase's tokens stand among those of a prompt, as the host encodes the prompt: its weights taken out.

    Tokenizers may write a word otherwise at a prompt's beginning, or merge it with its neighbours: then the place is
    that of every token which the phrase is part of.

    Returns:
        Ranges of the prompt's tokens, template and start token counted; of its first chunk.
    """
    frame = frame_of(clip, key)
    chunk = read_chunk(frame, clip.tokenize(prompt)[key][0])
    places = phrase_places(clip, frame, chunk.content, phrase, prompt)
    return [range(chunk.start + place.start, chunk.start + place.stop) for place in places]


def phrase_places(clip: Any, frame: Frame, content: Sequence[int], phrase: str, text: str) -> list[range]:
    """Where a phrase stands among a prompt's own tokens, whose text is given too (`find_phrase`)."""

    def read(text: str) -> tuple[int, ...]:
        return read_chunk(frame, tokenize(clip, text)[frame.key][0]).content

    found, alone, behind = set[tuple[int, int]](), read("a"), read(f"a {phrase}")
    # Some tokenizers lose blanks: what stands behind a word then begins in it.
    for own in (read(phrase), behind[len(alone) :] if behind[: len(alone)] == alone else ()):
        found |= {(start, start + len(own)) for start in places_of(content, own) if own}
    if not found and phrase in text:
        place = text.index(phrase)
        before, upto = read(text[:place]), read(text[: place + len(phrase)])
        shared = _common(upto, content)
        found = {(_common(before, content), shared + (shared < len(upto)))}
    # A blank before a word may be a token of its own, which is not the phrase's.
    inner = {(a, b) for a, b in found if not any((c, d) != (a, b) and a <= c and d <= b for c, d in found)}
    return [range(start, stop) for start, stop in sorted(inner) if stop > start]


def plain_text(frame: Frame, content: Sequence[int]) -> str:
    """The text of a prompt's own tokens; what stands in place of a vector is left out."""
    return frame.tokenizer.tokenizer.decode([number for number in content if number >= 0]).strip()


def _unpadded(ids: tuple[int, ...], tokenizer: Any) -> tuple[int, tuple[int, ...]]:
    """How much padding stands before a prompt's tokens, and the tokens without any."""
    places = [place for place, number in enumerate(ids) if number != tokenizer.pad_token] or [0]
    first = places[0] if tokenizer.pad_left else 0
    return first, ids[first:] if tokenizer.pad_left else ids[: places[-1] + 1]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences share from their beginning on."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _is_unknown(tokenizer: Any, content: tuple[int, ...]) -> bool:
    """Whether content is nothing but tokens that stand for what the vocabulary lacks, and blanks."""
    inner = getattr(getattr(tokenizer, "tokenizer", None), "unk_id", None)
    unknown = inner() if inner is not None else getattr(tokenizer, "unk_token_id", None)
    if unknown not in content or unknown == getattr(tokenizer, "eos_token_id", None):
        return False
    return not tokenizer.decode([number for number in content if number not in (unknown, -1)]).strip()

"""A CLIP as a text encoder for methods: prompts in, features and token positions out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...erasers.errors import ConceptError
from ...erasers.provenance import fingerprint
from ...erasers.sites import Encoder, Family, Further
from ...erasers.task import Encode, EncodedPrompt, joined_parts, remembering
from .runtime import each
from .tokens import Chunk, find_phrase, frame_of, read_chunk, token_key, tokenize, tokenizer_of
from .tokens import token_ids as chunk_ids

_TABLES = ("token_embedding.weight", "shared.weight", "embed_tokens.weight", "word_embeddings.weight")
_SAMPLED = (*_TABLES, "final_layer_norm.weight", "model.norm.weight")
_BATCH = 32


def text_encoder(clip: Any, family: Family) -> Encode:
    """An encoder that runs prompts through `clip` in batches, with prompt weights switched off.

    Raises (when called):
        ConceptError: a prompt is longer than one chunk, or the CLIP's features do not fit the family.
    """

    def encode(prompts: list[str]) -> list[EncodedPrompt]:
        size = 1 if family.pooled_stream else _BATCH
        batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        # A bar of its own is for work that takes a while; one batch belongs to whatever asks for it.
        shown = each(batches, len(batches)) if len(batches) > 1 else batches
        return [prompt for batch in shown for prompt in _encode(clip, batch, family)]

    return remembering(encode)


def further_encoder(clip: Any, family: Family, own: Further, encode: Encode) -> Encode:
    """An encoder to further features of prompts, made of what `text_encoder` gives beside the others'."""
    key = token_key(own.encoder)
    encoder, frame = _encoder(family, own.encoder), frame_of(clip, key)

    def placed(prompt: EncodedPrompt) -> EncodedPrompt:
        given = prompt.beside[own.given][0].float()
        states = given if own.layer is None else given[own.layer]
        return _placed(prompt.text, states, read_chunk(frame, tokenize(clip, prompt.text)[key][0]), encoder, None)

    return lambda prompts: [placed(prompt) for prompt in encode(prompts)]


def encoder_fingerprint(clip: Any) -> str:
    """A short hash of the text encoder's own weights."""
    weights = clip.patcher.model_state_dict()
    return fingerprint((name, value[:64]) for name, value in weights.items() if name.endswith(_SAMPLED))


def token_ids(clip: Any, prompt: str) -> tuple[int, ...]:
    """Token ids of a prompt's only chunk, padding included, by the first tokenizer.

    Raises:
        ConceptError: the prompt is longer than one chunk.
    """
    return chunk_ids(next(iter(tokenize(clip, prompt).values()))[0])


def end_token(clip: Any) -> int:
    """Id of the first tokenizer's end token."""
    return tokenizer_of(clip, next(iter(clip.tokenize("")))).end_token


def phrase_rows(clip: Any, family: Family, prompt: str, phrase: str) -> list[range]:
    """Rows of a prompt's features that belong to a phrase, as the host encodes the prompt with its weights.

    Every encoder whose features the sites read has its own; each place of the phrase is a range.
    """
    tokens, found, offset = clip.tokenize(prompt), [], 0
    whole = clip.encode_from_tokens(tokens).shape[1]
    parts = stream_parts(clip, family)
    for part in parts:
        key = token_key(part[-1])
        length = min(len(tokens[token_key(stream)][0]) for stream in part)
        cut = max(length - frame_of(clip, key).tail - whole, 0) if len(parts) == 1 else 0
        for place in find_phrase(clip, key, prompt, phrase):
            if place.start >= cut:
                found.append(range(place.start - cut + offset, place.stop - cut + offset))
        offset += length
    return found


def stream_parts(clip: Any, family: Family) -> list[list[str]]:
    """The streams that follow each other along the tokens, each a list of those beside each other; loaded ones only."""
    model = clip.cond_stage_model
    parts = [part.split("+") for part in family.stream.split("|")]
    loaded = [part for part in parts if any(getattr(model, stream, None) is not None for stream in part)]
    return loaded if len(parts) > 1 and loaded else parts


def _encode(clip: Any, prompts: list[str], family: Family) -> list[EncodedPrompt]:
    """The host joins the chunks of one call end to end; each is encoded by itself, so they come apart again."""
    tokens = [tokenize(clip, prompt) for prompt in prompts]
    alike = all(len({len(entry[key][0]) for entry in tokens}) == 1 for key in tokens[0])
    if len(prompts) > 1 and not (alike and _joins(clip, family)):
        return [found for prompt in prompts for found in _encode(clip, [prompt], family)]
    joined = {key: [chunk for entry in tokens for chunk in entry[key]] for key in tokens[0]}
    given = clip.encode_from_tokens(joined, return_dict=True)
    states, pooled = given.pop("cond").float().cpu(), given.pop("pooled_output")
    if states.shape[-1] != family.width:
        raise ConceptError(
            f"This CLIP gives features of width {states.shape[-1]}, the model ({family.title}) reads {family.width}.",
            "Connect the CLIP that belongs to the model.",
        )
    rows = states.reshape(len(prompts), -1, family.width)
    beside: Tensor | None = pooled[0].float().cpu().clone() if family.pooled_stream and pooled is not None else None
    parts, found = stream_parts(clip, family), []
    keys = [[key for key in map(token_key, part) if key in joined] or list(joined) for part in parts]
    frames = [frame_of(clip, names[-1]) for names in keys]
    besides = _beside(given, len(prompts))
    for prompt, entry, state, more in zip(prompts, tokens, rows, besides, strict=True):
        own, offset = [], 0
        for part, names, frame in zip(parts, keys, frames, strict=True):
            upto = len(state) if part is parts[-1] else offset + min(len(entry[name][0]) for name in names)
            chunk = read_chunk(frame, entry[frame.key][0])
            own.append(_placed(prompt, state[offset:upto].clone(), chunk, _encoder(family, part[-1]), beside))
            offset = upto
        read = own[0] if len(own) == 1 else joined_parts(own)
        whole = state.clone() if len(read.states) < len(state) else None
        found.append(replace(read, whole=whole, beside=more))
    return found


def _beside(given: Mapping[str, Any], count: int) -> list[dict[str, Tensor]]:
    """What the host gives a denoiser beside the features of prompts that it joined end to end, for each prompt."""
    tensors = {name: value.cpu() for name, value in given.items() if isinstance(value, Tensor)}
    if count == 1:
        return [tensors]
    rows = {name: value.reshape(count, 1, -1, *value.shape[2:]) for name, value in tensors.items()}
    return [{name: value[row] for name, value in rows.items()} for row in range(count)]


def _joins(clip: Any, family: Family) -> bool:
    """Whether prompts of one length may be encoded in one call: their features come end to end, nothing is cut off."""
    return len(stream_parts(clip, family)) == 1 and not any(encoder.wrapped for encoder in family.encoders)


def _encoder(family: Family, stream: str) -> Encoder:
    return next(encoder for encoder in family.encoders if encoder.stream == stream)


def _placed(prompt: str, states: Tensor, chunk: Chunk, encoder: Encoder, pooled: Tensor | None) -> EncodedPrompt:
    """A prompt's features with the places of its own tokens; a head that the host cut off is not counted."""
    cut = max(len(chunk.ids) - len(states), 0)
    if not encoder.padding_read:
        states = states[: chunk.used - cut]
    start = chunk.start - cut
    last = start + len(chunk.content) - 1 if chunk.content else max(start - 1, 0)
    ids = chunk.ids[cut : cut + len(states)]
    return EncodedPrompt(prompt, states, last, ids, pooled, start if chunk.content else last + 1)

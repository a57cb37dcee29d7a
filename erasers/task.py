"""What a method is given: concepts, and a text encoder to look at them with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .concepts import ConceptList
from .sites import Family


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the denoiser's sites see it.

    Attributes:
        text: the prompt.
        states: `[tokens, d]` float32, the features of every position, padding included.
        last: position of the last content token; 0 (the start token) for a prompt without content.
    """

    text: str
    states: Tensor
    last: int


Encode = Callable[[list[str]], list[EncodedPrompt]]


@dataclass(frozen=True)
class Task:
    """Everything a closed-form method needs.

    Attributes:
        concepts: what to erase and what to preserve.
        family: the model family the eraser is for.
        encoder: fingerprint of the text encoder, kept in the eraser.
        encode: prompts to `EncodedPrompt`s, through the model's own tokenizer and text encoder.
    """

    concepts: ConceptList
    family: Family
    encoder: str
    encode: Encode

"""The text encoders of every family, small: the host's own classes, and the sizes that are reduced in them.

Import only after the `comfy` fixture has run.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

CLIP_L = {"clip_l_model_config": {"intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}}
CLIP_G = {"clip_g_model_config": {"intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}}
_T5 = {"d_ff": 32, "num_heads": 2, "d_kv": 16, "num_layers": 1}
_LLM = {
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 3,
    "lm_head": False,
}


def t5_sizes(name: str) -> dict[str, Any]:
    return {f"{name}_model_config": _T5}


def llm_sizes(name: str, **also: Any) -> dict[str, Any]:
    return {f"{name}_model_config": {**_LLM, **also}}


def encoders_of(module: str, tokenizer: str, model: str, **given: Any) -> Callable[[], tuple[Any, Any]]:
    """The tokenizer and model classes of a host module; `given` are arguments of the model's factory."""

    def find() -> tuple[Any, Any]:
        import importlib

        found = importlib.import_module(f"comfy.{module}")
        made = getattr(found, model)
        return getattr(found, tokenizer), made(**given) if given or not isinstance(made, type) else made

    return find


def chroma_clip() -> tuple[Any, Any]:
    import comfy.text_encoders.pixart_t5 as host

    return host.PixArtTokenizer, host.pixart_te()


def hunyuan_video15_clip() -> tuple[Any, Any]:
    import comfy.text_encoders.hunyuan_image as model
    import comfy.text_encoders.hunyuan_video as host

    return host.HunyuanVideo15Tokenizer, model.te(byt5=False)


def with_vocabulary(
    find: Callable[[], tuple[Any, Any]], owner: str = "", **special: int
) -> Callable[[], tuple[Any, Any]]:
    """Classes whose vocabulary comes with the checkpoint: `owner` is given one with the same ids of special tokens."""

    def found() -> tuple[Any, Any]:
        tokenizer, model = find()

        def make(embedding_directory: Any = None, tokenizer_data: Any = None) -> Any:
            data = {**(tokenizer_data or {}), f"{owner}spiece_model": _vocabulary(tuple(special.items()))}
            return tokenizer(embedding_directory=embedding_directory, tokenizer_data=data)

        return make, model

    return found


SD1 = encoders_of("sd1_clip", "SD1Tokenizer", "SD1ClipModel")


@cache
def _vocabulary(special: tuple[tuple[str, int], ...]) -> Tensor:
    """A sentencepiece model of a few English words, bytes for all others."""
    import sentencepiece

    made = io.BytesIO()
    words = ("a photo of", "a cat on a mat", "the dog and the tree", "a house, oil painting", "Van Gogh style")
    train: Any = sentencepiece.SentencePieceTrainer.train
    settings = {"vocab_size": 320, "hard_vocab_limit": False, "byte_fallback": True, "minloglevel": 2}
    train(sentence_iterator=iter(words * 20), model_writer=made, **settings, **dict(special))
    return torch.frombuffer(bytearray(made.getvalue()), dtype=torch.uint8)

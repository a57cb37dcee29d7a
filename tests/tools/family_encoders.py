"""The text encoders of every family, small: the host's own classes, and the sizes that are reduced in them.

Import only after the `comfy` fixture has run.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
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


def with_mistral(find: Callable[[], tuple[Any, Any]]) -> Callable[[], tuple[Any, Any]]:
    """Classes whose tokenizer is made of a table in the checkpoint, by a converter that Transformers 5.15 changed.

    What the host does with the tokenizer is its own: it is given one of the same kind, with the same special tokens.
    """

    def found() -> tuple[Any, Any]:
        import comfy.text_encoders.flux as host

        tokenizer, model = find()

        def make(embedding_directory: Any = None, tokenizer_data: Any = None) -> Any:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(host, "load_mistral_tokenizer", lambda _: {"tokenizer_object": _byte_pairs()})
                return tokenizer(embedding_directory=embedding_directory, tokenizer_data=tokenizer_data or {})

        return make, model

    return found


ROWS = 1021
"""Rows of a folded token embedding; a prime, so that neighbouring ids stay apart."""
SD1 = encoders_of("sd1_clip", "SD1Tokenizer", "SD1ClipModel")


_WORDS = ("a photo of", "a cat on a mat", "the dog and the tree", "a house, oil painting", "Van Gogh style")
_BLANK = "\u0120"
"""How a byte-pair vocabulary writes a blank."""
_MISTRAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", *(f"<{number}>" for number in range(5, 11)), "<pad>")
_MISTRAL += (*(f"<{number}>" for number in range(12, 17)), "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
"""Mistral's special tokens that the host writes, by id."""


def _byte_pairs() -> Any:
    """A byte-pair vocabulary of a few English words behind Mistral's special tokens, bytes for all others.

    A word behind a blank is another token than the word alone, and has its row of a folded table.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    settings: Any = {"vocab_size": 400, "show_progress": False, "special_tokens": list(_MISTRAL)}
    words = [*_WORDS, *" ".join(_WORDS).split()] * 20
    made.train_from_iterator(words, trainers.BpeTrainer(initial_alphabet=letters, **settings))
    found = json.loads(made.to_str())
    known = found["model"]["vocab"]
    found["model"]["vocab"] = {
        word: known[word[1:]] + ROWS if word[0] == _BLANK and word[1:] in known else number
        for word, number in known.items()
    }
    return Tokenizer.from_str(json.dumps(found))


@cache
def _vocabulary(special: tuple[tuple[str, int], ...]) -> Tensor:
    """A sentencepiece model of a few English words, bytes for all others."""
    import sentencepiece

    made = io.BytesIO()
    train: Any = sentencepiece.SentencePieceTrainer.train
    settings = {"vocab_size": 320, "hard_vocab_limit": False, "byte_fallback": True, "minloglevel": 2}
    train(sentence_iterator=iter(_WORDS * 20), model_writer=made, **settings, **dict(special))
    return torch.frombuffer(bytearray(made.getvalue()), dtype=torch.uint8)

"""The demo world's tokenizer: byte-pair merges learned from captions, in CLIPTokenizer's own files."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from ..grammar import describe, draw_scene

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 400
"""Enough to make the frequent words one token and to leave the rarer ones at two or three."""


def build_tokenizer(folder: Path, seed: int = 0) -> CLIPTokenizer:
    """Learn the merges, write the tokenizer's files to `folder` and load it from there."""
    rng = random.Random(seed)
    captions = [describe(draw_scene(rng), rng, aliases=0.1) for _ in range(20_000)]
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = [c for c in string.printable if c.isprintable() and c not in string.ascii_uppercase + " "]
    trainer = trainers.BpeTrainer(vocab_size=1000, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]][:MERGES]
    tokens = alphabet + [c + "</w>" for c in alphabet] + ["".join(pair) for pair in merges] + [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "vocab.json", {token: i for i, token in enumerate(dict.fromkeys(tokens))})
    lines = "\n".join(" ".join(pair) for pair in merges)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{lines}\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    _write(folder / "special_tokens_map.json", special)
    extra = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    _write(folder / "tokenizer_config.json", {**special, **extra})
    return CLIPTokenizer.from_pretrained(folder)


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

"""A CLIP model from a folder of the user's as an image encoder, through transformers.

The folder is one that `CLIPModel.save_pretrained` writes, with its tokenizer and image settings: config.json,
model.safetensors, preprocessor_config.json and the tokenizer's files. Nothing is downloaded, and pickled weights are
not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import FamilyError, SettingError
from .measure.library import missing

_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Files that a tokenizer can be read from."""


class FolderSight:
    """Fulfils `sight.Sight` but for latents, which it cannot decode.

    Args:
        folder: of the CLIP model.

    Raises:
        SettingError: transformers is not installed, or the folder is missing or does not hold a whole CLIP model.
    """

    def __init__(self, folder: Path) -> None:
        absent = missing("transformers", "torchvision")
        if absent:
            raise SettingError("A CLIP model in a folder is read by transformers.", absent)
        self.folder = Path(folder)
        self.model, self.tokenizer, self.processor = _load(self.folder)
        self.length = int(self.model.config.text_config.max_position_embeddings)

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Pictures `[n, 3, h, w]` in 0..1 to `[n, e]` float32 on the CPU, through the folder's own image settings.

        Pictures are rounded to 8 bits first: that is what published figures were measured on, saved pictures.
        """
        pixels = (images.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
        given = self.processor(images=list(pixels), return_tensors="pt", input_data_format="channels_first")
        seen = self.model.vision_model(pixel_values=given["pixel_values"].float())
        return self.model.visual_projection(seen.pooler_output)

    def embed_latents(self, latents: Tensor) -> Tensor:
        raise FamilyError(
            "A CLIP model in a folder sees pictures, not latents.",
            "Decode the latents first, or connect a CLIP vision model and the VAE.",
        )

    def embed_text(self, prompts: list[str]) -> Tensor:
        """Prompts to `[n, e]` float32 on the CPU; longer ones are cut."""
        given = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        read = self.model.text_model(input_ids=given["input_ids"], attention_mask=given["attention_mask"])
        return self.model.text_projection(read.pooler_output)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has the files that a tokenizer can be read from."""
    return any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS)


def _load(folder: Path) -> tuple[Any, Any, Any]:
    """Model, tokenizer and image processor of a folder."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    if not (folder / "config.json").is_file():
        raise SettingError(f"There is no CLIP model in '{folder}'.", "Choose a folder with a config.json in it.")
    # transformers makes an empty tokenizer of a folder without one.
    if not has_tokenizer(folder):
        raise _broken(folder, "it has no tokenizer")
    try:
        loaded: Any = CLIPModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    # Of a broken file each reader complains in its own way; tokenizers raises plain exceptions.
    except Exception as error:
        raise _broken(folder, str(error)) from error
    model, report = loaded
    # transformers fills what a file lacks with random numbers and only warns.
    lost = sorted(str(name) for name in [*report["missing_keys"], *report["mismatched_keys"]])
    if lost:
        raise _broken(folder, f"{len(lost)} weights are missing or of another shape, such as {lost[0]}")
    if len(tokenizer) > model.config.text_config.vocab_size:
        raise _broken(folder, "its tokenizer has more tokens than its text encoder")
    return model.float().eval(), tokenizer, processor


def _broken(folder: Path, reason: str) -> SettingError:
    return SettingError(
        f"'{folder}' does not hold a whole CLIP model: {reason.strip()[:300].rstrip('.')}.",
        "It needs config.json, model.safetensors, preprocessor_config.json and the tokenizer's files.",
    )

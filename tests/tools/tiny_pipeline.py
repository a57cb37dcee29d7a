"""Random models of a few layers as their own libraries save them: a Stable Diffusion 1 pipeline and a whole CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from lethe.erasers.demo.world import WEIGHTS
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTextConfig, CLIPTextModel
from transformers import CLIPTokenizer as Tokenizer


def save_pipeline(folder: Path) -> None:
    """A pipeline of Stable Diffusion 1's text width and scheduler, with latents of 8x8 and pictures of 32x32."""
    torch.manual_seed(3)
    tokenizer = Tokenizer.from_pretrained(WEIGHTS / "tokenizer")
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=768,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    # Random attention hardly looks at the text; louder values make prompts tell.
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if name.endswith(("attn2.to_v.weight", "attn2.to_k.weight")):
                weight.mul_(8)
    kind: Any = AutoencoderKL
    vae = kind(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
    )
    text = CLIPTextModel(CLIPTextConfig(**_text_sizes(tokenizer, 768)))
    scheduler = PNDMScheduler(skip_prk_steps=True, beta_schedule="scaled_linear", steps_offset=1)
    whole: Any = StableDiffusionPipeline
    whole(vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False).save_pretrained(folder)


def save_clip(folder: Path, width: int = 16) -> None:
    """A CLIP with a text half of this width, with its tokenizer and image settings."""
    tokenizer = Tokenizer.from_pretrained(WEIGHTS / "tokenizer")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = sizes | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(text_config=_text_sizes(tokenizer, width), vision_config=vision, projection_dim=12)
    ).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape))
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.3] * 3)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)


def _text_sizes(tokenizer: Any, width: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }

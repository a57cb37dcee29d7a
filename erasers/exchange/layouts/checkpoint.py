"""Checkpoints and UNets under the original names, as ComfyUI saves and loads them; merged models of any method.

    model.diffusion_model.<layer>                       the denoiser; also without "model.", or bare
    cond_stage_model.transformer.text_model.<layer>     the text encoder of SD 1
    conditioner.embedders.0.transformer.text_model.     the first of SD XL
    cond_stage_model.model., conditioner.embedders.1.model.  that of SD 2, the second of SD XL (openclip.py)

The autoencoder, averaged copies and noise schedules are not looked at: nothing that erases changes them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from ..base import ADAPTERS, Base, Owner
from ..layout import Parts, refuse_unknown
from ..lora import is_lora
from ..openclip import Unjoined
from ..whole import differences
from .text_encoder import text_owners

_DENOISER = re.compile(r"(model\.)?diffusion_model\.")
_BARE = re.compile(r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\.[\w.]+$")
_TEXT = re.compile(r"(cond_stage_model|conditioner\.embedders\.0)\.transformer\.(text_model\.)?")
_OPENCLIP = ("cond_stage_model.model.", "conditioner.embedders.1.model.")
_PASSIVE = re.compile(
    r"first_stage_model\.|model_ema\.|v_pred$|ztsnr$|edm_|betas$|alphas_cumprod|sqrt_|log_one_minus|posterior_|logvar$"
    r"|scale_factor$|lvlb_weights$|.*\.position_ids$|.*\.logit_scale$|.*\.text_projection(\.weight)?$"
)


class Checkpoint:
    """Fulfils `layout.Layout`."""

    name = "checkpoint"
    about = "Merged models in the original names, from ComfyUI or the CompVis programs."

    def recognise(self, keys: Collection[str]) -> bool:
        return any(_DENOISER.match(key) or _BARE.match(key) for key in keys) and not is_lora(keys)

    def read(self, tensors: Mapping[str, Tensor], base: Base) -> Parts:
        names = {theirs: ours for ours, theirs in base.native.items()}
        owners: dict[str, Owner] = {}
        text: dict[str, str] = {}
        unknown = []
        for key in tensors:
            layer = names.get(_DENOISER.sub("", key, count=1))
            if layer is not None:
                owners[key] = (ADAPTERS, layer)
            elif _TEXT.match(key) and not _PASSIVE.match(key):
                text[key] = f"text_model.{_TEXT.sub('', key, count=1)}"
            elif not (_PASSIVE.match(key) or key.startswith(_OPENCLIP)):
                unknown.append(key)
        unjoined = [Unjoined(tensors, prefix) for prefix in _OPENCLIP]
        encoders = [(tensors, text), *((encoder, {name: name for name in encoder}) for encoder in unjoined)]
        for own, plain in encoders:
            if plain:
                found = text_owners(plain, {key: tuple(own[key].shape) for key in plain}, base)
                unknown += [key for key in plain if key not in found]
                owners |= found
        refuse_unknown([*unknown, *(key for encoder in unjoined for key in encoder.unknown)], self.name)
        return differences(owners, base, tensors, *unjoined)


LAYOUT = Checkpoint()

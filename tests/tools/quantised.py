"""Models whose weights the host keeps quantised, made of float32 ones. Import only after `comfy` has run."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

FORMATS = ("float8_e4m3fn", "int8_tensorwise", "mxfp8", "nvfp4")
"""Those the host computes with on a CPU."""
_BLOCK = 64
"""Formats with scales per block want both sides of a weight in multiples of it."""


def quantised(patcher: Any, form: str) -> Any:
    """The same MODEL with the weights of its linear layers in a format of the host's, as checkpoints bring them."""
    from comfy.model_patcher import ModelPatcher

    source = patcher.model
    config = type(source.model_config)(dict(source.model_config.unet_config))
    config.unet_config = dict(source.model_config.unet_config)
    config.quant_config = {"mixed_ops": True}
    config.set_inference_dtype(torch.float32, torch.float32)
    model = config.get_model({}, device=torch.device("cpu"))
    state = dict(source.diffusion_model.state_dict())
    quantisable = {name for name, module in model.diffusion_model.named_modules() if hasattr(module, "factory_kwargs")}
    for name in quantisable:
        weight = state[f"{name}.weight"]
        if not any(side % _BLOCK for side in weight.shape):
            del state[f"{name}.weight"]
            state |= _packed(name, weight, form)
    model.diffusion_model.load_state_dict(state, strict=True)
    model.diffusion_model.requires_grad_(False)
    return ModelPatcher(model, patcher.load_device, patcher.offload_device)


def kept(model: Any) -> dict[str, Tensor]:
    """A copy of every tensor that a model keeps, quantised weights as their numbers and scales."""
    from comfy.quant_ops import QuantizedTensor

    found: dict[str, Tensor] = {}
    for name, value in model.named_parameters():
        parts = value.data.state_dict(name) if isinstance(value.data, QuantizedTensor) else {name: value.data}
        found |= {part: own.clone() for part, own in parts.items()}
    return found


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two copies made by `kept` agree bit for bit; NaN equals itself."""
    return one.keys() == other.keys() and all(
        torch.equal(value.flatten().view(torch.uint8), other[name].flatten().view(torch.uint8))
        for name, value in one.items()
    )


def _packed(name: str, weight: Tensor, form: str) -> dict[str, Tensor]:
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    packed = QuantizedTensor.from_float(weight, QUANT_ALGOS[form]["comfy_tensor_layout"])
    said = torch.tensor(list(json.dumps({"format": form}).encode()), dtype=torch.uint8)
    return {**packed.state_dict(f"{name}.weight"), f"{name}.comfy_quant": said}

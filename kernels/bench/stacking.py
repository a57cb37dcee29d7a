"""What many gated erasers cost while a full-size UNet with random weights predicts, beside peft's own stacked adapters.

`python -m lethe.kernels.bench.stacking [--unet sd1] [--count 100] [--size 64]`. Every eraser is a rank-1 adapter on all
cross-attention projections. The arms take turns, and each is told by its median, as a ratio to the plain model's; on a
CPU in the seconds that this process had it, which other processes disturb less.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from lethe.erasers.algebra.hooks import hooked
from lethe.erasers.gated import GatedParts
from lethe.erasers.gates.transport import Transport
from lethe.erasers.result import Eraser, Member, Recipe, WeightEdit
from torch import Tensor, nn

from .unets import UNETS

_TOKENS, _ROWS = 77, 2
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
Look = Callable[[], Tensor]
Arm = tuple[Look, Callable[[], AbstractContextManager[Any]]]
"""What is timed, and what is put around it anew each time."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="lethe.kernels.bench.stacking", description=__doc__)
    parser.add_argument("--unet", default="sd1", choices=list(UNETS))
    parser.add_argument("--count", type=int, default=100, help="erasers")
    parser.add_argument("--size", type=int, default=64, help="latent pixels of a side")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(sample_size=options.size, **UNETS[options.unet]).eval()
    unet.to(device, dtype)
    look = _look(unet, options.size, device, dtype)
    layers = {n: m for n, m in unet.named_modules() if n.endswith(tuple(f"attn2.{p}" for p in _PROJECTIONS))}
    parts = _members(layers, unet.config["cross_attention_dim"], options.count)
    print(
        f"{options.unet}, {options.size} x {options.size} latents, {_ROWS} rows, {len(layers)} layers, {options.dtype}"
    )
    states = torch.randn(_ROWS, _TOKENS, unet.config["cross_attention_dim"])
    begun = time.perf_counter()
    parts.openness(states, [range(_TOKENS)] * _ROWS)
    print(f"  asking {options.count} gates about {_ROWS} prompts: {1000 * (time.perf_counter() - begun):.0f} ms, once")
    arms: dict[str, Arm] = {"plain": (look, nullcontext)}
    for title, open_ones in ((f"{options.count} open gates", options.count), ("1 open gate", 1), ("none open", 0)):
        openness = torch.zeros(_ROWS, options.count)
        openness[:, :open_ones] = 0.5
        at_work = parts.at_work(openness, device, dtype)
        hooks = [] if at_work is None else at_work.hooks(layers.__getitem__)
        arms[title] = look, partial(hooked, hooks)
    plain = _report(arms, options.repeats, device)
    switched = partial(_switched, _peft_layers(unet, options.count))
    off, on = partial(switched, False), partial(switched, True)
    _report({"peft's layers, off": (look, off), f"peft, {options.count} adapters": (look, on)}, 2, device, plain)


def _look(unet: Any, size: int, device: torch.device, dtype: torch.dtype) -> Look:
    x = torch.randn(_ROWS, 4, size, size, device=device, dtype=dtype)
    context = torch.randn(_ROWS, _TOKENS, unet.config["cross_attention_dim"], device=device, dtype=dtype)
    pooled = {"text_embeds": torch.randn(_ROWS, 1280), "time_ids": torch.randn(_ROWS, 6)}
    pooled = {name: tensor.to(device, dtype) for name, tensor in pooled.items()}
    more = {"added_cond_kwargs": pooled} if unet.config["addition_embed_type"] else {}
    time_step = torch.tensor(500, device=device)

    @torch.inference_mode()
    def look() -> Tensor:
        return unet(x, time_step, context, **more).sample

    return look


def _members(layers: dict[str, nn.Module], width: int, count: int) -> GatedParts:
    """Rank-1 erasers on every layer, each behind a gate as SPM has it."""
    members = []
    for number in range(count):
        adapters = {}
        for name, layer in layers.items():
            assert isinstance(layer, nn.Linear)
            down, up = torch.randn(1, layer.in_features), 1e-3 * torch.randn(layer.out_features, 1)
            adapters[f"{name}.weight"] = WeightEdit(down=down, up=up)
        gate = Transport(torch.randn(1, _TOKENS, width), torch.tensor([0.5]), torch.tensor([[number]]), 0.5)
        members.append((Member(gate, Eraser(Recipe("random", {}, (), (), "", ""), adapters=adapters)), 1.0))
    return GatedParts(members)


def _peft_layers(unet: Any, count: int) -> list[Any]:
    """peft's layers around the same projections, with as many rank-1 adapters, all active."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    names = [f"a{number}" for number in range(count)]
    pattern = r".*attn2\.(to_q|to_k|to_v|to_out\.0)"
    for name in names:
        inject_adapter_in_model(LoraConfig(r=1, lora_alpha=1, target_modules=pattern), unet, name)
    own = [module for module in unet.modules() if isinstance(module, BaseTunerLayer)]
    for module in own:
        module.set_adapter(names)
    unet.eval()
    return own


@contextmanager
def _switched(layers: list[Any], on: bool) -> Iterator[None]:
    for layer in layers:
        layer._disable_adapters = not on
    yield


def _report(arms: dict[str, Arm], repeats: int, device: torch.device, plain: float = 0.0) -> float:
    """Time the arms in turns and print each one's median; returns the first one's."""
    seconds: dict[str, list[float]] = {title: [] for title in arms}
    for turn in range(repeats + 1):
        for title, (look, around) in arms.items():
            begun = _now(device)
            with around():
                look()
            if turn:
                seconds[title].append(_now(device) - begun)
    medians = {title: statistics.median(own) for title, own in seconds.items()}
    base = plain or next(iter(medians.values()))
    for title, median in medians.items():
        print(f"  {title}: {median:.3f} s, {100 * (median / base - 1):+.1f} % of plain")
    return base


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()

"""The node that gives a real, tiny model: no download, seconds on a CPU."""

from __future__ import annotations

from comfy_api.latest import io

from .host.demo import DemoVision, demo_clip, demo_model, demo_vae


class LetheDemoModel(io.ComfyNode):
    """MODEL, CLIP, VAE and CLIP_VISION of the demo world."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetheDemoModel",
            display_name="Demo Model",
            category="lethe/demo",
            description="A tiny text-to-image model that ships with the pack, for trying and testing erasure at "
            "128x128. It draws prompts such as 'a red ball, dotted style, in a meadow' or 'zib at night'.",
            inputs=[],
            outputs=[
                io.Model.Output("model", tooltip="The denoiser, a Stable Diffusion 1 type UNet."),
                io.Clip.Output("clip", tooltip="The text encoder, a small CLIP with 77 tokens."),
                io.Vae.Output("vae", tooltip="The autoencoder, 128x128 pixels to 16x16 latents."),
                io.ClipVision.Output("clip_vision", tooltip="The image half of the text encoder's pair."),
            ],
            search_aliases=["lethe example", "toy model", "tiny model", "test model"],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(demo_model(), demo_clip(), demo_vae(), DemoVision())

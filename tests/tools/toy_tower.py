"""A tiny CLIP text encoder with random weights, and a toy model around it, for methods that look inside."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from lethe.erasers.algebra.hooks import Output, hooked
from lethe.erasers.concepts import ConceptList
from lethe.erasers.model import TextTower, Token, is_vector
from lethe.erasers.registry import families
from lethe.erasers.result import ContextOperator
from lethe.erasers.task import EncodedPrompt, Task
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

TOKENS, START, END = 12, 98, 99


class ToyModel:
    """Fulfils `erasers.model.Model` but for training: a text encoder of 3 layers, and a denoiser of one plain block.

    A word is one token; parts joined by "-" are tokens of their own. A latent is `[2, 2, 2]`.

    Args:
        width: of the text encoder; fc2 is twice as wide.
        layers: how many of its layers the text features come from, counted from the front; all for 0.
    """

    in_place = False

    def __init__(self, width: int = 16, layers: int = 0, seed: int = 0) -> None:
        torch.manual_seed(seed)
        config = CLIPTextConfig(
            vocab_size=100, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
            num_attention_heads=2, max_position_embeddings=TOKENS, projection_dim=width,
            bos_token_id=START, eos_token_id=END, pad_token_id=END,
        )  # fmt: skip
        self.text = CLIPTextModel(config).eval().requires_grad_(False)
        for parameter in self.text.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
        self.unet = nn.ModuleDict({f"block{i}": nn.ModuleDict({"attn2": _Projections(width)}) for i in range(2)})
        self.unet.requires_grad_(False)
        self.layers, self.words = layers, dict[str, int]()
        self.sampled: list[list[str]] = []

    def ids(self, prompt: str) -> list[int]:
        """Padded token ids of a prompt."""
        parts = prompt.replace("-", " ").split()[: TOKENS - 2]
        ids = [self.words.setdefault(part, len(self.words)) for part in parts]
        return [START, *ids, *[END] * (TOKENS - 1 - len(ids))]

    def text_of(self, ids: Sequence[int]) -> str:
        """The words of token ids."""
        words = {number: word for word, number in self.words.items()}
        return " ".join(words.get(number, f"w{number}") for number in ids if number not in (START, END))

    def run(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        return self.read([self.ids(prompt) for prompt in prompts])

    def read(self, rows: Sequence[Sequence[Token]]) -> tuple[Tensor, Tensor]:
        """Rows of tokens to states and pooled features; a vector takes the place of a token's embedding."""
        numbers = torch.tensor([[0 if is_vector(token) else token for token in row] for row in rows])
        vectors = [(i, j, token) for i, row in enumerate(rows) for j, token in enumerate(row) if is_vector(token)]

        def splice(_module: nn.Module, _args: object, output: Output) -> Output:
            assert isinstance(output, Tensor)
            embedded = output.clone()
            for i, j, vector in vectors:
                embedded[i, j] = vector
            return embedded

        table = next(module for name, module in self.text.named_modules() if name.endswith("token_embedding"))
        with hooked([(table, splice)]):
            out = self.text(numbers, output_hidden_states=bool(self.layers))
        states = out.hidden_states[self.layers] if self.layers else out.last_hidden_state
        return states, out.pooler_output

    def position(self, prompt: str, phrase: str) -> int:
        return self.tower().position(prompt, phrase)

    def tower(self) -> TextTower:
        def weight(name: str) -> Tensor:
            return self.text.get_parameter(name).detach().clone()

        return TextTower("clip_l", self.text, self.ids, self.read, self.text_of, weight, END)

    def weights(self) -> Mapping[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.unet.named_parameters()}

    def parameter(self, name: str) -> Tensor:
        return self.unet.get_parameter(name).detach().clone()

    def modules(self, pattern: str) -> Mapping[str, nn.Module]:
        return {name: module for name, module in self.unet.named_modules() if re.search(pattern, name)}

    def sample(
        self,
        prompts: list[str],
        steps: int,
        cfg: float,
        seed: int,
        on_step: Callable[[int], None] | None = None,
        operators: Mapping[str, ContextOperator] | None = None,
    ) -> Tensor:
        """A latent is what the denoiser sees in nothing, with a little noise."""
        self.sampled.append(prompts)
        noise = torch.randn(len(prompts), 2, 2, 2, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            return self.predict_noise(0 * noise, 0 * noise, 1.0, self.run(prompts)[0]) + 0.01 * noise

    def predict_noise(
        self, latents: Tensor, noise: Tensor, percent: float | Tensor, context: Tensor, cfg: float = 1.0
    ) -> Tensor:
        """The mean of the tokens, through both blocks; guidance multiplies it."""
        shift = sum(block["attn2"](context) for block in self.unet.values())  # type: ignore[index]
        assert isinstance(shift, Tensor)
        rest = 1 - torch.as_tensor(percent).reshape(-1, 1, 1, 1)
        return rest * noise + cfg * shift.mean(1).reshape(-1, 2, 2, 2)

    def encode(self, prompts: list[str]) -> list[EncodedPrompt]:
        with torch.no_grad():
            states, pooled = self.run(prompts)
        rows = zip(prompts, states, pooled, strict=True)
        return [
            EncodedPrompt(text, state, self.position(text, ""), tuple(self.ids(text)), pool)
            for text, state, pool in rows
        ]

    def task(self, concepts: ConceptList, sight: bool = True) -> Task:
        """A task on this model; its image encoder sees the latent and reads the pooled state."""
        seen = ToySight(self) if sight else None
        return Task(concepts, families()["demo"], "toy", self.encode, self, sight=seen)  # type: ignore[arg-type]


class ToySight:
    """Fulfils `erasers.sight.Sight`: a picture is a latent, and shares a random space with the pooled states."""

    def __init__(self, model: ToyModel) -> None:
        self.model = model
        self.map: Tensor | None = None

    def learn(self, prompts: list[str]) -> ToySight:
        """Fit the space to prompts and the pictures the model draws of them, by a ridge fit, not quite on target."""
        with torch.no_grad():
            drawn = self.model.sample(prompts * 8, 1, 1.0, 5).flatten(1)
            texts = self.model.run(prompts)[1]
            off = torch.randn(texts.shape, generator=torch.Generator().manual_seed(6))
            x = _wide(drawn).double()
            system = x.T @ x + 1e-3 * torch.eye(x.shape[1], dtype=x.dtype)
            self.map = torch.linalg.solve(system, x.T @ (texts + 0.3 * off).repeat(8, 1).double()).float()
        return self

    def embed_images(self, images: Tensor) -> Tensor:
        return self.embed_latents(images)

    def embed_latents(self, latents: Tensor) -> Tensor:
        assert self.map is not None
        return _wide(latents.flatten(1)) @ self.map

    def embed_text(self, prompts: list[str]) -> Tensor:
        return self.model.run(prompts)[1]


class _Projections(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_k, self.to_v = (nn.Linear(width, 8, bias=False) for _ in range(2))

    def forward(self, context: Tensor) -> Tensor:
        return torch.tanh(self.to_k(context)) + self.to_v(context)


def _wide(rows: Tensor) -> Tensor:
    """Rows with a constant and squares, so that a linear map can tell more of them apart."""
    return torch.cat([rows, rows.square(), torch.ones(len(rows), 1)], 1)

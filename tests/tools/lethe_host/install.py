"""Builds a ComfyUI host from PyPI in a cache folder, or finds the one that is there and sound.

A host is a folder with `ComfyUI/`, `venv/` and, written last, `stamp.json`. Virtual environments
can't be moved, so a host is built in place: a folder whose stamp is missing, or does not agree with
what is there, is damaged; it is removed and built again. One process builds at a time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import source
from .errors import HostError
from .link import is_link, link_folder, remove_link

log = logging.getLogger("lethe.host")

CHECKOUT = Path(__file__).resolve().parents[3]
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
PYTHONS = ((3, 10), (3, 14))
REMOVE_SECONDS = 10.0
ONLINE = "run the command again on a machine whose pip reaches PyPI"
# Lists the packages of a virtual environment; those whose code is gone are left out.
PROBE = """
import importlib.metadata as metadata, importlib.util, json
found = {d.name: d.version for d in metadata.distributions()}
needed = "torch", "torchvision", "transformers", "aiohttp", "comfyui_frontend_package", "pytest", "diffusers"
print(json.dumps({k: v for k, v in found.items() if k not in needed or importlib.util.find_spec(k)}))
"""


@dataclass(frozen=True)
class Host:
    """A ComfyUI and the Python that runs it."""

    python: Path
    comfyui: Path

    @classmethod
    def below(cls, root: Path) -> Host:
        """Returns the host that a folder of the cache holds, or will hold."""
        scripts = root / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        return cls(python=scripts, comfyui=root / "ComfyUI")

    @classmethod
    def current(cls) -> Host:
        """Returns the host whose Python runs this process.

        Raises:
            HostError: this Python belongs to no host; LETHE_COMFYUI can name a ComfyUI for it.
        """
        named = os.environ.get("LETHE_COMFYUI")
        comfyui = Path(named) if named else Path(sys.prefix).parent / "ComfyUI"
        if not (comfyui / "comfyui_version.py").is_file():
            advice = "run the tests with `nox -s tests` (see the README), which builds the host and uses its Python"
            raise HostError(f"finding ComfyUI at {comfyui}", advice)
        return cls(python=Path(sys.executable), comfyui=comfyui)

    def tool(self, name: str) -> Path:
        """Returns a command that was installed beside this host's Python."""
        return self.python.with_name(f"{name}.exe" if os.name == "nt" else name)

    def environment(self) -> dict[str, str]:
        """Returns this process' environment as the host's commands need it."""
        return {**clean_environment(), "LETHE_COMFYUI": str(self.comfyui)}


def clean_environment() -> dict[str, str]:
    """Returns this process' environment without what would change a Python's imports or where pip installs."""
    dropped = {"PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX", "PIP_USER"}
    return {name: value for name, value in os.environ.items() if name not in dropped}


def cache_folder() -> Path:
    """Returns the folder that hosts are kept in: LETHE_HOST_CACHE, or this user's cache folder."""
    chosen = os.environ.get("LETHE_HOST_CACHE")
    if chosen:
        return Path(chosen).resolve()
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "lethe" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "lethe"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lethe"


def fingerprint() -> str:
    """Returns a hash of everything that decides what a host is made of."""
    python = f"{platform.python_implementation()} {sys.version_info.major}.{sys.version_info.minor}"
    parts = [source.CURRENT.sha256, REQUIREMENTS.read_text(encoding="utf-8"), python, platform.machine()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def host_folder() -> Path:
    """Returns where the host of this checkout and this Python belongs."""
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return cache_folder() / f"comfyui-{source.CURRENT.comfyui}-{python}-{fingerprint()[:12]}"


def ensure_host(checkout: Path = CHECKOUT) -> Host:
    """Returns a sound host with this checkout linked into it as the pack `lethe`.

    Raises:
        HostError: it could not be built; nothing is left that looks finished.
    """
    root = host_folder()
    host = Host.below(root)
    with _one_at_a_time(root.with_name(f"{root.name}.lock")):
        reason = damage(root)
        if reason:
            log.info("no usable ComfyUI host in %s (%s); building one", root, reason)
            _rebuild(root)
        else:
            log.info("using the ComfyUI host in %s", root)
        link_pack(host, checkout)
    return host


def damage(root: Path) -> str | None:
    """Returns why the host in a folder can't be used, None when it can."""
    host = Host.below(root)
    try:
        stamp = json.loads((root / "stamp.json").read_text(encoding="utf-8"))
        wanted, code, packages = stamp["fingerprint"], stamp["source"], stamp["packages"]
    except FileNotFoundError:
        return "it is not there" if not root.exists() else "it was never finished"
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"its stamp can't be read: {error!r}"
    if wanted != fingerprint():
        return "it was built from other requirements"
    if code != source.digest(host.comfyui):
        return "ComfyUI's files have changed"
    try:
        found = probe(host)
    except HostError as error:
        return f"its Python does not run: {error.output}"
    lost = [name for name, version in packages.items() if found.get(name) != version]
    return f"packages are missing or have changed: {', '.join(lost[:5])}" if lost else None


def probe(host: Host) -> dict[str, str]:
    """Returns the packages in the host's environment with their versions; no package is imported."""
    return json.loads(run("checking the packages", [str(host.python), "-I", "-c", PROBE], "build the host again"))


def link_pack(host: Host, checkout: Path) -> None:
    """Links the checkout into custom_nodes, and lets the host's Python import it as `lethe`.

    The host's Python gets custom_nodes on its path, never the checkout itself, whose folder `nodes`
    would hide ComfyUI's module of that name.
    """
    custom_nodes = host.comfyui / "custom_nodes"
    link_folder(custom_nodes / "lethe", checkout)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = "Lib/site-packages" if os.name == "nt" else f"lib/{version}/site-packages"
    path_file = host.python.parents[1] / library / "lethe.pth"
    content = f"{custom_nodes}\n"
    if not path_file.is_file() or path_file.read_text(encoding="utf-8") != content:
        path_file.write_text(content, encoding="utf-8")


def run(step: str, command: Sequence[str], advice: str) -> str:
    """Runs one command of the set-up and returns what it printed.

    Raises:
        HostError: it could not be started or did not succeed.
    """
    try:
        done = subprocess.run(
            list(command), env=clean_environment(), capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise HostError(step, advice, command, str(error)) from error
    if done.returncode:
        raise HostError(step, advice, command, done.stdout + done.stderr)
    return done.stdout


def _rebuild(root: Path) -> None:
    low, high = PYTHONS
    if not low <= sys.version_info[:2] <= high:
        advice = f"use a Python from {low[0]}.{low[1]} to {high[0]}.{high[1]}"
        raise HostError(f"using Python {platform.python_version()}", advice)
    _remove(root)
    try:
        _build(root)
    except BaseException:
        _remove(root)
        raise


def _build(root: Path) -> None:
    host = Host.below(root)
    root.mkdir(parents=True)
    log.info("1/4 making a virtual environment")
    try:
        venv.create(root / "venv", with_pip=True, symlinks=os.name != "nt")
    except (OSError, subprocess.CalledProcessError) as error:
        raise HostError("making a virtual environment", "install Python's venv module", (), repr(error)) from error
    log.info("2/4 downloading ComfyUI %s", source.CURRENT.comfyui)
    fetch(host, root / "download")
    log.info("3/4 installing its packages (several GB: this takes minutes)")
    own = root / "requirements.txt"
    own.write_text(source.requirements(host.comfyui), encoding="utf-8")
    pip = [str(host.python), "-I", "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS), "-r", str(own)]
    run("installing ComfyUI's packages", pip, ONLINE)
    log.info("4/4 checking what was built")
    _stamp(root, host)


def fetch(host: Host, downloads: Path, release: source.Release = source.CURRENT) -> None:
    """Downloads a version of ComfyUI with the host's Python and unpacks it where the host has its ComfyUI.

    Raises:
        HostError: it could not be had, or is not what it should be.
    """
    run("downloading ComfyUI", source.fetch_command(host.python, downloads, release), ONLINE)
    for archive in downloads.glob("*.tar.gz"):
        source.verify(archive, release)
        source.unpack(archive, host.comfyui)
    shutil.rmtree(downloads)
    if source.version_of(host.comfyui) != release.comfyui:
        raise HostError("unpacking ComfyUI", "check the index that pip uses", (), "the archive holds another version")


def _stamp(root: Path, host: Host) -> None:
    stamp = {"fingerprint": fingerprint(), "source": source.digest(host.comfyui), "packages": probe(host)}
    unfinished = root / "stamp.json.part"
    unfinished.write_text(json.dumps(stamp, indent=1), encoding="utf-8")
    unfinished.replace(root / "stamp.json")


def _remove(root: Path) -> None:
    """Removes a host; the stamp goes first and the linked checkout is never entered."""
    (root / "stamp.json").unlink(missing_ok=True)
    link = Host.below(root).comfyui / "custom_nodes" / "lethe"
    if is_link(link):
        remove_link(link)
    give_up = time.monotonic() + REMOVE_SECONDS
    while root.exists():
        try:
            shutil.rmtree(root)
        except OSError as error:
            # A child of a build that was killed may still write, or a program still hold a file open.
            if time.monotonic() > give_up:
                advice = f"end the programs that use {root}, then run the command again"
                raise HostError(f"removing {root}", advice, output=str(error)) from error
            time.sleep(0.5)


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Waits for, then holds a lock that the system drops with the process, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as handle:
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:
                    msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
                    break
                except OSError:
                    time.sleep(1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield

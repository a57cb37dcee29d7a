"""A folder link that works on every platform: a symbolic link, on Windows a junction."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .errors import HostError


def is_link(path: Path) -> bool:
    """Is this path a symbolic link or a junction, also one that leads nowhere?"""
    try:
        os.readlink(path)  # noqa: PTH115 - Path.readlink refuses junctions on some versions
    except OSError:
        return False
    return True


def remove_link(path: Path) -> None:
    """Removes the link itself, never what it leads to."""
    if path.is_symlink():
        path.unlink()
    else:
        path.rmdir()


def link_folder(link: Path, target: Path) -> None:
    """Makes link lead to target; a link that leads elsewhere is corrected.

    Raises:
        HostError: something that is no link stands in the way.
    """
    if is_link(link):
        if link.resolve() == target.resolve():
            return
        remove_link(link)
    elif link.exists():
        raise HostError(f"linking {link} to {target}", f"move {link} away: it is not a link that this tool made")
    if sys.platform == "win32":
        command = ["cmd", "/c", "mklink", "/J", str(link), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise HostError("linking the pack", "put the cache on an NTFS disk", command, done.stdout + done.stderr)
    else:
        link.symlink_to(target, target_is_directory=True)

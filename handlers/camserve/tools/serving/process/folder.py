"""A temporary folder that is removed even where the process that made it was killed: by the next one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "camserve-ts-"
LOCK = "lock"
LONGEST_BASE = 60  # the workers' sockets lie in it, and a socket's path has at most 104 characters


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Makes a folder that is removed on leaving, and first removes those that killed processes have left."""
    base = Path(tempfile.gettempdir())
    if len(str(base)) > LONGEST_BASE:
        base = Path("/tmp")  # noqa: S108
    _sweep(base)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    try:
        with (folder / "new").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / "new").rename(folder / LOCK)  # visible to others only once it is held
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(base: Path) -> None:
    """Removes this user's folders whose lock nobody holds."""
    for path in base.glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError):
            if path.parent.is_symlink() or path.parent.stat().st_uid != os.getuid():
                continue
            with path.open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent, ignore_errors=True)

"""What a client sends does not reach the log through the libraries that decode it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tests.support.build import archive

ASK = """
import json, logging, sys
logging.basicConfig(level=logging.WARNING)
from camserve.tools.archive.archive import Row, ask, load_service
service = load_service(sys.argv[1])
print("ready", file=sys.stderr)
(response,) = ask(service, [Row({"body": sys.stdin.buffer.read()})])
print(json.loads(response.body)["type"])
"""


def test_a_damaged_picture_leaves_no_line_in_a_workers_log(tmp_path: Path) -> None:
    """libtiff prints what is wrong with this one, and Pillow logs it, where nobody keeps them from it."""
    file = io.BytesIO()
    Image.fromarray((np.arange(3600) % 251).astype(np.uint8).reshape(30, 40, 3)).save(
        file, "TIFF", compression="tiff_adobe_deflate"
    )
    data = bytearray(file.getvalue())
    data[60:64] = b"\xff" * 4
    ran = subprocess.run(
        [sys.executable, "-c", ASK, archive(tmp_path / "bright")], input=bytes(data), capture_output=True, check=False
    )
    assert ran.returncode == 0, ran.stderr.decode()
    assert ran.stdout.splitlines()[-1] == b"InvalidImage"
    assert ran.stderr.split(b"ready\n")[-1] == b""

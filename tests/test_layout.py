"""The shape of the repository: who owns the four package names, and that README, Makefile and CI agree."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("services", "models", "index", "kernels")


@pytest.mark.parametrize("name", PACKAGES)
def test_package_name_is_ours(name: str) -> None:
    """`kernels` and `models` are common names: another distribution of that name would shadow ours."""
    module = importlib.import_module(name)
    assert module.__file__ is not None
    assert Path(module.__file__).resolve().parent == ROOT / name
    assert (ROOT / name / "py.typed").exists()


@pytest.mark.parametrize("name", PACKAGES)
def test_package_name_is_ours_outside_the_checkout(name: str, tmp_path: Path) -> None:
    code = f"import {name}; print({name}.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).resolve().parent == ROOT / name


def test_top_level_is_fixed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    allowed = {
        *PACKAGES, "configs", "tests", "deploy", "docs", ".ci", ".gitignore", "pyproject.toml", "constraints.txt",
        "docker-compose.yml", "Makefile", "README.md", "CHANGELOG.md", "LICENSE", ".dockerignore",
    }  # fmt: skip
    assert top <= allowed, f"new at the root: {sorted(top - allowed)}"


def test_every_test_folder_is_a_package() -> None:
    """A tests/kernels without __init__.py on every level would shadow the code."""
    folders = {path.parent for path in (ROOT / "tests").rglob("*.py")}
    missing = [str(folder) for folder in folders if not (folder / "__init__.py").exists()]
    assert not missing


def test_makefile_verbs_are_documented() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.M)
    assert phony is not None
    for verb in phony.group(1).split():
        assert re.search(rf"^{verb}:.*## \S", text, re.M), f"make {verb} has no comment"


def test_ci_runs_the_readmes_test_command() -> None:
    readme = (ROOT / "README.md").read_text()
    ci = (ROOT / ".ci" / "run").read_text()
    for command in ("make demo", "make test"):
        assert re.search(rf"^{command}\b", readme, re.M), f"README does not show `{command}`"
    assert "make test" in ci.splitlines()


def test_torch_and_triton_are_pinned_as_a_pair() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert (pins["torch"], pins["triton"]) == ("2.13.0", "3.7.1")


def test_no_foreign_hosts_in_dependencies() -> None:
    text = (ROOT / "pyproject.toml").read_text() + (ROOT / "constraints.txt").read_text()
    assert "index-url" not in text and "http" not in re.sub(r'"https?://github.com/\S+"|httpx?|httptools', "", text)

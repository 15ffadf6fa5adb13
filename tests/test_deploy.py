"""The container files say what the processes need. No engine builds them here: they are checked, not run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from services.platform import PARTS
from services.settings import load_settings

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = ROOT / "docker-compose.yml"


def tool(name: str) -> str:
    path = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if path is None:
        pytest.skip(f"{name} is not installed; it comes with the extra `infra`")
    return path


@pytest.mark.slow
def test_compose_file_is_valid() -> None:
    done = subprocess.run([tool("docker-compose"), "-f", str(COMPOSE), "config", "-q"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_dockerfile_lints() -> None:
    done = subprocess.run([tool("hadolint"), str(ROOT / "deploy" / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_compose_starts_every_part_with_settings_that_exist() -> None:
    text = COMPOSE.read_text()
    for part in PARTS:
        assert f'"--only", "{part}"' in text
    variables = dict(re.findall(r"^\s+(SHORTLIST_[A-Z_]+): (\S+)$", text, re.M))
    settings = load_settings(None, variables)
    assert settings.redis_url == "redis://redis:6379/0"
    assert settings.retrieval.url and settings.ranking.url and settings.ingest.url


def test_compose_publishes_nothing_beyond_this_machine() -> None:
    ports = re.findall(r"^\s+- \"([0-9.:]+)\"$", COMPOSE.read_text(), re.M)
    assert ports == ["127.0.0.1:8000:8000"]


def test_compose_redis_keeps_every_acknowledged_write() -> None:
    assert '"--appendonly", "yes", "--appendfsync", "always"' in COMPOSE.read_text()


def test_dockerfile_copies_every_package() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    for name in ("services", "models", "index", "kernels", "configs"):
        assert re.search(rf"^COPY {name} \./{name}$", text, re.M)

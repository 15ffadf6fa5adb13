from __future__ import annotations

from pathlib import Path

import pytest

from tests.services.films import write_ml_100k
from tests.services.processes import run


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A data folder that `shortlist demo --once` has filled, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    films = write_ml_100k(folder / "ml-100k.zip")
    return folder / "data", run("demo", "--once", "--data", str(films), data_dir=folder / "data")

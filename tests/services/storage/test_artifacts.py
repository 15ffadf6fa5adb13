from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from services.clock import Clock
from services.storage import ArtifactCorrupt, ArtifactRegistry, Provenance

from .world import NOW_MS


@pytest.fixture
def registry(tmp_path: Path) -> ArtifactRegistry:
    return ArtifactRegistry(tmp_path / "artifacts", Clock(source=lambda: NOW_MS))


def writer(text: str) -> object:
    def write(folder: Path) -> None:
        (folder / "weights").mkdir()
        (folder / "weights" / "a.bin").write_text(text)
        (folder / "config.json").write_text("{}")

    return write


def test_publish_promote_and_open(registry: ArtifactRegistry) -> None:
    assert registry.current("ranking") is None and registry.versions("ranking") == [] and registry.kinds() == []
    provenance = Provenance(
        config={"layers": 2}, schema_hash="abc", data_window_ms=(1, 2), metrics={"auc": 0.7}, parent="p"
    )
    version = registry.publish("ranking", writer("x"), provenance)
    assert version.startswith("20250615T")
    assert registry.current("ranking") is None
    with pytest.raises(KeyError, match="promoted"):
        registry.open("ranking")
    registry.promote("ranking", version)
    artifact = registry.open("ranking")
    assert (artifact.version, artifact.provenance, artifact.created_ms) == (version, provenance, NOW_MS)
    assert set(artifact.files) == {"weights/a.bin", "config.json"}
    assert (artifact.folder / "weights" / "a.bin").read_text() == "x"
    assert registry.kinds() == ["ranking"]


def test_rollback_walks_back_through_promotions(registry: ArtifactRegistry) -> None:
    a, b, c = (registry.publish("m", writer(text), Provenance()) for text in "abc")
    assert len({a, b, c}) == 3 and {v.version for v in registry.versions("m")} == {a, b, c}
    for version in (a, b, c, b):
        registry.promote("m", version)
    assert [registry.current("m"), registry.rollback("m"), registry.rollback("m")] == [b, c, a]
    with pytest.raises(ValueError, match="no version to go back to"):
        registry.rollback("m")
    assert registry.current("m") == a


def test_the_same_content_twice_is_two_versions(registry: ArtifactRegistry) -> None:
    first, second = (registry.publish("m", writer("x"), Provenance()) for _ in range(2))
    assert second == f"{first}.2"


@pytest.mark.parametrize("damage", ["changed", "missing", "manifest", "manifest key"])
def test_damage_is_found(registry: ArtifactRegistry, damage: str) -> None:
    version = registry.publish("m", writer("x"), Provenance())
    registry.promote("m", version)
    folder = registry.open("m").folder
    path = folder / ("manifest.json" if damage.startswith("manifest") else "weights/a.bin")
    if damage == "changed":
        path.write_text("y")
    elif damage == "missing":
        path.unlink()
    else:
        path.write_text("{}" if damage == "manifest key" else "{")
    with pytest.raises(ArtifactCorrupt) as raised:
        registry.open("m")
    assert raised.value.path == path and str(path) in str(raised.value)
    if damage == "changed":
        assert raised.value.expected != raised.value.actual and raised.value.actual.startswith("sha256 ")
        assert registry.open("m", verify=False).version == version
        with pytest.raises(ArtifactCorrupt):
            registry.promote("m", version)


def test_nothing_remains_of_a_publication_that_fails(registry: ArtifactRegistry) -> None:
    with pytest.raises(ZeroDivisionError):
        registry.publish("m", lambda folder: 1 / 0, Provenance())
    with pytest.raises(ValueError, match="nothing was written"):
        registry.publish("m", lambda folder: None, Provenance())
    with pytest.raises(ValueError, match=r"manifest\.json"):
        registry.publish("m", lambda folder: (folder / "manifest.json").write_text("{}"), Provenance())
    assert list((registry.folder / "m").iterdir()) == []


def test_an_unfinished_publication_of_a_killed_job_is_not_a_version(registry: ArtifactRegistry) -> None:
    version = registry.publish("m", writer("x"), Provenance())
    with subprocess.Popen(["true"]) as ended:
        pass
    halves = [registry.folder / "m" / f".tmp-{pid}-abc" for pid in (ended.pid, os.getpid())]
    for half in halves:
        half.mkdir()
        (half / "manifest.json").write_text(json.dumps({}))
    assert [artifact.version for artifact in registry.versions("m")] == [version]
    registry.publish("m", writer("y"), Provenance())
    assert [half.exists() for half in halves] == [False, True]


def test_unusable_names(registry: ArtifactRegistry) -> None:
    for kind in ("", "..", "a/b", ".x"):
        with pytest.raises(ValueError, match="kind"):
            registry.publish(kind, writer("x"), Provenance())
    with pytest.raises(ValueError, match="version"):
        registry.open("m", "../x")
    with pytest.raises(KeyError, match="no version"):
        registry.open("m", "x")

from __future__ import annotations

import threading

import pytest

from services.clock import Clock
from services.storage import Storage, VersionConflict

from .conftest import OpenStorage


def test_put_read_and_delete(open_storage: OpenStorage) -> None:
    storage = open_storage(Clock(source=lambda: 1234))
    scenarios = storage.scenarios
    assert scenarios.all() == {}
    assert scenarios.put("home", "like + 'é' \x00 %d") == 1
    assert scenarios.put("ads", {"like": 0.5}) == 1
    assert scenarios.put("home", "like") == 2
    assert [(s.name, s.version, s.value, s.updated_ms) for s in scenarios.all().values()] == [
        ("ads", 1, {"like": 0.5}, 1234),
        ("home", 2, "like", 1234),
    ]
    assert scenarios.delete("home") and not scenarios.delete("home") and not scenarios.delete("never")
    assert list(scenarios.all()) == ["ads"]
    assert scenarios.put("home", "view", if_version=0) == 4, "a version never comes twice"


def test_how_a_scenario_explores_is_kept_beside_any_value(storage: Storage) -> None:
    drawn = {"kind": "thompson", "scale": 0.5, "draws": 8}
    storage.scenarios.put("drawn", "like", explore=drawn)
    storage.scenarios.put("plain", {"like": 0.5}, explore=False)
    # Weights of tasks that are called like our own fields.
    storage.scenarios.put("odd", {"value": 1.0, "explore": 0.0})
    found = {name: (s.value, s.explore) for name, s in storage.scenarios.all().items()}
    assert found == {
        "drawn": ("like", drawn),
        "plain": ({"like": 0.5}, False),
        "odd": ({"value": 1.0, "explore": 0.0}, None),
    }


def test_a_condition_holds_or_nothing_is_written(storage: Storage) -> None:
    storage.scenarios.put("home", "a")
    for write in (lambda: storage.scenarios.put("home", "b", 0), lambda: storage.scenarios.delete("home", 2)):
        with pytest.raises(VersionConflict) as caught:
            write()
        assert caught.value.actual == 1
    assert storage.scenarios.all()["home"].value == "a"


def test_of_many_writers_with_one_condition_one_wins(storage: Storage) -> None:
    won = []

    def write(number: int) -> None:
        try:
            storage.scenarios.put("home", str(number), 0)
            won.append(number)
        except VersionConflict:
            pass

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and storage.scenarios.all()["home"].value == str(won[0])

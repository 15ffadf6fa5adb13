"""Settings: every one documented, every mistake named."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from services.settings import Settings, SettingsError, load_settings, setting_names, variable_of

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def value_of(settings: Settings, name: str) -> Any:
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def write(folder: Path, text: str) -> Path:
    path = folder / "serve.toml"
    path.write_text(text)
    return path


def test_every_setting_is_documented() -> None:
    """configs/README.md has one row per setting, in order, with its variable and its default."""
    rows = re.findall(r"^\| `([a-z_.]+)` \| `(\w+)` \| (\S+) \| ([^|]+) \| ([^|]+) \|$", _readme(), re.M)
    assert [name for name, *_ in rows] == setting_names()
    defaults = Settings()
    for name, variable, default, unit, text in rows:
        assert variable == variable_of(name)
        value = value_of(defaults, name)
        spelt = "none" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"
        assert default == spelt, name
        assert unit.strip() and text.strip()


def _readme() -> str:
    return (CONFIGS / "README.md").read_text()


def test_the_shipped_file_holds_every_default() -> None:
    document = tomllib.loads((CONFIGS / "serve.toml").read_text())
    assert load_settings(CONFIGS / "serve.toml", {}) == Settings()
    flat = {
        f"{n}.{k}" if isinstance(v, dict) else n
        for n, v in document.items()
        for k in (v if isinstance(v, dict) else "x")
    }
    assert flat == {name for name in setting_names() if value_of(Settings(), name) is not None}


def test_variables_win_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, 'data_dir = "here"\n[http]\nport = 1\naccess_log = true\n')
    settings = load_settings(
        path,
        {
            "SHORTLIST_DATA_DIR": "there",
            "SHORTLIST_HTTP__PORT": "8090",
            "SHORTLIST_HTTP__ACCESS_LOG": "false",
            "SHORTLIST_REDIS_URL": "redis://10.0.0.1",
            "SHORTLIST_API_KEY": "s3cret",
            "SHORTLIST_RANKING__URL": "",
            "PATH": "/bin",
        },
    )
    assert (settings.data_dir, settings.http.port, settings.http.access_log) == (Path("there"), 8090, False)
    assert settings.redis_url == "redis://10.0.0.1" and settings.ranking.url is None
    assert settings.api_key is not None and "s3cret" not in repr(settings)


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    path = write(tmp_path, 'data_dir = "here"\n')
    assert load_settings(None, {"SHORTLIST_CONFIG": str(path)}).data_dir == Path("here")
    assert load_settings(None, {}) == Settings()


@pytest.mark.parametrize(
    ("text", "environ", "words"),
    [
        ("prot = 1", {}, ["'prot'", "serve.toml"]),
        ("[http]\nprot = 1", {}, ["'http.prot'", "'http.port'"]),
        ("[htpp]\nport = 1", {}, ["'htpp.port'", "'http.port'"]),
        ("[http]\nport = 99999", {}, ["http.port", "99999", "65535"]),
        ('[http]\nport = "many"', {}, ["http.port", "many"]),
        ("[pipeline]\nhydrate_share = 0.9", {}, ["hydrate_share 0.9", "retrieve_share"]),
        ("[retrieval]\npopular_share = 0.8\nrecent_share = 0.3", {}, ["more than 1"]),
        ('[retrieval]\nrecent_half_life = "all"', {}, ["recent_half_life", "all"]),
        ("not toml", {}, ["not TOML"]),
        ('api_key = "x"', {}, ["SHORTLIST_API_KEY"]),
        ("", {"SHORTLIST_HTTP__PROT": "1"}, ["SHORTLIST_HTTP__PROT", "SHORTLIST_HTTP__PORT"]),
        ("", {"SHORTLIST_GATWAY": "1"}, ["SHORTLIST_GATWAY"]),
        ("", {"SHORTLIST_HTTP__PORT": "x"}, ["SHORTLIST_HTTP__PORT", '"x"']),
        ("", {"SHORTLIST_HTTP__LOG_LEVEL": "loud"}, ["SHORTLIST_HTTP__LOG_LEVEL", "loud", "'debug'"]),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, environ: dict[str, str], words: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        load_settings(write(tmp_path, text), environ)
    for word in words:
        assert word in str(error.value)


def test_a_missing_file_is_an_error_with_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path, "")
    with pytest.raises(SettingsError, match=r"srve\.toml does not exist; did you mean .*serve\.toml"):
        load_settings(tmp_path / "srve.toml", {})
    with pytest.raises(SettingsError, match="does not exist"):
        load_settings(None, {"SHORTLIST_CONFIG": str(tmp_path / "none" / "x.toml")})


def test_a_wrong_key_never_shows_in_an_error() -> None:
    with pytest.raises(SettingsError) as error:
        load_settings(None, {"SHORTLIST_API_KEY": "hush", "SHORTLIST_HTTP__PORT": "x"})
    assert "hush" not in str(error.value)

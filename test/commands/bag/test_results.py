# SPDX-License-Identifier: AGPL-3.0-only
"""Results are whole or not there, as on a disk that is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

pytest.importorskip("rosbags")

from fusion_ros.commands.bag import results


def test_a_full_disk_is_said_and_leaves_the_earlier_results(tmp_path, monkeypatch):
    results.write_files(tmp_path / "out", {"a.txt": "before", "b.txt": "before"})
    real, calls = os.fsync, []

    def full(file):
        calls.append(file)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(results.OutputError, match="No space left"):
        results.write_files(tmp_path / "out", {"a.txt": "now", "b.txt": "now"})
    assert {each.name: each.read_text() for each in (tmp_path / "out").iterdir()} == {
        "a.txt": "before",
        "b.txt": "before",
    }


def test_a_folder_that_cannot_be_written_is_said_before_the_work(tmp_path, monkeypatch):
    results.check_writable(tmp_path / "new" / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    results.check_writable(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []

    def read_only(self, *args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "touch", read_only)
    with pytest.raises(results.OutputError, match="Read-only file system"):
        results.check_writable(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_result_holds_until_the_bag_the_request_or_the_version_changes(tmp_path):
    bag = tmp_path / "a.mcap"
    bag.write_bytes(b"1")
    key = results.fingerprint(bag, {"every": 1}, "1")
    assert key == results.fingerprint(bag, {"every": 1}, "1")
    assert key != results.fingerprint(bag, {"every": 2}, "1")
    assert key != results.fingerprint(bag, {"every": 1}, "2")
    bag.write_bytes(b"12")
    assert key != results.fingerprint(bag, {"every": 1}, "1")
    assert results.finished(tmp_path, key) is None

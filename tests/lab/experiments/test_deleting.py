"""Creation of files where others were deleted."""

from __future__ import annotations

import os
from pathlib import Path

from hicache_nixl.lab.experiments.deleting import deletion_times


def test_each_repetition_creates_and_deletes_in_a_new_folder_round_after_round(tmp_path, monkeypatch):
    made = []
    unlinked = []
    write, unlink = Path.write_bytes, Path.unlink
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: made.append(path) or write(path, data))
    monkeypatch.setattr(Path, "unlink", lambda path: unlinked.append(path) or unlink(path))
    table = deletion_times(3, rounds=2, repeats=2, storage_dir=tmp_path)
    assert table.repeat.tolist() == [0, 0, 1, 1]
    assert table.deleted.tolist() == [0, 3, 0, 3]
    assert (table.seconds > 0).all()
    assert made == unlinked
    folders = [path.parent for path in made]
    assert folders == [folders[0]] * 6 + [folders[6]] * 6
    assert folders[0] != folders[6]
    assert len(set(made)) == len(made)
    assert os.listdir(tmp_path) == []

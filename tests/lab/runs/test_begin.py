"""A notebook's parameters become a setup and a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hicache_nixl.errors import ConfigError
from hicache_nixl.lab.runs.begin import begin
from hicache_nixl.lab.worker.setup import Setup


def namespace(folder: Path, **parameters: Any) -> dict[str, Any]:
    """What ``globals()`` holds after a parameters cell, with names beside the parameters."""
    known = {"storage_dir": "", "run_dir": str(folder), "strict": True, **parameters}
    return {
        **known,
        "pd": object(),
        "later": 1,
        "__annotations__": {name: type(of) for name, of in known.items()},
    }


def test_a_setup_has_the_parameters_that_it_knows(tmp_path):
    names = namespace(
        tmp_path, queue="io_uring", page_bytes=4096, layout="layer_first", mla=True, keys_per_call=7
    )
    setup, _ = begin("01_a", names)
    assert setup == Setup(queue="io_uring", page_bytes=4096, layout="layer_first", mla=True, pages=7)


def test_the_run_notes_all_parameters_but_where_it_goes(tmp_path):
    _, run = begin("01_a", namespace(tmp_path, queue="libaio", calls=40))
    known = json.loads((tmp_path / "provenance.json").read_text())["notebooks"]["01_a"]["parameters"]
    assert known == {"storage_dir": "", "queue": "libaio", "calls": 40}
    assert (run.notebook, run.folder, run.strict) == ("01_a", tmp_path, True)


@pytest.mark.parametrize(("given", "folder"), [("", None), ("/mnt/nvme", "/mnt/nvme")])
def test_an_empty_storage_dir_is_the_folder_for_temporary_files(tmp_path, monkeypatch, given, folder):
    monkeypatch.setattr("hicache_nixl.lab.runs.folder.provenance", lambda *_: {})
    assert begin("01_a", namespace(tmp_path, storage_dir=given))[1].storage_dir == folder


def test_a_parameter_that_cannot_work_fails_at_once(tmp_path):
    with pytest.raises(ConfigError, match="queue: 'aio' is unknown"):
        begin("01_a", namespace(tmp_path, queue="aio"))

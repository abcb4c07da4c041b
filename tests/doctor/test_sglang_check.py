"""An installed SGLang: which leak it has, by running its connector, and by its version where that cannot be."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hicache_nixl.doctor import machine, sglang_check, storage_check
from hicache_nixl.doctor.finding import NO, NOTE, OK
from hicache_nixl.doctor.sglang_check import LEAK, NEITHER, SECOND_LEAK, UNKNOWN, SGLang
from hicache_nixl.errors import ConfigError
from hicache_nixl.lab.worker.releases import fetch, known_releases, version_of

CONNECTOR = "sglang/srt/mem_cache/storage/nixl/hicache_nixl.py"


def installed(wheel: Path, place: Path) -> Path:
    """Unpack what the connector could import, and the metadata, as pip would."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if ".dist-info/" in name or (name.startswith("sglang/srt/") and name.endswith(".py")):
                archive.extract(name, place)
    return place


@pytest.fixture
def site(released: Callable[[str], str], tmp_path: Path) -> Callable[[str], Path]:
    """Install a release into a folder of the test's own."""
    return lambda version: installed(
        fetch(version_of(released(f"sglang=={version}"))), tmp_path / "site-packages"
    )


def contents(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


class TestSGLang:
    @pytest.mark.parametrize(
        ("version", "leak", "evidence"),
        [
            ("0.5.11", LEAK, "measured: 2 open files and 4 registrations per page stay"),
            ("0.5.12", SECOND_LEAK, "measured: no open file and 4 registrations per page stay"),
            ("0.5.23", NEITHER, "measured: no open file and no registration stays"),
        ],
    )
    def test_what_a_release_leaks_is_measured_and_its_folder_left_alone(
        self, site, tmp_path, version, leak, evidence
    ):
        folder = site(version)
        before = contents(folder)
        sglang = sglang_check.find(folder)
        assert sglang == SGLang(folder, version)
        judged = sglang_check.judge(sglang, tmp_path)
        assert (judged.leak, judged.evidence, judged.measured) == (leak, evidence, True)
        assert contents(folder) == before
        assert [path.name for path in tmp_path.iterdir()] == ["site-packages"]

    @pytest.mark.parametrize(("version", "leak"), [("0.5.11", LEAK), ("0.5.23", NEITHER)])
    def test_a_connector_that_does_not_load_is_judged_by_its_version_and_that_is_said(
        self, site, version, leak
    ):
        folder = site(version)
        (folder / CONNECTOR).write_text("raise RuntimeError('broken on purpose')\n")
        judged = sglang_check.judge(sglang_check.find(folder))
        assert (judged.leak, judged.measured) == (leak, False)
        assert judged.evidence == (
            "by version, not measured: its connector does not load: RuntimeError: broken on purpose"
        )

    def test_a_connector_that_stores_nothing_is_not_measured(self, site):
        folder = site("0.5.12")
        with (folder / CONNECTOR).open("a") as module:
            module.write("\nHiCacheNixl.batch_set_v1 = lambda self, keys, *rest: [False] * len(keys)\n")
        judged = sglang_check.judge(sglang_check.find(folder))
        assert (judged.leak, judged.measured) == (SECOND_LEAK, False)
        assert "its set moved 0 of 2 pages" in judged.evidence

    def test_a_connector_that_is_patched_is_judged_by_what_it_does_and_not_by_its_version(self, site):
        """The very reason to measure: here every call leaks one file of the storage folder."""
        folder = site("0.5.23")
        with (folder / CONNECTOR).open("a") as module:
            module.write(
                "\n_get = HiCacheNixl.batch_get_v1\n"
                "def leaking(self, *args, **kwargs):\n"
                "    import glob, os\n"
                "    result = _get(self, *args, **kwargs)\n"
                "    path = next(p for p in glob.glob(f'{FOLDER[0]}/**', recursive=True) if os.path.isfile(p))\n"
                "    os.open(path, os.O_RDONLY)\n"
                "    return result\n"
                "FOLDER = []\n"
                "_init = HiCacheNixl.__init__\n"
                "def remembering(self, config, folder, *rest):\n"
                "    FOLDER.append(folder)\n"
                "    _init(self, config, folder, *rest)\n"
                "HiCacheNixl.__init__, HiCacheNixl.batch_get_v1 = remembering, leaking\n"
            )
        judged = sglang_check.judge(sglang_check.find(folder))
        assert (judged.leak, judged.measured) == (LEAK, True)
        assert judged.evidence.startswith("measured: 0.25 open files and 0 registrations per page")

    def test_without_version_and_without_a_run_nothing_is_claimed(self, tmp_path):
        (tmp_path / CONNECTOR).parent.mkdir(parents=True)
        (tmp_path / CONNECTOR).write_text("raise RuntimeError('broken on purpose')\n")
        sglang = sglang_check.find(tmp_path)
        assert sglang == SGLang(tmp_path, None)
        assert sglang_check.judge(sglang).leak == UNKNOWN
        finding = machine.sglang_finding(sglang, storage_check.find(str(tmp_path)))
        assert finding.state == NOTE
        assert finding.detail.startswith("SGLang of an unknown version may leak (by version")

    def test_one_without_a_connector_for_nixl_has_neither_leak(self, tmp_path):
        (tmp_path / "sglang").mkdir()
        judged = sglang_check.judge(sglang_check.find(tmp_path))
        assert (judged.leak, judged.evidence) == (NEITHER, "it has no connector for NIXL")

    @pytest.mark.parametrize(
        "layout", [".", "lib/python3.12/site-packages", "lib/python3/dist-packages", "python"]
    )
    def test_it_is_found_in_an_environment_and_in_a_clone(self, tmp_path, layout):
        (tmp_path / layout / "sglang").mkdir(parents=True)
        assert sglang_check.find(tmp_path) == SGLang((tmp_path / layout).resolve(), None)

    @pytest.mark.parametrize(
        ("name", "expected"), [("empty", "no SGLang in it"), ("missing", "no such folder")]
    )
    def test_a_folder_without_it_is_one_line(self, tmp_path, name, expected):
        (tmp_path / "empty").mkdir()
        with pytest.raises(ConfigError) as caught:
            sglang_check.find(tmp_path / name)
        assert str(caught.value) == (
            f"--sglang {tmp_path}/{name}: {expected}; expected the site-packages folder that SGLang is installed in, "
            "or the root of its environment"
        )

    def test_the_one_of_this_environment_is_found_without_importing_it(self, tmp_path, monkeypatch):
        (tmp_path / "sglang").mkdir()
        (tmp_path / "sglang" / "__init__.py").write_text("raise RuntimeError('imported')\n")
        (tmp_path / "sglang-0.5.11.dist-info").mkdir()
        (tmp_path / "sglang-0.5.11.dist-info" / "METADATA").write_text("Name: sglang\nVersion: 0.5.11\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        assert sglang_check.find() == SGLang(tmp_path, "0.5.11")

    def test_where_there_is_none_it_says_how_to_ask_about_another_environment(self, monkeypatch):
        monkeypatch.setattr(sys, "path", [])
        assert sglang_check.find() is None
        finding = machine.sglang_finding(None, storage_check.find())
        assert (finding.state, finding.detail) == (NOTE, "not installed in this environment")
        assert finding.advice.endswith("with --sglang FOLDER")

    @pytest.mark.parametrize(
        ("leak", "measured", "state", "advice"),
        [
            (LEAK, True, NO, "It lacks PR #24671"),
            (SECOND_LEAK, True, NO, "It has PR #24671 and lacks PR #25173"),
            (NEITHER, True, OK, ""),
            (NEITHER, False, NOTE, ""),
        ],
    )
    def test_a_leak_comes_with_its_advice(self, monkeypatch, tmp_path, leak, measured, state, advice):
        verdict = sglang_check.Verdict(leak, "as it was found", measured)
        monkeypatch.setattr(sglang_check, "judge", lambda *args, **kwargs: verdict)
        finding = machine.sglang_finding(SGLang(tmp_path, "9"), storage_check.find())
        assert finding.state == state
        assert finding.detail == f"SGLang 9 {leak} (as it was found); it is in {tmp_path}"
        assert finding.advice.startswith(advice)
        assert bool(finding.advice) == bool(advice)

    @pytest.mark.parametrize("version", [None, "", "main"])
    def test_what_is_no_number_says_nothing(self, version):
        assert sglang_check.by_version(version) == UNKNOWN

    def test_by_version_agrees_with_the_releases_that_we_name(self):
        stands_for = {"leaky": LEAK, "try_finally": SECOND_LEAK, "": NEITHER}
        by_name = {name: stands_for[row.stands_for] for name, row in known_releases().items()}
        assert {name: sglang_check.by_version(name) for name in by_name} == by_name

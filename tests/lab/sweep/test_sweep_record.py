"""The folder of a sweep: what comes back is unpacked as a whole, inside the folder, or not at all."""

from __future__ import annotations

import errno
import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from tiny_sweeps import begun

from hicache_nixl.errors import ConfigError
from hicache_nixl.lab.runs.folder import RunFolder
from hicache_nixl.lab.sweep import record
from hicache_nixl.lab.sweep.grid import Grid
from hicache_nixl.lab.sweep.lanes import Answer, Job
from hicache_nixl.lab.sweep.record import PointState, Sweep, read_sweep

SLUG = "001-a"


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as files:
        for about, text in members:
            about.size = len(text)
            files.addfile(about, io.BytesIO(text))
    return made.getvalue()


def file(name: str, text: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), text


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    about = tarfile.TarInfo(name)
    about.type, about.linkname = tarfile.SYMTYPE, target
    return about, b""


def flipped(packed: bytes, place: int) -> bytes:
    return packed[:place] + bytes([packed[place] ^ 255]) + packed[place + 1 :]


TEXT = bytes(range(256)) * 99
WHOLE = archive(file("claims.csv", TEXT))
TAR = gzip.decompress(WHOLE)


def answer(packed: bytes, **told: object) -> Answer:
    return Answer(Job(SLUG, {}, "a", True), "a", {"state": "ended", "seconds": 1.0, **told}, packed)


@pytest.fixture
def sweep(folder: Path) -> Sweep:
    return begun(folder, Grid(), ["01_counts"], ["a"])


class TestKeep:
    def test_a_run_is_in_its_place_and_its_state_is_written(self, sweep):
        sweep.keep(answer(archive(file("claims.csv", b"text")), verdict="1 of 1 claims hold"))
        assert (sweep.run_of(SLUG) / "claims.csv").read_text() == "text"
        (point,) = read_sweep(sweep.folder).points.values()
        assert (point.state, point.verdict, point.host) == ("ended", "1 of 1 claims hold", "a")
        assert point.bytes == len(archive(file("claims.csv", b"text")))

    @pytest.mark.parametrize(
        "member",
        [file("../outside"), file("/tmp/outside"), link("out", "/etc"), link("out", "../..")],
        ids=["above", "absolute", "link", "link above"],
    )
    def test_nothing_is_written_outside_of_its_folder(self, sweep, member):
        before = sorted(path.name for path in sweep.folder.parent.iterdir())
        name = member[0].name
        sweep.keep(answer(archive(member)))
        if name.startswith("/"):  # taken as relative, as tar does
            assert (sweep.run_of(SLUG) / "tmp/outside").exists()
        else:
            self.has_failed(sweep, repr(name))
        assert sorted(path.name for path in sweep.folder.parent.iterdir()) == before

    @staticmethod
    def has_failed(sweep: Sweep, reason: str) -> None:
        (point,) = read_sweep(sweep.folder).points.values()
        assert point.state == "failed"
        assert point.reason.startswith("its run cannot be unpacked: ")
        assert reason in point.reason
        assert list((sweep.folder / "points").iterdir()) == []

    @pytest.mark.parametrize(
        ("packed", "reason"),
        [
            (WHOLE[:-40], "ended before the end-of-stream marker"),
            (b"\x1f\x8bnot a tar", "Unknown compression method"),
            (b"not gzip", "Not a gzipped file"),
            (flipped(WHOLE, 60), "decompressing"),
            (gzip.compress(flipped(TAR, 200)), "bad checksum"),
            (gzip.compress(TAR[:9000]), "unexpected end of data"),
        ],
        ids=["cut off", "no tar", "no gzip", "damaged gzip", "damaged tar", "tar cut off"],
    )
    def test_an_archive_that_is_damaged_is_why_the_point_failed_and_nothing_of_it_is_left(
        self, sweep, packed, reason
    ):
        sweep.keep(answer(packed))
        self.has_failed(sweep, reason)

    @pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME], ids=["file", "name"])
    def test_no_more_than_a_bound_is_unpacked(self, sweep, monkeypatch, kind):
        monkeypatch.setattr(record, "MOST", 1 << 20)
        about, text = file("zeros", bytes(8 << 20))
        about.type = kind
        sweep.keep(answer(archive((about, text))))
        self.has_failed(sweep, "it has more than 1048576 bytes")

    def test_a_full_disk_is_why_the_point_failed_and_makes_room_again(self, sweep, monkeypatch):
        def fill(files: tarfile.TarFile, folder: Path, **how: object) -> None:
            (folder / "half").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(tarfile.TarFile, "extractall", fill)
        sweep.keep(answer(WHOLE))
        self.has_failed(sweep, "No space left on device")

    def test_the_run_of_a_point_that_failed_before_is_replaced(self, sweep):
        sweep.keep(answer(archive(file("old")), reason="it crashed"))
        assert sweep.points[SLUG].state == "failed"
        sweep.keep(answer(archive(file("new"))))
        assert [path.name for path in sweep.run_of(SLUG).iterdir()] == ["new"]
        assert (sweep.points[SLUG].state, sweep.points[SLUG].reason) == ("ended", "")

    def test_a_point_without_a_run_has_no_record(self, sweep):
        sweep.keep(Answer(Job(SLUG, {}, "a", True), "", {"state": "failed", "reason": "host a has left"}))
        assert sweep.record(SLUG) is None
        assert sweep.verdict() == "0 of 1 points ran, 1 failed"

    def test_a_process_that_others_have_interrupted_is_a_point_that_failed_with_a_reason(self, sweep):
        sweep.keep(Answer(Job(SLUG, {}, "a", True), "a", {"state": "interrupted"}))
        assert sweep.points[SLUG].state == "failed"
        assert sweep.points[SLUG].reason == "its process was interrupted on its host"

    def test_what_comes_back_is_a_run_that_can_be_read(self, sweep, tmp_path):
        made = RunFolder(tmp_path / "made")
        made.path.mkdir()
        made.plan(["01_counts"])
        packed = archive(file("provenance.json", (made.path / "provenance.json").read_bytes()))
        sweep.keep(answer(packed))
        assert sweep.record(SLUG).unfinished == ["01_counts"]


class TestToRun:
    def test_a_point_that_failed_says_why_until_it_has_come_back_and_nothing_of_it_is_left_then(self, sweep):
        sweep.keep(answer(WHOLE, reason="it crashed", errors=["claim flat"], verdict="0 of 1 claims hold"))
        assert sweep.left == set()
        assert [point.slug for point in sweep.to_run()] == [SLUG]
        assert sweep.left == {SLUG}
        (point,) = read_sweep(sweep.folder).points.values()
        assert (point.state, point.reason) == ("failed", "it crashed")
        assert sweep.run_of(SLUG).is_dir()
        sweep.keep(Answer(Job(SLUG, {}, "a", True), "a", {"state": "failed", "reason": "host a has left"}))
        (point,) = read_sweep(sweep.folder).points.values()
        assert point == PointState(SLUG, "a", {}, "failed", "host a has left")
        assert list((sweep.folder / "points").iterdir()) == []
        assert sweep.left == set()

    def test_a_point_for_any_host_has_none_again_and_one_that_has_ended_is_kept(self, folder):
        grid = Grid(parameters={"queue": ("libaio", "io_uring")}, every_host=False)
        sweep = begun(folder, grid, ["01_counts"], ["a"])
        first, second = sweep.points
        sweep.keep(Answer(Job(first, {}, None, True), "a", {"state": "ended"}, WHOLE))
        sweep.keep(Answer(Job(second, {}, None, True), "a", {"state": "failed", "reason": "x"}, WHOLE))
        assert [(point.slug, point.host) for point in sweep.to_run()] == [(second, None)]
        assert [path.name for path in (folder / "points").iterdir()] == [first, second]


class TestHandle:
    def test_below_runs_it_is_the_name_and_elsewhere_the_path(self, sweep, monkeypatch):
        assert sweep.handle == str(sweep.folder)
        monkeypatch.setattr(record, "runs_folder", lambda: sweep.folder.parent)
        assert sweep.handle == sweep.name

    def test_a_path_with_blanks_is_quoted_for_a_shell(self, tmp_path):
        sweep = begun(tmp_path / "a b", Grid(), ["01_counts"], ["a"])
        assert sweep.handle == f"'{tmp_path}/a b'"


class TestRead:
    def test_a_format_of_later_is_refused(self, sweep):
        path = sweep.folder / "sweep.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": 9, "version": "9.0"}))
        with pytest.raises(ConfigError, match=r"sweep.json is of another version of hicache-nixl \(9.0\)"):
            read_sweep(sweep.folder)

    @pytest.mark.parametrize("text", ["", "{}", '{"format": 1}', "[]"])
    def test_a_file_that_is_damaged_is_one_line(self, sweep, text):
        (sweep.folder / "sweep.json").write_text(text)
        with pytest.raises(ConfigError, match=r"sweep.json cannot be read"):
            read_sweep(sweep.folder)

"""The watched process: its descriptors, its limit, where it lives, and why some cannot be watched."""

from __future__ import annotations

import os
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from processes import sleeping_child, wait_until
from support import answer_of, run_python, unshare

from hicache_nixl.errors import ConfigError
from hicache_nixl.lab.worker.descriptors import ProcessGoneError
from hicache_nixl.watch import process as watched_process
from hicache_nixl.watch.process import KERNEL_THREAD, WatchedProcess

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def opened(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_RDWR)


@contextmanager
def living(*command: str) -> Iterator[psutil.Process]:
    """A process that prints a line when it is ready, and the descendant that printed it."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout.readline() == "ready\n"
            process = psutil.Process(started.pid)
            yield (process.children(recursive=True) or [process])[-1]
        finally:
            for child in psutil.Process(started.pid).children(recursive=True):
                child.kill()
            started.kill()


class TestSample:
    def test_every_kind_goes_up_by_what_was_opened(self, tmp_path):
        watched = WatchedProcess(os.getpid(), str(tmp_path))
        before = watched.sample().counts
        fds = [opened(tmp_path / "page"), os.open(tmp_path, os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)]
        fds += [*os.pipe(), opened(Path(__file__)), os.eventfd(0)]
        with socket.socket(), select.epoll():
            after = watched.sample()
        for fd in fds:
            os.close(fd)
        more = {name: count - before[name] for name, count in after.counts.items() if count != before[name]}
        kinds = {"folder": 1, "device": 1, "pipe": 2, "regular": 1, "eventfd": 1, "socket": 1, "epoll": 1}
        assert more == {"open_fds": 9, "storage_fds": 1, **kinds}
        assert watched.sample().counts == before

    def test_all_of_them_are_what_proc_lists(self):
        sample = WatchedProcess(os.getpid()).sample()
        assert sample.counts["open_fds"] == len(os.listdir("/proc/self/fd")) - 1

    def test_without_a_folder_storage_files_are_regular_files(self, tmp_path):
        watched = WatchedProcess(os.getpid())
        before = watched.sample()
        fd = opened(tmp_path / "page")
        after = watched.sample()
        os.close(fd)
        assert after.storage_fds is None
        assert after.kinds["regular"] == before.kinds["regular"] + 1

    def test_seconds_and_time_go_on(self):
        watched = WatchedProcess(os.getpid())
        first, second = watched.sample(), watched.sample()
        assert 0 <= first.seconds < second.seconds < 5
        assert first.time <= second.time

    def test_the_limit_is_the_soft_one_of_that_process_now(self):
        with sleeping_child() as pid:
            watched = WatchedProcess(pid)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (77, 200))
            assert watched.sample().limit == 77
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (99, 200))
            assert watched.sample().limit == 99

    def test_a_sample_of_many_descriptors_takes_a_fraction_of_a_second(self, tmp_path):
        path = tmp_path / "page"
        fds = [opened(path) for _ in range(3000)]
        watched = WatchedProcess(os.getpid(), str(tmp_path))
        start = time.process_time()
        sample = watched.sample()
        spent = time.process_time() - start
        for fd in fds:
            os.close(fd)
        assert sample.storage_fds == 3000
        assert spent < 0.5


class TestStorageFolder:
    def test_a_symbolic_link_and_a_relative_path_stand_for_it(self, tmp_path, monkeypatch):
        (tmp_path / "pages").mkdir()
        (tmp_path / "link").symlink_to("pages")
        (tmp_path / "round").symlink_to(tmp_path / "pages" / ".." / "link")
        monkeypatch.chdir(tmp_path)
        fd = opened(tmp_path / "pages" / "page")
        counts = [
            WatchedProcess(os.getpid(), name).sample().storage_fds for name in ("pages", "link", "./round/")
        ]
        os.close(fd)
        assert counts == [1, 1, 1]

    def test_a_file_that_was_removed_counts_and_a_neighbour_does_not(self, tmp_path):
        for name in ("pages", "pages2"):
            (tmp_path / name).mkdir()
        fds = [opened(tmp_path / "pages" / "page"), opened(tmp_path / "pages2" / "page")]
        (tmp_path / "pages" / "page").unlink()
        count = WatchedProcess(os.getpid(), str(tmp_path / "pages")).sample().storage_fds
        for fd in fds:
            os.close(fd)
        assert count == 1

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("missing", "No such file or directory"),
            ("file", "Not a directory"),
            ("circle", "Too many levels of symbolic links"),
        ],
    )
    def test_one_that_is_none_is_refused(self, tmp_path, name, reason):
        (tmp_path / "file").touch()
        (tmp_path / "circle").symlink_to("circle")
        with pytest.raises(ConfigError) as refused:
            WatchedProcess(os.getpid(), str(tmp_path / name))
        assert f"--storage-dir {tmp_path / name}: {reason}; expected" in str(refused.value)


class TestSuggestion:
    def test_the_folder_of_most_regular_files_is_named(self, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        fds = [opened(tmp_path / name / f"{number}") for name in ("a", "b") for number in range(150)]
        watched, with_folder = WatchedProcess(os.getpid()), WatchedProcess(os.getpid(), str(tmp_path))
        for one in (watched, with_folder):
            one.sample()
        for fd in fds:
            os.close(fd)
        assert f"are below {tmp_path}: add --storage-dir {tmp_path} to name them" in watched.suggestion()
        assert with_folder.suggestion() is None

    def test_there_is_none_for_a_handful_of_files(self):
        with sleeping_child() as pid:
            watched = WatchedProcess(pid)
            watched.sample()
            assert watched.suggestion() is None

    def test_a_child_that_has_the_storage_files_is_named(self, tmp_path):
        """As with SGLang, whose files are those of its scheduler and not of the server that was started."""
        with open(tmp_path / "page", "w") as page:
            child = subprocess.Popen(["sleep", "60"], pass_fds=[page.fileno()])
            WatchedProcess(os.getpid(), str(tmp_path)).check_children()  # we have one open ourselves
        ours = WatchedProcess(os.getpid(), str(tmp_path))
        try:
            ours.check_children([child.pid])  # which is watched, too
            with pytest.raises(ConfigError, match=rf"its child {child.pid} \(.*\) has 1: watch that one, or"):
                ours.check_children()
        finally:
            child.kill()
            child.wait()


class TestEnd:
    @pytest.mark.parametrize("reaped", [False, True])
    def test_one_that_ends_is_gone(self, reaped):
        with sleeping_child() as pid:
            watched, process = WatchedProcess(pid), psutil.Process(pid)
            watched.sample()
            process.kill()
            if reaped:
                process.wait()
            else:
                wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE)
            with pytest.raises(ProcessGoneError, match=f"process {pid} has ended"):
                watched.sample()

    @pytest.mark.parametrize("storage_dir", [None, "/tmp"])
    def test_one_that_ends_while_it_is_looked_up_is_said_to(self, monkeypatch, storage_dir):
        """Ended where it hurts: after every look-up of its own, one after the other."""
        looked_up = ("_check_alive", "_check_permission", "_namespaces", "_command")
        for name in looked_up:
            with sleeping_child() as pid, monkeypatch.context() as patch:
                process, original = psutil.Process(pid), getattr(watched_process, name)

                def then_ends(*arguments, process=process, original=original):
                    answer = original(*arguments)
                    process.kill()
                    process.wait()
                    return answer

                patch.setattr(watched_process, name, then_ends)
                if name == "_namespaces":  # nothing is looked up after it
                    assert not WatchedProcess(pid).alive()
                else:
                    with pytest.raises(ConfigError, match=rf"process {pid} .*ended"):
                        WatchedProcess(pid, storage_dir)

    def test_a_zombie_is_not_alive(self):
        with sleeping_child() as pid:
            watched = WatchedProcess(pid)
            assert watched.alive()
            psutil.Process(pid).kill()
            wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
            assert not watched.alive()

    def test_another_process_with_its_number_is_not_taken_for_it(self):
        """The number is given again by the kernel itself, in a namespace where nobody else takes it."""
        prefix = (*unshare(), "--pid", "--fork", "--mount-proc")
        answer = answer_of(run_python(str(SCRIPTS / "same_pid.py"), prefix=prefix))
        assert answer["same"]
        assert answer["message"] == f"process {answer['pid']} has ended"


class TestRefused:
    @pytest.mark.parametrize("pid", [0, -1, -(10**30)])
    def test_a_number_below_one(self, pid):
        with pytest.raises(ConfigError, match=f"PID {pid}: expected the number of a process, 1 or more"):
            WatchedProcess(pid)

    @pytest.mark.parametrize("pid", [2**22 + 1, 2**31, 10**30])
    def test_a_number_that_no_process_can_have(self, pid):
        with pytest.raises(ConfigError, match=f"PID {pid}: no such process"):
            WatchedProcess(pid)

    def test_one_that_does_not_exist_and_how_to_find_the_right_one(self):
        with subprocess.Popen(["true"]) as child:
            child.wait()
        with pytest.raises(ConfigError) as refused:
            WatchedProcess(child.pid)
        message = str(refused.value)
        expected = ("no such process", "pgrep -af sglang", "container", "docker inspect")
        assert [word for word in expected if word not in message] == []

    def test_a_zombie(self):
        with subprocess.Popen(["true"]) as child:
            wait_until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
            with pytest.raises(
                ConfigError, match=rf"{child.pid} \(true\) has ended; it remains as a zombie of its"
            ):
                WatchedProcess(child.pid)

    def test_a_thread_of_the_kernel(self):
        threads = [
            process
            for process in psutil.process_iter()
            if int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[6])
            & KERNEL_THREAD
        ]
        if not threads:
            pytest.skip(
                "no thread of the kernel is seen from here"
            )  # a container shows none, and none can be made
        with pytest.raises(ConfigError, match="is a kernel thread and has no descriptors"):
            WatchedProcess(threads[0].pid)


class TestNamespaces:
    def test_a_process_in_a_container_is_seen_with_its_own_files(self, tmp_path):
        """Its /pages is a file system that nobody else sees, behind a link; ours of that name is empty."""
        (tmp_path / "pages").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "pages")
        script = (
            f"mount -t tmpfs none {tmp_path}/pages; exec 7>{tmp_path}/pages/one 8>{tmp_path}/pages/two; "
            "echo ready; exec sleep 60"
        )
        with living(*unshare(), "--pid", "--fork", "sh", "-c", script) as process:
            watched = WatchedProcess(process.pid, str(tmp_path / "link"))
            assert watched.sample().storage_fds == 2
            assert list((tmp_path / "pages").iterdir()) == []
            (note,) = watched.notes
            assert "runs in a container (PID 1 inside); " in note
            assert note.endswith(f"{tmp_path}/link is the folder of that name inside the container")
            with pytest.raises(ConfigError, match=r"absolute path inside that container"):
                WatchedProcess(process.pid, "pages")
            with pytest.raises(ConfigError, match=r"No such file or directory in the container of process"):
                WatchedProcess(process.pid, "/nowhere")

    def test_an_absolute_link_is_followed_below_the_root_of_that_process(self, tmp_path):
        (tmp_path / "root" / "pages").mkdir(parents=True)
        (tmp_path / "root" / "data").symlink_to("/pages")
        code = (
            "import os, sys, time; os.chroot(sys.argv[1]); fd = os.open('/data/page', os.O_CREAT | os.O_RDWR); "
            "print('ready', flush=True); time.sleep(60)"
        )
        with living(*unshare(), sys.executable, "-S", "-c", code, str(tmp_path / "root")) as process:
            watched = WatchedProcess(process.pid, "/data")
            assert watched.sample().storage_fds == 1
            assert any("runs in a container; /data is" in note for note in watched.notes)

    def test_a_pid_namespace_alone_is_said(self):
        with living(*unshare(), "--pid", "--fork", "sh", "-c", "echo ready; exec sleep 60") as process:
            assert "(PID 1 inside)" in WatchedProcess(process.pid).notes[0]

    def test_there_is_no_word_of_it_for_a_process_of_our_own(self):
        assert WatchedProcess(os.getpid()).notes == []

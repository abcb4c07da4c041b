"""Environments of servers: installed once, continued when interrupted, gone when they failed.  The packages are tiny."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import venv
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pexpect
import psutil
import pytest
from processes import have_ended, wait_until
from tiny_pins import PINS, PROGRAM, VERSION, Index, make_wheel, use, write_pins

from hicache_nixl.errors import ConfigError
from hicache_nixl.lab.server import ServerError, environment, install, installed, remove, versions

STORAGE = "sglang/srt/mem_cache"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="session")
def fresh_venv(tmp_path_factory) -> Path:
    """A virtual environment with pip, which takes long to make."""
    folder = tmp_path_factory.mktemp("venv") / "venv"
    venv.create(folder, with_pip=True)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HICACHE_NIXL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path, cache, fresh_venv, monkeypatch) -> Iterator[Index]:
    """The index with the tiny wheels, which is used by this process and those that it starts."""
    for name, value in (("resource", None), ("STEP", 1)):
        monkeypatch.setattr(environment, name, value)
    monkeypatch.setattr(environment.venv, "create", None)
    write_pins(tmp_path / "resources")
    use(tmp_path / "resources", fresh_venv)
    (tmp_path / "wheels").mkdir()
    index = Index(tmp_path / "wheels", ["tiny-a", "tiny-b", "tiny-c", "tiny-d"])
    for name, value in {**index.variables, "PIP_NO_CACHE_DIR": "1", "PIP_RETRIES": "0"}.items():
        monkeypatch.setenv(name, value)
    yield index
    index.close()


@pytest.fixture
def installing(index, tmp_path, fresh_venv) -> Iterator[subprocess.Popen[str]]:
    """``server install`` in a process group of its own, which waits in the middle of its second step."""
    index.held["tiny-b"] = threading.Event()
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "resources"), str(fresh_venv)]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        wait_until(lambda: "tiny-b" in index.asked)
        yield process
        process.kill()


def let_go(index: Index) -> None:
    index.held.pop("tiny-b").set()


class TestInstall:
    def test_it_has_the_pins_and_no_more(self, index, cache):
        told: list[tuple[str, int, int]] = []
        made = install(VERSION, lambda *what: told.append(what))
        assert installed(VERSION) == made
        code = "import tiny_a, tiny_b, tiny_c; print(tiny_c.__file__)"
        found = subprocess.run(
            [made.python, "-c", code], env={"PYTHONPATH": str(made.packages)}, capture_output=True, text=True
        )
        assert found.stdout == f"{made.packages}/tiny_c.py\n"
        doing = list(dict.fromkeys(what for what, _, _ in told))
        assert doing == [
            "packages of all releases, step 1 of 2",
            "packages of all releases, step 2 of 2",
            "packages of the connector",
            f"sglang {VERSION}, step 1 of 1",
        ]
        assert told[-1][1] < told[-1][2] == environment.RELEASE_BYTES
        assert not list(cache.rglob(".pip"))

    def test_it_is_made_once(self, index):
        first = install(VERSION)
        assert install(VERSION) == first
        assert index.asked == ["tiny-a", "tiny-b", "tiny-d", "tiny-c"]

    def test_packages_of_the_connector_are_added_to_what_was_installed_without_them(self, index, tmp_path):
        made = install(VERSION)
        (tmp_path / "resources/data/servers/connector.txt").write_text("tiny-d==1.0\ntiny-a==1.0")
        assert installed(VERSION) is None
        assert install(VERSION) == made
        assert index.asked == ["tiny-a", "tiny-b", "tiny-d", "tiny-c", "tiny-d", "tiny-a"]

    def test_remove_frees_all_of_it(self, index, cache):
        install(VERSION)
        size = sum(environment.sizes().values())
        assert remove() == size > 1e6
        assert installed(VERSION) is None
        assert [path.name for path in cache.iterdir()] == ["servers.lock"]
        assert remove() == 0

    def test_remove_refuses_what_a_process_uses(self, index):
        made = install(VERSION)
        code = "import time; print(1, flush=True); time.sleep(100)"
        with subprocess.Popen([made.python, "-c", code], stdout=subprocess.PIPE) as user:
            user.stdout.readline()
            with pytest.raises(ConfigError, match=f"is used by process {user.pid}; end the server first"):
                remove()
            user.kill()
        assert installed(VERSION) == made


@pytest.mark.slow
def test_a_bar_shows_step_size_and_time_in_a_terminal(index, tmp_path, fresh_venv):
    arguments = ["-c", PROGRAM, str(tmp_path / "resources"), str(fresh_venv)]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    shown = pexpect.spawn(
        sys.executable,
        arguments,
        env={**os.environ, "PYTHONPATH": path, "TERM": "xterm"},
        timeout=60,
        encoding="utf-8",
        dimensions=(24, 120),
    )
    shown.expect(r"packages of all releases, step 1 of 2 .* MiB of about 3.3 GiB .*0:00:")
    shown.expect(rf"sglang {VERSION} is installed, in \d+ s: hicache-nixl server run {VERSION}")
    shown.expect(pexpect.EOF)
    shown.close()
    assert shown.exitstatus == 0


class TestInterrupted:
    def continue_it(self, index: Index) -> None:
        let_go(index)
        assert installed(VERSION) is None
        install(VERSION)
        assert index.asked == ["tiny-a", "tiny-b", "tiny-b", "tiny-d", "tiny-c"]

    @pytest.mark.slow
    def test_killed_it_takes_pip_with_it_and_continues(self, index, installing):
        started = psutil.Process(installing.pid).children(recursive=True)
        assert len(started) >= 2  # a keeper and pip
        installing.kill()
        wait_until(lambda: have_ended(started))
        self.continue_it(index)

    @pytest.mark.slow
    def test_a_pip_that_is_killed_is_told_and_it_continues(self, index, installing):
        (pip,) = [
            one
            for one in psutil.Process(installing.pid).children(recursive=True)
            if one.cmdline()[1:3] == ["-m", "pip"]
        ]
        pip.kill()
        _, told = installing.communicate(timeout=60)
        assert installing.returncode == 1
        assert told.endswith(
            "error: pip was killed; install again to continue after the last step that was complete\n"
        )
        self.continue_it(index)

    @pytest.mark.slow
    def test_ctrl_c_says_how_to_continue(self, index, installing, cache):
        started = psutil.Process(installing.pid).children(recursive=True)
        os.killpg(installing.pid, signal.SIGINT)
        _, told = installing.communicate(timeout=60)
        assert installing.returncode == 130
        assert told.endswith(
            "installing packages of all releases, step 2 of 2\n"
            f"interrupted; the steps that are complete stay in {cache}/servers: the same command continues\n"
        )
        assert have_ended(started)
        self.continue_it(index)

    def test_while_the_virtual_environment_is_made_it_begins_again(self, index, cache, monkeypatch):
        def interrupted(folder: Path, **_: object) -> None:
            (folder / "bin").mkdir(parents=True)
            (folder / "bin" / "python").touch()
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(environment.venv, "create", interrupted)
            with pytest.raises(KeyboardInterrupt):
                install(VERSION)
        (left,) = (cache / "servers").iterdir()
        shutil.rmtree(left / "bin")  # the real one clears the folder
        install(VERSION)

    def test_an_interrupted_removal_leaves_nothing_that_looks_complete(self, index, cache, monkeypatch):
        def interrupted(folder: Path, **_: object) -> None:
            if folder.exists():
                raise KeyboardInterrupt

        install(VERSION)
        with monkeypatch.context() as patch:
            patch.setattr(environment.shutil, "rmtree", interrupted)
            with pytest.raises(KeyboardInterrupt):
                remove()
        assert installed(VERSION) is None
        assert remove() > 0
        assert [path.name for path in cache.iterdir()] == ["servers.lock"]


class TestWhatCannotBeInstalled:
    def test_a_package_that_the_index_does_not_have_is_named_and_the_folder_is_gone(
        self, index, tmp_path, cache
    ):
        common = tmp_path / "resources/data/servers/common.txt"
        common.write_text("\n".join([*PINS["common"], "tiny-e==1.0"]))
        with pytest.raises(
            ServerError, match=r"^the packages could not be installed: No matching .*tiny-e==1.0\n"
        ):
            install(VERSION)
        assert list((cache / "servers").iterdir()) == []

    def test_no_registry(self, index, cache, monkeypatch):
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        monkeypatch.setenv("PIP_RETRIES", "1")  # without one, pip does not say that it was not answered
        with pytest.raises(
            ServerError,
            match=r"^the packages could not be installed: pip reached no package registry\npip printed:",
        ):
            install(VERSION)
        assert list((cache / "servers").iterdir()) == []

    def test_a_disk_that_is_too_small(self, index, cache, monkeypatch):
        monkeypatch.setattr(environment.shutil, "disk_usage", lambda folder: Usage(9e9, 8e9, 1e9))
        with pytest.raises(ConfigError) as error:
            install(VERSION)
        assert str(error.value) == (
            f"not enough disk space in {cache}/servers: 4.0 GB are needed and 1.0 GB are free; "
            "set HICACHE_NIXL_CACHE to a folder on a larger disk"
        )
        assert list((cache / "servers").iterdir()) == []

    def test_a_cache_that_cannot_be_written_to(self, index, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setenv("HICACHE_NIXL_CACHE", str(tmp_path / "file"))
        with pytest.raises(
            ConfigError, match=r"/servers: .*; set HICACHE_NIXL_CACHE to a folder that can be"
        ):
            install(VERSION)

    @pytest.mark.parametrize(
        ("files", "says"),
        [
            (
                {f"{STORAGE}/hicache_storage.py": "class HiCacheStorage:\n    def batch_set_v1(self): ..."},
                "sglang 0.0.1 lacks a storage backend on NIXL and storage backends of other packages ('dynamic'); "
                "releases that work: {known}",
            ),
            ({}, "sglang 0.0.1 lacks a storage backend on NIXL and .* and batch_set_v1; releases that work: {known}"),
            (
                {
                    f"{STORAGE}/hicache_storage.py": "def batch_set_v1(self): ...",
                    f"{STORAGE}/storage/nixl/hicache_nixl.py": "class HiCacheNixl: ...",
                    f"{STORAGE}/storage/backend_factory.py": "'dynamic'",
                },
                "sglang 0.0.1 cannot be run, since its packages are not pinned; releases that work: {known}",
            ),
        ],
        ids=["without NIXL", "empty", "complete"],
    )  # fmt: skip
    def test_a_release_says_what_it_lacks_and_which_ones_work(self, cache, caplog, files, says):
        cache.mkdir()
        make_wheel(cache, "sglang", "0.0.1", files)
        known = ", ".join(versions())
        with pytest.raises(ConfigError, match=says.format(known=known).replace("('dynamic')", ".*")):
            install("0.0.1")
        assert caplog.text == ""  # the hash of what is never run does not matter
        assert [path.suffix for path in cache.iterdir()] == [".whl"]

    def test_a_release_that_cannot_be_looked_up(self, cache, monkeypatch):
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        with pytest.raises(
            ConfigError,
            match=r"^sglang 0.0.1 is not available: pip reached no .*; releases that work: 0.5.11, ",
        ):
            install("0.0.1")
        assert list(cache.iterdir()) == []

    def test_what_is_no_version_is_not_looked_up(self, cache, monkeypatch):
        monkeypatch.setattr(environment, "fetch", None)
        with pytest.raises(
            ConfigError, match=r"^sglang one is not a version; .*; releases that work: 0.5.11, "
        ):
            install("one")
        assert not list(cache.rglob("*.whl"))

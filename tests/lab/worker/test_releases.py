"""Released connectors: which wheel, from where, checked how; and what is said when there is none."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from processes import workers_of
from support import answer_of, run_python

from hicache_nixl.config import LIFETIMES, ConfigError
from hicache_nixl.lab.worker import releases
from hicache_nixl.lab.worker.client import Worker
from hicache_nixl.lab.worker.releases import (
    CACHE_VARIABLE,
    ReleaseError,
    at_hand,
    cache_folder,
    fetch,
    known_releases,
    version_of,
)
from hicache_nixl.lab.worker.setup import Setup

KNOWN = "; known to work: 0.5.11, 0.5.12, 0.5.13.post1, 0.5.23"
CONNECTOR = "sglang/srt/mem_cache/storage/nixl/hicache_nixl.py"
CONFIG = "sglang/srt/mem_cache/hicache_storage.py"
ANY_CONFIG = "class HiCacheStorageConfig:\n    def __init__(self, **fields): ...\n"


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder, and a pip that knows no index, whatever is set up on this machine."""
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    return folder


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "_pip_download", lambda *_: pytest.fail("pip was asked"))


@pytest.fixture
def registry(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of wheels that pip takes for its registry."""
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture(scope="module")
def real_wheel(released: Callable[[str], str]) -> Path:
    """SGLang 0.5.11, out of the cache of the person who runs the tests."""
    return fetch(version_of(released("sglang==0.5.11")))


def wheel(folder: Path, version: str, **modules: str) -> Path:
    """Put a small wheel into a folder; it says that it is sglang, and holds these modules."""
    path = folder / f"sglang-{version}-py3-none-any.whl"
    about = f"sglang-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: sglang\nVersion: {version}\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
        for name, text in modules.items():
            archive.writestr({"connector": CONNECTOR, "config": CONFIG}[name], text)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestVersionOf:
    @pytest.mark.parametrize("version", ["0.5.11", "0.5.13.post1", "0.6.0rc1", "1", "0.5.12.dev3"])
    def test_a_release_has_its_version(self, version):
        assert version_of(f"sglang=={version}") == version

    @pytest.mark.parametrize("connector", [*LIFETIMES, "sglang", "sglang=0.5.11", "sglang>=0.5.11", ""])
    def test_anything_else_is_no_release(self, connector):
        assert version_of(connector) is None

    @pytest.mark.parametrize(
        "version", ["", "latest", "0.5.*", "0.5.11 --pre", "../0.5.11", "0.5.11\n", "0..5", "v0.5.11"]
    )
    def test_what_is_no_version_is_refused(self, version):
        """It becomes part of a command and of a file's name."""
        with pytest.raises(ReleaseError) as caught:
            version_of(f"sglang=={version}")
        assert str(caught.value) == f"sglang=={version} is not a version; expected one such as 0.5.11{KNOWN}"

    def test_a_setup_refuses_it_before_any_process(self):
        with pytest.raises(ConfigError, match="sglang==latest is not a version"):
            Setup("sglang==latest")


def test_the_known_releases_have_a_hash_each_and_stand_for_lifetimes_of_ours():
    table = known_releases()
    assert all(re.fullmatch("[0-9a-f]{64}", row.sha256) for row in table.values())
    assert len({row.sha256 for row in table.values()}) == len(table)
    assert {row.stands_for for row in table.values()} <= {"", *LIFETIMES}
    assert all(row.wheel.startswith(f"sglang-{version}-") for version, row in table.items())


class TestCacheFolder:
    def test_the_environment_says_where(self, cache):
        assert cache_folder() == cache

    @pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
    def test_it_is_below_the_home_folder_otherwise(self, monkeypatch, value):
        monkeypatch.setenv("HOME", "/home/somebody")
        monkeypatch.delenv(CACHE_VARIABLE, raising=False)
        if value is not None:
            monkeypatch.setenv(CACHE_VARIABLE, value)
        assert cache_folder() == Path("/home/somebody/.cache/hicache-nixl")

    def test_a_tilde_stands_for_the_home_folder(self, monkeypatch):
        monkeypatch.setenv("HOME", "/home/somebody")
        monkeypatch.setenv(CACHE_VARIABLE, "~/wheels")
        assert cache_folder() == Path("/home/somebody/wheels")

    def test_an_error_of_the_folder_names_the_variable_that_sets_another(self, cache, monkeypatch):
        (cache / "file").touch()
        monkeypatch.setenv(CACHE_VARIABLE, str(cache / "file" / "below"))
        with pytest.raises(ReleaseError) as caught:
            fetch("0.0.7")
        for part in (
            "sglang==0.0.7 cannot be stored in",
            "Not a directory",
            "(HICACHE_NIXL_CACHE sets another folder)",
        ):
            assert part in str(caught.value)


class TestFetch:
    def test_a_wheel_of_the_cache_is_taken_without_pip(self, cache, no_pip):
        path = wheel(cache, "0.0.7")
        wheel(cache, "0.0.71")
        assert fetch("0.0.7") == path

    def test_a_known_release_of_the_cache_is_checked_and_taken_without_pip(self, real_wheel, cache, no_pip):
        (cache / real_wheel.name).symlink_to(real_wheel)
        assert fetch("0.5.11") == cache / real_wheel.name

    def test_a_wheel_that_pip_finds_is_kept_and_nothing_besides(self, registry, cache, monkeypatch):
        path = wheel(registry, "0.0.7")
        assert fetch("0.0.7") == cache / path.name
        assert contents(cache) == contents(registry)
        monkeypatch.setattr(releases, "_pip_download", lambda *_: pytest.fail("pip was asked again"))
        assert fetch("0.0.7") == cache / path.name

    def test_a_release_that_we_do_not_name_is_taken_with_a_warning(self, cache, no_pip, caplog):
        wheel(cache, "0.0.7")
        fetch("0.0.7")
        (record,) = caplog.records
        assert record.getMessage().startswith("sglang==0.0.7 is not a known release")

    def test_a_version_that_does_not_exist_is_one_line_with_the_reason_and_the_known_ones(
        self, cache, monkeypatch
    ):
        monkeypatch.setenv("FORCE_COLOR", "1")  # as in a kernel
        with pytest.raises(ReleaseError) as caught:
            fetch("0.0.7")
        assert str(caught.value) == (
            f"sglang==0.0.7 is not available: No matching distribution found for sglang==0.0.7{KNOWN}"
        )
        assert contents(cache) == {}

    def test_without_a_registry_it_says_so(self, cache, monkeypatch):
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
        with pytest.raises(ReleaseError) as caught:
            fetch("0.5.11")
        assert str(caught.value) == (
            "sglang==0.5.11 is not available: pip reached no package registry; "
            f"none is needed when the wheel is in the cache folder{KNOWN}"
        )
        assert contents(cache) == {}

    def test_a_registry_that_answers_is_not_said_to_be_silent(self, registry, monkeypatch):
        """One of two indexes is out of reach, and the other has releases, only not this one."""
        wheel(registry, "0.0.8")
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
        with pytest.raises(ReleaseError, match=r"No matching distribution found for sglang==0\.0\.7"):
            fetch("0.0.7")

    def test_an_interrupt_ends_pip_and_leaves_no_file(self, cache, monkeypatch):
        """The index takes the connection and never answers."""

        class InterruptedBar:
            def __init__(self, **_): ...

            def __enter__(self):
                return self

            def __exit__(self, *_): ...

            def refresh(self):
                raise KeyboardInterrupt

        monkeypatch.setattr(releases, "tqdm", InterruptedBar)
        monkeypatch.delenv("PIP_NO_INDEX")
        with socket.create_server(("127.0.0.1", 0)) as silent:
            monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
            started = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                fetch("0.0.7")
        assert time.monotonic() - started < releases.PATIENCE / 2
        commands = [child.cmdline() for child in psutil.Process().children(recursive=True)]
        assert not [command for command in commands if "download" in command]
        assert contents(cache) == {}

    def test_what_pip_unpacks_is_below_the_folder_that_is_removed(self, cache, monkeypatch):
        started = []

        def popen(command: list[str], **options):
            started.append((command[command.index("--dest") + 1], options["env"]["TMPDIR"]))
            raise OSError("not now")

        monkeypatch.setattr(subprocess, "Popen", popen)
        with pytest.raises(ReleaseError, match="not now"):
            fetch("0.0.7")
        ((destination, temporary),) = started
        assert Path(destination).parent == cache
        assert temporary == destination


class TestHash:
    def test_a_wheel_of_the_cache_that_is_another_is_refused_and_nothing_is_touched(self, cache, no_pip):
        path = wheel(cache, "0.5.11")
        wheel(cache, "0.0.7")
        before = contents(cache)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        with pytest.raises(ReleaseError) as caught:
            fetch("0.5.11")
        assert str(caught.value) == (
            f"sglang==0.5.11 is refused: the SHA-256 of {path} is {found}, "
            f"expected {known_releases()['0.5.11'].sha256}; remove the file to fetch it again{KNOWN}"
        )
        assert contents(cache) == before

    def test_one_that_pip_brings_is_refused_and_not_kept(self, registry, cache):
        path = wheel(registry, "0.5.12")
        with pytest.raises(ReleaseError) as caught:
            fetch("0.5.12")
        assert hashlib.sha256(path.read_bytes()).hexdigest() in str(caught.value)
        assert contents(cache) == {}

    def test_no_process_gets_to_load_it(self, cache, no_pip, monkeypatch, tmp_path):
        wheel(cache, "0.5.11", connector="raise SystemExit", config=ANY_CONFIG)
        monkeypatch.setattr(Worker, "request", lambda *_, **__: pytest.fail("the worker was asked"))
        with pytest.raises(ReleaseError, match=r"sglang==0\.5\.11 is refused"):
            Worker(Setup("sglang==0.5.11"), storage_dir=tmp_path)


class TestAtHand:
    def test_it_gives_reasons_instead_of_raising(self, cache):
        wheel(cache, "0.0.8")
        wheel(cache, "0.5.11")
        reasons = at_hand(["scoped", "sglang==0.0.8", "sglang==0.0.7", "sglang==latest", "sglang==0.5.11"])
        assert reasons["scoped"] == reasons["sglang==0.0.8"] == ""
        assert "No matching distribution" in reasons["sglang==0.0.7"]
        assert "is not a version" in reasons["sglang==latest"]
        assert "is refused" in reasons["sglang==0.5.11"]

    def test_a_wheel_that_cannot_be_read_is_a_reason_too(self, cache):
        (cache / "sglang-0.5.11-py3-none-any.whl").symlink_to(cache / "gone")
        reason = at_hand(["sglang==0.5.11"])["sglang==0.5.11"]
        assert reason.startswith(f"sglang==0.5.11 cannot be stored in {cache}: ")
        assert "No such file" in reason


@pytest.fixture(scope="module")
def shared_worker() -> Iterator[Worker]:
    with Worker(Setup("scoped", page_bytes=4096, pages=1)) as worker:
        yield worker


class TestUnusableWheel:
    @pytest.mark.parametrize(
        ("modules", "reason"),
        [
            ({}, "its connector does not load: ModuleNotFoundError: "),
            ({"connector": "import serving_stack"}, "does not load: ModuleNotFoundError: .*'serving_stack'"),
            ({"connector": "HiCacheNixl = 0"}, "does not load: ModuleNotFoundError: .*hicache_storage"),
            (
                {"connector": "def HiCacheNixl(*_): raise RuntimeError('no GPU')", "config": ANY_CONFIG},
                "its connector could not be created: RuntimeError: no GPU",
            ),
            (
                {"connector": "class HiCacheNixl:\n    def __init__(self, *_): ...", "config": ANY_CONFIG},
                "its connector could not be created: AttributeError: .*register_mem_pool_host",
            ),
        ],
        ids=["no connector", "no import", "no configuration", "not made", "no host pool"],
    )
    def test_the_error_names_the_version_the_reason_and_the_known_ones(
        self, cache, shared_worker, modules, reason
    ):
        wheel(cache, "0.0.1", **modules)
        with pytest.raises(ReleaseError, match=rf"^sglang==0\.0\.1 cannot be used: .*{reason}") as caught:
            shared_worker.open(Setup("sglang==0.0.1", page_bytes=4096, pages=1))
        assert str(caught.value).endswith(KNOWN)

    def test_a_file_that_is_not_a_wheel_is_an_error_too(self, cache, shared_worker):
        (cache / "sglang-0.0.1-py3-none-any.whl").write_bytes(b"half a download")
        with pytest.raises(ReleaseError, match=r"sglang==0\.0\.1 cannot be used: .*does not load"):
            shared_worker.open(Setup("sglang==0.0.1", page_bytes=4096, pages=1))

    def test_the_worker_can_open_another_connector(self, cache, shared_worker):
        wheel(cache, "0.0.1")
        with pytest.raises(ReleaseError):
            shared_worker.open(Setup("sglang==0.0.1", page_bytes=4096, pages=1))
        shared_worker.open(Setup("scoped", page_bytes=4096, pages=1))
        assert shared_worker.call("set", 1).pages_ok == 1

    def test_a_worker_that_cannot_begin_leaves_no_process_and_no_folder(self, cache, tmp_path):
        wheel(cache, "0.0.1")
        storage_dir = tmp_path / "storage"
        storage_dir.mkdir()
        before = workers_of()
        with pytest.raises(ReleaseError, match="its connector does not load"):
            Worker(Setup("sglang==0.0.1"), storage_dir=storage_dir)
        assert workers_of() == before
        assert list(storage_dir.iterdir()) == []


class TestWhereItIsLoaded:
    def test_the_connector_is_imported_out_of_the_wheel(self, real_wheel):
        """In a process of its own: what it puts into sys.modules is no working SGLang."""
        code = (
            "import json, sys; from hicache_nixl.lab.worker.releases import connector_class; before = list(sys.path);"
            f"connector, config = connector_class({str(real_wheel)!r});"
            "files = [sys.modules[kind.__module__].__file__ for kind in (connector, config)];"
            "print(json.dumps([connector.__name__, config.__name__, *files, sys.path == before]))"
        )
        name, config, *files, same_path = answer_of(run_python("-c", code))
        assert (name, config, same_path) == ("HiCacheNixl", "HiCacheStorageConfig", True)
        assert files == [f"{real_wheel}/{CONNECTOR}", f"{real_wheel}/{CONFIG}"]

    def test_this_process_never_imports_it(self, real_wheel, shared_worker):
        shared_worker.open(Setup("sglang==0.5.11", page_bytes=4096, pages=1))
        assert shared_worker.call("set", 1).pages_ok == 1
        assert not [name for name in sys.modules if name.partition(".")[0] == "sglang"]

    def test_no_file_of_sglang_is_in_the_repository(self):
        root = Path(__file__).resolve().parents[3]
        folders = ("hicache_nixl", "notebooks", "data", "tests")
        files = [path.relative_to(root) for folder in folders for path in (root / folder).rglob("*")]
        assert not [path for path in files if path.suffix == ".whl" or "sglang" in path.parts]
        imports = re.compile(r"^\s*(from|import) sglang\b", re.MULTILINE)
        inside = Path("tests/controllers/inside")  # runs in the interpreter of a server, which has SGLang
        modules = [path for path in files if path.suffix == ".py" and not path.is_relative_to(inside)]
        assert not [path for path in modules if imports.search((root / path).read_text())]

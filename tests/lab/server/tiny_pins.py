"""A package index of this machine with tiny wheels, and pins of them in the place of those of SGLang's releases."""

from __future__ import annotations

import os
import shutil
import threading
import zipfile
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from hicache_nixl.lab.server import environment

VERSION = "9.9.1"
PINS = {
    "common": ["tiny-a==1.0", "tiny-b==1.0"],
    "connector": ["tiny-d==1.0"],
    f"sglang-{VERSION}": ["tiny-c==1.0"],
}
# For a program that installs as a test does, in a process of its own.
PROGRAM = """
import sys
from pathlib import Path
from tiny_pins import use
use(Path(sys.argv[1]), Path(sys.argv[2]))
from hicache_nixl.cli import main
sys.argv = ["hicache-nixl", "server", "install", "9.9.1"]
main()
"""


def make_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    """Make a wheel with these files."""
    plain = name.replace("-", "_")
    info = f"{plain}-{version}.dist-info"
    path = folder / f"{plain}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def use(resources: Path, venv: Path) -> None:
    """Let this process install the tiny pins, one at a time, and copy the virtual environment that all start from."""
    environment.resource = lambda name: resources / name
    environment.STEP = 1
    environment.venv.create = lambda folder, **_: shutil.copytree(
        venv, folder, symlinks=True, dirs_exist_ok=True
    )


def write_pins(resources: Path) -> None:
    folder = resources / "data" / "servers"
    folder.mkdir(parents=True)
    for name, pins in PINS.items():
        (folder / f"{name}.txt").write_text("\n".join(["# tiny", *pins]))


class Index:
    """The index; a download of a package in ``held`` waits until it is released."""

    def __init__(self, folder: Path, names: Sequence[str]):
        self.asked: list[str] = []
        self.held: dict[str, threading.Event] = {}
        wheels = {
            name: make_wheel(folder, name, "1.0", {f"{name.replace('-', '_')}.py": "SIZE = 1\n"})
            for name in names
        }
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(wheels))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def variables(self) -> dict[str, str]:
        """The environment in which pip uses this index and no other."""
        url = f"http://127.0.0.1:{self._server.server_port}/simple"
        return {
            "PIP_INDEX_URL": url,
            "PIP_EXTRA_INDEX_URL": "",
            "PIP_FIND_LINKS": "",
            "PIP_CONFIG_FILE": os.devnull,
            "NO_PROXY": "*",
        }

    def close(self) -> None:
        for event in self.held.values():
            event.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self, wheels: dict[str, Path]) -> type[BaseHTTPRequestHandler]:
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.strip("/").split("/")[-1]
                file = next((wheel for wheel in wheels.values() if wheel.name == name), None)
                if file is not None:
                    package = file.name.split("-")[0].replace("_", "-")
                    index.asked.append(package)
                    if package in index.held:
                        index.held[package].wait(60)
                    self._answer(file.read_bytes(), "application/octet-stream")
                elif name in wheels:
                    link = f'<a href="/files/{wheels[name].name}">{wheels[name].name}</a>'
                    self._answer(f"<!DOCTYPE html><html><body>{link}</body></html>".encode(), "text/html")
                else:
                    self.send_error(404)

            def _answer(self, body: bytes, kind: str) -> None:
                try:
                    self.send_response(200)
                    self.send_header("content-type", kind)
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    pass  # pip was killed

            def log_message(self, *_: object) -> None:
                pass

        return Handler

"""Watch a process, end it, and let the kernel give its number to another.  Needs a PID namespace of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from hicache_nixl.lab.worker.descriptors import ProcessGoneError
from hicache_nixl.watch.process import WatchedProcess

first = subprocess.Popen(["sleep", "60"])
watched = WatchedProcess(first.pid)
watched.sample()
first.kill()
first.wait()
time.sleep(0.1)  # the start of a process is known to a hundredth of a second
Path("/proc/sys/kernel/ns_last_pid").write_text(str(first.pid - 1))
second = subprocess.Popen(["sleep", "60"])
try:
    message = f"taken for it: {watched.sample()}"
except ProcessGoneError as error:
    message = str(error)
second.kill()
second.wait()
sys.stdout.write("\n" + json.dumps({"pid": first.pid, "same": first.pid == second.pid, "message": message}))

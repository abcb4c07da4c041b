"""Watch a process, end it, and let the kernel give its number to another.  Needs a PID namespace of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from hicache_nixl.lab.worker.descriptors import ProcessGoneError
from hicache_nixl.watch.process import Subject

first = subprocess.Popen(["sleep", "60"])
subject = Subject(first.pid)
subject.sample()
first.kill()
first.wait()
time.sleep(0.1)  # the start of a process is known to a hundredth of a second
Path("/proc/sys/kernel/ns_last_pid").write_text(str(first.pid - 1))
second = subprocess.Popen(["sleep", "60"])
try:
    told = f"taken for it: {subject.sample()}"
except ProcessGoneError as error:
    told = str(error)
second.kill()
second.wait()
sys.stdout.write("\n" + json.dumps({"pid": first.pid, "same": first.pid == second.pid, "told": told}))

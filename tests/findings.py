"""Asking the doctor for findings, in this process or in one of its own."""

from __future__ import annotations

from typing import Any

from support import answer_of, run_python

from hicache_nixl.doctor.finding import Finding

MOUNT = 'mount -t "$0" -o "$1" none "$2" && shift 2 && exec "$@"'


def found(findings: Any, what: str) -> Finding:
    """Return the finding of one name."""
    (finding,) = [finding for finding in findings if finding.what == what]
    return finding


def asked(code: str, *prefix: str) -> Any:
    """Ask the doctor in a process of its own; ``code`` makes findings and calls ``tell`` with them."""
    imports = """
import dataclasses, json, resource
from pathlib import Path
from hicache_nixl.doctor import machine, storage_check, verdicts as can_run
from hicache_nixl.doctor.finding import Finding
def tell(findings):
    print("\\n" + json.dumps([dataclasses.asdict(finding) for finding in findings]))
"""
    return [Finding(**row) for row in answer_of(run_python("-c", imports + code, prefix=prefix))]

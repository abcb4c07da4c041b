"""One tree of errors."""

from __future__ import annotations

import errno
import inspect

import pytest

from hicache_nixl import HiCacheNixlError, errors

LEAVES = [
    member
    for _, member in inspect.getmembers(errors, inspect.isclass)
    if member.__module__ == errors.__name__ and member is not HiCacheNixlError
]


@pytest.mark.parametrize("error", LEAVES, ids=lambda error: error.__name__)
def test_every_error_is_ours_and_also_the_builtin_that_fits(error):
    assert issubclass(error, HiCacheNixlError)
    own, builtin = error.__bases__ if len(error.__bases__) > 1 else error.__bases__[0].__bases__
    assert own is HiCacheNixlError
    assert builtin.__module__ == "builtins"


def test_a_file_error_keeps_errno_and_names_the_path():
    error = errors.FileError.of(PermissionError(errno.EACCES, "Permission denied", "elsewhere"), "page")
    assert (error.errno, error.strerror, error.filename) == (errno.EACCES, "Permission denied", "page")
    assert str(error) == "[Errno 13] Permission denied: 'page'"

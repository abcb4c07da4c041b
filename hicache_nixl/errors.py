"""The errors of this package.  Each is also a builtin exception of the same meaning.

A failure inside the package is raised as one of these.  The connector turns it into ``False`` and one log
line, because an exception would end the backup thread of the server.  Only a wrong configuration raises, at
construction.
"""

from __future__ import annotations


class HiCacheNixlError(Exception):
    """Base class of the errors of this package."""


class ConfigError(HiCacheNixlError, ValueError):
    """A configuration that cannot work; the message names the key and the expected values."""


class NixlMissingError(HiCacheNixlError, ImportError):
    """The ``nixl`` package is not installed, or has no wheel for this platform."""


class PluginError(HiCacheNixlError, RuntimeError):
    """NIXL could not create the plugin of the configuration."""


class KeyRefusedError(HiCacheNixlError, ValueError):
    """A key that is not a plain file name, and so could name a file outside the storage folder."""


class PageIndexError(HiCacheNixlError, IndexError):
    """Keys and host indices that do not match, or indices outside the host pool."""


class ClosedError(HiCacheNixlError, RuntimeError):
    """The connector was used after ``close()``."""


class FileError(HiCacheNixlError, OSError):
    """An operation on a file or folder failed; has ``errno`` and ``filename``."""

    @classmethod
    def of(cls, error: OSError, path: str) -> FileError:
        """Return an ``OSError`` as a ``FileError`` with the same errno, for a path."""
        return cls(error.errno, error.strerror or str(error), path)


class MissingError(HiCacheNixlError, KeyError):
    """A page that is not stored, or not with this size."""

    __str__ = Exception.__str__  # KeyError would quote the message


class DamagedError(HiCacheNixlError, ValueError):
    """A file of a store is not as this package made it: other kind, owner, size or contents."""


class NewerFormatError(HiCacheNixlError, ValueError):
    """A later version of this package made this file of a store."""


class StoreError(HiCacheNixlError, ConnectionError):
    """An object store refused a request, or did not answer it in time."""


class AwayError(StoreError):
    """An object store cannot be reached, or did not answer in time."""


class RegistrationError(HiCacheNixlError, RuntimeError):
    """NIXL refused a registration, a descriptor list or a transfer request."""


class TransferError(HiCacheNixlError, RuntimeError):
    """A transfer was posted and did not complete."""

"""One tree of errors; each leaf is also the builtin error that fits.

Inside the package a failure is raised as one of these.  The connector turns it into ``False`` and one
log line at its edge, for an exception would kill the server's backup thread.  A wrong configuration is
the exception to that rule: it raises at construction.
"""

from __future__ import annotations


class HiCacheNixlError(Exception):
    """Base of everything that this package raises on purpose."""


class ConfigError(HiCacheNixlError, ValueError):
    """A configuration that cannot work; the message names the key and the values that it takes."""


class NixlMissingError(HiCacheNixlError, ImportError):
    """The ``nixl`` package is not installed, or has no wheel for this platform."""


class PluginError(HiCacheNixlError, RuntimeError):
    """NIXL could not create the plugin that was asked for."""


class KeyRefusedError(HiCacheNixlError, ValueError):
    """A key that is not a plain file name and could leave the storage folder."""


class PageIndexError(HiCacheNixlError, IndexError):
    """Keys and host indices that do not fit together, or indices outside the host pool."""


class ClosedError(HiCacheNixlError, RuntimeError):
    """The connector was used after ``close()``."""


class FileError(HiCacheNixlError, OSError):
    """A file or folder operation failed; carries ``errno`` and ``filename``."""

    @classmethod
    def of(cls, error: OSError, path: str) -> FileError:
        """Wrap an ``OSError``, keeping errno and naming the path."""
        return cls(error.errno, error.strerror or str(error), path)


class RegistrationError(HiCacheNixlError, RuntimeError):
    """NIXL refused a registration, a descriptor list or a transfer request."""


class TransferError(HiCacheNixlError, RuntimeError):
    """A transfer that was posted did not complete."""

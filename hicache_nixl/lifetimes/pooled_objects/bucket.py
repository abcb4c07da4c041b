"""What NIXL cannot do with a bucket: list and remove objects.  Every request ends within a bounded time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit

from obstore.exceptions import BaseError
from obstore.store import S3Store

from ...errors import StoreError

Answer = TypeVar("Answer")

_NAMES = {  # of NIXL's parameters
    "access_key": "access_key_id",
    "secret_key": "secret_access_key",
    "session_token": "session_token",
    "region": "region",
}

LOOPBACK = ("127.0.0.1", "::1", "localhost")
# A proxy of the environment would be asked for the loopback, too; only one that is named can have exceptions.
NO_PROXY = {"proxy_url": "http://127.0.0.1:9", "proxy_excludes": ",".join(LOOPBACK)}


class Bucket:
    """A bucket of an object store.

    Parameters
    ----------
    params : mapping
        Those of NIXL's OBJ plugin; what is not given comes from the usual variables of AWS.
    patience : float
        Seconds that a request may take.
    """

    def __init__(self, params: Mapping[str, str], patience: float):
        endpoint = params.get("endpoint_override")
        given: dict[str, Any] = {ours: params[theirs] for theirs, ours in _NAMES.items() if theirs in params}
        if endpoint:
            given["endpoint"] = (
                endpoint if "://" in endpoint else f"{params.get('scheme', 'https')}://{endpoint}"
            )
        waits = timedelta(seconds=patience)
        options: dict[str, Any] = {"allow_http": True, "timeout": waits, "connect_timeout": waits}
        if endpoint and urlsplit(given["endpoint"]).hostname in LOOPBACK:
            options |= NO_PROXY
        self._store = S3Store(
            params["bucket"],
            **given,
            virtual_hosted_style_request=params.get("use_virtual_addressing") == "true",
            client_options=options,  # type: ignore[arg-type]
            retry_config={"max_retries": 1, "retry_timeout": waits},
        )

    def names(self, folder: str, after: str | None = None) -> Iterator[str]:
        """Yield the names of objects that begin with a folder, in order, those behind ``after``."""
        listed = iter(self._store.list(folder, offset=after, chunk_size=1000))
        while (some := _told(next, listed, None)) is not None:
            yield from (found["path"] for found in some)

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; those that are missing are no error."""
        _told(self._store.delete, list(names))

    def has(self, name: str) -> bool:
        """Return whether there is an object."""
        try:
            _told(self._store.head, name)
        except FileNotFoundError:
            return False
        return True


def _told(action: Callable[..., Answer], *args: object) -> Answer:
    """Return the answer to a request, or raise ``FileNotFoundError`` or ``StoreError``."""
    try:
        return action(*args)
    except FileNotFoundError:
        raise FileNotFoundError("no such object or bucket") from None
    except (BaseError, OSError, ValueError) as error:
        raise StoreError(f"the object store refused or did not answer: {_short(str(error))}") from None


def _short(message: str) -> str:
    """Return what is to be known of a message that has many lines, some of them in XML."""
    told = re.findall(r"<(?:Code|Message)>(.*?)</", message)
    return ": ".join(told) or message.partition("\n")[0]

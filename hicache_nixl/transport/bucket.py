"""What NIXL cannot do with a bucket: list objects, tell their sizes, and remove them.  Every request ends within a bounded time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from obstore.store import S3Store

from ..errors import AwayError, StoreError
from ..object_params import trusted, url_of

Answer = TypeVar("Answer")

AT_A_TIME = 8  # requests; more are not faster
AGAIN = 2.0  # seconds after which a store that was away is asked again
NOTHING = "pooled-1/nothing/"  # no object begins with it; a policy may allow only what ``pooled`` lists
LATE, UNREACHED = "did not answer in time", "cannot be reached"
# Why, in obstore's words, and in ours.
CAUSES = {
    "kind: ConnectionRefused": "connection refused",
    '"dns error"': "name not resolved",
    "UnknownIssuer": "its certificate is not trusted; name that of its authority in ca_bundle or AWS_CA_BUNDLE",
    "NotValidForName": "its certificate is for another host",
    "InvalidCertificate": "its certificate is not valid",
    "InvalidContentType": "it does not speak TLS; is it http?",
}
AWAY = (LATE, UNREACHED, *(f"{UNREACHED}: {cause}" for cause in CAUSES.values()))
ROLES = "//169.254."  # where obstore looks for the role of a machine or a pod if it was given no credentials
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

    Notes
    -----
    While the store is away, only one request in ``AGAIN`` seconds waits for it; the others fail at once, with its error.
    """

    def __init__(self, params: Mapping[str, str], patience: float):
        given: dict[str, Any] = {"region": params["region"]} if "region" in params else {}
        if "access_key" in params and "secret_key" in params:
            # Not as single options: obstore would add a token of the environment, which belongs to other keys.
            given["credential_provider"] = lambda: {
                "access_key_id": params["access_key"],
                "secret_access_key": params["secret_key"],
                "token": params.get("session_token"),
                "expires_at": None,
            }
        waits = timedelta(seconds=patience)
        options: dict[str, Any] = {"allow_http": True, "timeout": waits, "connect_timeout": waits}
        virtual = params.get("use_virtual_addressing") == "true"
        if certificates := trusted(params.get("ca_bundle")):
            options["root_certificate"] = certificates
        if params.get("endpoint_override"):
            url = url_of(params)
            if virtual:
                url = url.replace("://", f"://{params['bucket']}.", 1)
            # NIXL asks no proxy of the environment either.
            options |= NO_PROXY | {"proxy_excludes": urlsplit(url).hostname or ""}
            given["endpoint"] = url
        # The last error of a store that was away, and until when it is not asked.
        self._away, self._until = "", 0.0
        self._heads = ThreadPoolExecutor(AT_A_TIME, "hicache-nixl-objects")
        self._store = _told(
            partial(
                S3Store,
                params["bucket"],
                **given,
                virtual_hosted_style_request=virtual,
                client_options=options,  # type: ignore[arg-type]
                retry_config={"max_retries": 1, "retry_timeout": waits},
            )
        )

    def names(self, folder: str | None = None, after: str | None = None) -> Iterator[str]:
        """Yield the names of objects that begin with a folder, by default of all, in order, those behind ``after``."""
        listed = iter(self._store.list(folder, offset=after, chunk_size=1000))
        while (some := self._asked(next, listed, None)) is not None:
            yield from (found["path"] for found in some)

    def ask(self) -> None:
        """Raise ``StoreError`` if the store refuses, or does not answer."""
        next(self.names(NOTHING), None)

    def answered(self) -> None:
        """Note that the store has answered, by another way."""
        self._until = 0.0

    def _asked(self, action: Callable[..., Answer], *args: object) -> Answer:
        """Return the answer to a request; raise ``AwayError`` at once if the store was away just now."""
        if time.monotonic() < self._until:
            raise AwayError(self._away)
        try:
            return _told(action, *args)
        except AwayError as error:
            self._away, self._until = str(error), time.monotonic() + AGAIN
            raise

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; those that are missing are no error."""
        if listed := list(names):
            self._asked(self._store.delete, listed)

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """Return the bytes of each object, None for one that is missing.

        NIXL looks objects up as well, but does not tell their sizes, and may take half a minute for each.
        """
        return list(self._heads.map(self._size, names))

    def _size(self, name: str) -> int | None:
        try:
            return int(self._asked(self._store.head, name)["size"])
        except FileNotFoundError:
            return None

    def leading(self, names: Sequence[str], sizes: Iterable[int | None]) -> Iterator[bool]:
        """Yield whether each object is there and has a size, or any but 0; asks for more and more of them at a time."""
        first, count, expected = 0, AT_A_TIME, iter(sizes)
        while first < len(names):
            for size, wanted in zip(self.sizes(names[first : first + count]), expected, strict=False):
                yield bool(size) and wanted in (None, size)
            first, count = first + count, 2 * count

    def close(self) -> None:
        """End its threads."""
        self._heads.shutdown()


def _told(action: Callable[..., Answer], *args: object) -> Answer:
    """Return the answer to a request, or raise ``FileNotFoundError``, ``AwayError`` or ``StoreError``."""
    try:
        return action(*args)
    except FileNotFoundError:
        raise FileNotFoundError("no such object or bucket") from None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of obstore is no Exception
        told = _short(str(error))
        kind = AwayError if told.endswith(AWAY) else StoreError
        raise kind(f"the object store {told}") from None


def _short(message: str) -> str:
    """Return what is to be known of a message that has many lines, some of them in XML.

    Examples
    --------
    >>> _short("GET http://s3/b - Server returned non-2xx status code: 403 Forbidden: <Error><Code>InvalidAccessKeyId</Code>")
    'at http://s3 refused: InvalidAccessKeyId'
    >>> _short("HEAD http://127.0.0.1:9/b/k in 1ms, after 1 retries - HTTP error: error sending request")
    'at http://127.0.0.1:9 cannot be reached'
    >>> _short("Generic S3 error: PUT http://169.254.169.254/latest/api/token - HTTP error: error sending request")
    'cannot be listed: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; a profile is not read'
    """
    found = re.search(r"https?://[^/\s?]+", message)
    if found and ROLES in found[0]:
        return "cannot be listed: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; a profile is not read"
    where = f"at {found[0].rpartition('@')[2] if '@' in found[0] else found[0]} " if found else ""
    told = re.findall(r"<(?:Code|Message)>(.*?)</", message)[:2]
    status = re.search(r"status code: (\d{3}[ \w]*)", message)
    if told or status:
        return f"{where}refused: {': '.join(told) or (status[1].strip() if status else '')}"
    if "timed out" in message or "kind: Timeout" in message:
        return where + LATE
    if "error sending request" in message:
        cause = next((f": {ours}" for theirs, ours in CAUSES.items() if theirs in message), "")
        return where + UNREACHED + cause
    return where + "failed: " + re.sub(r"//[^/\s]*@", "//", message.partition("\n")[0])[:200]

"""Where an S3 store is, and how to log in."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from obstore.store import S3Store

from ...errors import ConfigError
from ...object_params import trusted
from ...transport.bucket import LOOPBACK, NO_PROXY

INSTALL = "pip install 'hicache-nixl[objectstore]'"
SHOWN = 4  # characters of an access key
SHORTEST_SECRET = 8  # characters; a shorter one may be a part of any word
TIMEOUT = timedelta(seconds=30)  # of a request of the client
RETRIES = 3


@dataclass(frozen=True, repr=False)
class Endpoint:
    """Where an S3 store is, and how to log in; its ``repr`` shows no secret.

    Attributes
    ----------
    url : str
        Such as ``http://127.0.0.1:8333``.
    bucket, region : str
    access_key, secret_key : str
    session_token : str
        Of temporary credentials; empty without.
    ca_bundle : str
        A file of the certificates that are trusted; empty for those of the system.
    """

    url: str
    bucket: str
    _: KW_ONLY
    region: str = "us-east-1"
    access_key: str
    secret_key: str
    session_token: str = ""
    ca_bundle: str = ""

    def __repr__(self) -> str:
        key = f"{self.access_key[:SHOWN]}..."
        return f"Endpoint({self.url!r}, {self.bucket!r}, region={self.region!r}, access_key={key!r})"

    def redacted(self, text: str) -> str:
        """Return a text with ``***`` in the place of the secret key and the session token.

        Not of those that are shorter than ``SHORTEST_SECRET``: without a letter in all of its words a message says nothing.
        """
        for secret in (self.secret_key, self.session_token):
            if len(secret) >= SHORTEST_SECRET:
                text = text.replace(secret, "***")
        return text

    def extra_config(self) -> dict[str, Any]:
        """Return what a connector's ``extra_config`` needs to use NIXL's OBJ plugin with this store."""
        section = {
            "active": True,
            "bucket": self.bucket,
            "endpoint_override": self.url,
            "scheme": urlsplit(self.url).scheme,
            "region": self.region,
            "access_key": self.access_key,
            "secret_key": self.secret_key,
            "use_virtual_addressing": "false",
        }
        if self.session_token:
            section["session_token"] = self.session_token
        if self.ca_bundle:
            section["ca_bundle"] = self.ca_bundle
        return {"plugin": {"obj": section}}

    def variables(self) -> dict[str, str]:
        """Return the environment variables from which NIXL, and most clients of S3, take the same."""
        named = {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_SESSION_TOKEN": self.session_token,
            "AWS_ENDPOINT_OVERRIDE": self.url,  # NIXL's name of it
            "AWS_ENDPOINT_URL": self.url,
            "AWS_DEFAULT_BUCKET": self.bucket,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
            "AWS_CA_BUNDLE": self.ca_bundle,
        }
        return {name: value for name, value in named.items() if value}

    def client(self, timeout: timedelta = TIMEOUT, retries: int = RETRIES) -> S3Store:
        """Return a client that lists and removes objects, which NIXL cannot.

        Parameters
        ----------
        timeout : timedelta
            For a request, and for all that are tried again after an error of the server or the connection.
        retries : int
        """
        options: dict[str, Any] = {"allow_http": self.url.startswith("http://"), "timeout": timeout}
        if urlsplit(self.url).hostname in LOOPBACK:
            options.update(NO_PROXY)
        if certificates := trusted(self.ca_bundle):
            options["root_certificate"] = certificates
        token = {"session_token": self.session_token} if self.session_token else {}
        return S3Store(
            self.bucket,
            endpoint=self.url,
            region=self.region,
            access_key_id=self.access_key,
            secret_access_key=self.secret_key,
            virtual_hosted_style_request=False,
            client_options=options,  # type: ignore[arg-type]
            retry_config={"max_retries": retries, "retry_timeout": timeout},
            **token,  # type: ignore[arg-type]
        )


def endpoint_of(url: str, bucket: str | None = None) -> Endpoint:
    """Return the endpoint of the user's own store, with the credentials of the usual variables.

    Parameters
    ----------
    url : str
        ``http://`` or ``https://``, a host and perhaps a port.
    bucket : str, optional
        By default that of ``AWS_DEFAULT_BUCKET``.

    Raises
    ------
    ConfigError
        When something is missing; the message names what to set, and never a credential.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if "@" in parts.netloc:
        raise ConfigError(
            "the URL of an object store has no credentials; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY instead"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise ConfigError(f"object store {url!r}: expected a URL such as http://host:8333 or https://host")
    found = {name: os.environ.get(name, "") for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    found["AWS_DEFAULT_BUCKET"] = bucket or os.environ.get("AWS_DEFAULT_BUCKET", "")
    if missing := [name for name, value in found.items() if not value]:
        told = " and ".join(missing).replace("AWS_DEFAULT_BUCKET", "AWS_DEFAULT_BUCKET (or --bucket)")
        raise ConfigError(f"object store {url!r}: set {told}")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or Endpoint.region
    return Endpoint(
        url.rstrip("/"),
        found["AWS_DEFAULT_BUCKET"],
        region=region,
        access_key=found["AWS_ACCESS_KEY_ID"],
        secret_key=found["AWS_SECRET_ACCESS_KEY"],
        session_token=os.environ.get("AWS_SESSION_TOKEN", ""),
        ca_bundle=os.environ.get("AWS_CA_BUNDLE", "") if parts.scheme == "https" else "",
    )

"""The parameters of NIXL's OBJ plugin: what the usual variables add, and what cannot work."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from .errors import ConfigError
from .options import BUCKET_VARIABLE, CREDENTIAL_VARIABLES, OBJECT_VARIABLES


def completed(given: Mapping[str, str]) -> dict[str, str]:
    """Return parameters with bucket, endpoint, region and authorities of the environment where they have none.

    Raises
    ------
    ConfigError
        When there is no bucket, or white space or credentials where there must be none; the message shows no value.
        When ``ca_bundle`` is no file of certificates.
    """
    params = dict(given)
    for name, variables in OBJECT_VARIABLES.items():
        found = next((os.environ[variable] for variable in variables if os.environ.get(variable)), None)
        if found and not params.get(name):
            params[name] = found
    if not params.get("bucket"):
        raise ConfigError(f"OBJ needs a bucket: set plugin.obj.bucket or {BUCKET_VARIABLE}")
    credentials = {name: os.environ[name] for name in CREDENTIAL_VARIABLES if name in os.environ}
    for name, value in {**credentials, **params}.items():
        if name != "ca_bundle" and re.search(r"\s", value):
            raise ConfigError(f"{name}: there is white space in it, such as a line feed at its end")
    if "@" in params.get("endpoint_override", ""):
        raise ConfigError(
            "endpoint_override: there are no credentials in a URL; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if url_of(params).startswith("http:"):
        params.pop("ca_bundle", None)
    trusted(params.get("ca_bundle"))
    return params


def url_of(params: Mapping[str, str]) -> str:
    """Return the URL of the endpoint, which of AWS has no host."""
    endpoint = params.get("endpoint_override", "")
    return endpoint if "://" in endpoint else f"{params.get('scheme', 'https')}://{endpoint}"


def trusted(ca_bundle: str | None) -> bytes | None:
    """Return the certificates in a file, or raise ``ConfigError``; None without a file, when those of the system are trusted."""
    if not ca_bundle:
        return None
    try:
        content = Path(ca_bundle).read_bytes()
    except OSError as error:
        raise ConfigError(f"ca_bundle {ca_bundle}: {error.strerror}") from error
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise ConfigError(f"ca_bundle {ca_bundle}: there is no certificate in PEM format in it")
    return content

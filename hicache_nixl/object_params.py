"""The parameters of NIXL's OBJ plugin: what the usual variables add, and what cannot work."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from .errors import ConfigError
from .options import BUCKET_VARIABLE, CREDENTIAL_VARIABLES, OBJECT_VARIABLES


def completed(given: Mapping[str, str]) -> dict[str, str]:
    """Return parameters with bucket, endpoint and region of the environment where they have none.

    Raises
    ------
    ConfigError
        When there is no bucket, or white space or credentials where there must be none; the message shows no value.
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
        if re.search(r"\s", value):
            raise ConfigError(f"{name}: there is white space in it, such as a line feed at its end")
    if "@" in params.get("endpoint_override", ""):
        raise ConfigError(
            "endpoint_override: there are no credentials in a URL; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return params

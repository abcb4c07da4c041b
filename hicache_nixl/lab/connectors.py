"""The connectors of the investigation: ours, the releases beside them, and what is expected of each.

The list, and every number that a notebook expects of a connector, is in ``data/connectors.csv``.
"""

from __future__ import annotations

import functools

import pandas as pd

from ..errors import ConfigError
from ..resources import resource
from .runs.record import AVAILABLE
from .worker.releases import PREFIX, at_hand

TABLE = "data/connectors.csv"
COUNTED = ["open_fds", "storage_fds", "registrations"]


@functools.cache
def _table() -> pd.DataFrame:
    return pd.read_csv(resource(TABLE)).astype({"fds_per_register_files": "Int64"}).set_index("connector")


def expected() -> pd.DataFrame:
    """Return what each connector is expected to do: a row for each, by name.

    Returns
    -------
    pandas.DataFrame
        ``role`` (``"before"`` the fix, ``"fix"``, ``"owned"``, ``"store"``, ``"newest"``), ``fds_per_key`` and
        ``registrations_per_key`` that a set or get of multi-head pages leaves, the columns of ``release_facts``,
        ``fds_per_register_files`` (missing where there is no such method) and ``tracebacks_inside``, how often
        its source imports ``traceback`` inside a function.

    Examples
    --------
    >>> expected().role["leaky"], int(expected().fds_per_key["leaky"])
    ('before', 2)
    """
    return _table().copy()


def peers(*roles: str) -> pd.DataFrame:
    """Fetch the released connectors of some roles, or all of them, for the table ``released`` of a notebook.

    Returns
    -------
    pandas.DataFrame
        ``connector`` and ``status``: ``"available"``, or the reason why it could not be fetched.

    Raises
    ------
    ConfigError
        For a role that no connector has.
    """
    known = _table()
    unknown = set(roles) - set(known.role)
    if unknown:
        raise ConfigError(
            f"role {', '.join(sorted(unknown))} is unknown; expected one of {', '.join(known.role.unique())}"
        )
    names = [
        name for name, role in known.role.items() if name.startswith(PREFIX) and (not roles or role in roles)
    ]
    statuses = [(name, reason or AVAILABLE) for name, reason in at_hand(names).items()]
    return pd.DataFrame(statuses, columns=["connector", "status"])


def available(released: pd.DataFrame) -> list[str]:
    """Return the connectors of ``peers`` that can run here.

    Examples
    --------
    >>> available(pd.DataFrame({"connector": ["a", "b"], "status": ["available", "no registry"]}))
    ['a']
    """
    return released.connector[released.status == AVAILABLE].tolist()


def same_counts(table: pd.DataFrame, other: pd.DataFrame) -> int:
    """Return after how many calls two replays have the same descriptors and registrations.

    Examples
    --------
    >>> calls = pd.DataFrame({"open_fds": [6, 8], "storage_fds": [0, 2], "registrations": [4, 8]})
    >>> same_counts(calls, calls.assign(registrations=[4, 4]))
    1
    """
    return int((table[COUNTED].to_numpy() == other[COUNTED].to_numpy()).all(axis=1).sum())

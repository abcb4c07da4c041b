"""What ``store_faults`` and ``sharing`` show of a store of several servers, for a notebook: nothing where there is no store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..connectors import available
from .sharing import RANK_COLUMNS, one_writes_eight_read
from .store_faults import FAULT_COLUMNS, READ_ALL, through_a_fault

TWO_COPIES = "001"  # of each object


def cluster_faults(released: pd.DataFrame, lifetimes: Sequence[str], **how: Any) -> pd.DataFrame:
    """Kill a volume server of three under each of several lifetimes, with two copies of each object.

    Parameters
    ----------
    released : pandas.DataFrame
        From ``object_stores``.
    **how
        For ``through_a_fault``, whose table this is.
    """
    runs = lifetimes if available(released) else ()
    tables = [through_a_fault(name, TWO_COPIES, **how) for name in runs]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=FAULT_COLUMNS)


def acknowledged(faults: pd.DataFrame) -> pd.DataFrame:
    """Return the last row of each lifetime: the get of every page that was acknowledged, when all servers are back."""
    return faults[faults.operation == READ_ALL].groupby("lifetime", sort=False).tail(1)


def loads_while_away(faults: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of gets, those of all pages too, for a part of which a server was away."""
    return faults[(faults.away != "") & (faults.operation != "set")]


def shared_ranks(released: pd.DataFrame, lifetimes: Sequence[str], **how: Any) -> pd.DataFrame:
    """Let one rank store pages and all ranks load them, with each of several lifetimes; see ``one_writes_eight_read``."""
    runs = lifetimes if available(released) else ()
    tables = [one_writes_eight_read(name, **how) for name in runs]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=RANK_COLUMNS)

"""The figure of the command replay: descriptors over the calls of one or several connectors."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

from .look import INK, LOOK, STYLES, heading, limit_line, plain, step
from .words import Drawn, course, first_emfile, listed


@mpl.rc_context(LOOK)
def replays(tables: Mapping[str, pd.DataFrame], name: str, limit: int | None = None) -> Drawn:
    """Draw open descriptors over the calls of replays of one schedule.

    Parameters
    ----------
    tables : mapping
        Replays by connector.
    name : str
        Of the schedule.
    limit : int, optional
        RLIMIT_NOFILE of the replays; drawn where a count comes near it.
    """
    figure, axes = plt.subplots(figsize=(7, 3.8))
    alike: dict[
        tuple[int, ...], list[str]
    ] = {}  # connectors whose counts are the same, as a curve hides another
    for connector, table in tables.items():
        alike.setdefault((table.attrs["fds_before"], *table.open_fds), []).append(connector)
    for position, (counts, connectors) in enumerate(alike.items()):
        colour, line = STYLES.get(connectors[0], (f"C{position}", "-"))
        label = listed([plain(connector) for connector in connectors])
        step(axes, counts, color=colour, linestyle=line, linewidth=1.6, label=label)
        if (failed := first_emfile(tables[connectors[0]])) is not None:
            axes.plot(failed, counts[failed], "x", color=INK, markersize=8, markeredgewidth=2)
    top = most = max(max(counts) for counts in alike)
    if limit is not None and most > limit / 2:
        limit_line(axes, limit)
        top = max(most, limit)
    calls = len(next(iter(tables.values())))
    told = "; ".join(
        f"with {listed([plain(connector) for connector in connectors])} the count {course(counts)}"
        for counts, connectors in alike.items()
    )
    heading(figure, f"Schedule {name}: {told}")
    axes.set(xlabel="call", ylabel="open descriptors", xlim=(0, calls + 1), ylim=(0, top * 1.15))
    if len(alike) > 1:
        figure.legend(loc="outside lower center", ncols=min(len(alike), 2))
    crosses = {arm: first_emfile(table) for arm, table in tables.items() if first_emfile(table)}
    ends = "".join(f" {plain(arm)}: call {call} fails with EMFILE (cross)." for arm, call in crosses.items())
    return Drawn(figure, f"Open descriptors over the {calls} calls of {name}: {told}.{ends}")

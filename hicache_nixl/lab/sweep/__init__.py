"""Sweeps: notebooks run for each point of a grid of parameters, on this machine or on the hosts of a Dask cluster.

``grid`` reads and checks a grid, ``fleet`` connects to the hosts, ``remote`` and ``child`` run on them, ``lanes`` gives
each host its points, ``record`` keeps what comes back, and ``page`` shows it.  ``sweep`` puts them together.
"""

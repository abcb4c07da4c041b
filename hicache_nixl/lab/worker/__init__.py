"""The process in which a connector is measured: client and server, what it is set up with, and its faults."""

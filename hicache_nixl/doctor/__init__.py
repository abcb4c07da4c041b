"""What can run on this machine, found out by trying it."""

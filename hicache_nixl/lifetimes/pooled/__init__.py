"""Pages of one store in a few large files, which any number of processes share."""

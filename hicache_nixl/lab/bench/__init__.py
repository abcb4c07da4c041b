"""The benchmark: the lifetimes, SGLang's own backends, and plain reads and writes, timed in turn in one run."""

"""``python -m hicache_nixl.cli`` is the command ``hicache-nixl``."""

from . import main

if __name__ == "__main__":
    main()

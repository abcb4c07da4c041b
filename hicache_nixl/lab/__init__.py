"""The instruments of the investigation.

``Schedule`` and ``replay`` run calls against a connector in a process of its own; ``fd_table`` names
descriptors; ``compare`` times two connectors; ``Run`` keeps tables, figures and claims.

The names are listed in ``__init__.pyi`` and loaded when they are used, so that a worker process, whose modules are in this
package, does not import matplotlib, scipy and IPython.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Who owns what a transfer opens and registers, and when it ends.

One module per answer, with the same outline, so that ``diff`` of two neighbours is the patch between
them.  Each defines ``Lifetime`` with ``register_pool``, ``register_files``, ``_execute_transfer`` and
``close``; they raise ``HiCacheNixlError``, and the connector turns that into ``False`` and a log line.
"""

from . import leaky, scoped, try_finally

BY_NAME = {"leaky": leaky.Lifetime, "try_finally": try_finally.Lifetime, "scoped": scoped.Lifetime}

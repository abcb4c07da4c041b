"""A real object store on this machine, as an instrument: SeaweedFS behind its S3 endpoint.

``ObjectStore`` starts one and ends it, ``Endpoint`` says where a store is, and ``endpoint_of`` is that of the user's own.
"""

from .endpoint import Endpoint, endpoint_of
from .store import ObjectStore, ObjectStoreError

__all__ = ["Endpoint", "ObjectStore", "ObjectStoreError", "endpoint_of"]

"""The host side: KV pools in memory, their pages as buffers for NIXL, and model geometries."""

"""The size of the KV cache of a token in well-known models."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ConfigError
from ..resources import resource

TABLE = "data/model_geometries.csv"


@dataclass(frozen=True)
class ModelGeometry:
    """The numbers that determine the size of the KV cache of a model.

    Attributes
    ----------
    attention : str
        ``"multi-head"`` (keys and values are separate) or ``"mla"``.
    kv_heads, head_dim : int
        0 unless the attention is multi-head.
    kv_lora_rank, qk_rope_head_dim : int
        0 unless the attention is MLA.
    source : str
        Where the numbers are from.
    """

    model: str
    attention: str
    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    kv_lora_rank: int
    qk_rope_head_dim: int
    source: str

    @property
    def is_mla(self) -> bool:
        """Whether a page is one piece, instead of separate keys and values."""
        return self.attention == "mla"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the KV cache."""
        return getattr(torch, self.dtype)

    def checked_layers(self, layers: int | None) -> int:
        """Return a valid number of layers; all layers of the model for ``None``."""
        if layers is None:
            return self.layers
        if not 1 <= layers <= self.layers:
            raise ConfigError(f"layers: expected 1 to {self.layers} for {self.model}, got {layers}")
        return layers

    def page_bytes(self, page_size: int, layers: int | None = None) -> int:
        """Return the bytes of a page of ``page_size`` tokens, keys and values in total.

        Examples
        --------
        >>> model_geometry("Qwen2.5-32B").page_bytes(page_size=64) // 2**20
        16
        """
        layers = self.checked_layers(layers)
        width = (
            self.kv_lora_rank + self.qk_rope_head_dim if self.is_mla else 2 * self.kv_heads * self.head_dim
        )
        return page_size * layers * width * self.torch_dtype.itemsize


@functools.cache
def model_geometries() -> dict[str, ModelGeometry]:
    """Return the geometries by model name."""
    with resource(TABLE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["model"]: _geometry(row) for row in rows}


def _geometry(row: dict[str, Any]) -> ModelGeometry:
    numbers = ("layers", "kv_heads", "head_dim", "kv_lora_rank", "qk_rope_head_dim")
    return ModelGeometry(**{**row, **{name: int(row[name] or 0) for name in numbers}})


def model_geometry(model: str) -> ModelGeometry:
    """Return the geometry of a model; case and organisation are ignored."""
    wanted = model.rsplit("/", 1)[-1].lower()
    for name, geometry in model_geometries().items():
        if name.lower() == wanted:
            return geometry
    raise ConfigError(f"model {model!r} is unknown; {TABLE} has {', '.join(model_geometries())}")

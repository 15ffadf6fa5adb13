"""GGUF files, as llama.cpp publishes models: fields by name, and tensors in float32 whatever they are stored as.

The reader and the arithmetic of the quantisations are llama.cpp's own package `gguf` (pure Python over numpy).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor


class GgufError(ValueError):
    """A file that is no whole GGUF file, or lacks what was asked for; the message names the file and the thing."""


class GgufFile:
    def __init__(self, path: Path) -> None:
        """Read the header. Raises GgufError for a file that is not GGUF or is cut off."""
        if not path.is_file():
            raise GgufError(f"{path} is no file; expected a GGUF file")
        self.path = path
        try:
            reader = gguf.GGUFReader(path)
        # What the package raises depends on where the file ends.
        except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
            raise GgufError(f"{path} is no whole GGUF file: {error}") from error
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    def field(self, name: str) -> Any:
        """Return a field's value: a number, a string, or a list of them. Raises GgufError if it is absent."""
        found = self.find(name)
        if found is None:
            raise GgufError(f"{self.path} has no field {name!r}; it has {sorted(self._fields)}")
        return found

    def find(self, name: str) -> Any:
        """As `field`; None if it is absent."""
        found = self._fields.get(name)
        if found is None:
            return None
        value = found.contents()
        if found.types[0] is gguf.GGUFValueType.FLOAT32:
            return float(str(np.float32(value)))  # 1e-5 as it was written, not the float32 next to it
        return value

    @property
    def tensor_names(self) -> list[str]:
        """Names in the file's order."""
        return list(self._tensors)

    def tensor(self, name: str) -> Tensor:
        """Return a float32 tensor, dequantised. Raises GgufError if it is absent, or of a type that is not known."""
        found = self._tensors.get(name)
        if found is None:
            raise GgufError(f"{self.path} has no tensor {name!r}; it has {sorted(self._tensors)}")
        try:
            values = gguf.dequantize(found.data, found.tensor_type)
        except NotImplementedError as error:
            raise GgufError(f"{self.path}: tensor {name!r} is {found.tensor_type.name}: {error}") from error
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32).copy())

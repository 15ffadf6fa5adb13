"""A model as a folder: weights.safetensors beside config.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.data.schema import FeatureSchema

FORMAT = 1


def save_module(
    folder: Path, module: nn.Module, *, kind: str, schema: FeatureSchema, config: Mapping[str, object]
) -> str:
    """Write a module and what rebuilds it into `folder`, made if absent; return the hash of its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    version = version_of(module)
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, _weights(folder))
    document = {
        "format": FORMAT,
        "kind": kind,
        "version": version,
        "schema_hash": schema.hash(),
        "schema": json.loads(schema.to_json()),
        "config": dict(config),
    }
    (folder / "config.json").write_text(json.dumps(document, indent=2) + "\n")
    return version


def load_config(folder: Path, *, kind: str, schema: FeatureSchema) -> dict[str, Any]:
    """Read config.json. Raises ValueError when it is another kind, format or schema of model."""
    document: dict[str, Any] = json.loads((folder / "config.json").read_text())
    for name, expected in (("kind", kind), ("format", FORMAT), ("schema_hash", schema.hash())):
        if document.get(name) != expected:
            raise ValueError(
                f"{folder / 'config.json'}: {name} is {document.get(name)!r}, expected {expected!r}"
                + ("; the model was trained with another schema" if name == "schema_hash" else "")
            )
    return document


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights written by `save_module`."""
    return load_file(_weights(folder))


def version_of(module: nn.Module) -> str:
    """Return 16 hex digits that change with any weight."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _weights(folder: Path) -> Path:
    return folder / "weights.safetensors"

"""Tensors and JSON on disk: one safetensors file, written under a temporary name and then renamed; never a pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def cache_folder() -> Path:
    """Where tables and decoded images are kept between processes: `RNR_GYM_CACHE`, else the user's cache folder."""
    return Path(os.environ.get("RNR_GYM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rnr_gym")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary neighbour of `path` to write to; rename it to `path` only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def save_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Any) -> None:
    """Write named tensors, and `facts` (anything JSON can hold) in the file's header."""
    clean = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as partial:
        save_file(clean, partial, metadata={"rnr_gym": json.dumps(facts)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read what `save_tensors` wrote; a `ValueError` says what is wrong with a file that cannot be read."""
    if not path.is_file():
        raise FileNotFoundError(f"`path` must name a safetensors file, got {str(path)!r}, which does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        found = f"{str(path)!r}, cut off or damaged ({error})"
        raise ValueError(f"`path` must be a whole safetensors file, got {found}; fetch or train it again") from error
    if "rnr_gym" not in header:
        raise ValueError(f"`path` must be a file written by rnr_gym, got {str(path)!r}, which lacks its header")
    return tensors, json.loads(header["rnr_gym"])


def flattened(tree: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split a nested dict with string or int keys (such as an optimiser's state) into tensors and JSON-able leaves, named `a/b/c`."""
    tensors: dict[str, Tensor] = {}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            below = flattened(value, f"{name}/")
            tensors |= below[0]
            leaves |= below[1]
        elif isinstance(value, Tensor):
            tensors[name] = value
        else:
            leaves[name] = value
    return tensors, leaves


def nested(tensors: Mapping[str, Tensor], leaves: Mapping[str, Any]) -> dict[Any, Any]:
    """Undo `flattened`; keys that look like integers become integers, as optimisers number their parameters."""
    tree: dict[Any, Any] = {}
    for name, value in [*tensors.items(), *leaves.items()]:
        *way, last = [int(part) if part.isdigit() else part for part in name.split("/")]
        place = tree
        for part in way:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Twelve hexadecimal digits that change when any tensor does."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:12]

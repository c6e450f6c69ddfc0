"""Tensors and JSON on disk: safetensors and JSON files, written atomically; never a pickle."""

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

HEADER = "rnr_gym"
"""Key of the safetensors header under which the metadata is kept as JSON."""
DIGEST = "digest"
"""Key of the metadata for the digest of the tensors, by which a file that was changed is known."""


def cache_dir() -> Path:
    """Where route tables and decoded images are kept between processes.

    This is `RNR_GYM_CACHE` if set, else the folder `rnr_gym` in the user's cache directory.
    """
    chosen = os.environ.get("RNR_GYM_CACHE")
    if chosen:
        return Path(chosen)

    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user_cache) / "rnr_gym"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file next to `path` to write to; rename it to `path` if the block succeeds.

    Until then, and if the block fails, whatever was at `path` stays as it is. If the process is
    killed, the temporary file stays until `claims.sweep` removes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Same folder, so that the rename is atomic; process id, so that two writers do not collide.
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        # After the rename there is nothing left to remove.
        partial.unlink(missing_ok=True)


def save_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} must be JSON, and is damaged ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} must hold a JSON object, got {type(content).__name__}")
    return content


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write named tensors, and `metadata` (JSON-able) in the file's header.

    Raises `OSError` if there is no room.
    """
    # Copies, because safetensors rejects tensors that share memory.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as partial:
        try:
            # One entry: the order of several would differ from run to run.
            header = {HEADER: json.dumps({**metadata, DIGEST: digest(copies)})}
            save_file(copies, partial, metadata=header)
        # What is an OSError for Python, a full disk among others.
        except SafetensorError as error:
            raise OSError(f"{str(path)!r} cannot be written ({error})") from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote: the tensors and the metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut off, damaged, or not written by `save_tensors`.
    """
    shown = repr(str(path))
    # Checked here, so that callers can tell a missing file from a damaged one by the error's type.
    if not path.is_file():
        raise FileNotFoundError(
            f"`path` must name a safetensors file, got {shown}, which does not exist"
        )

    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"`path` must be a whole safetensors file, got {shown}, "
            f"which is cut off or damaged ({error}); download or train it again"
        ) from error

    if HEADER not in header:
        raise ValueError(
            f"`path` must be a file written by rnr_gym, got {shown}, which lacks its header"
        )
    try:
        metadata = json.loads(header[HEADER])
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"`path` must have JSON in its header, got {shown}, where it is damaged ({error})"
        ) from error
    if not isinstance(metadata, dict):
        raise ValueError(
            f"`path` must have a JSON object in its header, got {shown}, which has {metadata!r}"
        )
    # Files of older versions have no digest.
    written = metadata.pop(DIGEST, None)
    if written is not None and written != digest(tensors):
        raise ValueError(
            f"`path` must hold the tensors that were written to it, got {shown}, where they were "
            "changed since; download or train it again"
        )
    return tensors, metadata


def flattened(
    tree: Mapping[str, Any], prefix: str = ""
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split a nested dict into tensors and JSON-able leaves, both named `a/b/c`.

    Keys are strings or integers, as in an optimiser's state. `nested` is the inverse.
    """
    tensors: dict[str, Tensor] = {}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        # An empty dict is a leaf: it has no entries whose names could bring it back.
        if isinstance(value, Mapping) and value:
            inner_tensors, inner_leaves = flattened(value, f"{name}/")
            tensors |= inner_tensors
            leaves |= inner_leaves
        elif isinstance(value, Tensor):
            tensors[name] = value
        else:
            leaves[name] = value
    return tensors, leaves


def nested(tensors: Mapping[str, Tensor], leaves: Mapping[str, Any]) -> dict[Any, Any]:
    """Undo `flattened`.

    Keys that look like integers become integers, because optimisers number their parameters.
    """
    tree: dict[Any, Any] = {}
    for name, value in [*tensors.items(), *leaves.items()]:
        *parents, last = [_key(part) for part in name.split("/")]
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def _key(part: str) -> int | str:
    if part.isdigit():
        return int(part)
    return part


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Twelve hexadecimal digits that change when a name or a value of any tensor does."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        # As bytes, because NumPy does not know every type that torch has.
        flat = tensors[name].detach().cpu().contiguous().view(-1)
        total.update(name.encode())
        total.update(flat.view(torch.uint8).numpy().data)
    return total.hexdigest()[:12]


def short_hash(*parts: bytes) -> str:
    """The first twelve hexadecimal digits of the SHA-256 of the parts, joined without separator."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()[:12]

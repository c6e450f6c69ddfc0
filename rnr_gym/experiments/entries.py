"""Entries of the leaderboard: a router as the paths that it chose, in one file.

An entry has no figures. They are computed from its paths, see `leaderboard`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rnr_gym import checks, storage
from rnr_gym.agents import FitConfig
from rnr_gym.agents.static import StaticRouter
from rnr_gym.backbones import zoo
from rnr_gym.backbones.macs import MOST
from rnr_gym.backbones.weights import BUNDLED
from rnr_gym.classifier import load_run
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS, eval_tradeoffs, evaluate
from rnr_gym.experiments.results import Testbed
from rnr_gym.registration import registered_kwargs
from rnr_gym.routing.observations import MAX_TRADEOFF
from rnr_gym.routing.protocols import Router, RoutingSource
from rnr_gym.routing.rollout import decision_macs as count_decision_macs
from rnr_gym.routing.sources import digest_of, open_source

KIND = "leaderboard entry"
SPLIT = "test"
NO_CODE = "-"
"""Stands where the code of a router is not public."""
LARGEST = 16 * 2**20
"""Bytes that the file of an entry may have."""
MOST_TRADEOFFS = 128
"""How many trade-offs an entry may have."""
LONGEST = {"router": 60, "author": 60, "code": 200}
"""How many characters these texts may have."""
RESERVED = "|<>[]`\\"
"""Characters that mean something in the tables in which the texts are shown."""
TEXTS = ("router", "author", "code", "env", "weights", "weights_digest", "source_digest")
FIELDS = (*TEXTS, "static", "decision_macs")
"""What the header of an entry says, besides its kind and the split."""
DTYPES = {"paths": torch.int8, "tradeoffs": torch.float64}
"""The tensors of an entry."""


@dataclass(frozen=True, eq=False)
class Entry:
    """What a router did with the N images of `test`, at M trade-offs.

    Attributes:
        router: a name for it.
        author: whose it is.
        code: address of the code that chose the paths, or `"-"`.
        env: a registered id.
        weights: of the backbone: `"pretrained"` or `"finetuned"`.
        weights_digest: digest of those weights.
        source_digest: digest of weights, images and costs together.
        static: whether it is charged as a static network; then all images share a path at each
            trade-off, and nothing is decided.
        decision_macs: what the router spends on one decision. Declared: it does not follow from
            the paths.
        tradeoffs: float64 `(M,)`, ascending, those of `EVAL_TRADEOFFS` among them.
        paths: int8 `(M, N, T)`, executed sub-paths, -1 after an exit.

    Raises `ValueError` for what cannot be in any entry. Whether paths fit the environment is
    checked by `check_paths`, and the digests by `check_origin`.
    """

    router: str
    author: str
    code: str
    env: str
    weights: str
    weights_digest: str
    source_digest: str
    static: bool
    decision_macs: int
    tradeoffs: NDArray[np.float64]
    paths: NDArray[np.int8]

    def __post_init__(self) -> None:
        for name in LONGEST:
            _check_text(name, getattr(self, name))
        _check_code(self.code)
        registered_kwargs(self.env)
        checks.choice("weights", self.weights, BUNDLED)
        for name in ("weights_digest", "source_digest"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"`{name}` must be a digest, got {getattr(self, name)!r}")
        checks.flag("static", self.static)
        # A static network decides nothing.
        most_macs = 0 if self.static else MOST
        checks.integer("decision_macs", self.decision_macs, 0, most_macs)

        object.__setattr__(self, "tradeoffs", _checked_tradeoffs(self.tradeoffs, self.static))
        shape = (len(self.tradeoffs), None, None)
        paths = checks.whole_numbers("paths", self.paths, shape, -1, np.iinfo(np.int8).max)
        object.__setattr__(self, "paths", paths.astype(np.int8))


def _check_text(name: str, value: Any) -> None:
    most = LONGEST[name]
    fits = isinstance(value, str) and 0 < len(value) <= most and value == value.strip()
    if not fits or not value.isprintable() or set(value) & set(RESERVED):
        raise ValueError(
            f"`{name}` must be 1 to {most} printable characters, none of {' '.join(RESERVED)}, "
            f"and no space at the ends, got {checks.shortened(value)}"
        )


def _check_code(code: str) -> None:
    is_address = code.startswith(("https://", "http://")) and " " not in code
    if code != NO_CODE and not is_address:
        raise ValueError(
            f"`code` must be an address that starts with https://, or {NO_CODE}, got {code!r}"
        )


def _checked_tradeoffs(value: Any, static: bool) -> NDArray[np.float64]:
    """The trade-offs, with those that are evaluated everywhere as they are here."""
    # A static network does not observe its trade-off, so there is no highest one.
    highest = np.inf if static else MAX_TRADEOFF
    tradeoffs = checks.numbers("tradeoffs", value, (None,), 0.0, highest).copy()
    if len(tradeoffs) > MOST_TRADEOFFS:
        raise ValueError(
            f"`tradeoffs` must be at most {MOST_TRADEOFFS} numbers, got {len(tradeoffs)}"
        )

    for tradeoff in EVAL_TRADEOFFS:
        # The last digit of a power may differ between machines.
        same = np.isclose(tradeoffs, tradeoff, rtol=1e-9, atol=0.0)
        if not same.any():
            raise ValueError(
                f"`tradeoffs` must have the {len(EVAL_TRADEOFFS)} at which every router is "
                f"evaluated, got none at {tradeoff:.6g}"
            )
        tradeoffs[same] = tradeoff
    if not (np.diff(tradeoffs) > 0).all():
        raise ValueError(f"`tradeoffs` must ascend, got {checks.shortened(tradeoffs)}")
    return tradeoffs


# Files


def write_entry(path: str | Path, entry: Entry) -> None:
    """Write an entry as one safetensors file.

    Raises `FileExistsError` if there is something at `path`.
    """
    path = check_new(path)
    tensors = {
        "paths": torch.from_numpy(entry.paths),
        "tradeoffs": torch.from_numpy(entry.tradeoffs),
    }
    metadata = {name: getattr(entry, name) for name in FIELDS}
    storage.save_tensors(path, tensors, {"kind": KIND, "split": SPLIT, **metadata})


def read_entry(path: str | Path) -> Entry:
    """Read what `write_entry` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is too large, damaged, or no entry; the error names the file.
    """
    path = Path(checks.path("entry", path))
    shown = repr(str(path))
    if not path.is_file():
        raise FileNotFoundError(f"`entry` must be a file, got {shown}, which does not exist")
    # Before it is read.
    if path.stat().st_size > LARGEST:
        raise ValueError(
            f"`entry` must be a file of at most {LARGEST:,} bytes, got {shown}, which has "
            f"{path.stat().st_size:,}"
        )
    try:
        tensors, metadata = storage.load_tensors(path)
    except ValueError as error:
        raise ValueError(
            f"`entry` must be a file that `rnr-gym enter` wrote, got {shown}, which is something "
            "else, cut off or changed since"
        ) from error
    if metadata.get("kind") != KIND or tensors.keys() != DTYPES.keys():
        raise ValueError(f"`entry` must be a file that `rnr-gym enter` wrote, got {shown}")
    missing = [name for name in ("split", *FIELDS) if name not in metadata]
    if missing:
        raise ValueError(
            f"`entry` must be a file that `rnr-gym enter` wrote, got {shown}, which lacks "
            f"{', '.join(missing)}"
        )

    values: dict[str, Any] = {name: metadata[name] for name in FIELDS}
    try:
        checks.choice("split", metadata["split"], [SPLIT])
        for name, dtype in DTYPES.items():
            if tensors[name].dtype != dtype:
                raise ValueError(f"`{name}` must be {dtype}, got {tensors[name].dtype}")
            values[name] = tensors[name].numpy()
        return Entry(**values)
    except ValueError as error:
        raise ValueError(
            f"`entry` must be an entry of this version, got {shown} ({error})"
        ) from error


def check_new(path: str | Path) -> Path:
    """The path of a file that is to be written; raises `FileExistsError` if there is something."""
    path = Path(checks.path("out", path))
    if path.exists():
        raise FileExistsError(f"`out` must be a new file, got {str(path)!r}, which exists")
    return path


# Making entries


def enter_run(run_dir: str | Path, out: str | Path, author: str, code: str = NO_CODE) -> Entry:
    """Write the entry of a router that `rnr-gym train` fitted; it has the name of its agent.

    Args:
        run_dir: the folder of the run.
        out: the file to write.
        author: whose router it is.
        code: address of its code, or `"-"`.

    Raises:
        ValueError: the run has another problem than its id, or weights that are not bundled.
        FileNotFoundError: there is no run, or there are no images.
        FileExistsError: there is something at `out`.
    """
    check_new(out)
    run = load_run(run_dir)
    kwargs = dict(run.fit_config.kwargs)
    data_root = kwargs.pop("data_root", None)
    weights = kwargs.pop("weights", BUNDLED[0])
    if kwargs or weights not in BUNDLED:
        raise ValueError(
            "`run` must be fitted to an id as it is registered, with bundled weights, got "
            f"{dict(run.fit_config.kwargs)}"
        )
    return enter_router(
        out,
        run.fit_config.env,
        run.router,
        name=run.agent,
        author=author,
        code=code,
        weights=weights,
        data_root=data_root,
    )


def enter_router(
    out: str | Path,
    env: str,
    router: Router,
    *,
    name: str,
    author: str,
    code: str = NO_CODE,
    weights: str = "pretrained",
    data_root: str | None = None,
) -> Entry:
    """Write the entry of anything with `predict`, for the leaderboard.

    It routes every image of `test` at the trade-offs at which all routers are evaluated. What it
    spends on a decision is counted, if it is a network in torch.

    Args:
        out: the file to write.
        env: a registered id.
        router: what chooses the paths; a model of Stable-Baselines3, for example.
        name: of the router.
        author: whose it is.
        code: address of its code, or `"-"`.
        weights: of the backbone: `"pretrained"` or `"finetuned"`.
        data_root: folder of the images.

    Raises:
        ValueError: an argument is not allowed.
        FileNotFoundError: there are no images.
        FileExistsError: there is something at `out`.
    """
    check_new(out)
    source = open_testbed(env, weights, data_root).fastest
    tradeoffs = eval_tradeoffs(router)
    paths = [evaluate(source, router, tradeoff).path for tradeoff in tradeoffs]
    static = isinstance(router, StaticRouter)
    return enter_paths(
        out,
        env,
        np.stack(paths),
        name=name,
        author=author,
        decision_macs=0 if static else count_decision_macs(router, source.spec),
        code=code,
        tradeoffs=np.array(tradeoffs),
        static=static,
        weights=weights,
        data_root=data_root,
    )


def enter_paths(
    out: str | Path,
    env: str,
    paths: NDArray[np.integer],
    *,
    name: str,
    author: str,
    decision_macs: int,
    code: str = NO_CODE,
    tradeoffs: NDArray[np.floating] | tuple[float, ...] = EVAL_TRADEOFFS,
    static: bool = False,
    weights: str = "pretrained",
    data_root: str | None = None,
) -> Entry:
    """Write the entry of a router that is no Python object, from the paths that it chose.

    Args:
        out: the file to write.
        env: a registered id.
        paths: int `(M, N, T)`, the executed sub-paths of the N images of `test`, in order, at each
            trade-off; -1 after an exit.
        name: of the router.
        author: whose it is.
        decision_macs: MACs that the router spends on one decision.
        code: address of its code, or `"-"`.
        tradeoffs: `(M,)`, ascending; the 16 at which every router is evaluated, and any others.
        static: charge it as a static network. Then all images share a path at each trade-off.
        weights: of the backbone: `"pretrained"` or `"finetuned"`.
        data_root: folder of the images.

    Raises:
        ValueError: an argument is not allowed, or the paths do not fit the environment.
        FileNotFoundError: there are no images.
        FileExistsError: there is something at `out`.
    """
    check_new(out)
    source = open_test(env, weights, data_root)
    entry = Entry(
        router=name,
        author=author,
        code=code,
        env=env,
        weights=weights,
        static=static,
        decision_macs=decision_macs,
        tradeoffs=np.asarray(tradeoffs),
        paths=np.asarray(paths),
        **origin(env, weights, source),
    )
    check_paths(entry, source)
    write_entry(out, entry)
    return entry


# What an entry is about


def open_test(env: str, weights: str, data_root: str | None = None) -> RoutingSource:
    """The images of `test` of an id, with these weights of its backbone.

    No route table is built for it.
    """
    kwargs = _source_kwargs(env, weights, data_root)
    return open_source(**{**registered_kwargs(env), **kwargs, "split": SPLIT})


def open_testbed(env: str, weights: str, data_root: str | None = None) -> Testbed:
    """The same with the route table, which may have to be built first."""
    return Testbed.open(FitConfig(env, kwargs=_source_kwargs(env, weights, data_root)))


def _source_kwargs(env: str, weights: str, data_root: str | None) -> dict[str, Any]:
    registered_kwargs(env)
    checks.choice("weights", weights, BUNDLED)
    kwargs: dict[str, Any] = {"weights": weights}
    if data_root is not None:
        kwargs["data_root"] = data_root
    return kwargs


def origin(env: str, weights: str, source: RoutingSource) -> dict[str, str]:
    """The two digests of an entry."""
    backbone = zoo.named(registered_kwargs(env)["backbone"], weights)
    return {
        "weights_digest": storage.digest(backbone.state_dict()),
        "source_digest": digest_of(source),
    }


def check_origin(entry: Entry, source: RoutingSource) -> None:
    """Raise `ValueError` if an entry is about other weights or images than those that are here."""
    expected = origin(entry.env, entry.weights, source)
    if entry.weights_digest != expected["weights_digest"]:
        raise ValueError(
            f"`weights_digest` must be {expected['weights_digest']}, that of the {entry.weights} "
            f"weights of {entry.env}, got {entry.weights_digest!r}"
        )
    # With the same weights, it is the images that differ.
    if entry.source_digest != expected["source_digest"]:
        raise ValueError(
            f"`source_digest` must be {expected['source_digest']}, that of these weights with the "
            f"images of `test` of {entry.env} that are here, got {entry.source_digest!r}: the "
            "paths are those of other images"
        )


def check_paths(entry: Entry, source: RoutingSource) -> None:
    """Raise `ValueError` unless the paths are whole paths of the environment, one for each image.

    A table or a network would take some of what is refused here: a sub-path after an exit is never
    executed, and so could be anything.
    """
    spec = source.spec
    num_images = len(source.labels)
    if entry.paths.shape[1] != num_images:
        raise ValueError(
            f"`paths` must have one path for each of the {num_images:,} images of `test` of "
            f"{entry.env}, got {entry.paths.shape[1]:,}"
        )
    if entry.paths.shape[2] != spec.num_layers:
        raise ValueError(
            f"`paths` must have {spec.num_layers} layers, as {entry.env}, got "
            f"{entry.paths.shape[2]}"
        )

    waiting = np.ones(entry.paths.shape[:2], np.bool_)  # (M, N)
    for layer in range(spec.num_layers):
        sub_paths = entry.paths[:, :, layer]
        after_exit = ~waiting & (sub_paths != -1)
        _refuse_first(entry, layer, after_exit, "must be -1 after an exit")
        offered = np.flatnonzero(spec.valid[layer])
        rule = f"must take one of the sub-paths {', '.join(map(str, offered))} at layer {layer}"
        _refuse_first(entry, layer, waiting & ~np.isin(sub_paths, offered), rule)
        if spec.has_exits:
            waiting &= sub_paths != 0

    # A static network takes one path for all images.
    differs = (entry.paths != entry.paths[:, :1]).any(2)
    if entry.static and differs.any():
        first = int(differs.any(1).argmax())
        raise ValueError(
            "`static` must be False where images take different paths, got True, with "
            f"{len(np.unique(entry.paths[first], axis=0))} paths at trade-off "
            f"{entry.tradeoffs[first]:.4g}"
        )


def _refuse_first(entry: Entry, layer: int, wrong: NDArray[np.bool_], rule: str) -> None:
    """Raise `ValueError` for the first sub-path of a layer that is `wrong` `(M, N)`, if any is."""
    if not wrong.any():
        return
    which, image_idx = np.argwhere(wrong)[0].tolist()
    raise ValueError(
        f"`paths` {rule}, got {entry.paths[which, image_idx, layer]} for image {image_idx} at "
        f"trade-off {entry.tradeoffs[which]:.4g}"
    )

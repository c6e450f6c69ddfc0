"""A router and a backbone as one thing to deploy."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym import agents, checks, storage
from rnr_gym.agents import AGENTS, FitConfig
from rnr_gym.backbones import Backbone, zoo
from rnr_gym.backbones import weights as weight_files
from rnr_gym.backbones.inference import chosen_dtype, for_inference
from rnr_gym.backbones.macs import TimeTable
from rnr_gym.routing.protocols import FittedRouter, Router
from rnr_gym.routing.rewards import check_one_tradeoff
from rnr_gym.routing.rollout import decision_macs, follow, route
from rnr_gym.routing.sources import digest_of, open_profile
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal

BACKBONE_FILE = "backbone.safetensors"
ROUTER_FILE = "router.safetensors"
CONFIG_FILE = "config.json"
"""Written when a run starts: what it was started with."""
RUN_FIELDS = ("env", "arguments", "seed", "steps", "tradeoffs")
"""What the file of a run's router says of its configuration."""
DEFAULT_AGENT = "ppo"
"""The bundled router that a name stands for unless another one is asked for."""
HUB_KWARGS = ("revision", "cache_dir", "force_download", "local_files_only", "token")
"""Arguments of `from_pretrained` that a download from the Hugging Face hub takes."""


class Routed(NamedTuple):
    """What a classifier returns for N images.

    Attributes:
        logits: float32 `(N, classes)`.
        path: int8 `(N, T)`, executed sub-paths, -1 after an exit.
        macs: int64 `(N,)`, the router's own included.
        compute: float64 `(N,)`, MACs over those of the plain network; or time, if the router was
            fitted under it.
    """

    logits: Tensor
    path: NDArray[np.int8]
    macs: NDArray[np.int64]
    compute: NDArray[np.float64]

    @classmethod
    def joined(cls, parts: list[Routed]) -> Routed:
        """The images of several batches, in order."""
        return cls(
            logits=torch.cat([part.logits for part in parts]),
            path=np.concatenate([part.path for part in parts]),
            macs=np.concatenate([part.macs for part in parts]),
            compute=np.concatenate([part.compute for part in parts]),
        )


class BudgetCurve(NamedTuple):
    """Mean compute of a router on `route`, by which a budget becomes a trade-off.

    Attributes:
        tradeoff: trade-offs, ascending.
        compute: the mean compute at each of them, the router's own included.
    """

    tradeoff: list[float]
    compute: list[float]

    def tradeoff_for(self, compute: float) -> float:
        """The trade-off at which the mean compute on `route` was `compute`.

        Where `compute` is more than was measured at any trade-off, this is the trade-off at which
        most was spent.

        Raises `ValueError` if `compute` is below the cheapest that was measured, or above both 1
        and the most that was measured.
        """
        if not checks.is_number(compute):
            raise ValueError(f"`compute` must be a number, got {compute!r}")
        # A measured curve may rise in places. What remains falls strictly, so it can be inverted.
        falling = np.minimum.accumulate(np.array(self.compute))
        kept = np.concatenate([[True], np.diff(falling) < 0])
        low = float(falling[-1])
        high = float(falling[0])
        upper_bound = max(1.0, high)
        if not low <= compute <= upper_bound:
            raise ValueError(
                f"`compute` must lie in {low:.3f} (the cheapest that this router was measured at) "
                f"to {upper_bound:.4g}, got {compute!r}"
            )

        # Compute changes with ratios of λ, hence the logarithm. The computes are negated because
        # `np.interp` needs ascending positions.
        log_tradeoff = np.log(self.tradeoff)[kept]
        return float(np.exp(np.interp(-min(compute, high), -falling[kept], log_tradeoff)))


class RoutedClassifier(ModelHubMixin):
    """A backbone with a router that chooses each image's path.

    >>> routed = classifier(images, compute=0.4)  # a mean budget
    >>> routed = classifier(images, tradeoff=0.3)
    >>> routed = classifier(images)  # the plain network

    `save_pretrained(folder)`, `push_to_hub(name)` and `RoutedClassifier.from_pretrained(name)`
    keep the two together, as safetensors.

    Args:
        backbone: in evaluation mode, on the device that it is to run on. What runs is a copy with
            its batch-norms folded, so weights that change later change nothing here.
        router: anything with `predict`.
        exits: as the router was fitted.
        curve: needed for `compute=`.
        agent: the name of the agent that the router is of; needed for saving.
        dtype: in what features are computed: `"float32"`, `"bfloat16"`, or `"auto"` for the faster
            one on this machine, which is measured.
        time_table: where the router was fitted under time as a cost, what was charged. The router
            observes compute by it, wherever the classifier runs.
    """

    def __init__(
        self,
        backbone: Backbone,
        router: Router,
        exits: bool = True,
        curve: BudgetCurve | None = None,
        agent: str | None = None,
        dtype: str = "float32",
        time_table: TimeTable | None = None,
    ) -> None:
        self.backbone = backbone
        self.dtype = chosen_dtype(backbone, dtype)
        self.network = for_inference(backbone, self.dtype)
        self.router = router
        self.exits = checks.flag("exits", exits)
        self.curve = curve
        self.agent = agent
        self.spec = RoutingSpec.of(backbone, self.exits, time_table)
        # Measured once: it does not depend on the image.
        self.decision_macs = decision_macs(router, self.spec)

    @torch.inference_mode()
    def __call__(
        self,
        images: Tensor,
        compute: float | None = None,
        tradeoff: float | None = None,
    ) -> Routed:
        """Classify images at a mean compute or a trade-off; with neither, by the plain network.

        Args:
            images: `(N, C, H, W)`, uint8, or float 0..1.
            compute: mean compute to aim at, the router's own included.
            tradeoff: λ, 0..4.

        Raises `ValueError` if both are given, if there is no curve for `compute`, or if an argument
        is out of range.
        """
        if compute is not None and tradeoff is not None:
            raise ValueError(
                f"`compute` and `tradeoff` exclude each other, got {compute!r} and {tradeoff!r}"
            )
        if compute is not None:
            if self.curve is None:
                raise ValueError(
                    "`compute` needs a router whose curve was measured; pass `tradeoff`, or fit it "
                    "with `rnr-gym train`"
                )
            tradeoff = self.curve.tradeoff_for(compute)

        # Before they are split and moved.
        self.backbone.check_images(images)
        if tradeoff is not None:
            tradeoff = check_one_tradeoff(tradeoff)
        parts = [
            self._classify(batch, tradeoff) for batch in images.split(self.backbone.batch_size)
        ]
        return Routed.joined(parts)

    def _classify(self, images: Tensor, tradeoff: float | None) -> Routed:
        """The same for at most `batch_size` images, whose features are all in memory."""
        if tradeoff is None:
            return self._run_plain_network(images)
        start = self._start(images, self.spec.exit_layers)
        state = route(start, self.spec, self.router, tradeoff)
        router_macs = self.decision_macs * (state.path >= 0).sum(1)
        cost = self.spec.charged(state) + self.spec.router_cost(router_macs)
        return self._routed(state, state.macs + router_macs, cost)

    def _run_plain_network(self, images: Tensor) -> Routed:
        """The full path; neither router nor exits run."""
        # Without exits the glance does not run either, and nothing is charged for them.
        full_path = np.full(self.spec.num_layers, self.spec.full_path)
        state = follow(self._start(images, ()), full_path)
        return self._routed(state, state.macs, np.full_like(state.macs, self.spec.plain_cost))

    def _start(self, images: Tensor, exits: Collection[int]) -> Traversal:
        return Traversal.start(self.network, images.to(self.network.device), exits)

    def _routed(
        self,
        state: Traversal,
        macs: NDArray[np.int64],
        cost: NDArray[np.int64],
    ) -> Routed:
        return Routed(
            logits=state.logits.float(),
            path=state.path,
            macs=macs,
            compute=self.spec.compute(cost),
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        if self.agent is None:
            raise ValueError("`agent` must name how the router was fitted to save it, got None")

        curve = None
        if self.curve is not None:
            curve = self.curve._asdict()
        metadata = {
            "agent": self.agent,
            "problem": self.spec.digest,
            "exits": self.exits,
            "curve": curve,
        }
        # Only where there is one, so that other files stay as they were.
        if self.spec.time_table is not None:
            metadata["nanoseconds"] = self.spec.time_table.to_json()
        weight_files.save(self.backbone, save_directory / BACKBONE_FILE)
        agents.save(cast(FittedRouter, self.router), save_directory / ROUTER_FILE, metadata)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        agent: str | None = None,
        weights: str = "pretrained",
        device: str = "cpu",
        dtype: str = "float32",
        **hub_kwargs: Any,
    ) -> RoutedClassifier:
        """A classifier by name: a bundled one, else a folder, else a model of the hub.

        Args:
            pretrained_model_name_or_path: a name such as `"rnr-cifar10"`, a folder, or the id of
                a model on the Hugging Face hub.
            agent: which of the bundled routers, `"ppo"` (the default), `"dqn"` or `"rnr-dqn"`;
                for bundled classifiers only.
            weights: `"pretrained"` or `"finetuned"`; for bundled classifiers only.
            device: where it runs.
            dtype: in what features are computed, as for the constructor.
            hub_kwargs: `revision`, `cache_dir`, `token` and other arguments of the hub's client.

        Raises `ValueError` if there is no bundled router of that agent for those weights, or
        neither a folder nor a model of that name.
        """
        name = checks.path("pretrained_model_name_or_path", pretrained_model_name_or_path)
        checks.choice("weights", weights, weight_files.BUNDLED)
        if agent is not None and not isinstance(agent, str):
            raise ValueError(f"`agent` must be a name, got {agent!r}")
        chosen_agent = agent or DEFAULT_AGENT
        router_file = weight_files.router_file(name, chosen_agent, weights)
        # A name with a slash is a path or an id of the hub, whatever is bundled. Route tables have
        # names of the same form as routers, so only agents' names tell them apart.
        is_router = chosen_agent in AGENTS and router_file.is_file()
        if is_router and name == Path(name).name:
            backbone_file = weight_files.backbone_file(name, weights)
            return cls._from_files(backbone_file, router_file, device, dtype)

        if agent is not None or weights != "pretrained":
            raise ValueError(
                f"`agent` must be that of a bundled classifier, {_bundled_names()}, got "
                f"{agent!r} for {name!r}, {weights}"
            )
        try:
            classifier: RoutedClassifier = super().from_pretrained(
                name, device=device, dtype=dtype, **hub_kwargs
            )
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"`pretrained_model_name_or_path` must be one of {_bundled_names()}, a folder, "
                f"or a model of the Hugging Face hub, got {name!r}: there is no folder "
                f"{str(Path(name).absolute())!r}, and the hub has none ({reason})"
            ) from error
        return classifier

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        device: str = "cpu",
        dtype: str = "float32",
        **hub_kwargs: Any,
    ) -> RoutedClassifier:
        backbone_file = _fetch(model_id, BACKBONE_FILE, **hub_kwargs)
        router_file = _fetch(model_id, ROUTER_FILE, **hub_kwargs)
        return cls._from_files(backbone_file, router_file, device, dtype)

    @classmethod
    def _from_files(
        cls, backbone_file: Path, router_file: Path, device: str, dtype: str
    ) -> RoutedClassifier:
        # First, so that a mistyped device does not cost loading the files.
        device = checks.device(device)
        # Not `zoo.named`, whose backbones are shared: the caller may change the weights.
        backbone = zoo.load(backbone_file).to(device).to(memory_format=torch.channels_last)
        # Whether exits are on is part of the routing problem that the router is checked against.
        _, metadata = storage.load_tensors(router_file)
        exits = checks.flag("exits", metadata.get("exits"))
        time_table = None
        if "nanoseconds" in metadata:
            time_table = TimeTable.from_json("nanoseconds", metadata["nanoseconds"])
        router, _ = agents.load(router_file, RoutingSpec.of(backbone, exits, time_table))
        return cls(
            backbone=backbone,
            router=router,
            exits=exits,
            curve=_curve_of(metadata),
            agent=metadata["agent"],
            dtype=dtype,
            time_table=time_table,
        )

    @classmethod
    def from_run(
        cls, run_dir: str | Path, device: str = "cpu", dtype: str | None = None
    ) -> RoutedClassifier:
        """The router that `rnr-gym train` fitted, and the backbone that it was fitted to.

        Args:
            run_dir: the folder of the run.
            device: where it runs.
            dtype: in what features are computed, as for the constructor; None for the dtype to
                which the router was fitted.

        Raises as `load_run` does.
        """
        run = load_run(run_dir)
        kwargs = run.fit_config.source_kwargs("route")
        pretrained = kwargs.get("weights", "pretrained")
        profile = open_profile(**kwargs)
        return cls(
            backbone=zoo.named(kwargs["backbone"], pretrained, device=device),
            router=run.router,
            exits=kwargs.get("exits", True),
            curve=run.curve,
            agent=run.agent,
            dtype=dtype or kwargs.get("dtype", "float32"),
            time_table=None if profile is None else profile.times,
        )


def bundled_classifiers() -> dict[str, list[str]]:
    """Names of the bundled classifiers, each with the agents whose routers it comes with."""
    classifiers = {}
    for name in zoo.ARCHITECTURES:
        names = []
        for agent in sorted(AGENTS):
            if weight_files.router_file(name, agent).is_file():
                names.append(agent)
        if names:
            classifiers[name] = names
    return classifiers


def _bundled_names() -> str:
    """The same for an error message."""
    entries = []
    for name, agent_names in bundled_classifiers().items():
        entries.append(f"{name} ({', '.join(agent_names)})")
    return ", ".join(entries)


class Run(NamedTuple):
    """A fitted router and how it was fitted.

    Attributes:
        agent: the name of its agent.
        fit_config: what it was fitted to.
        router: the router.
        curve: its mean compute on `route`; None for static routers.
    """

    agent: str
    fit_config: FitConfig
    router: FittedRouter
    curve: BudgetCurve | None


def load_run(run_dir: str | Path) -> Run:
    """Read the folder that `rnr-gym train` wrote.

    Raises:
        FileNotFoundError: there is no run, or it is unfinished; the error says what to do.
        ValueError: the router's file is damaged, or was fitted to other weights or images.
    """
    run_dir = Path(checks.path("run_dir", run_dir))
    router_file = run_dir / ROUTER_FILE
    if not router_file.exists():
        reason = "holds no run; make one with `rnr-gym train`"
        if (run_dir / CONFIG_FILE).exists():
            reason = "is unfinished; run the same command to resume"
        raise FileNotFoundError(
            f"`run` must be the folder of a fitted router, got {str(run_dir)!r}, which {reason}"
        )

    _, metadata = storage.load_tensors(router_file)
    missing = sorted({"agent", "curve", "source", *RUN_FIELDS} - metadata.keys())
    if missing:
        raise ValueError(
            f"`run` must be a folder that `rnr-gym train` wrote, got {str(run_dir)!r}, whose "
            f"router lacks {', '.join(missing)}"
        )
    fit_config = FitConfig(
        env=metadata["env"],
        kwargs=metadata["arguments"],
        seed=metadata["seed"],
        steps=metadata["steps"],
        tradeoffs=metadata["tradeoffs"],
    )
    source = fit_config.source("route")
    router, _ = agents.load(router_file, source.spec)
    # `agents.load` checks the routing problem, which is the same for any weights and images.
    current = digest_of(source)
    if metadata["source"] != current:
        raise ValueError(
            f"`run` must be fitted to these weights and images ({current}), got {str(run_dir)!r}, "
            f"fitted to {metadata['source']}"
        )
    return Run(
        agent=metadata["agent"],
        fit_config=fit_config,
        router=router,
        curve=_curve_of(metadata),
    )


def _curve_of(metadata: dict[str, Any]) -> BudgetCurve | None:
    """The curve that a router's file has; None where it was not measured."""
    if not metadata.get("curve"):
        return None
    stored = metadata["curve"]
    if not isinstance(stored, dict) or not {"tradeoff", "compute"} <= stored.keys():
        raise ValueError(f"`curve` must have `tradeoff` and `compute`, got {stored!r}")
    tradeoffs = checks.ascending("tradeoff", stored["tradeoff"], 0.0)
    compute = checks.numbers("compute", stored["compute"], tradeoffs.shape, 0.0)
    return BudgetCurve(tradeoffs.tolist(), compute.tolist())


def _fetch(model_id: str, file_name: str, **hub_kwargs: Any) -> Path:
    """A file of a saved classifier, from a folder, else from the hub."""
    if Path(model_id).is_dir():
        return Path(model_id) / file_name
    # The mixin passes on more than a download takes.
    known = {name: value for name, value in hub_kwargs.items() if name in HUB_KWARGS}
    return Path(hf_hub_download(model_id, file_name, **known))

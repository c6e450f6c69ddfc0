"""Fitted Q iteration with full information: what can be learned from these observations at all.

A route table holds the outcome of every path for every image, so nothing has to be explored. From
the last layer to the first, a small network is fitted to the return of each sub-path at every
prefix: -λ * Δcompute, plus the realised return of the policy already fitted for the later layers.

Three things keep estimation errors from being mistaken for gains:

- No maximum over estimates enters a target: the table knows what the fitted policy really gets.
- Cross-fitting: the policy that sets an image's targets was fitted without that image's original.
- The router starts from the confidence rule with one threshold for each exit, and departs from it
  only where the estimated gain exceeds a margin; the margins have the best return out of fold.

The task term is right or wrong, 1 or 0. The probability of the true class has less variance, but
rewards answers that become more confident without becoming more often right.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym import checks
from rnr_gym.agents import thresholds
from rnr_gym.agents.base import FitConfig, RouterBase, needs_table
from rnr_gym.agents.folds import originals
from rnr_gym.agents.fqi_induction import Config, Induction, Ints, depart
from rnr_gym.agents.fqi_networks import Floats, Networks, inputs
from rnr_gym.agents.thresholds import ThresholdsRouter
from rnr_gym.progress import progress_bar
from rnr_gym.routing.observations import layers_of
from rnr_gym.routing.preferences import Preferences
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.spec import RoutingSpec

CONFIG = Config()
"""How `fit` fits a router."""


class FqiRouter(RouterBase):
    """Takes the sub-path of the best estimate where it beats the thresholds' choice by a margin.

    Attributes:
        networks: those of all T layers, one member for each layer.
        tradeoffs: float64 `(G,)`, ascending.
        margins: float64 `(G,)`.
        fallback: the router that it departs from.
    """

    def __init__(
        self,
        spec: RoutingSpec,
        networks: Networks,
        tradeoffs: NDArray[np.float64],
        margins: NDArray[np.float64],
        fallback: ThresholdsRouter,
    ) -> None:
        super().__init__(spec)
        self.networks = networks
        self.tradeoffs = tradeoffs
        self.margins = margins
        self.fallback = fallback

    def actions(self, observation: Floats, deterministic: bool) -> Ints:
        """The best sub-path where it leads by the margin, else that of the fallback."""
        values = self._interpolated(observation)
        margin = np.interp(self._position(observation), self._grid_idx, self.margins)
        usual = self.fallback.actions(observation, deterministic)
        valid = self.spec.valid[layers_of(self.spec.layout, observation)]
        # `depart` decides for several trade-offs; an observation has only one.
        chosen = depart(values[..., None], usual[:, None], margin[:, None], valid)
        return chosen[:, 0]

    def preferences(
        self,
        observation: Floats,
        state: Any = None,
        episode_start: Any = None,
    ) -> Preferences:
        """The estimates; the sub-path of the fallback is taken where none leads by the margin."""
        return Preferences("advantage", self._interpolated(observation).astype(np.float64))

    @property
    def _grid_idx(self) -> Ints:
        return np.arange(len(self.tradeoffs))

    def _position(self, observation: Floats) -> NDArray[np.float64]:
        """Where each λ lies on the grid of trade-offs, by its logarithm; an end if it is beyond."""
        # λ may be 0, which has no logarithm.
        tradeoff = np.maximum(observation[:, self.spec.layout.tradeoff.start], 1e-9)
        log_tradeoff = np.log(tradeoff.astype(np.float64))
        return np.interp(log_tradeoff, np.log(self.tradeoffs), self._grid_idx)

    def _interpolated(self, observation: Floats) -> NDArray[Any]:
        """Estimates `(N, K)` at the trade-offs of the observations."""
        position = self._position(observation)
        low = position.astype(np.int64)
        high = np.minimum(low + 1, len(self.tradeoffs) - 1)
        share = (position - low)[:, None]
        estimates = self.values(observation)  # (N, K, G)
        batch_idx = np.arange(len(observation))
        at_low = estimates[batch_idx, :, low]  # (N, K)
        at_high = estimates[batch_idx, :, high]
        return (1.0 - share) * at_low + share * at_high

    @torch.no_grad()
    def values(self, observation: Floats) -> Floats:
        """float32 `(N, K, G)`: estimated returns, less the mean over an observation's sub-paths."""
        layers = layers_of(self.spec.layout, observation)
        x = torch.from_numpy(inputs(self.spec.layout, observation))
        values = np.zeros((len(x), self.spec.num_paths, len(self.tradeoffs)), np.float32)
        # Each layer has its own network, so observations are grouped by layer.
        for layer in np.unique(layers).tolist():
            batch_idx = np.flatnonzero(layers == layer)
            network = self.networks.one(layer)
            estimates = network(x[batch_idx][None])  # (1, n, D) -> (1, n, K * G)
            values[batch_idx] = estimates[0].numpy().reshape(len(batch_idx), *values.shape[1:])
        return values

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The networks' tensors; trade-offs, margins and the configuration of the fallback."""
        config = {
            "tradeoffs": self.tradeoffs.tolist(),
            "margins": self.margins.tolist(),
            "fallback": self.fallback.state_dict()[1],
        }
        return self.networks._asdict(), config

    @classmethod
    def from_state_dict(
        cls,
        spec: RoutingSpec,
        tensors: dict[str, Tensor],
        config: dict[str, Any],
    ) -> Self:
        """The router whose `state_dict` returned `tensors` and `config`."""
        tradeoffs = checks.ascending("tradeoffs", config["tradeoffs"], 0.0)
        blank = np.zeros((1, spec.layout.size), np.float32)
        networks = Networks.restored(
            tensors,
            members=spec.num_layers,
            num_inputs=inputs(spec.layout, blank).shape[1],
            num_outputs=spec.num_paths * len(tradeoffs),
        )
        return cls(
            spec,
            networks=networks,
            tradeoffs=tradeoffs,
            margins=checks.numbers("margins", config["margins"], (len(tradeoffs),)),
            fallback=ThresholdsRouter.from_state_dict(spec, {}, config["fallback"]),
        )


def fit(fit_config: FitConfig) -> FqiRouter:
    """Fit to the route table of `route`; raises `ValueError` where there is none.

    `fit_config.steps` is not used: nothing steps through the environment.
    """
    table = fit_config.table("route")
    if table is None:
        raise ValueError(needs_table("fqi", fit_config.env))
    groups = originals(fit_config, table)
    return fit_table(table, groups, CONFIG, fit_config.seed, fit_config.progress)


def fit_table(
    table: RouteTable,
    groups: Ints,
    config: Config,
    seed: int,
    progress: bool = False,
) -> FqiRouter:
    """Backward induction over the layers of a table.

    Args:
        table: outcomes of every path.
        groups: int64 `(N,)`, images with the same number are never in different folds.
        config: how to fit.
        seed: of folds, initial weights and mini-batches.
        progress: whether to show a progress bar.
    """
    fallback = thresholds.solve(table)
    induction = Induction(table, groups, config, seed, fallback)
    # Targets of a layer are the returns of the policies fitted for all later ones.
    last_to_first = range(table.spec.num_layers)[::-1]
    by_layer = []
    for layer in progress_bar(
        last_to_first, desc=f"fqi seed {seed}", unit="layer", disable=not progress
    ):
        networks = induction.fit_layer(layer)
        # The last member was fitted to all images; those of the folds have done their work.
        by_layer.append(networks.one(config.folds))

    parts = zip(*reversed(by_layer), strict=True)
    return FqiRouter(
        table.spec,
        networks=Networks(*(torch.cat(part) for part in parts)),
        tradeoffs=np.array(config.tradeoffs),
        margins=induction.best_margins(),
        fallback=fallback,
    )

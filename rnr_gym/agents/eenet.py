"""A learned exit scheduler: thresholds on scores that a small network gives to each exit's answer.

After Ilhan et al., *Adaptive Deep Neural Network Inference Optimization with EENet* (WACV 2024): a
score reads an exit's class probabilities, how confident it is, and the scores of the exits before
it. Here the score is the probability that continuing would not help, which a route table or a pass
over the images labels for free; and the thresholds are solved for each trade-off as those of the
confidence rule are, on scores of images that the network was not fitted to.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rnr_gym.agents.base import FitConfig, RouterBase
from rnr_gym.agents.confidence import Trail
from rnr_gym.agents.features import log_doubt
from rnr_gym.agents.folds import folds, originals
from rnr_gym.agents.fqi_networks import Networks
from rnr_gym.agents.thresholds import ThresholdsRouter, best_of_trails, uniform_trails
from rnr_gym.routing.observations import confidence_features, layers_of
from rnr_gym.routing.spec import RoutingSpec

Floats = NDArray[np.float32]


class Config(NamedTuple):
    """How scores are fitted.

    Attributes:
        folds: parts of the images; each is scored by a network that was fitted to the others.
        hidden: width of the networks.
        steps: full-batch steps of AdamW.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
    """

    folds: int = 5
    hidden: int = 16
    steps: int = 200
    learning_rate: float = 0.02
    weight_decay: float = 0.01


CONFIG = Config()


class EenetRouter(RouterBase):
    """Leaves at the first exit whose score reaches the threshold.

    Attributes:
        rule: thresholds on scores, and the sub-path taken otherwise, by trade-off.
        networks: one for each sub-path and layer, in that order; those of the exit, and of layers
            without one, are never used.
    """

    def __init__(self, spec: RoutingSpec, rule: ThresholdsRouter, networks: Networks) -> None:
        super().__init__(spec)
        self.rule = rule
        self.networks = networks

    def predict(
        self,
        observation: NDArray[np.float32],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.int64], Any]:
        """Sub-paths `(N,)`, and the scores so far, `(N, T)`, in a tuple."""
        layout = self.spec.layout
        layers = layers_of(layout, observation)
        scores = np.zeros((len(observation), self.spec.num_layers), np.float32)
        if state is not None:
            # At layer 0 an episode starts, which has no scores yet.
            scores[layers > 0] = state[0][layers > 0]

        nearest = self.rule.nearest(observation[:, layout.tradeoff.start])
        sub_paths = self.rule.sub_paths[nearest]
        probabilities = observation[:, layout.summary.exit_probabilities]
        score = self._score(sub_paths, layers, inputs(probabilities, scores))
        scores[np.arange(len(layers)), layers] = score

        leave = score >= self.rule.thresholds[nearest, layers]
        onward = self.spec.onward[layers, sub_paths]
        return np.where(leave, 0, onward), (scores,)

    @torch.no_grad()
    def _score(self, sub_paths: NDArray[np.int64], layers: NDArray[np.int64], x: Floats) -> Floats:
        """float32 `(N,)`: each image's score; 0 where there is no exit."""
        score = np.zeros(len(x), np.float32)
        member = sub_paths * self.spec.num_layers + layers
        has_exit = self.spec.masks[layers, 0] == 1
        if not self.spec.has_exits:
            return score
        # Each sub-path and layer has its own network, so images are grouped by it.
        for number in np.unique(member[has_exit]).tolist():
            batch_idx = np.flatnonzero(has_exit & (member == number))
            logit = self.networks.one(number)(torch.from_numpy(x[batch_idx])[None])  # (1, n, 1)
            score[batch_idx] = logit[0, :, 0].sigmoid().numpy()
        return score

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The networks' tensors; the configuration of the rule."""
        return self.networks._asdict(), self.rule.state_dict()[1]

    @classmethod
    def from_state_dict(
        cls,
        spec: RoutingSpec,
        tensors: dict[str, Tensor],
        config: dict[str, Any],
    ) -> Self:
        """The router whose `state_dict` returned `tensors` and `config`."""
        rule = ThresholdsRouter.from_state_dict(spec, {}, config)
        blank = inputs(np.ones((1, spec.num_classes)), np.zeros((1, spec.num_layers)))
        members = spec.num_paths * spec.num_layers
        return cls(spec, rule, Networks.restored(tensors, members, blank.shape[1], 1))


def fit(fit_config: FitConfig) -> EenetRouter:
    """Fit scores along every uniform path of `route`, then solve the thresholds on them."""
    source = fit_config.source("route")
    spec = source.spec
    rng = np.random.default_rng(fit_config.seed)
    fold = folds(originals(fit_config, source), CONFIG.folds, rng)
    generator = torch.Generator().manual_seed(fit_config.seed)

    num_inputs = inputs(np.ones((1, spec.num_classes)), np.zeros((1, spec.num_layers))).shape[1]
    num_networks = spec.num_paths * spec.num_layers
    kept = Networks.initial(num_networks, num_inputs, CONFIG.hidden, 1, generator).detached()
    scored = {}
    for sub_path, trail in uniform_trails(source).items():
        confidence = trail.confidence.copy()
        scores = np.zeros((len(fold), spec.num_layers), np.float32)
        for layer in spec.exit_layers:
            x = inputs(trail.probabilities[layer], scores)
            networks = fitted(x, enough(trail, layer), fold, generator)
            # Out of fold, for what is solved and fitted from here on.
            scores[:, layer] = held_out_scores(networks, x, fold)
            confidence[layer] = scores[:, layer]

            member = sub_path * spec.num_layers + layer
            for part, last in zip(kept, networks.one(CONFIG.folds), strict=True):
                part[member] = last[0]
        scored[sub_path] = trail._replace(confidence=confidence)
    return EenetRouter(spec, best_of_trails(spec, scored), kept)


def inputs(probabilities: NDArray[Any], scores: NDArray[Any]) -> Floats:
    """What a score reads: `(N, classes)` and earlier scores `(N, T)` -> float32 `(N, D)`."""
    exit_head = torch.from_numpy(probabilities).float()
    confidence = confidence_features(exit_head)
    doubt = torch.stack([1.0 - confidence[:, 0], confidence[:, 2]], 1)
    parts = [exit_head, confidence, log_doubt(doubt), torch.from_numpy(scores).float()]
    x: Floats = torch.cat(parts, 1).numpy()
    return x


def enough(trail: Trail, layer: int) -> NDArray[np.bool_]:
    """bool `(N,)`: whether leaving is as good as continuing: right, or wrong later on as well."""
    exits = np.isfinite(trail.confidence[:, 0])
    later = np.flatnonzero(exits)
    later = np.append(later[later > layer], len(exits) - 1)
    return trail.correct[layer] | ~trail.correct[later].any(0)


def fitted(
    x: Floats,
    target: NDArray[np.bool_],
    fold: NDArray[np.int64],
    generator: torch.Generator,
) -> Networks:
    """One network for each fold, fitted to the other images, and a last one, fitted to all."""
    members = CONFIG.folds + 1
    # 1 where an image is one of those that a network learns from.
    learns = torch.ones(members, len(fold))
    for number in range(CONFIG.folds):
        learns[number, torch.from_numpy(fold == number)] = 0.0

    rows = torch.from_numpy(x).expand(members, -1, -1)
    targets = torch.from_numpy(target).float().expand(members, -1)
    networks = Networks.initial(members, x.shape[1], CONFIG.hidden, 1, generator)
    optimizer = torch.optim.AdamW(
        list(networks), lr=CONFIG.learning_rate, weight_decay=CONFIG.weight_decay
    )
    for _ in range(CONFIG.steps):
        logits = networks(rows)[..., 0]  # (members, N)
        error = F.binary_cross_entropy_with_logits(logits, targets, weight=learns)
        optimizer.zero_grad()
        # As a sum over members, so that each has the gradient that it would have alone.
        (members * error).backward()
        optimizer.step()
    return networks.detached()


@torch.no_grad()
def held_out_scores(networks: Networks, x: Floats, fold: NDArray[np.int64]) -> Floats:
    """float32 `(N,)`: each image's score by the network that was not fitted to it."""
    rows = torch.from_numpy(x).expand(CONFIG.folds + 1, -1, -1)
    scores = networks(rows)[..., 0].sigmoid().numpy()  # (members, N)
    chosen: Floats = scores[fold, np.arange(len(fold))]
    return chosen

"""The networks of fitted Q iteration and the scaling of what they read."""

import numpy as np
import torch

from rnr_gym.agents.fqi_networks import Networks, Scaling, inputs
from tests.fixtures.observations import random_observations
from tests.fixtures.paper_problem import spec


def test_initial_networks_estimate_zero():
    generator = torch.Generator().manual_seed(0)
    networks = Networks.initial(
        members=2, num_inputs=7, hidden=5, num_outputs=6, generator=generator
    )
    estimates = networks(torch.randn(2, 4, 7, generator=generator))
    assert torch.equal(estimates, torch.zeros(2, 4, 6))


def test_scaling_folds_into_the_weights():
    layout = spec().layout
    obs = random_observations(spec(), 30)
    # Constant inputs have no spread by which to scale them.
    obs[:, layout.layer] = [1.0, 0.0]
    x = inputs(layout, obs)
    x_of_each = x[None].repeat(2, 0)  # (F, B, D)
    scaling = Scaling.of(x, layout, observation_scale=0.1)
    initial = Networks.initial(
        members=2,
        num_inputs=x.shape[1],
        hidden=5,
        num_outputs=6,
        generator=torch.Generator().manual_seed(0),
    )
    # Initial output layers are zero, which would hide a mistake.
    networks = Networks(*(part + 0.1 for part in initial.detached()))

    center = np.arange(6, dtype=np.float32)
    expected = networks(scaling.applied(x_of_each)) * 3.0 + torch.from_numpy(center)
    folded = scaling.folded_into(networks, center, spread=np.float32(3.0))
    actual = folded(torch.from_numpy(x_of_each))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)

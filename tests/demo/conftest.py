"""What tests of the demo share: the bundled routers, and pictures."""

import pytest

from rnr_gym.data.cifar import TEN
from rnr_gym.demo.contest import Contest
from rnr_gym.demo.server import AGENTS, CLASSIFIER
from tests.fixtures import photos


@pytest.fixture(scope="session")
def contest():
    """PPO and DQN, as the command has them."""
    return Contest.bundled(CLASSIFIER, AGENTS, TEN)


@pytest.fixture(scope="session")
def noise():
    """A picture uint8 `(3, 32, 32)` whose path changes with the budget."""
    pictures, _ = photos.part(10, 1)
    return pictures[1]


@pytest.fixture(scope="session")
def subject(contest, noise):
    """The same with its answers, and the class automobile."""
    return contest.subject(noise, TEN.index("automobile"), "noise")

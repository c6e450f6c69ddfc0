"""What a rendering shows, and its form as text."""

import pytest

from rnr_gym.envs.scene import sub_path_names, text
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import small
from tests.fixtures.scenes import ACTIVE, WRONG


def test_text_of_an_active_episode():
    assert text(ACTIVE).splitlines() == [
        "layer 1   λ = 0.3   compute 0.250",
        "    full  o  o  o",
        "       2  @  o  o",
        "identity  o  o  o",
        "    exit  .  o  o",
    ]


def test_text_of_a_wrong_answer_names_the_class():
    assert text(WRONG).splitlines() == [
        "answer: cat (wrong, it is dog)   λ = 0.3   compute 0.625",
        "    full  o  @  o",
        "       2  @  o  o",
        "identity  o  o  o",
        "    exit  .  o  @",
    ]


def test_text_of_a_right_answer():
    right = WRONG._replace(label=0)
    assert text(right).startswith("answer: cat (right)   ")


def test_text_of_active_episode_hides_the_label():
    other = ACTIVE._replace(label=0)
    assert text(other) == text(ACTIVE)


def test_text_of_an_unknown_image():
    """An image without a label is answered, but neither right nor wrong."""
    unknown = WRONG._replace(label=None)
    assert text(unknown).startswith("answer: cat   λ")
    assert unknown.is_right is None


@pytest.mark.parametrize(
    ("kind", "exits", "names"),
    [
        ("multipath", True, ("exit", "identity", "2", "full")),
        ("multipath", False, ("exit", "identity", "2", "full")),
        ("residual", True, ("exit", "1", "full")),
        ("vgg", True, ("exit", "1", "2", "full")),
    ],
)
def test_names_of_sub_paths(kind, exits, names):
    spec = RoutingSpec.of(small.backbone(kind, "glance and exits"), exits)
    assert sub_path_names(spec) == names

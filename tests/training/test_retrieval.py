"""Networks that retrieve: what they answer, what is charged, and their files."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import rnr_gym as rnr
from rnr_gym.backbones import routable, weights, zoo
from rnr_gym.backbones.gallery import Gallery, gallery_of
from rnr_gym.backbones.inference import for_inference
from rnr_gym.data import ImageSet
from rnr_gym.data.images import rank_in_class
from rnr_gym.experiments.retrieval import embed_gallery
from rnr_gym.training.calibration import evaluate_full_path
from rnr_gym.training.retrieval import for_retrieval
from tests.fixtures import offshelf, small
from tests.fixtures.digits import use_few_digits


def answers(backbone, images, way):
    """The classes that a path gives, `(N,)`; an exit is 0."""
    ways = np.broadcast_to(way, (len(images), len(way)))
    return small.travel(backbone, images, ways).logits.argmax(1)


def exit_at(backbone, layer):
    """The full path up to a layer, and its exit."""
    num_layers = backbone.num_layers
    return [backbone.full_path] * layer + [0] + [-1] * (num_layers - layer - 1)


@pytest.fixture(scope="module")
def digits():
    """Gallery, further images and queries: forty, eighty and forty of each digit."""
    train = rnr.load_images("digits", "train")
    route = rnr.load_images("digits", "route")
    rank = rank_in_class(train.labels)
    gallery = train.take(rank < 40)
    further = train.take((rank >= 40) & (rank < 120))
    return gallery, further, route.take(rank_in_class(route.labels) < 40)


@pytest.fixture(scope="module")
def retrieval(digits):
    """The bundled network for digits, as it retrieves."""
    gallery, further, _ = digits
    return for_retrieval("rnr-digits", gallery, further, dimensions=16)


@pytest.mark.parametrize("kind", small.KINDS)
@pytest.mark.parametrize("exits", small.EXITS)
def test_contract_holds(kind, exits):
    """MACs as torch counts them, results independent of the batch, and what else is promised."""
    backbone = small.backbone(kind, exits)
    gallery = small.images(count=12, classes=4)
    rnr.check_backbone(for_retrieval(backbone, gallery, dimensions=5))


def test_score_of_a_class_is_that_of_its_nearest_item():
    gallery = Gallery(4, dimensions=2, classes=2)
    gallery.items.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]))
    gallery.labels.copy_(torch.tensor([0, 1, 1, 0]))
    gallery.temperature.fill_(0.5)
    scores = gallery(torch.tensor([[3.0, 4.0], [-2.0, 0.0]]))
    # Cosines to the items: 0.6, 0.8, -0.6, -0.8; and -1, 0, 1, 0.
    assert_close(scores, torch.tensor([[0.6, 0.8], [0.0, 1.0]]) / 0.5)
    assert gallery.macs == 8


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_full_path_finds_the_nearest_image(digits, retrieval):
    """By the definition: principal components of what the head reads, and their cosines."""
    gallery, _, queries = digits
    whole = zoo.named("rnr-digits").plain()[:-1]

    def features(images):
        return whole(retrieval.prepare(small.pixels_of(images))).mean((2, 3))

    with torch.no_grad():
        items = features(gallery)
        mean = items.mean(0)
        _, _, components = torch.linalg.svd(items - mean, full_matrices=False)
        embedded = F.normalize((items - mean) @ components[:16].T)
        sought = F.normalize((features(queries) - mean) @ components[:16].T)
    nearest = (sought @ embedded.T).argmax(1)
    expected = torch.from_numpy(gallery.labels.copy())[nearest]
    way = [retrieval.full_path] * retrieval.num_layers
    assert torch.equal(answers(retrieval, small.pixels_of(queries), way), expected)


def test_an_image_of_the_gallery_finds_itself(digits, retrieval):
    assert evaluate_full_path(retrieval, digits[0]) == 1.0


def test_recall_is_far_above_chance_everywhere(digits, retrieval):
    """Ten classes; a network that embeds at random has 10 %."""
    queries = digits[2]
    pixels = small.pixels_of(queries)
    labels = torch.from_numpy(queries.labels.copy())
    whole = [retrieval.full_path] * retrieval.num_layers
    ways = {"full": whole}
    for layer in retrieval.exit_layers:
        ways[f"exit {layer}"] = exit_at(retrieval, layer)
    recall = {}
    for name, way in ways.items():
        recall[name] = float((answers(retrieval, pixels, way) == labels).float().mean())
    assert recall["full"] > 0.8
    assert min(recall.values()) > 0.5
    assert recall["full"] == max(recall.values())


def test_the_backbone_itself_stays(digits):
    backbone = small.backbone("multipath", shape=(1, 12, 12), classes=10)
    before = small.backbone("multipath", shape=(1, 12, 12), classes=10)
    random_state = torch.get_rng_state()
    for_retrieval(backbone, digits[0], dimensions=8)
    assert small.same_weights(backbone, before)
    assert backbone.mac_table.plain == before.mac_table.plain
    assert torch.equal(torch.get_rng_state(), random_state)


def test_seed_decides_everything():
    backbone = small.backbone("residual")
    gallery = small.images(count=40)
    first, again, other = (
        for_retrieval(backbone, gallery, dimensions=6, seed=seed) for seed in (0, 0, 1)
    )
    assert small.same_weights(first, again)
    assert not small.same_weights(first, other)


def test_classes_may_be_new_to_the_backbone(digits):
    """Odd or even, of which the network was told nothing; the environment takes it as it is."""
    gallery, _, queries = (
        ImageSet.of(images.images, images.labels % 2, ("even", "odd")) for images in digits
    )
    retrieval = for_retrieval(zoo.named("rnr-digits"), gallery, dimensions=16)
    env = rnr.RoutingEnv(backbone=retrieval, dataset=queries)
    env.reset(seed=0)
    terminated = False
    while not terminated:
        _, _, terminated, _, info = env.step(env.action_space.n - 1)
    assert info["label"] in (0, 1)
    assert info["prediction"] in (0, 1)
    assert info["is_success"] == (info["prediction"] == info["label"])
    assert evaluate_full_path(retrieval, queries) > 0.8


def test_offshelf_network_without_its_classifier_embeds():
    model = offshelf.resnet(offshelf.BasicBlock)
    model.fc = nn.Identity()
    images = small.images(count=30, shape=offshelf.SHAPE)
    backbone = routable(model, small.pixels_of(images)[:8], exits=[2])
    retrieval = for_retrieval(backbone, images, dimensions=8)
    rnr.check_backbone(retrieval)
    assert evaluate_full_path(retrieval, images) == 1.0
    assert retrieval.num_classes == 3
    with pytest.raises(ValueError, match="to be saved, got ResNet"):
        weights.save(retrieval, "file")


def test_half_precision_keeps_the_gallery(retrieval):
    network = for_inference(retrieval, "bfloat16")
    assert gallery_of(network).items.dtype == torch.float32
    assert network.head.linear.weight.dtype == torch.float32
    (searched,) = network.head._shared
    assert searched is gallery_of(network)


def test_file_gives_it_back_as_weights_of_its_name(tmp_path, digits, retrieval):
    file = tmp_path / "retrieval.safetensors"
    weights.save(retrieval, file)
    pixels = small.pixels_of(digits[2])
    for loaded in (zoo.load(file), zoo.named("rnr-digits", str(file))):
        assert small.same_weights(loaded, retrieval)
        assert loaded.mac_table.plain == retrieval.mac_table.plain
        way = [loaded.full_path] * loaded.num_layers
        assert torch.equal(answers(loaded, pixels, way), answers(retrieval, pixels, way))
    with pytest.raises(ValueError, match="must have the architecture of the named backbone"):
        zoo.named("rnr-digits-channels", str(file))


def test_damaged_galleries_are_refused(tmp_path, retrieval):
    file = tmp_path / "retrieval.safetensors"
    for name, value in {"items": 10**9, "dimensions": 0, "classes": 3}.items():
        config = {**retrieval.config, name: value}
        weights.save(retrieval, file, {"config": config})
        with pytest.raises(ValueError, match=f"{name}|gallery"):
            zoo.load(file)
    weights.save(retrieval, file, {"config": {**retrieval.config, "of": retrieval.config}})
    with pytest.raises(ValueError, match="must"):
        zoo.load(file)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"gallery": small.images(count=6, shape=(1, 7, 8))}, "`gallery` must hold images of"),
        ({"gallery": "cifar10"}, "`gallery` must be an `ImageSet`, got str"),
        ({"gallery": small.images().take(np.arange(2))}, "`gallery` must have an image of every"),
        ({"images": small.images(count=1)}, "`images` must be at least 2"),
        ({"images": small.pixels(shape=(3, 8, 8))}, "`images` must be uint8 or float"),
        ({"dimensions": 0}, "`dimensions` must be"),
        ({"dimensions": 24}, "`dimensions` must be"),
        ({"gallery": small.images(count=99), "dimensions": 50}, "at most 32, the features"),
        ({"seed": -1}, "`seed` must be"),
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"backbone": nn.Linear(2, 2)}, "`backbone` must be a name, a file or a `Backbone`, got"),
    ],
)
def test_bad_arguments_are_rejected(change, match):
    arguments = {
        "backbone": small.backbone("multipath"),
        "gallery": small.images(),
        "dimensions": 4,
    }
    with pytest.raises(ValueError, match=match):
        for_retrieval(**{**arguments, **change})


def test_one_gallery_is_enough(retrieval, digits):
    with pytest.raises(ValueError, match="must be one that classifies"):
        rnr.fit_exits(retrieval, digits[0])
    with pytest.raises(ValueError, match="must not have a gallery yet"):
        for_retrieval(retrieval, digits[0])


def test_gallery_of_an_environment_is_written_once(tmp_path, monkeypatch):
    use_few_digits(monkeypatch)
    file = tmp_path / "retrieval.safetensors"
    recall = embed_gallery("RNR-Digits-v0", file, per_class=6, further=4, dimensions=8)
    assert recall > 0.5
    loaded = zoo.load(file)
    assert len(gallery_of(loaded).items) == 60
    assert gallery_of(loaded).items.shape[1] == 8
    with pytest.raises(FileExistsError, match="`out` must be a new file"):
        embed_gallery("RNR-Digits-v0", file)
    with pytest.raises(ValueError, match="`further` must be 0 where"):
        embed_gallery("RNR-Digits-v0", tmp_path / "other", per_class=1000)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]

"""Images in files: the pixels of eager decoding, whatever is read or announced; bounded memory."""

import copy
import multiprocessing
import pickle
import threading
import weakref

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

import rnr_gym as rnr
from rnr_gym import data
from rnr_gym.backbones import base
from rnr_gym.data import streaming
from rnr_gym.data.streaming import Crop, StreamedImages
from rnr_gym.routing import route_table
from rnr_gym.routing.live import Live
from rnr_gym.routing.sources import digest_of
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.training import calibration
from rnr_gym.training.pretraining import Pretraining, Schedule
from tests.fixtures import small

SIDE = 8
COUNT = 12
KEYS = [
    pytest.param(3, id="number"),
    pytest.param(-1, id="negative number"),
    pytest.param(slice(2, 9, 3), id="slice"),
    pytest.param(slice(None), id="all"),
    pytest.param(slice(5, 5), id="empty slice"),
    pytest.param(np.array([7, 0, 3]), id="order"),
    pytest.param(np.array([4, 4, 1, 4]), id="duplicates"),
    pytest.param([2, -2], id="list"),
    pytest.param(np.arange(COUNT) % 3 == 1, id="mask"),
    pytest.param(np.array([[0, 1], [2, 0]]), id="two axes"),
]


def write_pictures(folder, count=COUNT, classes="abc"):
    """Random pictures of different sizes in class folders, as JPEG and PNG."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
    for number in range(count):
        height, width = rng.integers(SIDE + 2, 4 * SIDE, 2)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        suffix = "png" if number % 2 else "JPEG"
        file = folder / classes[number % len(classes)] / f"{number:02d}.{suffix}"
        Image.fromarray(pixels).save(file)
    return folder


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures in three classes."""
    return write_pictures(tmp_path / "pictures")


@pytest.fixture
def streamed(folder):
    """The same as an image set."""
    return rnr.load_folder(folder, size=SIDE)


@pytest.fixture
def eager(folder):
    """The pixels that torchvision makes of all files, uint8 `(N, 3, 8, 8)`."""
    return np.stack([by_torchvision(file) for file in sorted(folder.glob("*/*"))])


@pytest.fixture
def decoded(monkeypatch):
    """The positions that have been decoded, in the order in which that began."""
    positions = []
    decode = StreamedImages._decode

    def recorded(self, position, out=None):
        positions.append(position)
        return decode(self, position, out)

    monkeypatch.setattr(StreamedImages, "_decode", recorded)
    return positions


def by_torchvision(file, size=SIDE, resize=9, interpolation="bilinear"):
    """What the transforms of torchvision's weights do before they normalise."""
    image = Image.open(file).convert("RGB")
    image = transforms.resize(image, [resize], InterpolationMode(interpolation))
    return transforms.pil_to_tensor(transforms.center_crop(image, [size])).numpy()


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(12, 12), (31, 12), (12, 31), (13, 30), (300, 257), (9, 8)])
def test_pixels_are_those_of_torchvision(tmp_path, interpolation, size):
    rng = np.random.default_rng(1)
    file = tmp_path / "picture.png"
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file)
    image = StreamedImages(tmp_path, [file.name], Crop(7, 10, interpolation))[0]
    np.testing.assert_array_equal(image, by_torchvision(file, 7, 10, interpolation))


@pytest.mark.parametrize("key", KEYS)
def test_reading_equals_indexing_an_array(streamed, eager, key):
    pixels = streamed.images[key]
    np.testing.assert_array_equal(pixels, eager[key])
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable


def test_streamed_set_describes_itself_as_an_array(streamed, eager):
    assert streamed.images.shape == eager.shape
    assert streamed.images.ndim == 4
    assert streamed.images.dtype == np.uint8
    assert len(streamed.images) == len(streamed) == COUNT
    np.testing.assert_array_equal(np.stack(list(streamed.images)), eager)
    with pytest.raises(IndexError):
        streamed.images[COUNT]


@pytest.mark.parametrize("key", [KEYS[2], KEYS[3], *KEYS[5:9]])
def test_take_decodes_nothing_and_keeps_entries_together(streamed, eager, key, decoded):
    taken = streamed.take(key)
    assert decoded == []
    np.testing.assert_array_equal(taken.images[:], eager[key])
    np.testing.assert_array_equal(taken.labels, streamed.labels[key])


@pytest.mark.parametrize("announced", [[], [3, 1], [1, 1, 3, 5, 7], list(range(COUNT)), [-1]])
def test_prefetch_changes_no_pixel(streamed, eager, announced):
    streamed.prefetch(np.array(announced, np.int64))
    for idx in ([3, 1, 3], [0, 11], [5, 7]):
        np.testing.assert_array_equal(streamed.images[idx], eager[idx])


def test_prefetched_images_are_decoded_once_and_read_from_there(streamed, decoded):
    streamed.prefetch(np.array([4, 2, 9]))
    streamed.prefetch(np.array([2, 9, 0]))
    streamed.images[[0, 9, 2, 4]]
    assert sorted(decoded) == [0, 2, 4, 9]
    # Nothing is kept after it has been read.
    streamed.images[2]
    assert sorted(decoded) == [0, 2, 2, 4, 9]


def test_images_at_hand_need_not_wait_for_prefetch(streamed, eager, monkeypatch):
    """Another image can be read while all threads that decode ahead are busy."""
    release = threading.Event()
    decode = StreamedImages._decode

    def slow(self, position, out=None):
        if position != 0:
            assert release.wait(20)
        return decode(self, position, out)

    monkeypatch.setattr(StreamedImages, "_decode", slow)
    streamed.prefetch(np.arange(1, COUNT))
    np.testing.assert_array_equal(streamed.images[0], eager[0])
    release.set()
    np.testing.assert_array_equal(streamed.images[:], eager)


def test_memory_stays_within_its_bound(streamed, eager, monkeypatch):
    """Of the images that are announced and not read, no more than fit are alive."""
    alive = weakref.WeakSet()
    decode = StreamedImages._decode

    class Counted(np.ndarray):
        """An array that a set of weak references can hold."""

        def __hash__(self):
            return id(self)

    def counted(self, position, out=None):
        pixels = decode(self, position, out).view(Counted)
        alive.add(pixels)
        return pixels

    monkeypatch.setattr(StreamedImages, "_decode", counted)
    monkeypatch.setattr(streaming, "MEMORY", 4 * eager[0].nbytes)
    for start in range(COUNT):
        streamed.prefetch(np.arange(start, COUNT))
        assert len(streamed.images._ahead.waiting) <= 4
    for future in list(streamed.images._ahead.waiting.values()):
        future.result()
    del future

    # A thread may still hold the image that it has decoded last.
    assert len(alive) <= 4 + streaming.WORKERS
    np.testing.assert_array_equal(streamed.images[:], eager)
    assert not streamed.images._ahead.waiting


def test_whole_set_is_no_array(streamed):
    message = r"`images` must be in memory here, got 12 images in files"
    with pytest.raises(ValueError, match=message):
        np.array(streamed.images)


@pytest.mark.parametrize("prefetched", [False, True])
def test_damaged_file_is_named_when_it_is_read(streamed, folder, eager, prefetched):
    file = sorted(folder.glob("*/*"))[5]
    file.write_bytes(file.read_bytes()[:100])
    if prefetched:
        streamed.prefetch(np.arange(COUNT))
    np.testing.assert_array_equal(streamed.images[:5], eager[:5])
    with pytest.raises(ValueError, match="`images` must hold readable images, got") as error:
        streamed.images[:]
    assert repr(str(file)) in str(error.value)
    # The others are still there.
    np.testing.assert_array_equal(streamed.images[6:], eager[6:])


def test_missing_file_is_named(streamed, folder):
    file = sorted(folder.glob("*/*"))[0]
    file.unlink()
    for read in (lambda: streamed.images[0], lambda: streamed.images.digest):
        with pytest.raises(ValueError, match="`images` must hold readable images, got") as error:
            read()
        assert repr(str(file)) in str(error.value)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_image_of_any_mode_has_the_channels_asked_for(tmp_path, mode, channels):
    picture = Image.linear_gradient("L").resize((9, 9)).convert(mode)
    suffix = "jpg" if mode == "CMYK" else "png"
    picture.save(tmp_path / f"picture.{suffix}")
    images = StreamedImages(tmp_path, [f"picture.{suffix}"], Crop(9, 9, channels=channels))
    with Image.open(tmp_path / f"picture.{suffix}") as stored:
        expected = np.asarray(stored.convert({1: "L", 3: "RGB"}[channels]))
    expected = expected.reshape(9, 9, channels).transpose(2, 0, 1)
    np.testing.assert_array_equal(images[0], expected)


def test_image_of_16_bits_is_refused(tmp_path):
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(tmp_path / "deep.png")
    images = StreamedImages(tmp_path, ["deep.png"], Crop(8, 9))
    with pytest.raises(ValueError, match=r"deep\.png' \(its pixels have more than 8 bits"):
        images[0]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda images: pickle.loads(pickle.dumps(images))]
)
def test_copies_decode_for_themselves(streamed, eager, copied):
    streamed.prefetch(np.arange(COUNT))
    other = copied(streamed)
    np.testing.assert_array_equal(other.images[::-1], eager[::-1])
    assert len(streamed.images._ahead.waiting) == COUNT


def read_all(images, expected):
    """In a process of its own."""
    np.testing.assert_array_equal(images.images[:], expected)
    images.prefetch(np.arange(3))
    np.testing.assert_array_equal(images.images[:3], expected[:3])


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_forked_process_decodes_for_itself(streamed, eager):
    streamed.prefetch(np.arange(COUNT))
    process = multiprocessing.get_context("fork").Process(target=read_all, args=(streamed, eager))
    process.start()
    process.join(30)
    assert process.exitcode == 0


def test_fingerprint_changes_with_content_order_and_crop(streamed, folder):
    first = streamed.fingerprint()
    assert rnr.load_folder(folder, size=SIDE).fingerprint() == first
    assert rnr.load_folder(str(folder), SIDE, resize=9).fingerprint() == first

    others = [
        rnr.load_folder(folder, size=SIDE, resize=10),
        rnr.load_folder(folder, size=SIDE, interpolation="bicubic"),
        streamed.take(np.arange(COUNT)[::-1]),
    ]
    file = sorted(folder.glob("*/*.png"))[0]
    Image.new("RGB", (20, 20), "red").save(file)
    others.append(rnr.load_folder(folder, size=SIDE))
    assert len({first, *(other.fingerprint() for other in others)}) == 5


@pytest.fixture
def network():
    """A small network for the pictures."""
    return small.backbone("multipath", shape=(3, SIDE, SIDE))


@pytest.fixture
def in_memory(streamed, eager):
    """The same set in memory."""
    return rnr.ImageSet.of(eager, streamed.labels, streamed.classes)


def live(network, images):
    return Live(network, images, RoutingSpec.of(network))


@pytest.mark.parametrize("batch", [5, 512])
def test_table_and_evaluation_equal_those_in_memory(
    network, streamed, in_memory, decoded, monkeypatch, batch
):
    monkeypatch.setattr(base, "BATCH_SIZE", batch)
    spec = RoutingSpec.of(network)
    table = route_table.build(network, streamed, spec, progress=False)
    # Each image once, although it is announced and read.
    assert sorted(decoded) == list(range(COUNT))
    expected = route_table.build(network, in_memory, spec, progress=False)
    for name in ("labels", "summary", "prediction", "loss"):
        np.testing.assert_array_equal(getattr(table, name), getattr(expected, name))

    monkeypatch.setattr(base, "BATCH_SIZE", batch)
    paths = small.paths(spec, COUNT)
    decoded.clear()
    evaluation = rnr.evaluate_paths(live(network, streamed), paths)
    assert sorted(decoded) == list(range(COUNT))
    for actual, wanted in zip(
        evaluation, rnr.evaluate_paths(live(network, in_memory), paths), strict=True
    ):
        np.testing.assert_array_equal(actual, wanted)


def test_digest_of_live_source_changes_with_a_file(network, streamed, folder):
    first = digest_of(live(network, streamed))
    Image.new("RGB", (20, 20), "red").save(sorted(folder.glob("*/*.png"))[0])
    changed = rnr.load_folder(folder, size=SIDE)
    assert digest_of(live(network, changed)) != first


def settled(images):
    """The positions that wait to be read, when all of them have been decoded."""
    waiting = dict(images.images._ahead.waiting)
    for future in waiting.values():
        future.result()
    return set(waiting)


def test_environments_announce_their_next_images(network, streamed, decoded):
    envs = gym.make_vec(
        "RNR-v0", num_envs=3, backbone=network, dataset=streamed, autoreset_mode="DISABLED"
    )
    envs.reset(seed=0)
    upcoming = {sampler.unseen[-1] for sampler in envs.unwrapped.episodes.samplers.values()}
    assert settled(streamed) == upcoming

    # What was announced is not decoded again when it starts.
    decoded.clear()
    _, infos = envs.reset()
    assert set(infos["index"].tolist()) == upcoming
    assert set(decoded) <= settled(streamed)
    assert len(decoded) == len(settled(streamed))


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vector_environments_equal_those_in_memory(network, streamed, in_memory, mode):
    kwargs = {"num_envs": 2 if mode == "sync" else 1, "backbone": network}
    expected = gym.make_vec("RNR-v0", vectorization_mode="sync", dataset=in_memory, **kwargs)
    # Spawned processes share nothing, so the set is sent to them.
    if mode == "async":
        kwargs["vector_kwargs"] = {"context": "spawn"}
    envs = gym.make_vec("RNR-v0", vectorization_mode=mode, dataset=streamed, **kwargs)
    try:
        obs, infos = envs.reset(seed=3)
        expected_obs, expected_infos = expected.reset(seed=3)
        for _ in range(8):
            np.testing.assert_array_equal(obs, expected_obs)
            np.testing.assert_array_equal(infos["index"], expected_infos["index"])
            actions = np.array([network.full_path, network.first_sub_path])[: len(obs)]
            obs, *_, infos = envs.step(actions)
            expected_obs, *_, expected_infos = expected.step(actions)
    finally:
        envs.close()


def test_image_of_other_channels_says_what_converts_it(network, folder):
    grey = rnr.load_folder(folder, size=SIDE, channels=1)
    message = r"shape \(3, 8, 8\), got \(1, 8, 8\); `load_folder\(..., channels=3\)` converts"
    with pytest.raises(ValueError, match=message):
        gym.make("RNR-v0", backbone=network, dataset=grey)


def test_shuffled_batches_are_announced(network, streamed, in_memory, decoded):
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    batches = zip(
        calibration.batches(network, streamed, 5, generators[0]),
        calibration.batches(network, in_memory, 5, generators[1]),
        strict=True,
    )
    for read, (batch, expected) in enumerate(batches, 1):
        for actual, wanted in zip(batch, expected, strict=True):
            assert torch.equal(actual, wanted)
        settled(streamed)
        assert len(decoded) == min(5 * (read + 1), COUNT)


def test_training_refuses_images_in_files(network, streamed):
    with pytest.raises(ValueError, match="`images` must be in memory here"):
        Pretraining(network, streamed, data.dataset("imagenet"), Schedule())


def test_frame_shows_the_image(network, streamed, in_memory):
    frames = []
    for images in (streamed, in_memory):
        env = gym.make("RNR-v0", backbone=network, dataset=images, render_mode="rgb_array")
        env.reset(seed=0)
        frames.append(env.render())
        env.close()
    np.testing.assert_array_equal(*frames)

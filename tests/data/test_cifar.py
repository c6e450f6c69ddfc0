"""CIFAR-10 and CIFAR-100: how they are split, whichever way they are stored."""

import shutil

import numpy as np
import pytest
from PIL import Image

from rnr_gym import data
from rnr_gym.data import SPLITS, cifar, folders
from rnr_gym.data.cifar import CIFAR10, CIFAR100, TEN
from tests.fixtures import photos
from tests.fixtures.photos import assert_same_splits, load_splits

pytestmark = pytest.mark.usefixtures("cache_dir", "no_network")

BOTH = pytest.mark.parametrize("variant", [CIFAR10, CIFAR100], ids=lambda variant: variant.name)


@pytest.fixture
def contents(variant, data_root, monkeypatch):
    """torchvision's files of random images in `data_root`: the images and labels of each part."""
    contents = photos.parts(len(variant.classes))
    photos.write_official(data_root, contents, monkeypatch, variant.title)
    return contents


@pytest.fixture
def splits(variant, contents):
    """The image sets that are read from those files, by name."""
    return load_splits(variant)


@pytest.mark.parametrize(
    ("variant", "count"),
    [
        pytest.param(CIFAR10, 10, id="cifar10"),
        pytest.param(CIFAR100, 100, id="cifar100"),
    ],
)
def test_classes_are_distinct_and_alphabetical(variant, count):
    classes = list(variant.classes)
    assert len(classes) == count
    assert classes == sorted(set(classes))


@BOTH
def test_route_gets_every_tenth_train_image(variant, contents, splits):
    num_classes = len(variant.classes)
    sizes = [len(splits[split]) for split in SPLITS]
    assert sizes == [18 * num_classes, 2 * num_classes, 3 * num_classes]

    images, labels = contents["train"]
    train = splits["train"]
    route = splits["route"]
    for label in range(num_classes):
        of_class = images[labels == label]
        in_route = route.images[route.labels == label]
        in_train = train.images[train.labels == label]
        np.testing.assert_array_equal(in_route, of_class[[9, 19]])
        np.testing.assert_array_equal(in_train, np.delete(of_class, [9, 19], 0))


@BOTH
def test_train_and_route_share_no_original(variant, splits):
    num_classes = len(variant.classes)
    train = set(splits["train"].original_id.tolist())
    route = set(splits["route"].original_id.tolist())
    assert train.isdisjoint(route)
    assert train | route == set(range(20 * num_classes))

    # `test` is numbered for itself.
    test = set(splits["test"].original_id.tolist())
    assert test == set(range(3 * num_classes))


@BOTH
def test_images_are_untouched_and_coloured(splits):
    for images in splits.values():
        assert (images.severity == 0).all()
        assert images.images.shape[1:] == (3, 32, 32)


@BOTH
def test_images_come_by_rank_then_class(variant, splits):
    for images in splits.values():
        in_turn = np.arange(len(images)) % len(variant.classes)
        np.testing.assert_array_equal(images.labels, in_turn)
        assert images.classes == variant.classes


@pytest.mark.parametrize(
    ("variant", "each"),
    [
        pytest.param(CIFAR10, photos.EACH, id="cifar10"),
        pytest.param(CIFAR100, {"train": 10, "test": 1}, id="cifar100"),
    ],
)
def test_class_folders_split_as_official_files(variant, each, tmp_path, monkeypatch):
    contents = photos.parts(len(variant.classes), each)
    official_root = tmp_path / "official"
    photos.write_official(official_root, contents, monkeypatch, variant.title)
    pictures_root = tmp_path / "pictures"
    photos.write_folders(pictures_root / variant.name, contents, variant.classes)

    pictures = load_splits(variant, data_root=str(pictures_root))
    official = load_splits(variant, data_root=str(official_root))
    assert_same_splits(pictures, official)


@pytest.fixture
def jpeg_root(tmp_path):
    """Class folders of random pictures as JPEG files."""
    root = tmp_path / "jpg"
    photos.write_folders(root / "cifar10", photos.parts(), suffix="jpg")
    return root


def test_jpegs_are_split_as_their_originals(tmp_path, jpeg_root):
    png_root = tmp_path / "png"
    photos.write_folders(png_root / "cifar10", photos.parts())
    exact = load_splits(data_root=str(png_root))
    lossy = load_splits(data_root=str(jpeg_root))

    for split in SPLITS:
        np.testing.assert_array_equal(exact[split].labels, lossy[split].labels)
        np.testing.assert_array_equal(exact[split].original_id, lossy[split].original_id)
        assert not np.array_equal(exact[split].images, lossy[split].images)


def test_jpegs_are_decoded_as_pillow_does(jpeg_root):
    first = min((jpeg_root / "cifar10" / "train" / "airplane").iterdir())
    pixels = np.asarray(Image.open(first))  # (H, W, 3)
    train = cifar.load(CIFAR10, "train", data_root=str(jpeg_root))
    np.testing.assert_array_equal(train.images[0], pixels.transpose(2, 0, 1))


def test_class_folders_precede_official_files(data_root, monkeypatch):
    files_dir = photos.write_official(data_root, photos.parts(), monkeypatch)
    photos.write_folders(data_root / "cifar10", photos.parts(seed=5))
    with_both = load_splits()

    shutil.rmtree(files_dir)
    assert_same_splits(with_both, load_splits())


def test_decoded_images_are_read_from_the_cache(data_root, monkeypatch):
    photos.write_folders(data_root / "cifar10", photos.parts())
    first = load_splits()
    monkeypatch.setattr(folders, "_pixels", lambda file, side: pytest.fail(f"{file} was decoded"))
    assert_same_splits(load_splits(), first)


@pytest.mark.parametrize(
    ("has_argument", "has_variable", "expected"),
    [
        pytest.param(True, True, "argument", id="argument and variable"),
        pytest.param(True, False, "argument", id="argument"),
        pytest.param(False, True, "variable", id="variable"),
        pytest.param(False, False, "cache", id="neither"),
    ],
)
def test_cifar_root_is_argument_variable_or_cache(
    tmp_path, monkeypatch, cache_dir, has_argument, has_variable, expected
):
    roots = {
        "argument": tmp_path / "argument",
        "variable": tmp_path / "variable",
        "cache": cache_dir / "data",
    }
    # Each place has images of one shade.
    images, labels = photos.part(10, 1)
    for shade, root in enumerate(roots.values()):
        shaded = np.full_like(images, shade)
        photos.write_folders(root / "cifar10", {"test": (shaded, labels)})

    monkeypatch.setenv("RNR_GYM_DATA", str(roots["variable"]) if has_variable else "")
    argument = str(roots["argument"]) if has_argument else None
    test = cifar.load(CIFAR10, "test", argument)
    assert (test.images == list(roots).index(expected)).all()


def test_cifar_is_loaded_once_per_process(data_root, monkeypatch):
    photos.write_official(data_root, photos.parts(), monkeypatch)
    first = data.load("cifar10", "test", str(data_root))
    assert data.load("cifar10", "test", str(data_root)) is first
    assert data.load("cifar10", "route", str(data_root)) is not first


@pytest.mark.parametrize(
    ("part", "split", "kept", "least"),
    [
        ("train", "route", 9, 10),
        ("train", "train", 9, 10),
        ("train", "train", 0, 10),
        ("test", "test", 0, 1),
        ("val", "test", 0, 1),
    ],
)
def test_too_few_images_of_a_class_raise(data_root, part, split, kept, least):
    each = {"train": 10, "test": 1}
    if part == "val":
        each = {"val": 1}
    part_dir = data_root / "cifar10" / part
    photos.write_folders(data_root / "cifar10", photos.parts(each=each))
    for file in sorted((part_dir / "cat").iterdir())[kept:]:
        file.unlink()

    message = rf"`data_root` must hold at least {least} .*images per class.*got {kept} of cat in"
    with pytest.raises(ValueError, match=message) as error:
        cifar.load(CIFAR10, split)
    assert repr(str(part_dir)) in str(error.value)


def rename_class(part_dir):
    (part_dir / "cat").rename(part_dir / "dogs")


def remove_part(part_dir):
    shutil.rmtree(part_dir)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (rename_class, ValueError, "`data_root` must have the 10 class folders of cifar10"),
        (remove_part, FileNotFoundError, "`data_root` must hold cifar10/train, got"),
    ],
)
def test_wrong_folders_raise_without_fetching(data_root, capsys, damage, error, message):
    photos.write_folders(data_root / "cifar10", photos.parts())
    damage(data_root / "cifar10" / "train")
    with pytest.raises(error, match=message):
        cifar.load(CIFAR10, "train")
    assert "fetching" not in capsys.readouterr().err


@pytest.fixture(scope="module")
def real_splits(real_data, tmp_path_factory):
    """All of CIFAR-10, decoded once; nothing is fetched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNR_GYM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_splits(data_root=str(real_data), download=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "each"),
    [("train", 4_500), ("route", 500), ("test", 1_000)],
)
def test_cifar10_split_sizes(real_splits, split, each):
    images = real_splits[split]
    assert len(images) == 10 * each
    assert np.bincount(images.labels).tolist() == [each] * 10
    assert images.images.shape[1:] == (3, 32, 32)
    assert images.classes == TEN


@pytest.mark.slow
def test_cifar10_colours_are_those_of_photographs(real_splits):
    scaled = real_splits["train"].images[:5_000] / 255.0
    mean = scaled.mean((0, 2, 3))
    std = scaled.std((0, 2, 3))
    np.testing.assert_allclose(mean, [0.491, 0.482, 0.447], atol=0.02)
    np.testing.assert_allclose(std, [0.247, 0.243, 0.262], atol=0.02)


@pytest.mark.slow
def test_cifar10_route_shares_no_image(real_splits):
    contents = {}
    for split, images in real_splits.items():
        contents[split] = {image.tobytes() for image in images.images}

    in_train = contents["route"] & contents["train"]
    in_test = contents["route"] & contents["test"]
    # CIFAR itself has a few twins.
    assert len(in_train) + len(in_test) <= 5

"""Class folders of images: what is read from them, kept in the cache, and rejected."""

import errno
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors import SafetensorError

from rnr_gym import storage
from rnr_gym.data import folders
from tests.fixtures import photos

pytestmark = pytest.mark.usefixtures("cache_dir")

CLASSES = ("ant", "bee", "cat")
SIDE = (8, 6)
EVERY_PART = pytest.mark.parametrize("part", ["train", "test"])


@pytest.fixture
def contents():
    """Five pictures of each class in `train`, two in `test`."""
    num_classes = len(CLASSES)
    return {
        "train": photos.part(num_classes, 5, SIDE, seed=5),
        "test": photos.part(num_classes, 2, SIDE, seed=2),
    }


@pytest.fixture
def dataset_dir(tmp_path, contents):
    """The same on disk."""
    return photos.write_folders(tmp_path / "animals", contents, CLASSES)


@pytest.fixture
def third_bee(dataset_dir):
    """A picture in `train`."""
    return sorted((dataset_dir / "train" / "bee").iterdir())[2]


def load(dataset_dir, part="train", classes=CLASSES):
    return folders.load(dataset_dir, part, classes, SIDE)


def forbid_decoding(patch):
    """Let the test fail as soon as a picture is decoded."""
    patch.setattr(folders, "_pixels", lambda file, side: pytest.fail(f"{file} was decoded"))


def assert_same(decoded, expected):
    for array, expected_array in zip(decoded, expected, strict=True):
        np.testing.assert_array_equal(array, expected_array)


def is_same(decoded, other):
    """Whether two parts hold equal images with equal labels."""
    return all(map(np.array_equal, decoded, other))


def cached_files(cache_dir):
    """Names of all that the cache holds."""
    return sorted(file.name for file in cache_dir.rglob("*") if file.is_file())


@EVERY_PART
def test_images_come_by_class_then_file_name(dataset_dir, contents, part):
    images, labels = load(dataset_dir, part)
    pixels, stored_labels = contents[part]
    order = np.argsort(stored_labels, kind="stable")

    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, stored_labels[order])
    np.testing.assert_array_equal(images, pixels[order])


def test_labels_follow_order_of_classes(dataset_dir):
    alphabetical, _ = load(dataset_dir)
    images, labels = load(dataset_dir, classes=CLASSES[::-1])
    assert labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    np.testing.assert_array_equal(images[:5], alphabetical[10:])


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        ("jpg", "RGB"),
        ("jpg", "L"),
        ("png", "RGB"),
        ("png", "L"),
        ("png", "P"),
        ("png", "RGBA"),
        ("webp", "RGB"),
        ("webp", "L"),
        ("webp", "P"),
        ("webp", "RGBA"),
    ],
)
def test_picture_of_any_kind_is_read_as_rgb(tmp_path, suffix, mode):
    # Smooth, so that lossy formats keep it roughly.
    rows, columns = np.mgrid[: SIDE[0], : SIDE[1]]
    channels = [20 * rows, 20 * columns, 10 * rows + 10 * columns]
    pixels = np.stack(channels, 2).astype(np.uint8)
    picture = Image.fromarray(pixels).convert(mode)

    file = tmp_path / f"picture.{suffix}"
    picture.save(file)
    decoded = folders._pixels(file, SIDE)
    assert decoded.shape == (3, *SIDE)

    expected = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    tolerance = 0 if suffix == "png" else 25
    assert np.abs(decoded.astype(int) - expected).mean() <= tolerance


def test_second_load_reads_the_cache(dataset_dir, monkeypatch, cache_dir):
    first = load(dataset_dir)
    assert len(cached_files(cache_dir)) == 1
    forbid_decoding(monkeypatch)
    assert_same(load(dataset_dir), first)


def test_parts_and_sides_are_cached_apart(dataset_dir, cache_dir):
    load(dataset_dir, "train")
    load(dataset_dir, "test")
    with pytest.raises(ValueError, match=r"of 6 x 8 pixels, got .* of 8 x 6"):
        folders.load(dataset_dir, "test", CLASSES, (6, 8))
    assert len(cached_files(cache_dir)) == 2


def save_red(file):
    Image.new("RGB", SIDE[::-1], "red").save(file)


def rewritten(train_dir):
    save_red(next((train_dir / "ant").iterdir()))


def added(train_dir):
    save_red(train_dir / "ant" / "0.png")


def removed(train_dir):
    next((train_dir / "ant").iterdir()).unlink()


def moved(train_dir):
    file = next((train_dir / "ant").iterdir())
    file.rename(train_dir / "bee" / file.name)


@pytest.mark.parametrize("change", [rewritten, added, removed, moved])
def test_changed_pictures_are_decoded_again(dataset_dir, cache_dir, change):
    first = load(dataset_dir)
    cached = cached_files(cache_dir)
    change(dataset_dir / "train")
    assert not is_same(load(dataset_dir), first)

    assert len(cached_files(cache_dir)) == 2
    assert set(cached) < set(cached_files(cache_dir))


def test_cache_outlives_a_move_of_the_pictures(dataset_dir, tmp_path, monkeypatch):
    first = load(dataset_dir)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    forbid_decoding(monkeypatch)
    # Times of writing stay as they are.
    assert_same(load(dataset_dir.rename(elsewhere / "animals")), first)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda whole: whole[:-50], id="cut at the end"),
        pytest.param(lambda whole: whole[:20], id="cut in the header"),
        pytest.param(lambda whole: b"", id="empty"),
        pytest.param(lambda whole: b"text" * 100, id="text"),
    ],
)
def test_damaged_cache_file_is_replaced(dataset_dir, cache_dir, damage, monkeypatch):
    first = load(dataset_dir)
    (file,) = cache_dir.rglob("*.safetensors")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match="is decoded again, for it is damaged"):
        assert_same(load(dataset_dir), first)

    forbid_decoding(monkeypatch)
    assert_same(load(dataset_dir), first)


def without_labels(tensors):
    del tensors["labels"]


def as_floats(tensors):
    tensors["images"] = tensors["images"].float()


def one_image_fewer(tensors):
    tensors["images"] = tensors["images"][1:]


def other_labels(tensors):
    tensors["labels"] = tensors["labels"].flip(0)


@pytest.mark.parametrize("change", [without_labels, as_floats, one_image_fewer, other_labels])
def test_cache_file_that_does_not_fit_is_replaced(dataset_dir, cache_dir, change, monkeypatch):
    first = load(dataset_dir)
    (file,) = cache_dir.rglob("*.safetensors")
    tensors, metadata = storage.load_tensors(file)
    change(tensors)
    storage.save_tensors(file, tensors, metadata)
    with pytest.warns(UserWarning, match="is decoded again, for it is damaged"):
        assert_same(load(dataset_dir), first)

    forbid_decoding(monkeypatch)
    assert_same(load(dataset_dir), first)


def test_pictures_of_same_name_size_and_time_are_told_apart(dataset_dir, tmp_path):
    """Two folders that differ in nothing but the pixels."""
    first = load(dataset_dir)
    other = tmp_path / "other" / dataset_dir.name
    shutil.copytree(dataset_dir, other)
    file = next((other / "train" / "ant").iterdir())
    stat = file.stat()
    content = bytearray(file.read_bytes())
    pixels = np.asarray(Image.open(file)).copy()
    Image.fromarray(255 - pixels).save(file)
    changed = file.read_bytes()
    # PNG ignores what follows its end, so both files can be as long.
    longest = max(len(content), len(changed))
    file.write_bytes(changed.ljust(longest, b"\0"))
    same = next((dataset_dir / "train" / "ant").iterdir())
    same.write_bytes(bytes(content).ljust(longest, b"\0"))
    for path in (file, same):
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    assert_same(load(dataset_dir), first)
    assert not is_same(load(other), first)


def cut_png(file):
    file.write_bytes(file.read_bytes()[:-60])


def beheaded_png(file):
    content = bytearray(file.read_bytes())
    content[8:12] = b"\0\0\0\7"  # a header of 7 bytes instead of 13
    file.write_bytes(content)


def cut_jpeg(file):
    Image.effect_noise((32, 32), 50).save(file, "JPEG")
    file.write_bytes(file.read_bytes()[:300])


def bmp_that_claims_to_be_huge(file):
    Image.new("RGB", (2, 2)).save(file, "BMP")
    content = bytearray(file.read_bytes())
    content[18:26] = (60_000).to_bytes(4, "little") * 2
    file.write_bytes(content)


def text(file):
    file.write_text("<html>not found</html>")


def empty(file):
    file.write_bytes(b"")


def directory(file):
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        cut_png,
        beheaded_png,
        cut_jpeg,
        bmp_that_claims_to_be_huge,
        text,
        empty,
        directory,
    ],
)
def test_damaged_picture_is_named(dataset_dir, cache_dir, third_bee, damage):
    damage(third_bee)
    with pytest.raises(ValueError, match="`data_root` must hold readable images, got") as error:
        load(dataset_dir)
    assert repr(str(third_bee)) in str(error.value)
    assert cached_files(cache_dir) == []


@pytest.mark.parametrize(
    "side",
    [
        pytest.param((6, 8), id="turned"),
        pytest.param((8, 7), id="wider"),
        pytest.param((16, 12), id="larger"),
        pytest.param((1, 1), id="one pixel"),
    ],
)
def test_picture_of_another_size_is_named(dataset_dir, cache_dir, third_bee, side):
    height, width = side
    Image.new("RGB", (width, height)).save(third_bee)
    message = (
        r"`data_root` must hold images of 8 x 6 pixels, "
        rf"got '.*bee.*' of {height} x {width}"
    )
    with pytest.raises(ValueError, match=message):
        load(dataset_dir)
    assert cached_files(cache_dir) == []


def test_missing_and_unknown_classes_are_named(dataset_dir):
    (dataset_dir / "train" / "bee").rename(dataset_dir / "train" / "wasp")
    message = (
        r"`data_root` must have the 3 class folders of animals, "
        r"got '.*train' \(missing: bee; unknown: wasp\)"
    )
    with pytest.raises(ValueError, match=message):
        load(dataset_dir)

    # The other part is whole.
    _, labels = load(dataset_dir, "test")
    assert len(labels) == 6


def test_files_next_to_class_folders_are_ignored(dataset_dir):
    (dataset_dir / "train" / "README.txt").write_text("three animals")
    _, labels = load(dataset_dir)
    assert len(labels) == 15


@EVERY_PART
def test_missing_part_is_named(dataset_dir, part):
    (dataset_dir / part).rename(dataset_dir / "other")
    with pytest.raises(FileNotFoundError, match=f"`data_root` must hold animals/{part}"):
        load(dataset_dir, part)


def test_val_folder_counts_as_test(dataset_dir):
    expected = load(dataset_dir, "test")
    (dataset_dir / "test").rename(dataset_dir / "val")
    assert_same(load(dataset_dir, "test"), expected)


def test_class_folder_may_be_empty(dataset_dir):
    for file in (dataset_dir / "train" / "bee").iterdir():
        file.unlink()
    _, labels = load(dataset_dir)
    assert np.bincount(labels, minlength=3).tolist() == [5, 0, 5]


def assert_no_room(dataset_dir, cache_dir):
    """Loading fails, and the error names the cache."""
    message = "`RNR_GYM_CACHE` must name a folder with room for 0 MB of decoded images, got"
    with pytest.raises(OSError, match=message) as error:
        load(dataset_dir)
    assert repr(str(cache_dir / "images")) in str(error.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device"),
    ],
    ids=repr,
)
def test_full_disk_is_reported(dataset_dir, cache_dir, monkeypatch, error):
    def save_half(tensors, path, metadata):
        path.write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(storage, "save_file", save_half)
        assert_no_room(dataset_dir, cache_dir)
    assert cached_files(cache_dir) == []

    # With room again, nothing of the failure remains.
    _, labels = load(dataset_dir)
    assert len(labels) == 15


def test_limit_of_file_size_is_reported(dataset_dir, cache_dir):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        assert_no_room(dataset_dir, cache_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert cached_files(cache_dir) == []


def test_cache_that_is_a_file_is_reported(dataset_dir, cache_dir):
    cache_dir.write_text("a file")
    assert_no_room(dataset_dir, cache_dir)


@pytest.mark.parametrize(
    ("argument", "variable", "expected"),
    [
        pytest.param("~/given", "named", "/home/me/given", id="argument in home"),
        pytest.param("given", "", "given", id="argument"),
        pytest.param(None, "~/named", "/home/me/named", id="variable in home"),
        pytest.param("", "named", "named", id="empty argument"),
        pytest.param(None, "", "CACHE/data", id="neither"),
        pytest.param(None, None, "CACHE/data", id="variable not set"),
        pytest.param("given", None, "given", id="argument, variable not set"),
    ],
)
def test_data_dir_is_argument_variable_or_cache(
    monkeypatch, cache_dir, argument, variable, expected
):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("RNR_GYM_DATA", raising=False)
    if variable is not None:
        monkeypatch.setenv("RNR_GYM_DATA", variable)

    expected = expected.replace("CACHE", str(cache_dir))
    assert os.fspath(folders.data_dir(argument)) == expected


def stream(dataset_dir, **kwargs):
    return folders.load_folder(dataset_dir / "train", size=6, resize=6, **kwargs)


def test_streamed_folder_has_images_by_class_then_file_name(dataset_dir, contents, cache_dir):
    images = stream(dataset_dir)
    pixels, labels = contents["train"]
    order = np.argsort(labels, kind="stable")
    assert images.classes == CLASSES
    np.testing.assert_array_equal(images.labels, labels[order])
    # Pictures of 8 x 6: the middle of the longer side is cut out.
    np.testing.assert_array_equal(images.images[:], pixels[order][:, :, 1:7])
    assert cached_files(cache_dir) == []


def test_streamed_folder_takes_classes_in_order_given(dataset_dir):
    images = stream(dataset_dir, classes=CLASSES[::-1])
    assert images.classes == CLASSES[::-1]
    np.testing.assert_array_equal(images.images[10:], stream(dataset_dir).images[:5])


def test_streamed_folder_ignores_what_is_no_image(dataset_dir):
    (dataset_dir / "train" / "README.txt").write_text("three animals")
    for name in ("Thumbs.db", "._0.png", "notes.txt"):
        (dataset_dir / "train" / "bee" / name).write_text("no image")
    save_red(dataset_dir / "train" / "bee" / "RED.PNG")
    assert len(stream(dataset_dir)) == 16


@pytest.mark.parametrize(
    ("argument", "kwargs"),
    [
        ("path", {"path": 3}),
        ("size", {"size": 0}),
        ("size", {"size": (6, 6)}),
        ("resize", {"size": 8, "resize": 7}),
        ("interpolation", {"interpolation": "lanczos"}),
        ("channels", {"channels": 4}),
        ("channels", {"channels": "RGB"}),
        ("channels", {"channels": [3]}),
        ("channels", {"channels": True}),
        ("classes", {"classes": "ant"}),
        ("classes", {"classes": {"ant": 0}}),
        ("classes", {"classes": ("ant", "bee", "bee", "cat")}),
        ("path", {"classes": ("ant", "bee", "wasp")}),
    ],
)
def test_load_folder_rejects(dataset_dir, argument, kwargs):
    with pytest.raises(ValueError, match=rf"^`{argument}` must"):
        folders.load_folder(**{"path": dataset_dir / "train", **kwargs})


def test_load_folder_needs_a_folder_of_classes(dataset_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match="`path` must be a folder with a folder for each"):
        folders.load_folder(tmp_path / "nowhere")
    (tmp_path / "empty" / "ant").mkdir(parents=True)
    message = r"`path` must hold images, <class>/\*, that end in .jpg, .* none in its 1 class"
    with pytest.raises(ValueError, match=message):
        folders.load_folder(tmp_path / "empty")

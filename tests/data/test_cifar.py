"""CIFAR-10 and CIFAR-100: how they are split, whichever way they are stored, and what is said and left where they are not there."""

import itertools
import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from rnr_gym import data
from rnr_gym.data import SPLITS, cifar, folders
from rnr_gym.data.cifar import CIFAR10, CIFAR100, HUNDRED, TEN
from tests.fixtures import photos

BOTH = pytest.mark.parametrize("facts", [CIFAR10, CIFAR100], ids=lambda facts: facts.name)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache folder."""
    monkeypatch.setenv("RNR_GYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(monkeypatch, tmp_path):
    """The folder where images are looked for, not there yet."""
    monkeypatch.setenv("RNR_GYM_DATA", str(tmp_path / "images"))
    return tmp_path / "images"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Whatever the machine that runs this, fetching finds nobody there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    monkeypatch.setenv("no_proxy", "*")
    for reader in (datasets.CIFAR10, datasets.CIFAR100):
        monkeypatch.setattr(reader, "url", f"{url}{reader.filename}")


def splits(facts=CIFAR10, **arguments):
    return {split: cifar.load(facts, split, **arguments) for split in SPLITS}


def stored(facts, root, patch, each=photos.EACH):
    """torchvision's files of random images."""
    contents = photos.parts(len(facts.classes), each)
    photos.write_official(root, contents, patch, facts.title)
    return contents


def assert_same(one, other):
    for split in SPLITS:
        for part in ("images", "labels", "source", "severity"):
            np.testing.assert_array_equal(getattr(one[split], part), getattr(other[split], part))
        assert one[split].classes == other[split].classes


def left(root):
    """All that lies in a folder."""
    return sorted(str(file.relative_to(root)) for file in root.rglob("*")) if root.exists() else []


@BOTH
def test_classes_are_distinct_and_alphabetical(facts):
    assert (
        len(facts.classes)
        == len(set(facts.classes))
        == {"cifar10": 10, "cifar100": 100}[facts.name]
    )
    assert list(facts.classes) == sorted(facts.classes)


@BOTH
def test_every_tenth_image_of_a_class_is_held_out_of_train_for_route(facts, root, monkeypatch):
    contents, found = stored(facts, root, monkeypatch), splits(facts)
    classes = len(facts.classes)
    assert [len(found[split]) for split in SPLITS] == [18 * classes, 2 * classes, 3 * classes]
    images, labels = contents["train"]
    for label in range(classes):
        of_class = images[labels == label]
        np.testing.assert_array_equal(
            found["route"].images[found["route"].labels == label], of_class[[9, 19]]
        )
        np.testing.assert_array_equal(
            found["train"].images[found["train"].labels == label], np.delete(of_class, [9, 19], 0)
        )


@BOTH
def test_train_and_route_share_no_image_and_are_all_there_is(facts, root, monkeypatch):
    stored(facts, root, monkeypatch)
    found = splits(facts)
    train, route, test = (set(images.source.tolist()) for images in found.values())
    assert train | route == set(range(20 * len(facts.classes)))
    assert train.isdisjoint(route)
    assert test == set(range(3 * len(facts.classes)))
    assert all(
        (images.severity == 0).all() and images.images.shape[1:] == (3, 32, 32)
        for images in found.values()
    )


@BOTH
def test_images_come_by_rank_and_then_by_class(facts, root, monkeypatch):
    stored(facts, root, monkeypatch)
    classes = len(facts.classes)
    for images in splits(facts).values():
        np.testing.assert_array_equal(images.labels, np.arange(len(images)) % classes)
        assert images.classes == facts.classes


def test_class_folders_and_torchvisions_files_give_the_same_splits(tmp_path, monkeypatch):
    contents = stored(CIFAR10, tmp_path / "official", monkeypatch)
    photos.write_folders(tmp_path / "pictures" / "cifar10", contents)
    assert_same(
        splits(data_root=str(tmp_path / "pictures")), splits(data_root=str(tmp_path / "official"))
    )


def test_so_do_those_of_cifar100(tmp_path, monkeypatch):
    contents = stored(CIFAR100, tmp_path / "official", monkeypatch, {"train": 10, "test": 1})
    photos.write_folders(tmp_path / "pictures" / "cifar100", contents, HUNDRED)

    assert_same(
        splits(CIFAR100, data_root=str(tmp_path / "pictures")),
        splits(CIFAR100, data_root=str(tmp_path / "official")),
    )


def test_jpegs_are_split_like_the_originals_and_are_what_pillow_makes_of_them(
    tmp_path, monkeypatch
):
    contents = photos.parts()
    for suffix in ("png", "jpg"):
        photos.write_folders(tmp_path / suffix / "cifar10", contents, suffix=suffix)
    exact, lossy = (splits(data_root=str(tmp_path / suffix)) for suffix in ("png", "jpg"))
    for split in SPLITS:
        np.testing.assert_array_equal(exact[split].labels, lossy[split].labels)
        np.testing.assert_array_equal(exact[split].source, lossy[split].source)
        assert not np.array_equal(exact[split].images, lossy[split].images)
    file = min((tmp_path / "jpg" / "cifar10" / "train" / "airplane").iterdir())
    np.testing.assert_array_equal(
        lossy["train"].images[0], np.asarray(Image.open(file)).transpose(2, 0, 1)
    )


def test_class_folders_go_before_torchvisions_files(root, monkeypatch):
    stored(CIFAR10, root, monkeypatch)
    photos.write_folders(root / "cifar10", photos.parts(seed=5))
    found = splits()
    shutil.rmtree(root / "cifar-10-batches-py")
    assert_same(found, splits())


def test_decoded_images_are_read_from_the_cache(root, monkeypatch):
    photos.write_folders(root / "cifar10", photos.parts())
    first = splits()
    monkeypatch.setattr(folders, "_pixels", lambda file, side: pytest.fail(f"{file} was decoded"))
    assert_same(splits(), first)


@pytest.mark.parametrize(
    ("given", "named"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_images_are_read_where_the_argument_says_else_the_variable_else_in_the_cache(
    tmp_path, monkeypatch, cache, given, named
):
    places = {"given": tmp_path / "given", "named": tmp_path / "named", "cache": cache / "data"}
    for shade, place in enumerate(places.values()):
        images, labels = photos.part(10, 1)
        photos.write_folders(place / "cifar10", {"test": (np.full_like(images, shade), labels)})
    monkeypatch.setenv("RNR_GYM_DATA", str(places["named"]) if named else "")
    found = cifar.load(CIFAR10, "test", str(places["given"]) if given else None)
    assert (found.images == (0 if given else 1 if named else 2)).all()


def test_a_process_loads_a_split_once(root, monkeypatch):
    stored(CIFAR10, root, monkeypatch)
    first = data.load("cifar10", "test", str(root))
    assert data.load("cifar10", "test", str(root)) is first
    assert data.load("cifar10", "route", str(root)) is not first


@pytest.mark.parametrize(
    ("part", "split", "there", "least"),
    [
        ("train", "route", 9, 10),
        ("train", "train", 9, 10),
        ("train", "train", 0, 10),
        ("test", "test", 0, 1),
        ("val", "test", 0, 1),
    ],
)
def test_too_few_images_of_a_class_are_refused(root, part, split, there, least):
    photos.write_folders(
        root / "cifar10",
        photos.parts(each={"train": 10, "test": 1} if part != "val" else {"val": 1}),
    )
    for file in sorted((root / "cifar10" / part / "cat").iterdir())[there:]:
        file.unlink()
    with pytest.raises(
        ValueError,
        match=f"`data_root` must hold at least {least} .*images a class.*got {there} of cat in",
    ) as refused:
        cifar.load(CIFAR10, split)
    assert repr(str(root / "cifar10" / part)) in str(refused.value)


@pytest.mark.parametrize(
    "spoil",
    [lambda place: (place / "cat").rename(place / "dogs"), lambda place: shutil.rmtree(place)],
    ids=["class", "part"],
)
def test_folders_that_are_not_cifars_are_refused_and_nothing_is_fetched_in_their_place(
    root, capsys, spoil
):
    photos.write_folders(root / "cifar10", photos.parts())
    spoil(root / "cifar10" / "train")
    with pytest.raises((ValueError, FileNotFoundError), match="`data_root` must"):
        cifar.load(CIFAR10, "train")
    assert "fetching" not in capsys.readouterr().err


def assert_advises(said, facts, root):
    """Whether a message says where was looked and all that can be done."""
    reader = getattr(datasets, facts.title)
    assert said.startswith(
        f"`data_root` must hold {facts.name}/train/<class>/* or {reader.base_folder}, got {str(root)!r}"
    )
    assert f"`rnr-gym data {facts.name}` fetches {facts.megabytes} MB from {reader.url}" in said
    assert "RNR_GYM_DATA names a folder that has it" in said
    assert "RNR-CIFAR10-Table-v0" in said
    assert "\n" not in said


def refusal(facts, split="train", **arguments):
    with pytest.raises(FileNotFoundError) as refused:
        cifar.load(facts, split, **arguments)
    getattr(refused.value.__cause__, "close", lambda: None)()  # an `HTTPError` keeps its connection
    return str(refused.value)


@BOTH
@pytest.mark.parametrize("split", SPLITS)
def test_images_that_are_not_there_and_may_not_be_fetched(facts, split, root, capsys):
    said = refusal(facts, split, download=False)
    assert_advises(said, facts, root)
    assert f"({getattr(datasets, facts.title).base_folder} is not there)" in said
    assert not root.exists()
    assert capsys.readouterr() == ("", "")


@BOTH
def test_images_that_cannot_be_fetched_without_a_network(facts, root):
    said = refusal(facts)
    assert_advises(said, facts, root)
    assert "fetching it failed" in said
    assert left(root) == []


def test_a_folder_that_cannot_be_made_is_reported(root):
    root.write_text("a file")
    assert_advises(refusal(CIFAR10), CIFAR10, root)
    assert root.read_text() == "a file"


def halved(folder):
    file = folder / "data_batch_3"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def one_bit_off(folder):
    file = folder / "test_batch"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        halved,
        one_bit_off,
        lambda folder: (folder / "data_batch_5").unlink(),
        lambda folder: (folder / "batches.meta").unlink(),
    ],
)
@pytest.mark.parametrize("download", [False, True])
def test_a_half_copied_or_damaged_folder_is_called_so_and_stays(
    root, monkeypatch, damage, download
):
    stored(CIFAR10, root, monkeypatch)
    damage(root / "cifar-10-batches-py")
    before = left(root)
    for split in SPLITS:
        said = refusal(CIFAR10, split, download=download)
        assert_advises(said, CIFAR10, root)
        assert "cifar-10-batches-py is incomplete or damaged" in said
        assert ("fetching it failed" in said) == download
    assert left(root) == before


def whole_answer(handler, content):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def half_answer(handler, content):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])


def half_chunk(handler, content):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(f"{len(content):X}\r\n".encode() + content[: len(content) // 2])


def login_page(handler, content):
    whole_answer(handler, b"<html>Welcome to this hotel</html>")


def not_found(handler, content):
    handler.send_error(404)


def no_http(handler, content):
    handler.wfile.write(b"220 mail.example.org\r\n")


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A server on this machine that gives a small archive, or what is set as its `answer`; and the images in it."""
    contents = stored(CIFAR10, tmp_path / "made", monkeypatch)
    archive = photos.write_archive(
        tmp_path / CIFAR10_FILE, tmp_path / "made" / "cifar-10-batches-py", monkeypatch
    )

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.server.asked += 1
            self.server.answer(self, archive.read_bytes())
            self.close_connection = True

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.answer, server.contents = 0, whole_answer, contents
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    ).start()
    monkeypatch.setattr(
        datasets.CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{CIFAR10_FILE}"
    )
    yield server
    server.shutdown()
    server.server_close()


CIFAR10_FILE = datasets.CIFAR10.filename


def test_images_are_fetched_once_and_put_in_place(served, root, tmp_path, capsys):
    found = splits()
    assert_same(found, splits(data_root=str(tmp_path / "made")))
    assert sorted(file.name for file in root.iterdir()) == ["cifar-10-batches-py"]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"fetching CIFAR10, 170 MB, from {datasets.CIFAR10.url} into {root}\n" in printed.err
    assert printed.err.count("fetching") == 1
    asked = served.asked
    assert_same(splits(), found)
    assert_same(splits(download=False), found)
    assert served.asked == asked
    assert "fetching" not in capsys.readouterr().err


def test_they_are_fetched_into_the_cache_where_no_folder_is_named(served, cache, monkeypatch):
    monkeypatch.delenv("RNR_GYM_DATA")
    cifar.load(CIFAR10, "test")
    assert (cache / "data" / "cifar-10-batches-py" / "test_batch").is_file()


def test_nothing_is_fetched_where_that_was_forbidden(served, root):
    refusal(CIFAR10, download=False)
    assert served.asked == 0


def test_a_damaged_folder_is_replaced_by_what_was_fetched_and_its_neighbours_stay(
    served, root, tmp_path
):
    shutil.copytree(tmp_path / "made" / "cifar-10-batches-py", root / "cifar-10-batches-py")
    halved(root / "cifar-10-batches-py")
    (root / "thesis.tex").write_text("five years")
    assert_same(splits(), splits(data_root=str(tmp_path / "made")))
    assert sorted(file.name for file in root.iterdir()) == ["cifar-10-batches-py", "thesis.tex"]


@pytest.mark.parametrize("answer", [half_answer, half_chunk, login_page, not_found, no_http])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_fetch_that_fails_leaves_everything_as_it_was(served, root, tmp_path, answer, damaged):
    served.answer = answer
    if damaged:
        shutil.copytree(tmp_path / "made" / "cifar-10-batches-py", root / "cifar-10-batches-py")
        halved(root / "cifar-10-batches-py")
    before = left(root)
    said = refusal(CIFAR10)
    assert_advises(said, CIFAR10, root)
    assert "fetching it failed" in said
    assert served.asked > 0
    assert left(root) == before
    served.answer = whole_answer
    assert len(cifar.load(CIFAR10, "train")) == 180


def test_an_archive_that_lacks_a_file_is_not_put_in_place(served, root, tmp_path, monkeypatch):
    (tmp_path / "made" / "cifar-10-batches-py" / "data_batch_4").unlink()
    photos.write_archive(
        tmp_path / CIFAR10_FILE, tmp_path / "made" / "cifar-10-batches-py", monkeypatch
    )
    assert_advises(refusal(CIFAR10), CIFAR10, root)
    assert left(root) == []


def test_a_fetch_that_is_interrupted_leaves_nothing(served, root):
    def interrupted(url, file, *_):
        with open(file, "wb") as partial:
            partial.write(b"half")
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.datasets.utils._urlretrieve", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cifar.load(CIFAR10, "train")
    assert left(root) == []
    assert len(cifar.load(CIFAR10, "train")) == 180


def test_the_folder_appears_only_when_it_is_whole(served, root, monkeypatch):
    seen, retrieve = [], datasets.CIFAR10._check_integrity

    def looked(reader):
        seen.append((root / "cifar-10-batches-py").exists())
        return retrieve(reader)

    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", looked)
    cifar.load(CIFAR10, "test")
    assert [there for there, _ in itertools.groupby(seen)] == [False, True]
    assert seen.count(False) >= 2  # before fetching, and after it where it was unpacked


@pytest.fixture(scope="module")
def whole(real_data, tmp_path_factory):
    """All of CIFAR-10, decoded once; nothing is fetched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNR_GYM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return splits(data_root=str(real_data), download=False)


@pytest.mark.slow
def test_the_real_cifar10_has_its_sizes(whole):
    assert [len(whole[split]) for split in SPLITS] == [45_000, 5_000, 10_000]
    for split, each in (("train", 4_500), ("route", 500), ("test", 1_000)):
        assert np.bincount(whole[split].labels).tolist() == [each] * 10
        assert whole[split].images.shape[1:] == (3, 32, 32)
        assert whole[split].classes == TEN


@pytest.mark.slow
def test_the_real_cifar10_looks_like_photographs(whole):
    scaled = whole["train"].images[:5_000] / 255.0
    np.testing.assert_allclose(scaled.mean((0, 2, 3)), [0.491, 0.482, 0.447], atol=0.02)
    np.testing.assert_allclose(scaled.std((0, 2, 3)), [0.247, 0.243, 0.262], atol=0.02)


@pytest.mark.slow
def test_no_image_of_the_real_route_is_in_train_or_test(whole):
    prints = {
        split: {image.tobytes() for image in images.images} for split, images in whole.items()
    }
    assert (
        len(prints["route"] & prints["train"]) + len(prints["route"] & prints["test"]) <= 5
    )  # CIFAR has a few twins of its own

"""CIFAR's files where they are missing or damaged, and the fetching of them."""

import itertools
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from torchvision import datasets

from rnr_gym.data import SPLITS, cifar
from rnr_gym.data.cifar import CIFAR10, CIFAR100
from tests.fixtures import photos
from tests.fixtures.photos import assert_same_splits, load_splits

pytestmark = pytest.mark.usefixtures("cache_dir", "no_network")

BOTH = pytest.mark.parametrize("variant", [CIFAR10, CIFAR100], ids=lambda variant: variant.name)
FILES_DIR = datasets.CIFAR10.base_folder


@pytest.fixture
def whole_root(tmp_path, monkeypatch):
    """A folder with torchvision's files of random images."""
    root = tmp_path / "whole"
    photos.write_official(root, photos.parts(), monkeypatch)
    return root


def all_paths(root):
    """All that lies in a folder, at any depth."""
    if not root.exists():
        return []
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def load_error(variant=CIFAR10, split="train", **kwargs):
    """What `cifar.load` says of images that it does not find."""
    with pytest.raises(FileNotFoundError) as error:
        cifar.load(variant, split, **kwargs)
    # An `HTTPError` keeps its connection.
    close = getattr(error.value.__cause__, "close", None)
    if close is not None:
        close()
    return str(error.value)


def assert_advises(message, variant, root):
    """An error says where images were looked for, and all that can be done."""
    reader = getattr(datasets, variant.title)
    expected = f"{variant.name}/train/<class>/* or {reader.base_folder}"
    assert message.startswith(f"`data_root` must hold {expected}, got {str(root)!r} (")

    command = f"`rnr-gym data {variant.name}`"
    assert f"{command} fetches {variant.megabytes} MB from {reader.url}; or set " in message
    assert "set `data_root` or RNR_GYM_DATA to a folder that has them." in message
    assert "RNR-CIFAR10-Table-v0" in message
    assert "\n" not in message


@BOTH
@pytest.mark.parametrize("split", SPLITS)
def test_missing_images_raise_without_download(variant, split, data_root, capsys):
    message = load_error(variant, split, download=False)
    assert_advises(message, variant, data_root)
    files_dir = getattr(datasets, variant.title).base_folder
    assert f"({files_dir} is not there)" in message

    assert not data_root.exists()
    assert capsys.readouterr() == ("", "")


@BOTH
def test_missing_images_raise_without_network(variant, data_root):
    message = load_error(variant)
    assert_advises(message, variant, data_root)
    assert "fetching it failed" in message
    assert all_paths(data_root) == []


def test_data_root_that_is_a_file_raises(data_root):
    data_root.write_text("a file")
    assert_advises(load_error(), CIFAR10, data_root)
    assert data_root.read_text() == "a file"


def halve_batch(files_dir):
    file = files_dir / "data_batch_3"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_bit(files_dir):
    file = files_dir / "test_batch"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)


def remove_batch(files_dir):
    (files_dir / "data_batch_5").unlink()


def remove_names(files_dir):
    (files_dir / "batches.meta").unlink()


@pytest.mark.parametrize("damage", [halve_batch, flip_bit, remove_batch, remove_names])
@pytest.mark.parametrize("download", [False, True], ids="download={}".format)
def test_damaged_files_are_reported_and_stay(whole_root, damage, download):
    damage(whole_root / FILES_DIR)
    before = all_paths(whole_root)
    for split in SPLITS:
        message = load_error(split=split, data_root=str(whole_root), download=download)
        assert_advises(message, CIFAR10, whole_root)
        assert f"{FILES_DIR} is incomplete or damaged" in message
        assert ("fetching it failed" in message) == download
    assert all_paths(whole_root) == before


def send_headers(handler, name, value):
    handler.send_response(200)
    handler.send_header(name, value)
    handler.end_headers()


def whole_answer(handler, content):
    send_headers(handler, "Content-Length", str(len(content)))
    handler.wfile.write(content)


def half_answer(handler, content):
    send_headers(handler, "Content-Length", str(len(content)))
    handler.wfile.write(content[: len(content) // 2])


def half_chunk(handler, content):
    send_headers(handler, "Transfer-Encoding", "chunked")
    handler.wfile.write(f"{len(content):X}\r\n".encode())
    handler.wfile.write(content[: len(content) // 2])


def login_page(handler, content):
    whole_answer(handler, b"<html>Welcome to this hotel</html>")


def not_found(handler, content):
    handler.send_error(404)


def no_http(handler, content):
    handler.wfile.write(b"220 mail.example.org\r\n")


class Handler(BaseHTTPRequestHandler):
    """Answers every request as its server's `answer` does."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.num_requests += 1
        self.server.answer(self, self.server.archive.read_bytes())
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def archive(whole_root, tmp_path, monkeypatch):
    """The archive that torchvision expects, of the files in `whole_root`."""
    file = tmp_path / datasets.CIFAR10.filename
    return photos.write_archive(file, whole_root / FILES_DIR, monkeypatch)


@pytest.fixture
def server(archive, no_network, monkeypatch):
    """A server on this machine that gives the archive, or what is set as its `answer`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.archive = archive
    server.answer = whole_answer
    server.num_requests = 0
    thread = threading.Thread(
        target=server.serve_forever,
        kwargs={"poll_interval": 0.01},
        daemon=True,
    )
    thread.start()

    url = f"http://127.0.0.1:{server.server_port}/{archive.name}"
    monkeypatch.setattr(datasets.CIFAR10, "url", url)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def damaged_root(whole_root, data_root):
    """`data_root` with a copy of the files, one of them cut off."""
    shutil.copytree(whole_root / FILES_DIR, data_root / FILES_DIR)
    halve_batch(data_root / FILES_DIR)
    return data_root


def test_images_are_fetched_and_put_in_place(server, data_root, whole_root, capsys):
    fetched = load_splits()
    assert_same_splits(fetched, load_splits(data_root=str(whole_root)))
    assert [path.name for path in data_root.iterdir()] == [FILES_DIR]

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("fetching") == 1
    line = f"fetching CIFAR10, 170 MB, from {datasets.CIFAR10.url} into {data_root}\n"
    assert line in printed.err


@pytest.mark.usefixtures("data_root")
def test_images_are_fetched_only_once(server, capsys):
    fetched = load_splits()
    num_requests = server.num_requests
    capsys.readouterr()

    assert_same_splits(load_splits(), fetched)
    assert_same_splits(load_splits(download=False), fetched)
    assert server.num_requests == num_requests
    assert "fetching" not in capsys.readouterr().err


@pytest.mark.usefixtures("server")
def test_images_are_fetched_into_cache_by_default(cache_dir, monkeypatch):
    monkeypatch.delenv("RNR_GYM_DATA")
    cifar.load(CIFAR10, "test")
    assert (cache_dir / "data" / FILES_DIR / "test_batch").is_file()


@pytest.mark.usefixtures("data_root")
def test_download_false_asks_no_server(server):
    load_error(download=False)
    assert server.num_requests == 0


@pytest.mark.usefixtures("server")
def test_fetched_files_replace_damaged_ones(damaged_root, whole_root):
    (damaged_root / "thesis.tex").write_text("five years")
    assert_same_splits(load_splits(), load_splits(data_root=str(whole_root)))
    # What else lies there stays.
    names = sorted(path.name for path in damaged_root.iterdir())
    assert names == [FILES_DIR, "thesis.tex"]


@pytest.mark.parametrize("answer", [half_answer, half_chunk, login_page, not_found, no_http])
@pytest.mark.parametrize("root_fixture", ["data_root", "damaged_root"])
def test_failed_fetch_leaves_all_as_it_was(server, answer, root_fixture, request):
    root = request.getfixturevalue(root_fixture)
    before = all_paths(root)
    server.answer = answer
    message = load_error()
    assert_advises(message, CIFAR10, root)
    assert "fetching it failed" in message
    assert server.num_requests > 0
    assert all_paths(root) == before

    # The next attempt is not troubled by the failed one.
    server.answer = whole_answer
    assert len(cifar.load(CIFAR10, "train")) == 180


@pytest.mark.usefixtures("server")
def test_incomplete_archive_is_not_put_in_place(data_root, whole_root, archive, monkeypatch):
    (whole_root / FILES_DIR / "data_batch_4").unlink()
    photos.write_archive(archive, whole_root / FILES_DIR, monkeypatch)
    assert_advises(load_error(), CIFAR10, data_root)
    assert all_paths(data_root) == []


@pytest.mark.usefixtures("server")
def test_interrupted_fetch_leaves_nothing(data_root, monkeypatch):
    def interrupted(url, file, *_):
        with open(file, "wb") as partial:
            partial.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("torchvision.datasets.utils._urlretrieve", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cifar.load(CIFAR10, "train")
    assert all_paths(data_root) == []
    assert len(cifar.load(CIFAR10, "train")) == 180


@pytest.mark.usefixtures("server")
def test_files_appear_only_when_whole(data_root, monkeypatch):
    check_integrity = datasets.CIFAR10._check_integrity
    is_there = []

    def watched(reader):
        is_there.append((data_root / FILES_DIR).exists())
        return check_integrity(reader)

    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", watched)
    cifar.load(CIFAR10, "test")
    assert [value for value, _ in itertools.groupby(is_there)] == [False, True]
    # Before fetching, and after it where the archive was unpacked.
    assert is_there.count(False) >= 2

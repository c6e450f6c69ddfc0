"""The command line: help, environments, data, and errors before any work."""

import os
import shutil

import pytest
from torchvision import datasets

from rnr_gym import claims, data
from rnr_gym.agents import AGENTS, DEFAULT_AGENTS
from rnr_gym.backbones import weights, zoo
from rnr_gym.classifier import RoutedClassifier
from rnr_gym.data import cifar, folders
from rnr_gym.experiments import comparison
from rnr_gym.registration import IDS
from rnr_gym.routing import profiling, route_table
from rnr_gym.routing.profiles import Profile
from rnr_gym.training import pretraining
from tests.fixtures import imagenet_files
from tests.fixtures.commands import fails, run, succeeds, train_command
from tests.fixtures.comparisons import compare_command, compare_quickly
from tests.fixtures.digits import ENV, load_all, use_few_digits

COMMANDS = (
    "envs",
    "data",
    "pretrain",
    "embed",
    "profile",
    "train",
    "finetune",
    "evaluate",
    "classify",
    "compare",
    "validate",
    "enter",
    "render",
    "demo",
    "export",
)
COLUMNS = 80
FRAME = "│╭╮╰╯─"
"""What help is framed with."""
UNKNOWN_ENV = "RNR-Letters-v0"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    compare_quickly(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(COLUMNS))


@pytest.fixture
def all_images(monkeypatch):
    """Every image of every split, as users have them."""
    monkeypatch.setattr(data, "load", load_all)


def without_frame(output):
    """The text without spaces, line breaks and frames, which may be anywhere."""
    return "".join(char for char in output if not char.isspace() and char not in FRAME)


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_command_shows_usage(command):
    assert "usage: rnr-gym" in succeeds(command, "--help")


def test_help_lists_commands():
    output = succeeds("--help")
    assert all(command in output for command in COMMANDS)


@pytest.mark.parametrize("args", [[], ["dance"]], ids=["none", "unknown"])
def test_missing_or_unknown_command_fails(args):
    code, _ = run(*args)
    assert code != 0


def test_train_help_names_all_agents():
    output = without_frame(succeeds("train", "--help"))
    assert all(name in output for name in AGENTS)


def test_compare_help_states_default_agents():
    output = without_frame(succeeds("compare", "--help"))
    names = output[output.index("ifleftout:") :]
    positions = [names.index(name) for name in DEFAULT_AGENTS]
    assert positions == sorted(positions)


# Environments and data


def test_envs_fits_into_80_columns():
    output = succeeds("envs")
    assert max(len(line) for line in output.splitlines()) <= COLUMNS
    assert "…" not in output


def test_envs_lists_every_id():
    lines = [line.split() for line in succeeds("envs").splitlines()]
    for env_id, kwargs in IDS.items():
        name = kwargs["backbone"]
        backbone = zoo.named(name, weights=None)
        kinds = [kind for kind in weights.BUNDLED if weights.backbone_file(name, kind).is_file()]
        bundled = ["none", *kinds][-1]
        if zoo.ARCHITECTURES[name].is_downloaded:
            bundled = "download"

        (cells,) = [line for line in lines if env_id in line]
        assert cells == [
            env_id,
            kwargs["dataset"],
            str(backbone.num_layers),
            str(backbone.num_paths),
            f"{backbone.mac_table.plain:,}",
            bundled,
        ]


def test_profile_is_printed_and_charged(tmp_path, monkeypatch):
    monkeypatch.setenv("RNR_GYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(profiling, "REPEATS", 2)
    run_dir = tmp_path / "run"
    train = train_command(run_dir, "thresholds")
    message = fails(tmp_path, *train, "--cost", "time")
    assert "run `rnr-gym profile rnr-digits`" in message

    file = tmp_path / "profile.json"
    output = succeeds("profile", "rnr-digits", "--batch-size", 8, "--out", file)
    assert "rnr-digits: milliseconds for 8 images" in output
    profile = Profile.load(file)
    assert f"profile {profile.digest}: " in output
    lines = output.splitlines()
    # The last two lines are sentences, which are not wrapped.
    assert max(map(len, lines[:-2])) <= COLUMNS
    for nanoseconds in (profile.times.layers[3, 2, 3], profile.times.exits[2, 1]):
        assert f"{8 * nanoseconds / 1e6:.3f}" in output

    succeeds(*train, "--cost", "time")
    output = succeeds("evaluate", run_dir)
    assert "thresholds on RNR-Digits-v0" in output
    routed = RoutedClassifier.from_run(run_dir)
    assert routed.spec.plain_cost == profile.times.plain


def split_rows(output):
    """The cells of the lines that are about a split."""
    lines = [line.split() for line in output.splitlines()]
    return [cells for cells in lines if cells and cells[0] in data.SPLITS]


@pytest.mark.parametrize("name", [name for name in data.DATASETS if name != "imagenet"])
def test_data_lists_splits(all_images, small_cifar, name):
    output = succeeds("data", name)
    assert name in output
    for split, cells in zip(data.SPLITS, split_rows(output), strict=True):
        images = load_all(name, split)
        shape = " x ".join(map(str, images.images.shape[1:]))
        num_classes = str(len(images.classes))
        assert cells == [split, f"{len(images):,}", *shape.split(), num_classes]


def test_data_decodes_folder_into_cache(all_images, small_cifar, tmp_path, monkeypatch):
    monkeypatch.setenv("RNR_GYM_CACHE", str(tmp_path / "cache"))
    data_root = tmp_path / "images"
    shutil.copytree(small_cifar / "cifar10", data_root / "cifar10")
    rows = split_rows(succeeds("data", "cifar10", "--data-root", data_root))
    assert [cells[:2] for cells in rows] == [["train", "90"], ["route", "10"], ["test", "10"]]

    # From now on the images come from the cache.
    monkeypatch.setattr(folders, "_pixels", lambda file, side: pytest.fail(f"{file} was decoded"))
    assert len(cifar.load(cifar.CIFAR10, "train", str(data_root))) == 90


@pytest.mark.parametrize("command", ["data", "pretrain"])
@pytest.mark.parametrize(
    ("name", "env"),
    [("cifar10", "RNR-CIFAR10-v0"), ("cifar100", "RNR-CIFAR100-v0")],
    ids=["cifar10", "cifar100"],
)
def test_failed_download_says_what_to_do(all_images, tmp_path, monkeypatch, command, name, env):
    for reader in (datasets.CIFAR10, datasets.CIFAR100):
        # No server listens at this port.
        monkeypatch.setattr(reader, "url", "http://127.0.0.1:1/")

    args = ["data", name]
    if command == "pretrain":
        args = ["pretrain", env, "--out", tmp_path / "out", "--epochs", 1]
    output = fails(tmp_path, *args, "--data-root", tmp_path / "images")
    assert f"`data_root` must hold {name}/train/<class>/*" in output
    assert f"`rnr-gym data {name}` fetches" in output
    assert "RNR_GYM_DATA" in output
    assert not (tmp_path / "out").exists()


def test_data_says_which_split_of_imagenet_is_missing(all_images, tmp_path):
    message = fails(tmp_path, "data", "imagenet", "--data-root", tmp_path)
    assert "`data_root` must hold imagenet/val/<wnid>/*.JPEG" in message

    imagenet_files.write(tmp_path)
    output = succeeds("data", "imagenet", "--data-root", tmp_path)
    rows = split_rows(output)
    assert rows[0] == ["train", "missing"]
    assert [cells[:2] for cells in rows[1:]] == [["route", "1,000"], ["test", "1,000"]]
    assert "`train` is missing: `data_root` must hold imagenet/train/<wnid>/*.JPEG" in output


def test_pretrain_rejects_downloaded_network(tmp_path):
    message = fails(tmp_path, "pretrain", "RNR-ImageNet-v0", "--out", tmp_path / "out")
    assert "`env` must route a network of this package" in message


def test_data_rejects_foreign_folders(all_images, tmp_path):
    (tmp_path / "cifar10" / "train" / "zebra").mkdir(parents=True)
    output = fails(tmp_path, "data", "cifar10", "--data-root", tmp_path)
    assert "(missing: airplane, automobile, bird, cat, deer; unknown: zebra)" in output


def test_finetune_names_next_commands(tmp_path, monkeypatch):
    use_few_digits(monkeypatch)
    succeeds(*train_command(tmp_path / "run", "thresholds"))
    out = tmp_path / "out"
    output = succeeds("finetune", tmp_path / "run", "--out", out, "--rounds", 1, "--epochs", 1)
    assert f"wrote {out / 'round-1'}" in output
    assert f"rnr-gym evaluate {out / 'round-1' / 'run'}" in output
    assert "thresholds on" in succeeds("evaluate", out / "round-1" / "run", "--split", "route")


# Errors


@pytest.mark.parametrize("option", ["rounds", "epochs"])
def test_finetune_needs_at_least_one(tmp_path, option):
    output = fails(tmp_path, "finetune", tmp_path, "--out", tmp_path / "out", f"--{option}", 0)
    assert f"`{option}` must be a whole number of at least 1, got 0" in output


def command_into(command, out):
    """`compare` or `train` into a folder."""
    if command == "compare":
        return compare_command(out, ("full",), seeds=1)
    return train_command(out)


@pytest.mark.parametrize("command", ["compare", "train"])
def test_command_rejects_foreign_dir(tmp_path, command):
    (tmp_path / "thesis.tex").write_text("five years")
    output = fails(tmp_path, *command_into(command, tmp_path))
    assert "holds something else; choose another" in output


@pytest.mark.parametrize("command", ["compare", "train"])
def test_command_rejects_file_as_dir(tmp_path, command):
    (tmp_path / "file").write_text("text")
    assert "`out`" in fails(tmp_path, *command_into(command, tmp_path / "file"))


@pytest.fixture
def no_work(monkeypatch):
    """Fail a test in which backbones are trained or routers are fitted."""

    def fail(*_, **__):
        pytest.fail("work was started")

    monkeypatch.setattr(pretraining, "pretrain", fail)
    monkeypatch.setattr(comparison, "fit_routers", fail)


def into_out(args, tmp_path):
    """Arguments with a path for `OUT`."""
    paths = {"OUT": tmp_path / "out", "OUT.gif": tmp_path / "out.gif"}
    return [paths.get(arg, arg) for arg in args]


@pytest.mark.parametrize("command", ["train", "compare", "pretrain", "render"])
def test_command_rejects_unknown_env(no_work, tmp_path, command):
    output = fails(tmp_path, command, UNKNOWN_ENV, "--out", tmp_path / "out")
    assert f"`env` must be one of {', '.join(IDS)}, got {UNKNOWN_ENV!r}" in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "option"),
    [("train", "--agent"), ("compare", "--agents")],
    ids=["train", "compare"],
)
def test_command_rejects_unknown_agent(no_work, tmp_path, command, option):
    output = fails(tmp_path, command, ENV, "--out", tmp_path / "out", option, "sarsa")
    assert f"`agent` must be one of {', '.join(AGENTS)}, got 'sarsa'" in output
    assert not (tmp_path / "out").exists()


TRAIN = ["train", ENV, "--out", "OUT"]
COMPARE = ["compare", ENV, "--out", "OUT"]
PRETRAIN = ["pretrain", ENV, "--out", "OUT"]
RENDER = ["render", ENV, "--out", "OUT.gif"]
NO_RUN = "holds no run; make one with `rnr-gym train`"
INVALID = {
    "compare seeds": (
        [*COMPARE, "--seeds", 0],
        "`seeds` must be a whole number of at least 1, got 0",
    ),
    "compare steps": (
        [*COMPARE, "--steps", 0],
        "`steps` must be a whole number of at least 1, got 0",
    ),
    "compare jobs": (
        [*COMPARE, "--jobs", -1],
        "`jobs` must be a whole number of at least 1, got -1",
    ),
    "compare agent in list": (
        [*COMPARE, "--agents", "ppo", "sarsa"],
        f"`agent` must be one of {', '.join(AGENTS)}, got 'sarsa'",
    ),
    "compare agent twice": (
        [*COMPARE, "--agents", "full", "full"],
        "`agents` must name each router once, got full, full",
    ),
    "train steps": ([*TRAIN, "--steps", 0], "`steps` must be a whole number of at least 1, got 0"),
    "train weights": (
        [*TRAIN, "--agent", "full", "--weights", "/no/such/file"],
        "`weights` must be 'pretrained', 'finetuned', a file, or None for random ones, "
        "got '/no/such/file'",
    ),
    "pretrain epochs": (
        [*PRETRAIN, "--epochs", 0],
        "`epochs` must be a whole number of at least 1, got 0",
    ),
    "pretrain glance epochs": (
        [*PRETRAIN, "--glance-epochs", 0],
        "`glance_epochs` must be a whole number of at least 1, got 0",
    ),
    "pretrain epochs of cifar10": (
        ["pretrain", "RNR-CIFAR10-v0", "--out", "OUT", "--epochs", 0],
        "`epochs` must be a whole number of at least 1, got 0",
    ),
    "train seed": (
        [*TRAIN, "--seed", -1],
        "`seed` must be a whole number in 0..4294967295, got -1",
    ),
    "train weights in brackets": ([*TRAIN, "--weights", "[/b]"], "got '[/b]'"),
    "compare agent in brackets": ([*COMPARE, "--agents", "[bold]"], "got '[bold]'"),
    "pretrain seed": (
        [*PRETRAIN, "--seed", -1],
        "`seed` must be a whole number in 0..4294967295, got -1",
    ),
    "pretrain device": ([*PRETRAIN, "--device", "meta"], "`device` must be one that torch can"),
    "render tradeoff": ([*RENDER, "--tradeoff", "nan"], "`tradeoff` must be"),
    "render seed": ([*RENDER, "--seed", -1], "`seed` must be a whole number of at least 0, got -1"),
    "finetune device": (
        ["finetune", "OUT", "--out", "OUT", "--device", "nowhere"],
        "`device` must be one that torch can use here, got 'nowhere'",
    ),
    "finetune glance epochs": (
        ["finetune", "OUT", "--out", "OUT", "--glance-epochs", -1],
        "`glance_epochs` must be a whole number of at least 0, got -1",
    ),
    "data name": (
        ["data", "mnist"],
        "cifar10, cifar10-corrupted, cifar100, imagenet, got 'mnist'",
    ),
    "render episodes": (
        [*RENDER, "--episodes", 0],
        "`episodes` must be a whole number of at least 1, got 0",
    ),
    "render run": ([*RENDER, "--run", "OUT"], NO_RUN),
    "evaluate run": (["evaluate", "OUT"], NO_RUN),
    "enter run": (["enter", "OUT", "--out", "OUT", "--author", "A. Name"], NO_RUN),
    "validate nothing": (
        ["validate"],
        "`report` must be the folder of a comparison, or `--entry` a file, got neither",
    ),
    "validate both": (
        ["validate", "OUT", "--entry", "OUT"],
        "`report` must be the folder of a comparison, or `--entry` a file, got '",
    ),
    "validate entry": (["validate", "--entry", "OUT"], "`entry` must be a file, got '"),
    "validate report": (
        ["validate", "OUT"],
        "`report` must be the folder of a finished comparison",
    ),
}
"""Arguments that are out of range, with what the error says."""


@pytest.mark.parametrize(("args", "message"), INVALID.values(), ids=INVALID)
def test_command_rejects_invalid_option(no_work, tmp_path, args, message):
    assert message in fails(tmp_path, *into_out(args, tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "args",
    [[*COMPARE, "--agents", "static", "fqi"], [*TRAIN, "--agent", "fqi"]],
    ids=["compare", "train"],
)
def test_fqi_without_table_is_rejected(no_work, tmp_path, monkeypatch, args):
    monkeypatch.setattr(route_table, "LIMIT", 1)
    output = fails(tmp_path, *into_out(args, tmp_path))
    assert f"`agent` fqi needs a route table, got {ENV}" in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["[/b]", "[bold]", "[red]x[/red]"])
def test_brackets_in_what_the_user_gives_are_printed_as_they_are(tmp_path, name):
    assert name in fails(tmp_path, "evaluate", tmp_path / name)
    assert name in succeeds("train", "RNR-Digits-v0", "--agent", "full", "--out", tmp_path / name)


@pytest.mark.parametrize("args", [TRAIN, PRETRAIN, COMPARE], ids=lambda args: args[0])
def test_second_run_into_a_folder_is_refused(no_work, tmp_path, args):
    with claims.claimed(tmp_path / "out"):
        output = fails(tmp_path, *into_out(args, tmp_path))
    assert "`out` must not be written by another process" in output
    assert f"process {os.getpid()} is writing" in output

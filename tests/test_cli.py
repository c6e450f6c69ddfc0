"""The command line, from its arguments to files and output."""

import json
import shutil
import sys
from itertools import pairwise

import gymnasium as gym
import pytest
import torch
from PIL import Image
from torchvision import datasets

from rnr_gym import cli, data
from rnr_gym.agents import AGENTS, DEFAULT_AGENTS
from rnr_gym.backbones import weights, zoo
from rnr_gym.backbones.base import Backbone
from rnr_gym.classifier import ROUTER_FILE
from rnr_gym.data import cifar, folders
from rnr_gym.experiments import comparison, runs
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS
from rnr_gym.experiments.validation import validate
from rnr_gym.registration import IDS
from rnr_gym.routing import route_table
from rnr_gym.training import pretraining
from tests.fixtures import small
from tests.fixtures.comparisons import (
    InlineExecutor,
    compare_command,
    compare_quickly,
    finished_report,
    read_results,
)
from tests.fixtures.digits import ENV, load_all
from tests.fixtures.files import snapshot

COMMANDS = ("envs", "data", "pretrain", "train", "evaluate", "compare", "validate", "render")
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


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `rnr-gym` with arguments; the exit code and the output."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["rnr-gym", *map(str, args)])
        # What fixtures printed is not the command's.
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as error:
            code = error.code
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def succeeds(run):
    """Runs a command that must succeed; its output."""

    def succeeds(*args):
        code, output = run(*args)
        assert code == 0, output
        return output

    return succeeds


@pytest.fixture
def fails(run, tmp_path):
    """Runs a command that must print one error line and change no file; the line."""

    def fails(*args):
        before = snapshot(tmp_path)
        code, output = run(*args)
        assert code == 2
        # One line, so there is no traceback.
        assert output.startswith("error: ")
        assert output.count("\n") == 1, output
        assert snapshot(tmp_path) == before
        return output

    return fails


@pytest.fixture
def report_dir(tmp_path_factory, tmp_path):
    """A copy of a finished comparison that may be changed."""
    finished = finished_report(tmp_path_factory.getbasetemp())
    return shutil.copytree(finished, tmp_path / "report", copy_function=shutil.copy2)


def train_command(out, agent="full"):
    return ["train", ENV, "--out", out, "--agent", agent]


def without_frame(output):
    """The text without spaces, line breaks and frames, which may be anywhere."""
    return "".join(char for char in output if not char.isspace() and char not in FRAME)


def percent_rows(output):
    """The cells of the lines that have a percentage."""
    return [line.split() for line in output.splitlines() if "%" in line]


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_command_shows_usage(succeeds, command):
    assert "usage: rnr-gym" in succeeds(command, "--help")


def test_help_lists_commands(succeeds):
    output = succeeds("--help")
    assert all(command in output for command in COMMANDS)


@pytest.mark.parametrize("args", [[], ["dance"]], ids=["none", "unknown"])
def test_missing_or_unknown_command_fails(run, args):
    code, _ = run(*args)
    assert code != 0


def test_train_help_names_all_agents(succeeds):
    """The agents that a comparison leaves out by default come last."""
    output = without_frame(succeeds("train", "--help"))
    assert all(name in output for name in AGENTS)

    last_three = [output.rindex(name) for name in list(AGENTS)[-3:]]
    assert all(output.index(f"{name},") < min(last_three) for name in DEFAULT_AGENTS)


def test_compare_help_states_default_agents(succeeds):
    output = without_frame(succeeds("compare", "--help"))
    assert "allbutthelastthreeifleftout" in output
    assert set(DEFAULT_AGENTS) == set(list(AGENTS)[:-3])


# Environments and data


def test_envs_fits_into_80_columns(succeeds):
    output = succeeds("envs")
    assert max(len(line) for line in output.splitlines()) <= COLUMNS
    assert "…" not in output


def test_envs_lists_every_id(succeeds):
    lines = [line.split() for line in succeeds("envs").splitlines()]
    for env_id, kwargs in IDS.items():
        name = kwargs["backbone"]
        backbone = zoo.named(name, weights=None)
        bundled = "pretrained" if weights.backbone_file(name).is_file() else "none"
        (cells,) = [line for line in lines if env_id in line]
        assert cells == [
            env_id,
            kwargs["dataset"],
            str(backbone.num_layers),
            str(backbone.num_paths),
            f"{backbone.mac_table.plain:,}",
            bundled,
        ]


def split_rows(output):
    """The cells of the lines that are about a split."""
    lines = [line.split() for line in output.splitlines()]
    return [cells for cells in lines if cells and cells[0] in data.SPLITS]


@pytest.mark.parametrize("name", data.DATASETS)
def test_data_lists_splits(succeeds, all_images, small_cifar, name):
    output = succeeds("data", name)
    assert name in output
    for split, cells in zip(data.SPLITS, split_rows(output), strict=True):
        images = load_all(name, split)
        shape = " x ".join(map(str, images.images.shape[1:]))
        num_classes = str(len(images.classes))
        assert cells == [split, f"{len(images):,}", *shape.split(), num_classes]


def test_data_decodes_folder_into_cache(succeeds, all_images, small_cifar, tmp_path, monkeypatch):
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
def test_failed_download_says_what_to_do(
    fails, all_images, tmp_path, monkeypatch, command, name, env
):
    for reader in (datasets.CIFAR10, datasets.CIFAR100):
        # No server listens at this port.
        monkeypatch.setattr(reader, "url", "http://127.0.0.1:1/")

    args = ["data", name]
    if command == "pretrain":
        args = ["pretrain", env, "--out", tmp_path / "out", "--epochs", 1]
    output = fails(*args, "--data-root", tmp_path / "images")
    assert f"`data_root` must hold {name}/train/<class>/*" in output
    assert f"`rnr-gym data {name}` fetches" in output
    assert "RNR_GYM_DATA" in output
    assert not (tmp_path / "out").exists()


def test_data_rejects_foreign_folders(fails, all_images, tmp_path):
    (tmp_path / "cifar10" / "train" / "zebra").mkdir(parents=True)
    output = fails("data", "cifar10", "--data-root", tmp_path)
    assert "(missing: airplane, automobile, bird, cat, deer; unknown: zebra)" in output


# Runs


@pytest.fixture(params=["static", "confidence", "ppo"])
def agent(request):
    return request.param


@pytest.fixture
def run_dir(succeeds, tmp_path, agent):
    """The folder of a router that was trained with seed 3."""
    run_dir = tmp_path / "run"
    output = succeeds(*train_command(run_dir, agent), "--steps", 512, "--seed", 3)
    assert str(run_dir) in output.replace("\n", "")
    return run_dir


def test_train_writes_run(run_dir, agent):
    loaded = runs.load(run_dir)
    assert loaded.agent == agent
    assert loaded.fit_config.seed == 3
    assert loaded.fit_config.steps == 512


def test_evaluate_lists_tradeoffs(succeeds, run_dir, agent):
    output = succeeds("evaluate", run_dir)
    assert f"{agent} on {ENV}, test" in output
    tradeoffs = [float(cells[0]) for cells in percent_rows(output)]
    assert len(tradeoffs) >= len(EVAL_TRADEOFFS)
    assert tradeoffs == sorted(tradeoffs)


def test_render_animates_run(succeeds, run_dir, tmp_path):
    out = tmp_path / "episodes.gif"
    succeeds("render", ENV, "--out", out, "--run", run_dir, "--episodes", 2)
    with Image.open(out) as animation:
        assert animation.n_frames >= 4


@torch.no_grad()
def full_path_accuracy(split):
    """The accuracy of the bundled backbone as a plain network."""
    images = data.load("digits", split)
    backbone = zoo.named("rnr-digits")
    prepared = backbone.prepare(small.pixels_of(images) / 255.0)
    prediction = backbone.plain()(prepared).argmax(1).numpy()
    return (prediction == images.labels).mean()


@pytest.mark.parametrize("split", ["route", "test"])
def test_evaluate_full_matches_plain_network(succeeds, tmp_path, split):
    succeeds(*train_command(tmp_path))
    rows = percent_rows(succeeds("evaluate", tmp_path, "--split", split))
    accuracy = f"{full_path_accuracy(split):.1%}"
    assert rows
    assert all(cells[1:] == [accuracy, "1.000", "0.000", "0%"] for cells in rows)


def test_evaluate_rejects_unknown_split(succeeds, fails, tmp_path):
    succeeds(*train_command(tmp_path))
    output = fails("evaluate", tmp_path, "--split", "val")
    assert "`split` must be one of train, route, test, got 'val'" in output


def test_train_rejects_finished_run(succeeds, fails, tmp_path):
    command = train_command(tmp_path, "confidence")
    succeeds(*command)
    assert "is finished; choose another" in fails(*command)


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--seed", 1], "where seed differ"), (["--no-exits"], "where arguments")],
    ids=["seed", "exits"],
)
def test_train_rejects_changed_options(succeeds, fails, tmp_path, options, message):
    command = train_command(tmp_path, "confidence")
    succeeds(*command)
    # Without its router the run counts as unfinished.
    (tmp_path / ROUTER_FILE).unlink()
    assert message in fails(*command, *options)


def test_render_without_run_is_random(succeeds, tmp_path):
    out = tmp_path / "episodes.gif"
    output = succeeds("render", ENV, "--out", out, "--episodes", 1)
    with Image.open(out) as animation:
        assert f"{animation.n_frames} frames" in " ".join(output.split())
        assert animation.n_frames > 1


def test_render_rejects_run_of_other_env(succeeds, fails, tmp_path):
    run_dir = tmp_path / "run"
    succeeds(*train_command(run_dir))
    env = "RNR-Digits-Channels-v0"
    output = fails("render", env, "--out", tmp_path / "episodes.gif", "--run", run_dir)
    assert f"`run` must be a router for {env}, got {str(run_dir)!r}, one for {ENV}" in output


# Pretraining


def pretrain_command(env, out):
    return ["pretrain", env, "--out", out, "--epochs", 1, "--glance-epochs", 1]


def test_pretrain_writes_backbone_to_route(succeeds, fails, tmp_path):
    out = tmp_path / "new" / "weights.safetensors"
    output = succeeds(*pretrain_command(ENV, out))
    assert "accuracy of the full path on `route`" in " ".join(output.split())
    # The checkpoint is gone.
    assert [file.name for file in out.parent.iterdir()] == ["weights.safetensors"]
    assert isinstance(zoo.load(out), Backbone)

    env = gym.make(ENV, weights=str(out))
    obs, _ = env.reset(seed=0)
    assert obs.shape == env.observation_space.shape

    # Written weights are never overwritten.
    assert "`out` must be a new file" in fails(*pretrain_command(ENV, out))

    run_dir = tmp_path / "run"
    succeeds(*train_command(run_dir), "--weights", out)
    assert runs.load(run_dir).fit_config.kwargs == {"weights": str(out)}


@pytest.mark.slow
@pytest.mark.parametrize("env", ["RNR-CIFAR100-v0", "RNR-CIFAR100-Channels-v0"])
def test_cifar100_pretrain_and_compare(succeeds, all_images, small_cifar, tmp_path, env):
    weights_file = tmp_path / "weights.safetensors"
    report_dir = tmp_path / "report"
    succeeds(*pretrain_command(env, weights_file))
    command = ["compare", env, "--weights", weights_file, "--out", report_dir]
    command += ["--agents", "static", "ppo"]
    command += ["--seeds", 1, "--steps", 512, "--jobs", 1]
    assert "ppo" in succeeds(*command)
    assert validate(report_dir) == len(read_results(report_dir)["rows"])


# Comparisons


def test_compare_prints_both_tables(succeeds, tmp_path):
    report_dir = tmp_path / "report"
    output = succeeds(*compare_command(report_dir, ("static", "confidence"), seeds=1))
    # The last line has paths that must not be wrapped.
    tables = [line for line in output.splitlines() if "report:" not in line]
    assert max(len(line) for line in tables) <= COLUMNS
    assert "static" in output
    assert f"rnr-gym validate {report_dir}" in output

    for pair in read_results(report_dir)["differences"]:
        mean, low, high = (100 * pair[name] for name in ("mean", "low", "high"))
        assert f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" in output


def test_validate_counts_rows(succeeds, report_dir):
    num_rows = len(read_results(report_dir)["rows"])
    assert f"verified {num_rows} rows" in succeeds("validate", report_dir)


def test_validate_fails_where_figure_was_changed(fails, report_dir):
    content = read_results(report_dir)
    content["rows"][0]["accuracy"] += 0.01
    (report_dir / "results.json").write_text(json.dumps(content))
    assert "`rows[0].accuracy` does not hold" in fails("validate", report_dir)


def without_seconds(content):
    """Results without what the clock measured."""
    rows = []
    for row in content["rows"]:
        rows.append({name: value for name, value in row.items() if name != "seconds"})
    return content | {"rows": rows}


def test_compare_resumes_with_missing_routers(succeeds, report_dir):
    before = snapshot(report_dir)
    expected = read_results(report_dir)
    (report_dir / "results.json").unlink()
    (report_dir / "paths.npz").unlink()
    shutil.rmtree(report_dir / "routers" / "ppo-1")

    succeeds(*compare_command(report_dir))
    assert InlineExecutor.submitted == ["ppo"]
    after = snapshot(report_dir)
    kept = [file for file in before if "routers" in file.parts and "ppo-1" not in file.parts]
    assert len(kept) >= 6
    assert all(after[file] == before[file] for file in kept)

    actual = read_results(report_dir)
    assert without_seconds(actual) == without_seconds(expected)
    assert validate(report_dir) == len(expected["rows"])


def test_compare_killed_while_fitting_resumes(run, succeeds, tmp_path, monkeypatch):
    fit = runs.fit
    fitted = []

    def fit_one_then_interrupt(name, *args):
        if len(fitted) == 1:
            raise KeyboardInterrupt
        fitted.append(name)
        return fit(name, *args)

    monkeypatch.setattr(runs, "fit", fit_one_then_interrupt)
    report_dir = tmp_path / "out"
    command = compare_command(report_dir, ("full", "confidence", "static"), seeds=1)
    code, output = run(*command)
    assert code == 130
    assert "run the same command to resume" in output.replace("\n", " ")
    assert not (report_dir / "results.json").exists()

    monkeypatch.setattr(runs, "fit", fit)
    succeeds(*command)
    assert len(InlineExecutor.submitted) == 2
    assert fitted[0] not in InlineExecutor.submitted


def test_compare_rejects_finished_report(fails, report_dir):
    assert "is finished; choose another" in fails(*compare_command(report_dir))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seeds": 3}, "seeds"),
        ({"steps": 1024}, "steps"),
        ({"agents": ("static",)}, "agents"),
        ({"weights": "None"}, "arguments"),
    ],
    ids=["seeds", "steps", "agents", "weights"],
)
def test_compare_rejects_changed_options(fails, report_dir, change, name):
    (report_dir / "results.json").unlink()
    output = fails(*compare_command(report_dir, **change))
    assert "`out` must be resumed with the settings that it was started with" in output
    assert name in output.split("where")[-1]


def command_into(command, out):
    """`compare` or `train` into a folder."""
    if command == "compare":
        return compare_command(out, ("full",), seeds=1)
    return train_command(out)


@pytest.mark.parametrize("command", ["compare", "train"])
def test_command_rejects_foreign_dir(fails, tmp_path, command):
    (tmp_path / "thesis.tex").write_text("five years")
    output = fails(*command_into(command, tmp_path))
    assert "holds something else; choose another" in output


@pytest.mark.parametrize("command", ["compare", "train"])
def test_command_rejects_file_as_dir(fails, tmp_path, command):
    (tmp_path / "file").write_text("text")
    assert "`out`" in fails(*command_into(command, tmp_path / "file"))


@pytest.fixture
def no_work(monkeypatch):
    """Fail a test in which backbones are trained or routers are fitted."""

    def fail(*_, **__):
        pytest.fail("work was started")

    monkeypatch.setattr(pretraining, "pretrain", fail)
    monkeypatch.setattr(comparison, "fit_routers", fail)


def into_out(args, tmp_path):
    """Arguments with a path for `OUT`."""
    return [tmp_path / "out" if arg == "OUT" else arg for arg in args]


@pytest.mark.parametrize("command", ["train", "compare", "pretrain", "render"])
def test_command_rejects_unknown_env(fails, no_work, tmp_path, command):
    output = fails(command, UNKNOWN_ENV, "--out", tmp_path / "out")
    assert f"`env` must be one of {', '.join(IDS)}, got {UNKNOWN_ENV!r}" in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "option"),
    [("train", "--agent"), ("compare", "--agents")],
    ids=["train", "compare"],
)
def test_command_rejects_unknown_agent(fails, no_work, tmp_path, command, option):
    output = fails(command, ENV, "--out", tmp_path / "out", option, "sarsa")
    assert f"`agent` must be one of {', '.join(AGENTS)}, got 'sarsa'" in output
    assert not (tmp_path / "out").exists()


TRAIN = ["train", ENV, "--out", "OUT"]
COMPARE = ["compare", ENV, "--out", "OUT"]
PRETRAIN = ["pretrain", ENV, "--out", "OUT"]
RENDER = ["render", ENV, "--out", "OUT"]
NO_RUN = "holds no run; make one with `rnr-gym train`"
INVALID = {
    "compare seeds": ([*COMPARE, "--seeds", 0], "`seeds` must be at least 1, got 0"),
    "compare steps": ([*COMPARE, "--steps", 0], "`steps` must be at least 1, got 0"),
    "compare jobs": ([*COMPARE, "--jobs", -1], "`jobs` must be at least 1, got -1"),
    "compare agent in list": (
        [*COMPARE, "--agents", "ppo", "sarsa"],
        f"`agent` must be one of {', '.join(AGENTS)}, got 'sarsa'",
    ),
    "compare agent twice": (
        [*COMPARE, "--agents", "full", "full"],
        "`agents` must name each router once, got full, full",
    ),
    "train steps": ([*TRAIN, "--steps", 0], "`steps` must be at least 1, got 0"),
    "train weights": (
        [*TRAIN, "--agent", "full", "--weights", "/no/such/file"],
        "`weights`",
    ),
    "train weights name": (
        [*TRAIN, "--agent", "full", "--weights", "/no/such/file"],
        "/no/such/file",
    ),
    "pretrain epochs": ([*PRETRAIN, "--epochs", 0], "`epochs` must be at least 1, got 0"),
    "pretrain glance epochs": (
        [*PRETRAIN, "--glance-epochs", 0],
        "`glance_epochs` must be at least 1, got 0",
    ),
    "pretrain epochs of cifar10": (
        ["pretrain", "RNR-CIFAR10-v0", "--out", "OUT", "--epochs", 0],
        "`epochs` must be at least 1, got 0",
    ),
    "data name": (
        ["data", "mnist"],
        "`dataset` must be one of digits, cifar10, cifar100, got 'mnist'",
    ),
    "render episodes": ([*RENDER, "--episodes", 0], "`episodes` must be at least 1, got 0"),
    "render run": ([*RENDER, "--run", "OUT"], NO_RUN),
    "evaluate run": (["evaluate", "OUT"], NO_RUN),
    "validate report": (
        ["validate", "OUT"],
        "`report` must be the folder of a finished comparison",
    ),
}
"""Arguments that are out of range, with what the error says."""


@pytest.mark.parametrize(("args", "message"), INVALID.values(), ids=INVALID)
def test_command_rejects_invalid_option(fails, no_work, tmp_path, args, message):
    assert message in fails(*into_out(args, tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "args",
    [[*COMPARE, "--agents", "static", "fqi"], [*TRAIN, "--agent", "fqi"]],
    ids=["compare", "train"],
)
def test_fqi_without_table_is_rejected(fails, no_work, tmp_path, monkeypatch, args):
    monkeypatch.setattr(route_table, "LIMIT", 1)
    output = fails(*into_out(args, tmp_path))
    assert f"`agent` fqi needs a route table, got {ENV}" in output
    assert not (tmp_path / "out").exists()


def test_default_agents_without_table_omit_fqi(run, tmp_path, monkeypatch):
    names = []

    def record_and_stop(agents, *_):
        names.extend(agents)
        raise KeyboardInterrupt

    monkeypatch.setattr(route_table, "LIMIT", 1)
    monkeypatch.setattr(comparison, "fit_routers", record_and_stop)
    code, _ = run("compare", ENV, "--out", tmp_path / "out")
    assert code == 130
    assert names == [name for name in DEFAULT_AGENTS if name != "fqi"]


@pytest.mark.slow
def test_compare_all_digits_in_worker_processes(tmp_path, monkeypatch):
    # All images, processes and resamples, as users have them.
    monkeypatch.undo()
    report_dir = tmp_path / "report"
    monkeypatch.setattr(sys, "argv", ["rnr-gym", *compare_command(report_dir, seeds=1)])
    cli.main()

    content = read_results(report_dir)
    assert content["images"] == len(load_all("digits", "test")) > 2_000
    assert validate(report_dir) == len(content["rows"])

    # The more expensive compute is, the less of it a static path spends.
    compute = [row["compute"] for row in content["rows"] if row["router"] == "static"]
    assert all(earlier >= later for earlier, later in pairwise(compute))
    regret = {router["router"]: router["regret"][0] for router in content["routers"]}
    assert regret["oracle"] == 0.0 < regret["confidence"] < regret["static"] < 0.3

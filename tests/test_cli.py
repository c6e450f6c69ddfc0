"""The command line, from the arguments to what lies on disk and what is said."""

import json
import shutil
import sys
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from rnr_gym import cli, data
from rnr_gym.agents import AGENTS, DEFAULT_AGENTS
from rnr_gym.backbones import zoo
from rnr_gym.backbones.base import Backbone
from rnr_gym.data import cifar, folders
from rnr_gym.experiments import comparison, runs
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS
from rnr_gym.experiments.report import validate
from rnr_gym.registration import IDS
from rnr_gym.routing import route_table
from rnr_gym.training import pretraining
from tests.experiments.test_comparison import Inline
from tests.experiments.test_report import AGENTS as COMPARED
from tests.experiments.test_report import finished, quick
from tests.experiments.test_runs import ENV, WHOLE, snapshot

COMMANDS = ("envs", "data", "pretrain", "train", "evaluate", "compare", "validate", "render")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def run(monkeypatch, capsys):
    """`rnr-gym` with these arguments: the exit code and what it printed."""

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["rnr-gym", *map(str, arguments)])
        capsys.readouterr()  # what fixtures printed is not the command's
        code = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code
        return code, capsys.readouterr().out

    return main


@pytest.fixture
def folder(tmp_path_factory, tmp_path):
    """A copy of a finished comparison."""
    return shutil.copytree(
        finished(tmp_path_factory.getbasetemp()), tmp_path / "report", copy_function=shutil.copy2
    )


def compare(out, agents=COMPARED, seeds=2, steps=512, **more):
    """The arguments of a comparison, by default of the finished one."""
    words = [
        "compare",
        ENV,
        "--out",
        out,
        "--agents",
        *agents,
        "--seeds",
        seeds,
        "--steps",
        steps,
        "--jobs",
        1,
    ]
    return [*words, *(word for name, value in more.items() for word in (f"--{name}", value))]


def one_line(said):
    """Whether all that was said is one error, without a traceback."""
    return said.startswith("error: ") and said.count("\n") == 1


def plain(said):
    """What was said without the boxes and breaks around it."""
    return "".join(letter for letter in said if not letter.isspace() and letter not in "│╭╮╰╯─")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run, command):
    code, said = run(command, "--help")
    assert code == 0
    assert "usage: rnr-gym" in said
    if command == "train":
        assert all(name in plain(said) for name in AGENTS)
    if command == "compare":
        assert "allbutthelastthreeifleftout" in plain(said)
        assert set(DEFAULT_AGENTS) == set(list(AGENTS)[:-3])


def test_the_program_lists_its_commands(run):
    code, said = run("--help")
    assert code == 0
    assert all(command in said for command in COMMANDS)
    assert run()[0] != 0
    assert run("dance")[0] != 0


def test_the_last_three_agents_are_those_that_the_help_names_last(run):
    said = plain(run("train", "--help")[1])
    places = [said.rindex(name) for name in list(AGENTS)[-3:]]
    assert all(said.index(f"{name},") < min(places) for name in DEFAULT_AGENTS)


def test_envs_lists_every_id_in_full_in_eighty_columns(run):
    code, said = run("envs")
    assert code == 0
    assert max(map(len, said.splitlines())) <= 80
    assert "…" not in said
    for name, arguments in IDS.items():
        (line,) = [line for line in said.splitlines() if name in line.split()]
        network = zoo.named(arguments["backbone"], None)
        weights = "pretrained" if zoo.bundled(arguments["backbone"]).is_file() else "none"
        facts = {
            arguments["dataset"],
            str(network.num_layers),
            str(network.num_paths),
            f"{network.mac_table.plain:,}",
            weights,
        }
        assert facts <= set(line.split())


def in_table(said):
    """The words of each line that is about a split."""
    return [
        line.split()
        for line in said.splitlines()
        if line.split() and line.split()[0] in data.SPLITS
    ]


@pytest.fixture
def whole_splits(monkeypatch):
    """Every image of every split, as users have them."""
    monkeypatch.setattr(data, "load", WHOLE)


@pytest.mark.parametrize("name", data.DATASETS)
def test_data_says_what_each_split_has(run, whole_splits, small_cifar, name):
    code, said = run("data", name)
    assert code == 0
    assert name in said
    for split, line in zip(data.SPLITS, in_table(said), strict=True):
        images = WHOLE(name, split)
        assert line == [
            split,
            f"{len(images):,}",
            *" x ".join(map(str, images.images.shape[1:])).split(),
            str(len(images.classes)),
        ]


def test_data_decodes_a_folder_ahead_of_its_first_use(
    run, whole_splits, small_cifar, tmp_path, monkeypatch
):
    monkeypatch.setenv("RNR_GYM_CACHE", str(tmp_path / "cache"))
    images = shutil.copytree(small_cifar / "cifar10", tmp_path / "images" / "cifar10").parent
    code, said = run("data", "cifar10", "--data-root", images)
    assert code == 0
    assert [line[:2] for line in in_table(said)] == [
        ["train", "90"],
        ["route", "10"],
        ["test", "10"],
    ]
    monkeypatch.setattr(folders, "_pixels", lambda file, side: pytest.fail(f"{file} was decoded"))
    assert len(cifar.load(cifar.CIFAR10, "train", str(images))) == 90


@pytest.mark.parametrize(
    "command", [["data"], ["pretrain", "--out", "OUT", "--epochs", 1]], ids=lambda words: words[0]
)
@pytest.mark.parametrize(
    ("name", "env"), [("cifar10", "RNR-CIFAR10-v0"), ("cifar100", "RNR-CIFAR100-v0")]
)
def test_images_that_cannot_be_fetched_are_one_error_that_says_what_to_do(
    run, whole_splits, tmp_path, monkeypatch, command, name, env
):
    for reader in (datasets.CIFAR10, datasets.CIFAR100):
        monkeypatch.setattr(reader, "url", "http://127.0.0.1:1/")
    words = [tmp_path / "out" if word == "OUT" else word for word in command]
    said = refused(
        run,
        tmp_path,
        *words,
        name if words == ["data"] else env,
        "--data-root",
        tmp_path / "images",
    )
    assert f"`data_root` must hold {name}/train/<class>/*" in said
    assert f"`rnr-gym data {name}` fetches" in said
    assert "RNR_GYM_DATA" in said
    assert not (tmp_path / "out").exists()


def test_data_refuses_folders_that_hold_something_else(run, whole_splits, tmp_path):
    (tmp_path / "cifar10" / "train" / "zebra").mkdir(parents=True)
    assert "(missing: airplane, automobile, bird, cat, deer; unknown: zebra)" in refused(
        run, tmp_path, "data", "cifar10", "--data-root", tmp_path
    )


@pytest.mark.parametrize("agent", ["static", "confidence", "ppo"])
def test_a_router_is_trained_evaluated_and_shown(run, tmp_path, agent):
    out = tmp_path / "run"
    code, said = run("train", ENV, "--out", out, "--agent", agent, "--steps", 512, "--seed", 3)
    assert code == 0
    assert str(out) in said.replace("\n", "")
    loaded = runs.load(out)
    assert (loaded.agent, loaded.fit_config.seed, loaded.fit_config.steps) == (agent, 3, 512)
    code, said = run("evaluate", out)
    assert code == 0
    assert f"{agent} on {ENV}, test" in said
    rows = [line.split() for line in said.splitlines() if "%" in line]
    assert len(rows) >= len(EVAL_TRADEOFFS)
    assert [float(row[0]) for row in rows] == sorted(float(row[0]) for row in rows)
    code, _ = run("render", ENV, "--out", tmp_path / "film.gif", "--run", out, "--episodes", 2)
    assert code == 0
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames >= 4


def test_evaluate_prints_what_the_router_does_on_the_split_asked_for(run, tmp_path):
    run("train", ENV, "--out", tmp_path, "--agent", "full")
    for split in ("route", "test"):
        right = zoo.named("rnr-digits").plain()
        images = data.load("digits", split)
        backbone = zoo.named("rnr-digits")
        logits = right(
            backbone.prepare(backbone.image_mean.new_tensor(np.array(images.images)) / 255.0)
        )
        accuracy = (logits.argmax(1).numpy() == images.labels).mean()
        code, said = run("evaluate", tmp_path, "--split", split)
        assert code == 0
        rows = [line.split() for line in said.splitlines() if "%" in line]
        assert all(row[1:] == [f"{accuracy:.1%}", "1.000", "0.000", "0%"] for row in rows)


def test_render_draws_at_random_without_a_run(run, tmp_path):
    code, said = run("render", ENV, "--out", tmp_path / "film.gif", "--episodes", 1)
    assert code == 0
    with Image.open(tmp_path / "film.gif") as film:
        assert f"{film.n_frames} frames" in " ".join(said.split())
        assert film.n_frames > 1


def test_pretrain_writes_a_backbone_that_can_be_routed(run, tmp_path):
    out = tmp_path / "new" / "weights.safetensors"
    code, said = run("pretrain", ENV, "--out", out, "--epochs", 1, "--glance-epochs", 1)
    assert code == 0
    assert "right" in said
    assert [file.name for file in out.parent.iterdir()] == ["weights.safetensors"]
    assert isinstance(zoo.load(out), Backbone)
    env = gym.make(ENV, weights=str(out))
    assert env.reset(seed=0)[0].shape == env.observation_space.shape
    before = snapshot(tmp_path)
    code, said = run("pretrain", ENV, "--out", out, "--epochs", 1, "--glance-epochs", 1)
    assert code == 2
    assert one_line(said)
    assert "`out` must be a new file" in said
    assert snapshot(tmp_path) == before
    code, _ = run("train", ENV, "--out", tmp_path / "run", "--agent", "full", "--weights", out)
    assert code == 0
    assert runs.load(tmp_path / "run").fit_config.arguments == {"weights": str(out)}


@pytest.mark.slow
@pytest.mark.parametrize("env", ["RNR-CIFAR100-v0", "RNR-CIFAR100-Channels-v0"])
def test_cifar100_is_pretrained_and_compared(run, whole_splits, small_cifar, tmp_path, env):
    weights, report = tmp_path / "weights.safetensors", tmp_path / "report"
    code, _ = run("pretrain", env, "--out", weights, "--epochs", 1, "--glance-epochs", 1)
    assert code == 0
    command = [
        "compare",
        env,
        "--weights",
        weights,
        "--out",
        report,
        "--agents",
        "static",
        "ppo",
        "--seeds",
        1,
        "--steps",
        512,
        "--jobs",
        1,
    ]
    code, output = run(*command)
    assert code == 0
    assert "ppo" in output
    assert validate(report) == len(json.loads((report / "results.json").read_text())["rows"])


def test_compare_and_validate_say_what_they_found(run, folder):
    code, said = run("validate", folder)
    content = json.loads((folder / "results.json").read_text())
    assert code == 0
    assert f"all figures of {len(content['rows'])} rows hold" in said


def test_compare_prints_both_tables(run, tmp_path):
    code, said = run(*compare(tmp_path / "report", ("static", "confidence"), 1))
    assert code == 0
    content = json.loads((tmp_path / "report" / "results.json").read_text())
    assert max(len(line) for line in said.splitlines() if "report:" not in line) <= 80
    assert "static" in said
    for part in content["differences"]:
        text = f"{100 * part['mean']:+.1f} [{100 * part['low']:+.1f}, {100 * part['high']:+.1f}]"
        assert text in said
    assert f"rnr-gym validate {tmp_path / 'report'}" in said


def test_validate_fails_with_one_line_where_a_figure_was_changed(run, folder):
    content = json.loads((folder / "results.json").read_text())
    content["rows"][0]["accuracy"] += 0.01
    (folder / "results.json").write_text(json.dumps(content))
    code, said = run("validate", folder)
    assert code == 2
    assert one_line(said)
    assert "`rows[0].accuracy` does not hold" in said


def test_a_comparison_that_was_cut_off_goes_on_and_fits_only_what_is_missing(run, folder):
    before, wanted = snapshot(folder), json.loads((folder / "results.json").read_text())
    (folder / "results.json").unlink()
    shutil.rmtree(folder / "routers" / "ppo-1")
    (folder / "paths.npz").unlink()
    code, _ = run(*compare(folder))
    assert code == 0
    assert Inline.submitted == ["ppo"]
    after = snapshot(folder)
    kept = [file for file in before if "routers" in file.parts and "ppo-1" not in file.parts]
    assert len(kept) >= 6
    assert all(after[file] == before[file] for file in kept)
    again = json.loads((folder / "results.json").read_text())
    assert without_seconds(again) == without_seconds(wanted)
    assert validate(folder) == len(wanted["rows"])


def without_seconds(content):
    return content | {
        "rows": [
            {name: value for name, value in row.items() if name != "seconds"}
            for row in content["rows"]
        ]
    }


def test_a_comparison_killed_while_it_fits_goes_on(run, tmp_path, monkeypatch):
    fit, done = runs.fit, []

    def killed(name, *parts):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(name)
        return fit(name, *parts)

    monkeypatch.setattr(runs, "fit", killed)
    code, said = run(*compare(tmp_path / "out", ("full", "confidence", "static"), 1))
    assert code == 130
    assert "the same command goes on from there" in said.replace("\n", " ")
    assert not (tmp_path / "out" / "results.json").exists()
    monkeypatch.setattr(runs, "fit", fit)
    code, _ = run(*compare(tmp_path / "out", ("full", "confidence", "static"), 1))
    assert code == 0
    assert len(Inline.submitted) == 2
    assert done[0] not in Inline.submitted


def refused(run, folder, *arguments):
    """The one error of a command that must not touch a folder."""
    before = snapshot(folder)
    code, said = run(*arguments)
    assert code == 2
    assert one_line(said), said
    assert snapshot(folder) == before
    return said


def test_a_finished_comparison_is_not_written_over(run, folder):
    assert "is finished; choose another" in refused(run, folder, *compare(folder))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seeds": 3}, "seeds"),
        ({"steps": 1024}, "steps"),
        ({"agents": ("static",)}, "agents"),
        ({"weights": "None"}, "arguments"),
    ],
    ids=["seeds", "steps", "agents", "weights"],
)
def test_a_comparison_is_not_taken_up_with_another_configuration(run, folder, change, named):
    (folder / "results.json").unlink()
    said = refused(run, folder, *compare(folder, **change))
    assert "`out` must be taken up as it was begun" in said
    assert named in said.split("where")[-1]


@pytest.mark.parametrize("command", ["compare", "train"])
def test_a_foreign_folder_is_not_touched(run, tmp_path, command):
    (tmp_path / "thesis.tex").write_text("five years")
    arguments = (
        compare(tmp_path, ("full",), 1)
        if command == "compare"
        else ["train", ENV, "--out", tmp_path, "--agent", "full"]
    )
    assert "holds something else; choose another" in refused(run, tmp_path, *arguments)


@pytest.mark.parametrize("command", ["compare", "train"])
def test_a_file_is_no_folder(run, tmp_path, command):
    (tmp_path / "file").write_text("text")
    arguments = (
        compare(tmp_path / "file", ("full",), 1)
        if command == "compare"
        else ["train", ENV, "--out", tmp_path / "file", "--agent", "full"]
    )
    assert "`out`" in refused(run, tmp_path, *arguments)


def test_a_finished_or_changed_run_is_not_written_over(run, tmp_path):
    words = ["train", ENV, "--out", tmp_path, "--agent", "confidence"]
    run(*words)
    assert "is finished; choose another" in refused(run, tmp_path, *words)
    (tmp_path / runs.ROUTER).unlink()
    assert "where seed differ" in refused(run, tmp_path, *words, "--seed", 1)
    assert "where arguments" in refused(run, tmp_path, *words, "--no-exits")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["train", "RNR-Letters-v0", "--out", "OUT"],
            ["`env` must be one of", *IDS, "'RNR-Letters-v0'"],
        ),
        (
            ["compare", "RNR-Letters-v0", "--out", "OUT"],
            ["`env` must be one of", *IDS, "'RNR-Letters-v0'"],
        ),
        (
            ["pretrain", "RNR-Letters-v0", "--out", "OUT"],
            ["`env` must be one of", *IDS, "'RNR-Letters-v0'"],
        ),
        (
            ["render", "RNR-Letters-v0", "--out", "OUT"],
            ["`env` must be one of", *IDS, "'RNR-Letters-v0'"],
        ),
        (
            ["train", ENV, "--out", "OUT", "--agent", "sarsa"],
            ["`agent` must be one of", *AGENTS, "'sarsa'"],
        ),
        (
            ["compare", ENV, "--out", "OUT", "--agents", "ppo", "sarsa"],
            ["`agent` must be one of", *AGENTS, "'sarsa'"],
        ),
        (["compare", ENV, "--out", "OUT", "--seeds", "0"], ["`seeds` must be at least 1, got 0"]),
        (["compare", ENV, "--out", "OUT", "--agents", "full", "--jobs", "-1"], ["`jobs`"]),
        (["compare", ENV, "--out", "OUT", "--agents", "full", "full"], ["`agents`"]),
        (["compare", ENV, "--out", "OUT", "--steps", "0"], ["`steps` must be at least 1, got 0"]),
        (["train", ENV, "--out", "OUT", "--steps", "0"], ["`steps` must be at least 1, got 0"]),
        (
            ["train", ENV, "--out", "OUT", "--agent", "full", "--weights", "/no/such/file"],
            ["`weights`", "/no/such/file"],
        ),
        (["pretrain", ENV, "--out", "OUT", "--epochs", "0"], ["`epochs`"]),
        (["pretrain", ENV, "--out", "OUT", "--glance-epochs", "0"], ["`glance_epochs`"]),
        (["data", "mnist"], ["`dataset` must be one of digits, cifar10, cifar100, got 'mnist'"]),
        (["pretrain", "RNR-CIFAR10-v0", "--out", "OUT", "--epochs", "0"], ["`epochs`"]),
        (["render", ENV, "--out", "OUT", "--episodes", "0"], ["`episodes`"]),
        (
            ["render", ENV, "--out", "OUT", "--run", "OUT"],
            ["holds no run; make one with `rnr-gym train`"],
        ),
        (["evaluate", "OUT"], ["holds no run; make one with `rnr-gym train`"]),
        (["validate", "OUT"], ["`report` must be the folder of a finished comparison"]),
    ],
    ids=lambda part: (
        " ".join(word for word in part if word not in (ENV, "--out", "OUT"))
        if isinstance(part, list)
        else None
    ),
)
def test_what_makes_no_sense_is_refused_in_one_line_before_anything_is_written(
    run, tmp_path, monkeypatch, arguments, words
):
    for module, name in ((pretraining, "pretrain"), (comparison, "fit_routers")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("work was begun"))
    said = refused(
        run, tmp_path, *(str(tmp_path / "out") if word == "OUT" else word for word in arguments)
    )
    assert all(word in said for word in words)
    assert not (tmp_path / "out").exists()


def test_fqi_without_a_table_is_refused_before_work_begins(run, tmp_path, monkeypatch):
    monkeypatch.setattr(route_table, "LIMIT", 1)
    monkeypatch.setattr(comparison, "fit_routers", lambda *_: pytest.fail("work was begun"))
    for words in (["compare", "--agents", "static", "fqi"], ["train", "--agent", "fqi"]):
        said = refused(run, tmp_path, words[0], ENV, "--out", tmp_path / "out", *words[1:])
        assert f"`agent` fqi needs a route table, got {ENV}" in said
        assert not (tmp_path / "out").exists()


def test_default_agents_leave_fqi_out_without_a_table(run, tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(route_table, "LIMIT", 1)
    monkeypatch.setattr(
        comparison, "fit_routers", lambda agents, *_: names.extend(agents) or stop()
    )
    code, _ = run("compare", ENV, "--out", tmp_path / "out")
    assert code == 130
    assert names == [name for name in DEFAULT_AGENTS if name != "fqi"]


def stop():
    raise KeyboardInterrupt


def test_an_unknown_split_is_refused(run, tmp_path):
    run("train", ENV, "--out", tmp_path, "--agent", "full")
    assert "`split` must be one of train, route, test, got 'val'" in refused(
        run, tmp_path, "evaluate", tmp_path, "--split", "val"
    )


def test_a_run_is_shown_in_its_own_environment_only(run, tmp_path):
    run("train", ENV, "--out", tmp_path / "run", "--agent", "full")
    said = refused(
        run,
        tmp_path,
        "render",
        "RNR-Digits-Channels-v0",
        "--out",
        tmp_path / "film.gif",
        "--run",
        tmp_path / "run",
    )
    assert (
        f"`run` must be a router for RNR-Digits-Channels-v0, got {str(tmp_path / 'run')!r}, one for {ENV}"
        in said
    )


@pytest.mark.slow
def test_all_digits_are_compared_in_processes_of_their_own_and_the_report_holds(
    run, tmp_path, monkeypatch
):
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["rnr-gym", *map(str, compare(tmp_path / "report", seeds=1))])
    cli.main()
    content = json.loads((tmp_path / "report" / "results.json").read_text())
    assert content["images"] == len(WHOLE("digits", "test")) > 2_000
    assert validate(tmp_path / "report") == len(content["rows"])
    static = [row for row in content["rows"] if row["router"] == "static"]
    assert all(
        cheap["compute"] >= dear["compute"] for cheap, dear in pairwise(static)
    )  # the dearer compute, the less of it
    regret = {part["router"]: part["regret"][0] for part in content["routers"]}
    assert regret["oracle"] == 0.0 < regret["confidence"] < regret["static"] < 0.3

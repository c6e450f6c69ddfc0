"""The command `rnr-gym`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from rnr_gym.registration import registered_kwargs

if TYPE_CHECKING:
    from rnr_gym.agents import FitConfig

app = tyro.extras.SubcommandApp()
console = Console()
EnvId = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")]


@app.command
def envs() -> None:
    """List the environments: decisions, sub-paths, cost, and what ships with each."""
    from rnr_gym.backbones import zoo
    from rnr_gym.registration import IDS

    whole = [Column(name, no_wrap=True) for name in ("id", "data")]
    counts = [Column(name, no_wrap=True, justify="right") for name in ("T", "K", "plain MACs")]
    table = Table(*whole, *counts, Column("weights", no_wrap=True), caption="T decisions, K sub-paths", box=SIMPLE, padding=(0, 1, 0, 0))
    for name, arguments in IDS.items():
        backbone = arguments["backbone"]
        network = zoo.named(backbone, None)
        shipped = [stage for stage in zoo.STAGES if zoo.bundled(backbone, stage).is_file()]
        facts = (str(network.num_layers), str(network.num_paths), f"{network.mac_table.plain:,}", ", ".join(shipped) or "none")
        table.add_row(name, arguments["dataset"], *facts)
    console.print(table)


@app.command(name="data")
def prepare_data(dataset: Annotated[str, tyro.conf.Positional], data_root: str | None = None) -> None:
    """Fetch a data set, or decode a folder of images, ahead of its first use.

    Args:
        dataset: digits, cifar10 or cifar100.
        data_root: folder of the images; RNR_GYM_DATA, else the user's cache folder, if left out.
    """
    from rnr_gym import data

    table = Table("split", Column("images", justify="right"), "shape", "classes", title=dataset, box=SIMPLE)
    for split in data.SPLITS:
        images = data.load(dataset, split, data_root)
        table.add_row(split, f"{len(images):,}", " x ".join(map(str, images.images.shape[1:])), str(len(images.classes)))
    console.print(table)


@app.command
def pretrain(
    env: EnvId,
    out: Path,
    epochs: int | None = None,
    glance_epochs: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    bf16: bool = True,
    data_root: str | None = None,
) -> None:
    """Train an environment's backbone, first its glance, then all paths at once; resumes a run that was stopped.

    Args:
        env: the environment's id.
        out: the safetensors file to write; what is under way is kept beside it.
        epochs: passes over the training images for all paths; as the shipped weights were trained if left out.
        glance_epochs: passes before that for the glance alone; likewise.
        seed: of initial weights, order and augmentation.
        device: cpu, or cuda.
        bf16: run convolutions in bfloat16.
        data_root: folder of the images.
    """
    from rnr_gym import data
    from rnr_gym.backbones import zoo
    from rnr_gym.training.calibration import evaluate_full_path
    from rnr_gym.training.pretraining import Schedule
    from rnr_gym.training.pretraining import pretrain as run

    name = registered_kwargs(env)["backbone"]
    if out.exists():
        raise FileExistsError(f"`out` must be a new file, got {str(out)!r}, which exists; remove it or choose another")
    asked = {"epochs": epochs, "glance_epochs": glance_epochs}
    for option, value in asked.items():
        if value is not None and value < 1:
            raise ValueError(f"`{option}` must be at least 1, got {value}")
    zoo.check_device(device)
    config, dataset, defaults = zoo.ARCHITECTURES[name]
    given: dict[str, Any] = {option: value for option, value in asked.items() if value is not None}
    schedule = Schedule(**{**defaults, **given, "seed": seed, "bf16": bf16})
    splits = {split: data.load(dataset, split, data_root) for split in ("train", "route")}
    backbone = run(zoo.from_config(config, seed), data.dataset(dataset), splits, schedule, out.with_suffix(".part"), device)
    accuracy = evaluate_full_path(backbone, splits["route"])
    zoo.save(backbone.cpu(), out, {"env": env, "schedule": vars(schedule), "full_path_accuracy_on_route": accuracy})
    console.print(f"wrote {out}; full path on `route`: {accuracy:.1%} right")


@app.command
def train(
    env: EnvId, out: Path, agent: str = "ppo", seed: int = 0, steps: int | None = None, exits: bool = True, weights: str | None = "frozen",
    data_root: str | None = None,
) -> None:  # fmt: skip
    """Fit a router on `route`; goes on where a killed run stopped. TensorBoard logs lie in the same folder.

    Args:
        env: the environment's id.
        out: the folder to write.
        agent: random, full, cheapest, static, blind, confidence, thresholds, fqi, ppo, dqn, a2c, maskable-ppo or qr-dqn.
        seed: of everything random.
        steps: environment steps to learn from; the recipe's own number if left out.
        exits: whether the router may answer at exits, and sees the glance.
        weights: the backbone's: frozen, or a file.
        data_root: folder of the images.
    """
    from rnr_gym.experiments import runs

    path = runs.fit(agent, _setting(env, exits, weights, data_root, seed, steps), out)
    console.print(f"wrote {path}; now `rnr-gym evaluate {out}`")


@app.command
def evaluate(run: Annotated[Path, tyro.conf.Positional], split: str = "test") -> None:
    """Route every image of a split at each trade-off of the sweep.

    Args:
        run: folder of a fitted router.
        split: train, route or test.
    """
    from rnr_gym.experiments import evaluation, runs

    loaded = runs.load(run)
    source = loaded.fit_config.source(split)
    table = Table("trade-off", "accuracy", "compute", "of it router", "exits", title=f"{loaded.agent} on {loaded.fit_config.env}, {split}", box=SIMPLE)
    for tradeoff in evaluation.sweep(loaded.router):
        found, plain = evaluation.evaluate(source, loaded.router, tradeoff), source.spec.plain_macs
        exits = (found.path == 0).any(1).mean() if source.spec.has_exits else 0.0
        spent = (f"{found.macs.mean() / plain:.3f}", f"{found.router_macs.mean() / plain:.3f}")
        table.add_row(f"{tradeoff:.3f}", f"{found.correct.mean():.1%}", *spent, f"{exits:.0%}")
    console.print(table)


@app.command
def compare(
    env: EnvId, out: Path, agents: tuple[str, ...] = (), seeds: int = 3, steps: int | None = None, jobs: int | None = None, exits: bool = True,
    weights: str | None = "frozen", data_root: str | None = None,
) -> None:  # fmt: skip
    """Fit several routers, each once a seed, and compare them on `test`; goes on where a killed run stopped.

    Args:
        env: the environment's id.
        out: the folder of the report.
        agents: which routers, of those that `rnr-gym train --help` names; all but the last three if left out (and without fqi
            where there is no route table, which it needs).
        seeds: how many seeds for routers that have one.
        steps: environment steps a learner learns from; its recipe's own number if left out.
        jobs: routers fitted side by side; the number of cores if left out.
        exits: whether routers may answer at exits, and see the glance.
        weights: the backbone's: frozen, or a file.
        data_root: folder of the images.
    """
    from rnr_gym.agents import DEFAULT_AGENTS, agent, check
    from rnr_gym.experiments import comparison, report, runs

    names = list(agents or DEFAULT_AGENTS)
    for name in names:
        agent(name)
    if len(set(names)) < len(names):
        raise ValueError(f"`agents` must name each router once, got {', '.join(names)}")
    if jobs is not None and jobs < 1:
        raise ValueError(f"`jobs` must be at least 1, got {jobs}")
    if seeds < 1:
        raise ValueError(f"`seeds` must be at least 1, got {seeds}")
    fit_config = _setting(env, exits, weights, data_root, 0, steps)
    if not agents and not fit_config.has_table("route"):
        names = [name for name in names if not agent(name).needs_table]
    for name in names:
        check(name, fit_config)
    facts = {**runs.identity("compare", fit_config), "agents": names, "seeds": seeds}
    runs.claim(out, facts, report.RESULTS)
    testbed = report.testbed(fit_config)
    comparison.fit_routers(names, fit_config, seeds, out, jobs or os.cpu_count() or 1)
    content = report.write(out, fit_config, seeds, list(comparison.records(names, seeds, out, testbed)), testbed)
    _print_comparison(content)
    console.print(f"report: {out / report.PAGE}    picture: {out / report.PICTURE}    check it: rnr-gym validate {out}", soft_wrap=True)


@app.command
def validate(report: Annotated[Path, tyro.conf.Positional]) -> None:
    """Run a report's stored paths again and work out every figure anew; fails if one does not hold.

    Args:
        report: the folder that `rnr-gym compare` wrote.
    """
    from rnr_gym.experiments.report import validate as check

    console.print(f"all figures of {check(report)} rows hold")


@app.command
def render(env: EnvId, out: Path, run: Path | None = None, tradeoff: float = 0.1, episodes: int = 4, seed: int = 0) -> None:
    """Write episodes as an animation.

    Args:
        env: the environment's id.
        out: the GIF to write.
        run: folder of a fitted router; a random one if left out.
        tradeoff: what a unit of compute costs.
        episodes: how many images.
        seed: which images.
    """
    from rnr_gym.experiments.animation import record

    frames = record(env, out, run, tradeoff, episodes, seed)
    console.print(f"wrote {out}, {frames} frames")


def _setting(env: str, exits: bool, weights: str | None, data_root: str | None, seed: int, steps: int | None) -> FitConfig:
    """The fit_config that options describe; only what differs from the defaults is recorded."""
    from rnr_gym.agents import FitConfig

    registered_kwargs(env)
    if steps is not None and steps < 1:
        raise ValueError(f"`steps` must be at least 1, got {steps}")
    given = {"exits": exits, "weights": weights, "data_root": data_root}
    usual = {"exits": True, "weights": "frozen", "data_root": None}
    return FitConfig(env, {name: value for name, value in given.items() if value != usual[name]}, seed, steps)


def _print_comparison(content: dict[str, Any]) -> None:
    """The report's two tables, for the terminal."""
    from rnr_gym.experiments.comparison import FIXED
    from rnr_gym.experiments.report import interval, number, percent, share

    shown = slice(1, 5)  # what fits into eighty columns; the report has all
    columns = [Column(f"at {budget:g}", no_wrap=True) for budget in content["budgets"][shown]]
    accuracy = Table("router", *columns, Column("regret", no_wrap=True), title="% right on test at mean compute, ± spread over seeds", box=SIMPLE)
    for router in content["routers"]:
        accuracy.add_row(router["router"], *(percent(*pair) for pair in router["accuracy_at"][shown]), number(router["regret"]))
    console.print(accuracy)
    spent = {(pair["router"], pair["against"]): share(pair["mean"], pair["low"], pair["high"]) for pair in content["savings"]}
    title = "paired, over the budgets, with 95 % intervals"
    pairs = Table("router", "against", "points at equal compute", "compute for equal accuracy", title=title, box=SIMPLE)
    for pair in content["differences"]:
        gained = interval(pair["mean"], pair["low"], pair["high"])
        pairs.add_row(pair["router"], pair["against"], gained, spent.get((pair["router"], pair["against"]), ""))
    console.print(pairs)
    for part in content["by_severity"]:
        if len(part["severity"]) > 1 and part["router"] == content["shown"]["router"] and part["router"] not in FIXED:
            levels = "  ".join(f"{level}: {compute:.2f}" for level, compute in zip(part["severity"], part["compute"], strict=True))
            console.print(f"{part['router']} spends by severity  {levels}", highlight=False)


def main() -> None:
    """Run a subcommand; errors that the user can mend are one line, without a traceback."""
    try:
        app.cli(prog="rnr-gym", description="Route images through networks, one decision at a time.")
    except (ValueError, OSError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("interrupted; what was finished is kept, the same command goes on from there")
        sys.exit(130)


if __name__ == "__main__":
    main()

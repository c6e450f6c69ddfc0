"""The command `rnr-gym`.

Modules are imported by the subcommands that need them, so that help and errors come at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from rnr_gym import checks
from rnr_gym.registration import registered_kwargs

if TYPE_CHECKING:
    from rnr_gym.agents import FitConfig

app = tyro.extras.SubcommandApp()
# Without markup: paths and names may hold brackets, which would be read as such.
console = Console(markup=False)
EnvId = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")]
DESCRIPTION = "Route images through networks, one decision at a time."


@app.command
def envs() -> None:
    """List the environments: decisions, sub-paths, cost, and whether weights are bundled."""
    from rnr_gym.backbones import weights, zoo
    from rnr_gym.registration import IDS

    table = Table(
        Column("id", no_wrap=True),
        Column("data", no_wrap=True),
        Column("T", no_wrap=True, justify="right"),
        Column("K", no_wrap=True, justify="right"),
        Column("plain MACs", no_wrap=True, justify="right"),
        Column("weights", no_wrap=True),
        caption="T decisions, K sub-paths; finetuned: and pretrained; download: by torchvision",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for env_id, kwargs in IDS.items():
        name = kwargs["backbone"]
        # Random weights: costs follow from the architecture, and some ids have no other.
        backbone = zoo.named(name, weights=None)
        # Whatever has been fine-tuned is bundled as it was before, too.
        bundled = "none"
        if zoo.ARCHITECTURES[name].is_downloaded:
            bundled = "download"
        for kind in weights.BUNDLED:
            if weights.backbone_file(name, kind).is_file():
                bundled = kind
        table.add_row(
            env_id,
            kwargs["dataset"],
            str(backbone.num_layers),
            str(backbone.num_paths),
            f"{backbone.mac_table.plain:,}",
            bundled,
        )
    console.print(table)


@app.command(name="data")
def prepare_data(
    dataset: Annotated[str, tyro.conf.Positional],
    data_root: str | None = None,
) -> None:
    """Download a data set, or decode a folder of images, ahead of its first use.

    ImageNet is not downloaded; this lists the splits that are there.

    Args:
        dataset: digits, cifar10, cifar10-corrupted, cifar100 or imagenet.
        data_root: folder of the images; if left out, RNR_GYM_DATA, else the user's cache folder.
    """
    from rnr_gym import data

    table = Table(
        "split",
        Column("images", justify="right"),
        "shape",
        "classes",
        title=dataset,
        box=SIMPLE,
    )
    missing: dict[str, str] = {}
    for split in data.SPLITS:
        try:
            images = data.load(dataset, split, data_root)
        except FileNotFoundError as error:
            missing[split] = str(error)
            # Splits of other sets come together, and another attempt would fail as well.
            if not data.dataset(dataset).is_cropped or len(missing) == len(data.SPLITS):
                raise
            table.add_row(split, "missing", "", "")
            continue
        shape = " x ".join(map(str, images.images.shape[1:]))
        table.add_row(split, f"{len(images):,}", shape, str(len(images.classes)))

    console.print(table)
    for split, problem in missing.items():
        console.print(f"`{split}` is missing: {problem}", soft_wrap=True)


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
    """Train an environment's backbone: first its glance, then all paths together.

    An interrupted run resumes when the same command is given again.

    Args:
        env: the environment's id.
        out: the safetensors file to write; a checkpoint is kept next to it.
        epochs: passes over the training images for all paths; if left out, as for bundled weights.
        glance_epochs: passes before that for the glance alone; likewise.
        seed: of initial weights, order and augmentation.
        device: cpu, or cuda.
        bf16: run convolutions in bfloat16.
        data_root: folder of the images.
    """
    from rnr_gym.experiments.pretraining import pretrain_backbone

    registered_kwargs(env)
    _at_least("epochs", epochs, 1)
    _at_least("glance_epochs", glance_epochs, 1)
    checks.device(device)

    options: dict[str, Any] = {"epochs": epochs, "glance_epochs": glance_epochs}
    given = {option: value for option, value in options.items() if value is not None}
    accuracy = pretrain_backbone(env, out, {**given, "seed": seed, "bf16": bf16}, device, data_root)
    # Not wrapped, here and below, so that paths can be copied.
    console.print(
        f"wrote {out}; accuracy of the full path on `route`: {accuracy:.1%}", soft_wrap=True
    )


@app.command
def embed(
    env: EnvId,
    out: Path,
    per_class: int = 100,
    further: int = 400,
    dimensions: int = 64,
    weights: str | None = "pretrained",
    data_root: str | None = None,
    seed: int = 0,
) -> None:
    """Make an environment's backbone answer by the nearest image of a gallery of `train`.

    Reports then have recall at 1 where they say accuracy.

    Args:
        env: the environment's id.
        out: the safetensors file to write.
        per_class: images of each class in the gallery, the first of `train`.
        further: images of each class after those, to which exit heads are fitted without labels; 0
            for the gallery itself.
        dimensions: of the embedding.
        weights: of the backbone: pretrained, finetuned, or a file.
        data_root: folder of the images.
        seed: of order and paths while exit heads are fitted.
    """
    from rnr_gym.experiments.retrieval import embed_gallery

    recall = embed_gallery(env, out, per_class, further, dimensions, weights, data_root, seed)
    console.print(
        f"wrote {out}; recall at 1 of the full path on `route`: {recall:.1%}; now "
        f"`rnr-gym compare {env} --weights {out} --out DIR`",
        soft_wrap=True,
    )


@app.command(name="profile")
def profile_backbone(
    backbone: Annotated[str, tyro.conf.Positional],
    batch_size: int = 64,
    device: str = "cpu",
    dtype: str = "float32",
    out: Path | None = None,
) -> None:
    """Measure how long every part of a backbone takes on this machine, for `cost="time"`.

    The times are kept in the cache folder, one profile for each architecture, kind of device and
    dtype; the same command measures them again. Weights make no difference.

    Args:
        backbone: rnr-digits, rnr-digits-channels, rnr-cifar10, rnr-cifar10-channels,
            rnr-cifar10-small (that of RNR-CIFAR10-Table-v0), rnr-cifar100, rnr-cifar100-channels,
            resnet50, vgg16_bn, or a file that `rnr-gym pretrain` wrote.
        batch_size: how many images run together.
        device: cpu, or cuda.
        dtype: in what features are computed: float32, or bfloat16.
        out: a file to write as well; `--cost FILE` then charges these times on any machine.
    """
    from rnr_gym.experiments import terminal
    from rnr_gym.routing import profiling

    profile = profiling.profile(backbone, batch_size, device, dtype, out)
    terminal.print_profile(console, backbone, profile)


@app.command
def train(
    env: EnvId,
    out: Path,
    agent: str = "ppo",
    seed: int = 0,
    steps: int | None = None,
    exits: bool = True,
    weights: str | None = "pretrained",
    data_root: str | None = None,
    cost: str = "macs",
) -> None:
    """Fit a router on `route`. An interrupted run resumes when the same command is given again.

    TensorBoard logs are written to the same folder.

    Args:
        env: the environment's id.
        out: the folder to write.
        agent: random, full, cheapest, static, blind, confidence, thresholds, eenet, fqi,
            blockdrop, skipnet, rnr-dqn, ppo, dqn, a2c, maskable-ppo or qr-dqn; or rnr-dqn with one
            thing changed: rnr-dqn-groups charges channel groups instead of MACs, rnr-dqn-loss is
            rewarded by cross-entropy, rnr-dqn-two-heads estimates answer and compute separately,
            rnr-dqn-memoryless remembers nothing of earlier layers.
        seed: of everything random.
        steps: environment steps to learn from; if left out, the number in the recipe.
        exits: whether the router may answer at exits, and sees the glance.
        weights: of the backbone: pretrained, finetuned, or a file.
        data_root: folder of the images.
        cost: what sub-paths cost: macs; time, as `rnr-gym profile` measured it on this machine; or
            a file that it wrote.
    """
    from rnr_gym.experiments import runs

    fit_config = _fit_config(
        env=env,
        exits=exits,
        weights=weights,
        data_root=data_root,
        cost=cost,
        seed=seed,
        steps=steps,
    )
    path = runs.fit(agent, fit_config, out)
    console.print(f"wrote {path}; now `rnr-gym evaluate {out}`", soft_wrap=True)


@app.command
def finetune(
    run: Annotated[Path, tyro.conf.Positional],
    out: Path,
    rounds: int = 1,
    epochs: int | None = None,
    glance_epochs: int | None = None,
    device: str = "cpu",
) -> None:
    """Train a router's backbone under its decisions, and the router on that backbone, in turns.

    An interrupted run resumes when the same command is given again.

    Args:
        run: folder of a fitted router.
        out: the folder to write.
        rounds: how often both are trained.
        epochs: passes over the training images in each round; if left out, a tenth of those of
            pretraining.
        glance_epochs: passes before those of the first round, in which the glance learns what the
            full path answers; if left out, three times those of pretraining.
        device: where the backbone is trained: cpu, or cuda.
    """
    from rnr_gym.experiments.finetuning import alternate

    _at_least("rounds", rounds, 1)
    _at_least("epochs", epochs, 1)
    _at_least("glance_epochs", glance_epochs, 0)
    checks.device(device)
    folder = alternate(run, out, rounds, epochs, glance_epochs, device)
    console.print(
        f"wrote {folder}; now `rnr-gym evaluate {folder / 'run'}`, or "
        f"`rnr-gym compare ENV --weights {folder / 'backbone.safetensors'} --out DIR`",
        soft_wrap=True,
    )


@app.command
def evaluate(run: Annotated[Path, tyro.conf.Positional], split: str = "test") -> None:
    """Route every image of a split at a range of trade-offs.

    Args:
        run: folder of a fitted router.
        split: train, route or test.
    """
    from rnr_gym.experiments import evaluation, runs

    loaded = runs.load(run)
    source = loaded.fit_config.source(split)
    spec = source.spec
    table = Table(
        "trade-off",
        "accuracy",
        "compute",
        "router share",
        "exits",
        title=f"{loaded.agent} on {loaded.fit_config.env}, {split}",
        box=SIMPLE,
    )
    for tradeoff in evaluation.eval_tradeoffs(loaded.router):
        outcomes = evaluation.evaluate(source, loaded.router, tradeoff)
        table.add_row(
            f"{tradeoff:.3f}",
            f"{outcomes.correct.mean():.1%}",
            f"{spec.compute(outcomes.cost.mean()):.3f}",
            f"{spec.compute(spec.router_cost(outcomes.router_macs).mean()):.3f}",
            f"{outcomes.exit_rate(spec):.0%}",
        )
    console.print(table)


@app.command
def classify(
    classifier: Annotated[str, tyro.conf.Positional],
    images: Annotated[tuple[Path, ...], tyro.conf.Positional],
    compute: float | None = None,
    tradeoff: float | None = None,
    dtype: str | None = None,
) -> None:
    """Classify image files one by one: class, confidence, path, compute and milliseconds.

    Args:
        classifier: folder of a fitted router, or the name of a bundled classifier: rnr-cifar10 or
            rnr-cifar10-channels.
        images: PNG, JPEG, WebP, GIF or BMP; the central part is scaled to what the network takes.
        compute: mean compute to aim at, as a share of the plain network's.
        tradeoff: reward units per unit of compute; 0.1 if both are left out.
        dtype: in what features are computed: float32, bfloat16, or auto for the faster one on this
            machine; else float32, or that to which a run's router was fitted.
    """
    from rnr_gym.experiments import classification

    table = Table(
        Column("image", overflow="fold"),
        "class",
        Column("confidence", justify="right"),
        Column("path", no_wrap=True),
        Column("compute", justify="right"),
        Column("ms", justify="right"),
        caption="path: the sub-path of each layer, 0 for an exit; ms: on this machine",
        box=SIMPLE,
    )
    for answer in classification.classify(classifier, images, compute, tradeoff, dtype):
        table.add_row(
            str(answer.file),
            answer.name,
            f"{answer.confidence:.0%}",
            " ".join(map(str, answer.path)),
            f"{answer.compute:.3f}",
            f"{answer.milliseconds:.1f}",
        )
    console.print(table)


@app.command
def compare(
    env: EnvId,
    out: Path,
    agents: tuple[str, ...] = (),
    seeds: int = 3,
    steps: int | None = None,
    jobs: int | None = None,
    engine: Literal["local", "ray"] = "local",
    exits: bool = True,
    weights: str | None = "pretrained",
    data_root: str | None = None,
    cost: str = "macs",
) -> None:
    """Fit several routers, each once per seed, and compare them on `test`.

    An interrupted comparison resumes when the same command is given again.

    Args:
        env: the environment's id.
        out: the folder of the report.
        agents: which routers, of those that `rnr-gym train --help` names; if left out: random,
            full, cheapest, static, blind, confidence, thresholds, eenet, fqi, blockdrop, skipnet,
            dqn, rnr-dqn and ppo. Where there is no route table, fqi and skipnet, which need one,
            are left out.
        seeds: how many seeds for routers that have one.
        steps: environment steps that a learner learns from; if left out, the number in its recipe.
        jobs: how many routers are fitted in parallel; if left out, the number of cores.
        engine: where routers are fitted: local, by processes of this machine; ray, on the Ray
            cluster that runs here or that RAY_ADDRESS names, which needs the extra `ray`.
        exits: whether routers may answer at exits, and see the glance.
        weights: of the backbone: pretrained, finetuned, or a file.
        data_root: folder of the images.
        cost: what sub-paths cost: macs; time, as `rnr-gym profile` measured it on this machine; or
            a file that it wrote.
    """
    from rnr_gym.agents import DEFAULT_AGENTS, agent
    from rnr_gym.experiments import comparison, report, terminal

    fit_config = _fit_config(
        env=env,
        exits=exits,
        weights=weights,
        data_root=data_root,
        cost=cost,
        seed=0,
        steps=steps,
    )
    names = list(agents)
    # Agents that were asked for stay in the list, and are an error if they cannot be fitted.
    if not names:
        has_table = fit_config.has_table("route")
        names = [name for name in DEFAULT_AGENTS if has_table or not agent(name).needs_table]
    results = comparison.compare(fit_config, names, seeds, jobs, out, engine)
    terminal.print_results(console, results)
    console.print(
        f"report: {out / report.PAGE_FILE}    picture: {out / report.PICTURE_FILE}    "
        f"check it: rnr-gym validate {out}    digest of all paths: "
        f"{report.paths_digest(out)}",
        soft_wrap=True,
    )


@app.command
def validate(
    report: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[REPORT]")] = None,
    entry: Path | None = None,
) -> None:
    """Compute a report again, and fail if a figure does not hold; or the figures of an entry.

    Of a report, every stored router chooses again, and what its paths answer is looked up again;
    routers that are no learners are fitted again, too. An entry of the leaderboard has no figures:
    all are computed from its paths.

    Args:
        report: the folder that `rnr-gym compare` wrote.
        entry: the file that `rnr-gym enter` wrote; instead of a report.
    """
    if report is not None and entry is None:
        from rnr_gym.experiments import validation

        console.print(f"verified {validation.validate(report)} rows")
    elif entry is not None and report is None:
        from rnr_gym.experiments import entries, leaderboard, scorecard

        loaded = entries.read_entry(entry)
        scorecard.print_standing(console, loaded, leaderboard.validate(loaded))
    else:
        given = "neither" if entry is None else f"{str(report)!r} and {str(entry)!r}"
        raise ValueError(
            f"`report` must be the folder of a comparison, or `--entry` a file, got {given}"
        )


@app.command
def enter(
    run: Annotated[Path, tyro.conf.Positional],
    out: Path,
    author: str,
    code: str = "-",
) -> None:
    """Write an entry for the leaderboard: the path of every test image at every trade-off.

    Args:
        run: folder of a fitted router.
        out: the file to write.
        author: whose router it is.
        code: address of its code; - if it is not public.
    """
    from rnr_gym.experiments import entries

    entries.enter_run(run, out, author, code)
    console.print(f"wrote {out}; now `rnr-gym validate --entry {out}`", soft_wrap=True)


@app.command
def render(
    env: EnvId,
    out: Path,
    run: Path | None = None,
    tradeoff: float = 0.1,
    episodes: int = 4,
    seed: int = 0,
) -> None:
    """Write episodes as an animation.

    Args:
        env: the environment's id.
        out: the file to write, .gif or, with the extra `video`, .mp4.
        run: folder of a fitted router; if left out, sub-paths are random.
        tradeoff: reward units per unit of compute.
        episodes: how many images.
        seed: which images.
    """
    from rnr_gym.experiments.animation import record

    frames = record(env, out, run, tradeoff, episodes, seed)
    console.print(f"wrote {out}, {frames} frames", soft_wrap=True)


@app.command
def demo(
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: Annotated[bool, tyro.conf.arg(name="open")] = True,
    data_root: str | None = None,
) -> None:
    """Show a local page: one image, routed by PPO and DQN at a budget that can be moved.

    It needs the extra `demo`: pip install "rnr-gym[demo]". Ctrl-C stops it.

    Args:
        host: the address to listen at; only the default is closed to other machines.
        port: if left out, the first free one from 7860 on.
        open_browser: open the page in the browser.
        data_root: folder of the images that the page offers.
    """
    from rnr_gym.demo import server

    if port is not None:
        checks.integer("port", port, 1, 65535)
    server.serve(host, port, open_browser, data_root)


@app.command
def export(
    env: EnvId,
    to: Literal["minari"] = "minari",
    behaviours: tuple[str, ...] = ("random", "confidence", "ppo", "oracle", "mixed"),
    seed: int = 0,
    steps: int | None = None,
    weights: str | None = "pretrained",
    data_root: str | None = None,
) -> None:
    """Write episodes on `route` as offline data sets, to learn from without the environment.

    Minari keeps them where MINARI_DATASETS_PATH says, else in the user's folder. The environment
    needs a route table, from which the best reference score, the oracle's, is known exactly.

    Args:
        env: the environment's id.
        to: the form of the data sets; minari needs the extra `minari`.
        behaviours: one data set for each: agents that `rnr-gym train --help` names, oracle, or
            mixed for an even mixture of random, confidence, ppo and oracle.
        seed: of trade-offs, random sub-paths and what is fitted.
        steps: environment steps that a learner learns from; if left out, the number in its recipe.
        weights: of the backbone: pretrained, finetuned, or a file.
        data_root: folder of the images.
    """
    from rnr_gym.experiments import offline

    fit_config = _fit_config(
        env=env,
        exits=True,
        weights=weights,
        data_root=data_root,
        cost="macs",
        seed=seed,
        steps=steps,
    )
    scores = offline.export(fit_config, behaviours)
    table = Table(
        Column("data set", no_wrap=True),
        Column("score", justify="right"),
        title=f"{env}, `route`",
        caption="mean return: random sub-paths 0, the oracle 1",
        box=SIMPLE,
    )
    for dataset_id, score in scores.items():
        table.add_row(dataset_id, f"{score:.3f}")
    console.print(table)


def _at_least(option: str, value: int | None, low: int) -> None:
    """Check a number that may be left out."""
    if value is not None:
        checks.integer(option, value, low)


def _fit_config(
    *,
    env: str,
    exits: bool,
    weights: str | None,
    data_root: str | None,
    cost: str,
    seed: int,
    steps: int | None,
) -> FitConfig:
    """The configuration that options describe."""
    from rnr_gym.agents import FitConfig

    registered_kwargs(env)
    _at_least("steps", steps, 1)
    # Only what differs from the defaults is recorded.
    kwargs: dict[str, Any] = {}
    if not exits:
        kwargs["exits"] = exits
    if weights != "pretrained":
        kwargs["weights"] = weights
    if data_root is not None:
        kwargs["data_root"] = data_root
    if cost != "macs":
        kwargs["cost"] = cost
    return FitConfig(env=env, kwargs=kwargs, seed=seed, steps=steps)


def main() -> None:
    """Run a subcommand; errors that the user can correct are one line, without a traceback."""
    try:
        app.cli(prog="rnr-gym", description=DESCRIPTION)
    except (ValueError, OSError) as error:
        message = Text.assemble(("error:", "red"), f" {error}")
        console.print(message, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("interrupted; run the same command to resume")
        # 128 + SIGINT, as shells report it.
        sys.exit(130)


if __name__ == "__main__":
    main()

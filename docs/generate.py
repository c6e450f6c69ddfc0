"""Pages that follow from the package and from committed results; written when the site is built.

They go into one folder, which git ignores: `environment.md` (the docstring of `RoutingEnv`),
`environments/` (one page per id), `command.md` (the help of every subcommand), `cite.md`,
`notebooks/` (copies of the notebooks) and `parts/` (what other pages include).
"""

from __future__ import annotations

import csv
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rnr_gym import RoutingEnv
from rnr_gym.agents import AGENTS, DEFAULT_AGENTS
from rnr_gym.backbones import torchvision_networks, weights, zoo
from rnr_gym.classifier import bundled_classifiers
from rnr_gym.experiments.formatting import MISSING, number, percent
from rnr_gym.experiments.results import Results
from rnr_gym.registration import IDS
from rnr_gym.routing.spec import RoutingSpec

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = ROOT / "notebooks"
RESULTS = ROOT / "benchmarks" / "results"
THROUGHPUT = (
    ROOT / "benchmarks" / "throughput.json",
    ROOT / "benchmarks" / "throughput-cifar10.json",
    ROOT / "benchmarks" / "throughput-cifar10-bfloat16.json",
)
DEPLOYMENT = (
    ROOT / "benchmarks" / "deployment.json",
    ROOT / "benchmarks" / "deployment-bfloat16.json",
)
HALF_PRECISION = ROOT / "benchmarks" / "half_precision.json"
SCALING = ROOT / "benchmarks" / "scaling.json"
TIME_AS_COST = ROOT / "benchmarks" / "time_as_cost.json"
OFFSHELF = ROOT / "benchmarks" / "offshelf.json"
EXAMPLE_IMAGES = ROOT / "benchmarks" / "example_images.json"
IMAGENET_SAMPLE = ROOT / "benchmarks" / "imagenet_sample.json"
LIBRARIES = ROOT / "benchmarks" / "libraries.json"
CITATION = ROOT / "CITATION.cff"
LEADERBOARD = ROOT / "benchmarks" / "leaderboard.csv"

BUDGETS = (0.1, 0.2, 0.3, 0.45, 0.6)
"""Mean computes of the tables; those of `benchmarks/publish.py`."""
AT_BUDGETS = tuple(f"accuracy_at_{budget:g}" for budget in BUDGETS)
"""The columns of the leaderboard that are shown."""
REFERENCES = ("random", "static", "confidence", "ppo", "dqn", "fqi", "oracle")
"""Routers of the reference scores, in the order of the tables."""
TARGETS = {
    "accuracy": "right answers",
    "probability": "the probability of the right class",
}
"""By what paths and routers were chosen."""
COSTS = {"macs": "MACs", "time": "time"}
"""What was charged while a router was fitted."""
ABOUT = {
    "RNR-Digits-v0": (
        "scikit-learn's digits, untouched and with corruptions of five severities. Small enough "
        "to learn routing on a laptop in minutes."
    ),
    "RNR-Digits-Channels-v0": (
        "The same digits, on a network whose layers compute one to four groups of channels."
    ),
    "RNR-CIFAR10-v0": "CIFAR-10 on a network with parallel branches of two widths.",
    "RNR-CIFAR10-Channels-v0": (
        "CIFAR-10 on a network whose layers compute one to four groups of channels."
    ),
    "RNR-CIFAR10-Corrupted-v0": (
        "As `RNR-CIFAR10-v0`, but the images of `test` have noise, blur, low contrast or JPEG "
        "artefacts of five severities. Those of `route`, which routers are fitted to, have not."
    ),
    "RNR-CIFAR10-Table-v0": (
        "CIFAR-10 on a small network, as a bundled route table: no images are needed, and a step "
        "looks up a number instead of running a network."
    ),
    "RNR-CIFAR100-v0": "CIFAR-100 on the network of `RNR-CIFAR10-v0`, with 100 classes.",
    "RNR-CIFAR100-Channels-v0": (
        "CIFAR-100 on the network of `RNR-CIFAR10-Channels-v0`, with 100 classes."
    ),
    "RNR-ImageNet-v0": (
        "ImageNet on torchvision's ResNet-50, made routable: blocks are skipped, or compute one to "
        "four groups of their inner channels. The weights, `ResNet50_Weights.IMAGENET1K_V2`, are "
        "98 MB, and are downloaded when they are first used; the images are "
        "[yours to get](../../guides/imagenet.md)."
    ),
    "RNR-ImageNet-Channels-v0": (
        "ImageNet on torchvision's VGG-16 with batch-norm, whose blocks compute one to four groups "
        "of their channels. The weights, `VGG16_BN_Weights.IMAGENET1K_V1`, are 528 MB, and are "
        "downloaded when they are first used; the images are "
        "[yours to get](../../guides/imagenet.md)."
    ),
    "RNR-v0": (
        "For a network and images of your own: pass `backbone=` and `dataset=`. Without them it is "
        "`RNR-Digits-v0`. [The guide](../../guides/your_own_network.md) has an example."
    ),
}
"""What an id is for."""


def write_pages(folder: Path) -> None:
    """Write everything into `folder`; files that are there and not written now are removed."""
    pages = {
        "environment.md": environment_page(),
        "command.md": command_page(),
        "cite.md": cite_page(),
        "parts/ids.md": ids_table(),
        "parts/agents.md": agents_table(),
        "parts/throughput.md": throughput_table(),
        "parts/deployment.md": deployment_table(),
        "parts/half_precision.md": half_precision_table(),
        "parts/scaling.md": scaling_tables(),
        "parts/time_as_cost.md": time_table(),
        "parts/offshelf.md": offshelf_table(),
        "parts/example_images.md": example_images_table(),
        "parts/imagenet_sample.md": imagenet_sample_tables(),
        "parts/leaderboard.md": leaderboard_tables(),
        "parts/libraries.md": libraries_table(),
        "parts/conflicts.md": conflicts_list(),
    }
    for env_id in IDS:
        pages[f"environments/{env_id.lower()}.md"] = id_page(env_id)

    written = set()
    for name, content in pages.items():
        written.add(write(folder / name, content.encode()))
    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        content = notebook_page(notebook.read_text())
        written.add(write(folder / "notebooks" / notebook.name, content.encode()))

    for path in folder.rglob("*"):
        if path.is_file() and path not in written:
            path.unlink()


def write(path: Path, content: bytes) -> Path:
    """Write a file unless it has that content, since Sphinx reads again what is newer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)
    return path


def notebook_page(text: str) -> str:
    """A notebook, from its title on: what stands before is for those who run it elsewhere."""
    notebook = json.loads(text)
    cells = notebook["cells"]
    while not "".join(cells[0]["source"]).startswith("# "):
        cells.pop(0)
    return json.dumps(notebook)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


# The environments


def environment_page() -> str:
    """The docstring of `RoutingEnv`, which is Markdown."""
    docstring = inspect.cleandoc(RoutingEnv.__doc__ or "")
    return f"# The environment\n\nAll ids are this environment, `RoutingEnv`.\n\n{docstring}\n"


def ids_table() -> str:
    """All ids, with their sizes; and their pages, in this order, for the sidebar."""
    columns = ["id", "images", "layers", "sub-paths", "MACs, plain network", "bundled weights"]
    rows = []
    for env_id, kwargs in IDS.items():
        # Random weights: sizes follow from the architecture, and some ids have no other.
        backbone = zoo.named(kwargs["backbone"], weights=None)
        rows.append(
            [
                f"[`{env_id}`](generated/environments/{env_id.lower()}.md)",
                kwargs["dataset"],
                str(backbone.num_layers),
                str(backbone.num_paths),
                f"{backbone.mac_table.plain:,}",
                weights_of(kwargs["backbone"]),
            ]
        )
    pages = "\n".join(f"generated/environments/{env_id.lower()}" for env_id in IDS)
    return f"{table(columns, rows)}\n:::{{toctree}}\n:hidden:\n\n{pages}\n:::\n"


def id_page(env_id: str) -> str:
    """What an id routes, what its decisions cost, and what routers reach on it."""
    kwargs = IDS[env_id]
    name = kwargs["backbone"]
    backbone = zoo.named(name, weights=None)
    spec = RoutingSpec.of(backbone)
    shape = " × ".join(map(str, backbone.image_shape))
    exits = "none"
    if spec.exit_layers:
        exits = f"at layers {', '.join(map(str, spec.exit_layers))} (0 is the glance)"
    properties = [
        ["images", f"`{kwargs['dataset']}`, {shape}, {spec.num_classes} classes"],
        ["backbone", f"`{name}`, {kind_of(zoo.ARCHITECTURES[name].config)}"],
        ["layers T", str(spec.num_layers)],
        ["action space", f"`Discrete({spec.num_paths})`"],
        ["observation space", f"`Box({spec.layout.size},)`, float32"],
        ["exits", exits],
        ["MACs, plain network", f"{spec.plain_macs:,}"],
        ["compute of the glance", f"{spec.mac_table.exits[0, -1] / spec.plain_macs:.3f}"],
        ["most compute", f"{spec.ceiling:.3f}"],
        ["bundled weights", weights_of(name)],
    ]
    return "\n".join(
        [
            f"# {env_id}\n",
            f"{ABOUT[env_id]}\n",
            table(["", ""], properties),
            "## What the sub-paths cost\n",
            "Compute of one sub-path at one layer, as a share of the plain network, after a layer "
            "that took the full sub-path. A dash: not offered there.\n",
            costs_table(spec),
            "## Reference scores\n",
            scores(env_id),
        ]
    )


def kind_of(config: dict[str, Any]) -> str:
    """The kind of a backbone in words."""
    if config["kind"] == torchvision_networks.KIND:
        return f"torchvision's, with the weights `{config['weights']}`"
    if config["kind"] == "multipath":
        widths = ", ".join(f"{fraction:g}" for fraction in config["inner"])
        return f"multi-path: exit, identity, and branches of width {widths}"
    return f"channel pruning: exit, and 1 to {config['groups']} of {config['groups']} groups"


def bundled_weights(name: str) -> list[str]:
    """Which weights of a backbone are bundled."""
    return [kind for kind in weights.BUNDLED if weights.backbone_file(name, kind).is_file()]


def weights_of(name: str) -> str:
    """The same in words; or that they are downloaded."""
    if zoo.ARCHITECTURES[name].is_downloaded:
        return "none; downloaded"
    return ", ".join(bundled_weights(name)) or "none"


def costs_table(spec: RoutingSpec) -> str:
    """The compute of every sub-path at every layer."""
    macs = spec.mac_table.layers[:, -1, :]  # (T, K)
    first = spec.first_sub_path
    columns = ["layer", *(f"sub-path {number}" for number in range(first, spec.num_paths))]
    rows = []
    for layer in range(spec.num_layers):
        cells = [str(layer)]
        for sub_path in range(first, spec.num_paths):
            offered = spec.valid[layer, sub_path]
            cells.append(f"{macs[layer, sub_path] / spec.plain_macs:.3f}" if offered else "–")
        rows.append(cells)
    return table(columns, rows)


def scores(env_id: str) -> str:
    """Tables of the committed reports on an id, each with its picture."""
    parts = []
    for path in sorted(RESULTS.glob("*.json"), key=lambda path: path.stem):
        results = Results.from_json(json.loads(path.read_text()))
        routers = {router.router for router in results.comparison.routers}
        # Reports of a few special routers or on other weights are on the page of results only.
        is_bundled = results.arguments.get("weights", "pretrained") in weights.BUNDLED
        if results.env == env_id and is_bundled and "static" in routers:
            parts.append(report_section(path.stem, results))
    if not parts:
        return no_scores(env_id)
    return "\n".join(
        [
            "Percent right on `test` at a mean compute (the router's own included), ± the spread "
            "over seeds, and regret against the oracle, the mean over all trade-offs. A dash: the "
            "router does not reach that compute. All routers and intervals are in "
            "[the results](../../results.md).\n",
            *parts,
        ]
    )


def no_scores(env_id: str) -> str:
    """What to say of an id without a report."""
    backbone = IDS[env_id]["backbone"]
    if zoo.ARCHITECTURES[backbone].is_downloaded:
        return (
            "There are none: the weights could not be downloaded where this package was made, so "
            "no accuracy was measured with them. With images and a network, this makes them:\n\n"
            "```sh\n"
            f"rnr-gym compare {env_id} --agents random static blind ppo --out reports/imagenet\n"
            "```\n"
        )
    if bundled_weights(backbone):
        return "There are none: they depend on your network and your images.\n"
    return (
        "There are none yet, because no weights are bundled. Train the network, then compare:\n\n"
        "```sh\n"
        f"rnr-gym pretrain {env_id} --out backbone.safetensors\n"
        f"rnr-gym compare {env_id} --weights backbone.safetensors --out reports/new\n"
        "```\n"
    )


def report_section(name: str, results: Results) -> str:
    """One report: what it was measured on, its table and its picture."""
    comparison = results.comparison
    title = {"pretrained": "Pretrained weights", "finetuned": "Fine-tuned weights"}[
        results.arguments.get("weights", "pretrained")
    ]
    if not results.arguments.get("exits", True):
        title += ", without exits and glance"

    by_name = {router.router: router for router in comparison.routers}
    rows = []
    for router_name in REFERENCES:
        router = by_name.get(router_name)
        if router is None:
            continue
        cells = [f"`{router_name}`" if router_name in AGENTS else router_name]
        for budget in BUDGETS:
            cells.append(percent(*router.accuracy_at[comparison.budgets.index(budget)]))
        rows.append([*cells, number(router.regret)])

    columns = ["router", *(f"at {budget:g}" for budget in BUDGETS), "regret"]
    parts = [
        f"### {title}\n",
        f"{results.images:,} test images, {results.seeds} router seeds, one backbone; its full "
        f"path has {comparison.full_accuracy:.1%}. Rows: `benchmarks/results/{name}.json`.\n",
        table(columns, rows),
    ]
    if (DOCS / f"{name}.png").exists():
        parts.append(f"![Accuracy against compute, {results.env}, {title}](../../{name}.png)\n")
    return "\n".join(parts)


# Routers, the command and the rest


def agents_table() -> str:
    """Every agent: what sort of router it is, and where one is bundled."""
    bundled = bundled_classifiers()
    columns = [
        "router",
        "kind",
        "depends on its seed",
        "needs a route table",
        "in `compare`",
        "bundled",
    ]
    rows = []
    for name, agent in AGENTS.items():
        homes = [backbone for backbone, names in bundled.items() if name in names]
        rows.append(
            [
                f"`{name}`",
                agent.kind,
                "yes" if agent.seeded else "no",
                "yes" if agent.needs_table else "no",
                "yes" if name in DEFAULT_AGENTS else "if named",
                ", ".join(f"`{home}`" for home in homes) or "–",
            ]
        )
    return table(columns, rows)


def command_page() -> str:
    """The help of the command and of its subcommands, as the terminal shows it."""
    overview = help_text()
    # `{envs,data,...}` in the usage line.
    names = re.search(r"\{([\w,-]+)\}", overview)[1].split(",")
    parts = [
        "# Command line",
        "This is what `rnr-gym --help` and `rnr-gym SUBCOMMAND --help` print.",
        f"```text\n{overview}\n```",
    ]
    for name in names:
        parts.append(f"## rnr-gym {name}\n\n```text\n{help_text(name)}\n```")
    return "\n\n".join(parts) + "\n"


def help_text(*subcommand: str) -> str:
    """The help of a subcommand, or of the command itself, 78 columns wide."""
    shown = subprocess.run(
        [sys.executable, "-m", "rnr_gym.cli", *subcommand, "--help"],
        env={**os.environ, "COLUMNS": "78", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in shown.stdout.strip().splitlines())


def throughput_table() -> str:
    """What `benchmarks/throughput.py` has measured, beside the plain network."""
    parts = []
    for file in THROUGHPUT:
        measured = json.loads(file.read_text())
        contestants = measured.pop("contestants")
        rows = []
        for name, contestant in contestants.items():
            over = contestant["time_over_predicted"]
            predicted = MISSING if over is None else with_range(over)
            rows.append([name, with_range(contestant["of_plain"]), predicted])
        conditions = ", ".join(f"{key} {value}" for key, value in measured.items())
        columns = ["contestant", "steps, of the plain network's", "time over predicted"]
        parts.append(table(columns, rows) + f"\nMeasured on: {conditions}.\n")
    return "\n".join(parts)


def with_range(values: list[float]) -> str:
    """The median of repeated measurements, and their range."""
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def deployment_table() -> str:
    """What `benchmarks/deployment.py` has measured."""
    parts = []
    for file in DEPLOYMENT:
        measured = json.loads(file.read_text())
        rows = []
        for entry in measured.pop("contestants"):
            ratio = f"{entry['of_plain']:.2f} ({entry['lowest']:.2f} to {entry['highest']:.2f})"
            rows.append([str(entry["batch"]), entry["name"], f"{entry['milliseconds']:.2f}", ratio])
        measured["mean_compute"] = round(measured["mean_compute"], 3)
        conditions = ", ".join(f"{key} {value}" for key, value in measured.items())
        columns = ["batch", "contestant", "ms per image", "times as fast as plain"]
        parts.append(table(columns, rows) + f"\nMeasured on: {conditions}.\n")
    return "\n".join(parts)


def half_precision_table() -> str:
    """What `benchmarks/half_precision.py` has measured."""
    measured = json.loads(HALF_PRECISION.read_text())
    rows = []
    for entry in measured.pop("entries"):
        tradeoff = entry["tradeoff"]
        low, high = (100 * entry["difference"][name] for name in ("low", "high"))
        rows.append(
            [
                entry["classifier"],
                "plain network" if tradeoff is None else f"λ = {tradeoff:g}",
                f"{entry['accuracy']:.2%} at {entry['compute']:.3f}",
                f"{entry['half_accuracy']:.2%} at {entry['half_compute']:.3f}",
                f"{100 * entry['difference']['value']:+.2f} [{low:+.2f}, {high:+.2f}]",
                f"{entry['answers_changed']:.2%}",
                f"{entry['paths_changed']:.2%}",
            ]
        )
    conditions = ", ".join(f"{key} {value}" for key, value in measured.items())
    columns = [
        "classifier",
        "routed",
        "float32, accuracy at compute",
        "bfloat16",
        "difference, points",
        "answers changed",
        "paths changed",
    ]
    return table(columns, rows) + f"\nMeasured on: {conditions}.\n"


def scaling_tables() -> str:
    """What `benchmarks/scaling.py` has measured."""
    measured = json.loads(SCALING.read_text())
    sizes = []
    growth = []
    for entry in measured.pop("series"):
        growth.append(
            [
                entry["name"],
                entry["unit"],
                with_range(entry["exponent"]),
                with_range(entry["exponent_of_largest"]),
            ]
        )
        for position, size in enumerate(entry["sizes"]):
            seconds = float(np.median(entry["seconds"][position]))
            made = entry["result_megabytes"][position]
            sizes.append(
                [
                    entry["name"],
                    f"{size:,} {entry['unit']}" if size > 1 else f"1 {entry['unit'][:-1]}",
                    f"{seconds:.3g}",
                    f"{size / seconds:,.0f}",
                    f"{entry['peak_megabytes'][position]:,.0f}",
                    f"{made:,.0f}" if made else MISSING,
                ]
            )

    runs = []
    for name, run in measured.pop("long_runs").items():
        after_tenth = run["megabytes"][1]
        end = run["megabytes"][-1]
        cells = [f"{megabytes:,.1f}" for megabytes in (after_tenth, end, end - after_tenth)]
        runs.append([name, f"{run['steps']:,}", *cells])

    imports = measured.pop("import_seconds")
    rows = [[f"`import {library}`", with_range(seconds)] for library, seconds in imports.items()]
    added = np.subtract(imports["rnr_gym"], imports["gymnasium"])
    rows.append(["the difference, process by process", with_range(added.tolist())])
    conditions = ", ".join(f"{key} {value}" for key, value in measured.items())
    return "\n".join(
        [
            table(["work", "size in", "exponent", "of the two largest sizes"], growth),
            table(["work", "size", "seconds", "per second", "peak MB", "of it the table"], sizes),
            table(["long run", "steps", "MB after a tenth", "MB at the end", "growth"], runs),
            table(["import", "seconds"], rows),
            f"Measured on: {conditions}.\n",
        ]
    )


def time_table() -> str:
    """What `benchmarks/time_as_cost.py` has measured."""
    measured = json.loads(TIME_AS_COST.read_text())
    budgets = measured[0]["budgets"]
    rows = []
    conditions = []
    for entry in measured:
        for cost in ("macs", "time"):
            accuracies = [percent(value, None) for value in entry[cost]["accuracy"]]
            rows.append([entry["env"], entry["router"], COSTS[cost], *accuracies])
        glance_time, glance_macs = entry["shares"]["glance"]
        machine = entry["profile"]
        conditions.append(
            f"- `{entry['env']}`: {machine['machine']}, {machine['threads']} threads, batches of "
            f"{machine['batch_size']}, torch {machine['torch']}. The glance takes "
            f"{glance_time:.1%} of the plain network's time, and {glance_macs:.1%} of its MACs."
        )
    columns = ["id", "router", "fitted under", *[f"at {budget:g}" for budget in budgets]]
    # Every router of an environment was charged by one profile.
    return table(columns, rows) + "\n" + "\n".join(dict.fromkeys(conditions)) + "\n"


def offshelf_table() -> str:
    """What `benchmarks/offshelf.py` has found in other networks."""
    measured = json.loads(OFFSHELF.read_text())
    rows = []
    for entry in measured.pop("networks"):
        rows.append(
            [
                f"`{entry['network']}`",
                str(entry["layers"]),
                str(entry["skippable"]),
                str(entry["narrowable"]),
                f"{entry['macs'] / 1e9:.3f} G",
                f"{entry['published']:.3f} G",
                f"{entry['cheapest']:.3f}",
                f"{entry['difference']:.2g}",
                f"{entry['seconds']:.1f}",
            ]
        )
    conditions = ", ".join(f"{key} {value}" for key, value in measured.items())
    columns = [
        "network",
        "layers",
        "can be skipped",
        "can be narrowed",
        "MACs",
        "published",
        "cheapest",
        "difference",
        "seconds to convert",
    ]
    return table(columns, rows) + f"\nMeasured on: {conditions}.\n"


def example_images_table() -> str:
    """What `benchmarks/example_images.py` has measured."""
    measured = json.loads(EXAMPLE_IMAGES.read_text())
    rows = []
    for row in measured["rows"]:
        worst = min(row["paths"])
        best = max(row["paths"])
        rows.append([row["examples"], f"{row['mean']:.1%}", f"{worst:.1%}", f"{best:.1%}"])
    return (
        table(["example images", "mean of the paths", "worst", "best"], rows)
        + f"\nTop-1 on {measured['images']} images of `test` after {measured['examples']} example "
        f"images; the full path has {measured['full']:.1%}.\n"
    )


def imagenet_sample_tables() -> str:
    """What `benchmarks/imagenet_sample.py` has measured."""
    measured = json.loads(IMAGENET_SAMPLE.read_text())
    full = measured["full"]
    parts = [
        f"{measured['network']} has {measured['macs']:,} MACs here, "
        f"{len(measured['blocks'])} blocks that can be skipped, and so {measured['paths']} "
        f"paths, the cheapest at compute {measured['cheapest']:.3f}. The full path is right on "
        f"{full['value']:.1%} of {measured['images']:,} photographs (95 % interval "
        f"{full['low']:.1%} to {full['high']:.1%}); published for the validation set: "
        f"{measured['published']:.1%}. "
        f"**{measured['overlap']}**\n",
        "What skipping one block alone saves and loses:\n",
    ]
    skips = []
    for skip in measured["skips"]:
        lost = f"{100 * skip['lost']:.1f} points"
        skips.append([f"`{skip['block']}`", f"{skip['saved']:.3f}", lost])
    parts.append(table(["block", "compute saved", "accuracy lost"], skips))

    for entry in measured["entries"]:
        difference = entry["difference"]
        accuracy = entry["accuracy"]
        rows = []
        for idx, budget in enumerate(difference["budgets"]):
            rows.append(
                [
                    f"{budget:g}",
                    percent(accuracy["static"][idx], None),
                    percent(accuracy["router"][idx], None),
                    points(*difference["at"][idx]),
                    percent(accuracy["oracle"][idx], None),
                ]
            )
        columns = ["compute", "static", "router", "router − static, points", "oracle"]
        mean = points(difference["mean"], difference["low"], difference["high"])
        parts += [
            f"Chosen by {TARGETS[entry['target']]}:\n",
            table(columns, rows),
            f"The mean difference is {mean} points.\n",
        ]
    parts.append(
        f"Measured on: machine {measured['machine']}, torch {measured['torch']}, "
        f"{measured['folds']} folds.\n"
    )
    return "\n".join(parts)


def points(value: float, low: float, high: float) -> str:
    """A difference of accuracies in points, with its interval."""
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def leaderboard_tables() -> str:
    """The rows of `benchmarks/leaderboard.csv`, a table for each id and kind of weights."""
    with LEADERBOARD.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    groups: dict[tuple[str, str, str], list[list[str]]] = {}
    for row in rows:
        author = row["author"]
        if row["code"] != "-":
            author = f"[{author}]({row['code']})"
        accuracies = [percent(float(row[name]) if row[name] else None, None) for name in AT_BUDGETS]
        share = f"{float(row['router_share']):.2%}"
        cells = [row["router"], author, *accuracies]
        cells += [with_interval(row, "regret", 4), with_interval(row, "above_first", 5), share]
        group = (row["id"], row["weights"], row["weights_digest"])
        groups.setdefault(group, []).append(cells)

    budgets = [f"at {name.removeprefix('accuracy_at_')}" for name in AT_BUDGETS]
    columns = ["router", "author", *budgets, "regret", "above the first", "router share (declared)"]
    parts = []
    for (env_id, kind, digest), cells_of_rows in groups.items():
        parts.append(f"## {env_id}, {kind} weights `{digest}`\n")
        parts.append(table(columns, cells_of_rows))
    return "\n".join(parts)


def with_interval(row: dict[str, str], name: str, decimals: int) -> str:
    """`0.1225 [0.1176, 0.1276]`, or a dash."""
    if not row[name]:
        return MISSING
    names = (name, f"{name}_low", f"{name}_high")
    value, low, high = (f"{float(row[each]):.{decimals}f}" for each in names)
    return f"{value} [{low}, {high}]"


def libraries() -> list[dict[str, Any]]:
    """What `benchmarks/libraries.py` has found, one entry per library."""
    return json.loads(LIBRARIES.read_text())["libraries"]


def libraries_table() -> str:
    """Other people's libraries: what was run, with which line, and with which versions."""
    entries = libraries()
    rows = []
    for entry in entries:
        name = entry["name"]
        if entry["guides"]:
            guide = Path(entry["guides"][0]).relative_to("docs")
            name = f"[{name}]({guide.as_posix()})"
        runs = entry["runs"]
        if entry["note"]:
            runs += f". {entry['note']}"
        verdict = "passed" if entry["passed"] else "failed"
        rows.append(
            [
                f"{name} {entry['version']}",
                runs,
                f"`{entry['line']}`",
                f"{verdict}, {entry['steps']:,} steps",
            ]
        )

    # Which libraries were run with the same versions of other packages.
    together: dict[str, list[str]] = {}
    for entry in entries:
        beside = ", ".join(f"{package} {version}" for package, version in entry["versions"].items())
        together.setdefault(beside, []).append(entry["name"])
    parts = [table(["library", "what runs", "line", "result"], rows)]
    parts += [f"* with {beside}: {', '.join(names)}" for beside, names in together.items()]
    return "\n".join(parts) + "\n"


def conflicts_list() -> str:
    """What `pip check` says of each library, as it was installed."""
    lines = []
    for entry in libraries():
        if entry["unpinned"]:
            lines.append(f"* {entry['name']}, installed without what it requires:")
        elif entry["conflicts"]:
            lines.append(f"* {entry['name']}:")
        lines += [f"  * {conflict}" for conflict in entry["conflicts"]]
    return "\n".join(lines) + "\n"


def cite_page() -> str:
    """How to cite, from `CITATION.cff`."""
    citation = yaml.safe_load(CITATION.read_text())
    (paper,) = citation["references"]
    authors = " and ".join(
        f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]
    )
    software = bibtex(
        "software",
        "rnr_gym",
        {
            "title": f"{{{citation['title']}}}",
            "author": " and ".join(f"{{{author['name']}}}" for author in citation["authors"]),
            "version": citation["version"],
        },
    )
    article = bibtex(
        "article",
        "rao2019runtime",
        {
            "title": f"{{{paper['title']}}}",
            "author": authors,
            "journal": paper["journal"],
            "volume": paper["volume"],
            "number": paper["issue"],
            "pages": f"{paper['start']}--{paper['end']}",
            "year": paper["year"],
            "doi": paper["doi"],
        },
    )
    return (
        f"# How to cite\n\n{citation['message']}\n\n"
        f"```bibtex\n{software}\n\n{article}\n```\n\n"
        "The same is in `CITATION.cff`. The weights and the data have sources of their own, which "
        "the model cards in `rnr_gym/weights/` name.\n"
    )


def bibtex(kind: str, key: str, fields: dict[str, Any]) -> str:
    """One entry."""
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])


if __name__ == "__main__":
    write_pages(DOCS / "generated")

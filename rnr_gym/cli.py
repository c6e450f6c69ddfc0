"""The command `rnr-gym`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

app = tyro.extras.SubcommandApp()
console = Console()
EnvId = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")]


@app.command
def envs() -> None:
    """List the environments: decisions, sub-paths, cost, and what ships with each."""
    from rnr_gym.backbones import pretrained
    from rnr_gym.registration import IDS

    table = Table("id", "data", "backbone", "layers", "sub-paths", "MACs, plain", "weights")
    for name, arguments in IDS.items():
        backbone = arguments["backbone"]
        network = pretrained.named(backbone, None)
        shipped = [stage for stage in pretrained.STAGES if pretrained.bundled(backbone, stage).is_file()]
        facts = (str(network.num_layers), str(network.num_paths), f"{network.mac_table.plain:,}", ", ".join(shipped) or "none")
        table.add_row(name, arguments["dataset"], backbone, *facts)
    console.print(table)


@app.command
def pretrain(
    env: EnvId, out: Path, epochs: int | None = None, seed: int = 0, device: str = "cpu", bf16: bool = True, data_root: str | None = None
) -> None:
    """Train an environment's backbone under random routing; goes on where a killed run stopped.

    Args:
        env: the environment's id.
        out: the safetensors file to write; what is under way is kept beside it.
        epochs: passes over the training images; as the shipped weights were trained if left out.
        seed: of initial weights, order and augmentation.
        device: cpu, or cuda.
        bf16: run convolutions in bfloat16.
        data_root: folder of the images.
    """
    from rnr_gym import data
    from rnr_gym.backbones import pretrained
    from rnr_gym.registration import arguments_of
    from rnr_gym.training import Schedule, evaluate_full_path
    from rnr_gym.training import pretrain as run

    name = arguments_of(env)["backbone"]
    if out.exists():
        raise FileExistsError(f"`out` must be a new file, got {str(out)!r}, which exists; remove it or choose another")
    config, dataset, defaults = pretrained.ARCHITECTURES[name]
    schedule = Schedule(**{**defaults, **({"epochs": epochs} if epochs else {}), "seed": seed, "bf16": bf16})
    splits = {split: data.load(dataset, split, data_root) for split in ("train", "route")}
    backbone = run(pretrained.from_config(config, seed), data.dataset(dataset), splits, schedule, out.with_suffix(".part"), device)
    accuracy = evaluate_full_path(backbone, splits["route"])
    pretrained.save(backbone.cpu(), out, {"env": env, "schedule": vars(schedule), "full_path_accuracy_on_route": accuracy})
    console.print(f"wrote {out}; full path on `route`: {accuracy:.1%} right")


def main() -> None:
    """Run a subcommand; errors that the user can mend are one line, without a traceback."""
    try:
        app.cli(prog="rnr-gym", description="Route images through networks, one decision at a time.")
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("interrupted; what was finished is kept, the same command goes on from there")
        sys.exit(130)


if __name__ == "__main__":
    main()

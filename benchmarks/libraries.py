"""Other people's libraries: each is installed into an environment of its own, and its tests run.

Run: `make libraries`, or `python benchmarks/libraries.py --only RLlib TorchRL`.

Each environment is kept and used again; delete its folder for a new one. With `--base PYTHON` the
packages of that interpreter need not be downloaded again. The results are a table of the
documentation, `docs/libraries.md`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro

from rnr_gym import storage

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests" / "libraries"
RESULTS = ROOT / "benchmarks" / "libraries.json"
BESIDE = ("gymnasium", "numpy", "torch")
"""Packages whose versions are reported beside that of the library."""
LIMIT_S = 1_200
"""After which an installation or the tests of a library are given up."""
SEEN = "zz_base.pth"
"""The file by which an environment sees the packages of another; read after all others."""


@dataclass(frozen=True, kw_only=True)
class Library:
    """A library: how it is installed, and what its tests show.

    Attributes:
        name: as its authors write it.
        package: the package whose version is reported.
        tests: the file in `tests/libraries`.
        runs: what is run there.
        line: what a user writes.
        requirements: what pip installs beside this package, with all that these require.
        unpinned: what pip installs without what it requires, and for any version of Python.
        guides: pages whose code is run as well.
        note: what a user must know.
    """

    name: str
    package: str
    tests: str
    runs: str
    line: str
    requirements: tuple[str, ...] = ()
    unpinned: tuple[str, ...] = ()
    guides: tuple[str, ...] = ()
    note: str = ""


LIBRARIES = (
    Library(
        name="Gymnasium",
        package="gymnasium",
        tests="test_gymnasium.py",
        runs="`AsyncVectorEnv`, two processes, no step lost to resets",
        line='gym.make_vec("rnr_gym:RNR-Digits-v0", vectorization_mode="async", ...)',
        requirements=("gymnasium",),
    ),
    Library(
        name="Stable-Baselines3",
        package="stable_baselines3",
        tests="test_stable_baselines3.py",
        runs="PPO in a `SubprocVecEnv` of two processes",
        line='make_vec_env("rnr_gym:RNR-Digits-v0", vec_env_cls=SubprocVecEnv)',
        requirements=("stable_baselines3",),
        guides=("docs/guides/stable_baselines3.md",),
    ),
    Library(
        name="sb3-contrib",
        package="sb3_contrib",
        tests="test_sb3_contrib.py",
        runs="`MaskablePPO` with `MaskableEvalCallback`",
        line='MaskablePPO("MlpPolicy", rnr_gym.make_vec_env("RNR-Digits-v0"))',
        requirements=("sb3_contrib",),
        guides=("docs/guides/stable_baselines3.md",),
    ),
    Library(
        name="CleanRL",
        package="cleanrl",
        tests="test_cleanrl.py",
        runs="its file `dqn.py`",
        line="python -m cleanrl.dqn --env-id rnr_gym:RNR-Digits-v0",
        unpinned=("cleanrl==1.2.0",),
        guides=("docs/guides/single_file.md",),
        note="Its `ppo.py` needs the older Gym, and the package asks for Python before 3.11",
    ),
    Library(
        name="RLlib",
        package="ray",
        tests="test_rllib.py",
        runs="`PPOConfig` with two remote env runners",
        line='PPOConfig().environment("rnr_gym:RNR-Digits-v0")',
        requirements=("ray[rllib]==2.60.0",),
        guides=("docs/guides/rllib.md",),
    ),
    Library(
        name="Ray",
        package="ray",
        tests="test_ray.py",
        runs="a comparison on a cluster of two workers, with the paths of one machine",
        line="rnr-gym compare RNR-Digits-v0 --engine ray --out reports/cluster",
        requirements=("ray[rllib]==2.60.0",),
        guides=("docs/guides/cluster.md",),
    ),
    Library(
        name="TorchRL",
        package="torchrl",
        tests="test_torchrl.py",
        runs="DQN with a `Collector`, on one environment, by id, and on the vector environment",
        line='GymWrapper(gym.make("rnr_gym:RNR-Digits-v0"))',
        requirements=("torchrl==0.14.1",),
        guides=("docs/guides/torchrl.md",),
    ),
    Library(
        name="Tianshou",
        package="tianshou",
        tests="test_tianshou.py",
        runs="DQN with a `Collector` on a `DummyVectorEnv`, tested in a `SubprocVectorEnv`",
        line='DummyVectorEnv([lambda: gym.make("rnr_gym:RNR-Digits-v0")] * 4)',
        requirements=("tianshou==2.0.1",),
        guides=("docs/guides/tianshou.md",),
    ),
    Library(
        name="MO-Gymnasium",
        package="mo_gymnasium",
        tests="test_mo_gymnasium.py",
        runs="its wrappers and vector environments",
        line='mo_gymnasium.make("rnr_gym:RNR-Digits-v0", vector_reward=True)',
        requirements=("mo-gymnasium==1.3.2",),
        guides=("docs/guides/mo_gymnasium.md",),
    ),
    Library(
        name="MORL-Baselines",
        package="morl_baselines",
        tests="test_morl_baselines.py",
        runs="`Envelope`, beside the exact front",
        line='Envelope(mo_gymnasium.make("rnr_gym:RNR-Digits-v0", vector_reward=True))',
        # What its module of that algorithm imports.
        requirements=("mo-gymnasium==1.3.2", "pymoo", "wandb"),
        unpinned=("morl-baselines==1.3.0",),
        guides=("docs/guides/morl_baselines.md",),
    ),
    Library(
        name="Minari",
        package="minari",
        tests="test_minari.py",
        runs="`DataCollector` with infos",
        line='minari.DataCollector(gym.make("rnr_gym:RNR-Digits-v0"), record_infos=True)',
        requirements=("minari[create,hdf5]",),
        guides=("docs/guides/offline.md",),
        note="`DataCollector` needs Minari's extra `create`, which installs JAX",
    ),
    Library(
        name="d3rlpy",
        package="d3rlpy",
        tests="test_d3rlpy.py",
        runs="`DiscreteCQL` on the data set that `rnr-gym export` writes",
        line='d3rlpy.datasets.get_minari("rnr/digits/random-v0")',
        # What it imports.
        requirements=("minari[hdf5]", "gym==0.26.2", "structlog", "colorama", "dataclasses-json"),
        unpinned=("d3rlpy==2.8.1",),
        guides=("docs/guides/d3rlpy.md",),
    ),
)


@dataclass
class Args:
    """What to run, and where."""

    only: tuple[str, ...] = ()
    """Libraries to run; others keep the results that they have. All of them if none is named."""
    environments: Path = ROOT / "build" / "libraries"
    """A folder for the virtual environments, some gigabytes in all."""
    base: Path | None = None
    """An interpreter whose packages the environments see, so that less has to be installed."""
    out: Path = RESULTS
    """Where to write the results as JSON."""


@dataclass(kw_only=True)
class Outcome:
    """What was found, beside what `Library` says.

    Attributes:
        version: of the library.
        versions: of Python and of the packages in `BESIDE`.
        conflicts: what `pip check` says of the library's requirements, and of this package's.
        passed: whether all tests ran and passed.
        num_tests: how many.
        steps: environment or gradient steps of the tests, as they report it.
        seconds: that the tests took.
    """

    version: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)
    passed: bool = False
    num_tests: int = 0
    steps: int = 0
    seconds: int = 0


def call(*command: str | Path, check: bool = True) -> str:
    """Run a command in the repository, and give what it prints; what it reports is shown.

    Raises `SystemExit` if `check` is true and it fails.
    """
    finished = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if check and finished.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{finished.stdout}")
    return finished.stdout


def environment(library: Library, args: Args) -> Path:
    """The interpreter of the library's environment, in which everything is installed."""
    folder = args.environments / library.package
    python = folder / "bin" / "python"
    if not python.exists():
        call(sys.executable, "-m", "venv", folder)
    if args.base is not None:
        see_packages(python, args.base)

    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    # In one call, so that pip finds versions with which both work.
    call(*pip, "--editable", ROOT, "pytest", *library.requirements)
    if library.unpinned:
        call(*pip, "--no-deps", "--ignore-requires-python", *library.unpinned)
    return python


def see_packages(python: Path, base: Path) -> None:
    """Let an environment see the packages of another interpreter, after its own."""
    ask = "import json, sys, sysconfig; print(json.dumps([sysconfig.get_paths(), sys.version]))"
    paths, version = json.loads(call(python, "-c", ask))
    base_paths, base_version = json.loads(call(base, "-c", ask))
    if version != base_version:
        raise SystemExit(f"`base` must be Python {version}, got {base_version}")
    folders = sorted({base_paths["purelib"], base_paths["platlib"]})
    (Path(paths["purelib"]) / SEEN).write_text("\n".join(folders) + "\n")


def versions(python: Path, *packages: str) -> dict[str, str]:
    """The versions of Python and of packages in an environment."""
    ask = (
        "import json, platform, sys; from importlib.metadata import version; "
        "print(json.dumps({'python': platform.python_version()} "
        "| {name: version(name) for name in sys.argv[1:]}))"
    )
    return json.loads(call(python, "-c", ask, *packages))


def conflicts(python: Path, package: str) -> list[str]:
    """What `pip check` says of a package's requirements and of ours, not of other packages'."""
    lines = call(python, "-m", "pip", "check", check=False).splitlines()
    wanted = {normal(package), "rnr-gym"}
    return [line for line in lines if normal(line.split()[0]) in wanted]


def normal(package: str) -> str:
    """A package's name as pip compares it."""
    return package.lower().replace("_", "-")


def run_tests(python: Path, library: Library) -> Outcome:
    """Run the tests of a library, and the code of its guides."""
    tests = [f"tests/libraries/{library.tests}"]
    tests += [f"tests/test_docs.py::test_code_blocks_run[{guide}]" for guide in library.guides]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        print(
            call(
                *(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests),
                # Of all kinds of reports, this one may have properties, such as the steps.
                *("-o", "junit_family=xunit1", f"--junit-xml={report}", "--durations=5"),
                check=False,
            )
        )
        suite = ElementTree.parse(report).getroot().find("testsuite")

    counts = {name: int(suite.get(name)) for name in ("tests", "errors", "failures", "skipped")}
    steps = [each.get("value") for each in suite.iter("property") if each.get("name") == "steps"]
    # What is skipped has not run.
    not_passed = counts["errors"] + counts["failures"] + counts["skipped"]
    return Outcome(
        passed=counts["tests"] > 0 and not_passed == 0,
        num_tests=counts["tests"],
        steps=sum(map(int, steps)),
        seconds=round(float(suite.get("time"))),
    )


def result(library: Library, args: Args) -> dict[str, Any]:
    """Install a library and run its tests."""
    python = environment(library, args)
    outcome = run_tests(python, library)
    found = versions(python, library.package, *BESIDE)
    outcome.version = found[library.package]
    outcome.versions = {name: found[name] for name in ("python", *BESIDE)}
    outcome.conflicts = conflicts(python, library.package)
    return asdict(library) | asdict(outcome)


def main(args: Args) -> None:
    """Run all libraries, and write each result as soon as it is there."""
    names = [library.name for library in LIBRARIES]
    unknown = sorted(set(args.only) - set(names))
    if unknown:
        raise SystemExit(f"`only` must be of {', '.join(names)}, got {', '.join(unknown)}")

    results = {}
    if args.out.exists():
        for entry in storage.load_json(args.out)["libraries"]:
            results[entry["name"]] = entry

    for library in LIBRARIES:
        if args.only and library.name not in args.only:
            continue
        print(f"== {library.name}")
        results[library.name] = result(library, args)
        # In the order of the table; what is no longer there is left out.
        entries = [results[name] for name in names if name in results]
        storage.save_json(args.out, {"libraries": entries})

    failed = [entry["name"] for entry in entries if not entry["passed"]]
    if failed:
        raise SystemExit(f"not passed: {', '.join(failed)}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

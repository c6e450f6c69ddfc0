"""The site builds, every code block of the documents runs, and all that is public has a place."""

import csv
import functools
import json
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import asdict
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
import tyro

import rnr_gym
from rnr_gym import cli
from rnr_gym.agents import AGENTS
from rnr_gym.experiments.results import Results
from rnr_gym.registration import IDS
from tests.fixtures import commands, digits
from tests.fixtures.documents import ROOT, blocks
from tests.fixtures.documents import commands as command_lines
from tests.fixtures.modules import module_of

DOCS = ROOT / "docs"
BUILT = {"_build", "generated"}
"""Folders of `docs` that git ignores."""
NEEDS_EXTRA = "the site needs the extra `docs`"
LIMIT_S = 300
"""After which a build is given up."""


def documents():
    """README, CONTRIBUTING and all pages, as paths from the root."""
    names = ["README.md", "CONTRIBUTING.md"]
    for page in sorted(DOCS.rglob("*.md")):
        if not BUILT & set(page.relative_to(DOCS).parts):
            names.append(page.relative_to(ROOT).as_posix())
    return names


# Code blocks

NOT_CODE = {"text", "bibtex", "{eval-rst}"}
"""Languages of blocks that nobody runs."""
LIBRARIES = {
    "docs/guides/d3rlpy.md": "d3rlpy",
    "docs/guides/mo_gymnasium.md": "mo_gymnasium",
    "docs/guides/morl_baselines.md": "morl_baselines",
    "docs/guides/offline.md": "minari",
    "docs/guides/rllib.md": "ray",
    "docs/guides/tianshou.md": "tianshou",
    "docs/guides/torchrl.md": "torchrl",
}
"""Pages about a library that this package does not need; they are run where it is installed."""

INSTALLS = "installs packages"
NEEDS_LIBRARY = "needs another library; its test in tests/libraries runs it"
TAKES_MINUTES = "takes minutes or hours; the tests of the command run it on less"
DOWNLOADS = "downloads images"
STARTS_CLUSTER = "starts a cluster that would stay"
NEEDS_REPORT = "needs what a command has written that is not run here"
QUICK = {"embed", "enter", "envs", "evaluate", "export", "profile", "render", "train", "validate"}
"""Subcommands that are run."""
NOT_RUN = {
    "make quickstart": INSTALLS,
    "make test": INSTALLS,
    "make check": INSTALLS,
    "make bench": INSTALLS,
    "make docs": INSTALLS,
    "make notebooks": INSTALLS,
    "make wheels": INSTALLS,
    "make faults": INSTALLS,
    "make libraries": INSTALLS,
    "python3 -m venv .venv": INSTALLS,
    "source .venv/bin/activate": INSTALLS,
    "pip install -e .": INSTALLS,
    "pip install -e '.[notebooks]'": INSTALLS,
    "pip install 'rnr-gym[minari]'": INSTALLS,
    "pip install 'rnr-gym[ray]'": INSTALLS,
    "pip install 'rnr-gym[onnx]' onnxruntime": INSTALLS,
    "ray start --head": STARTS_CLUSTER,
    "ray start --address=HOST:6379": STARTS_CLUSTER,
    "rnr-gym compare RNR-Digits-v0 --agents static confidence ppo --engine ray "
    "--out reports/cluster": "needs a cluster; `tests/libraries/test_ray.py` starts one",
    "pip install 'rnr-gym[minari]' gym==0.26.2 structlog colorama dataclasses-json": INSTALLS,
    "pip install mo-gymnasium pymoo wandb": INSTALLS,
    "pip install --no-deps d3rlpy==2.8.1": INSTALLS,
    "pip install --no-deps morl-baselines==1.3.0": INSTALLS,
    "pip install --no-deps --ignore-requires-python cleanrl==1.2.0": INSTALLS,
    "python -m cleanrl.dqn --env-id rnr_gym:RNR-Digits-v0 --gamma 1.0 --total-timesteps 50000": (
        NEEDS_LIBRARY
    ),
    "python benchmarks/throughput.py --out benchmarks/throughput.json": TAKES_MINUTES,
    "python benchmarks/throughput.py --env RNR-CIFAR10-v0 "
    "--out benchmarks/throughput-cifar10.json": TAKES_MINUTES,
    "python benchmarks/throughput.py --env RNR-CIFAR10-v0 --dtype bfloat16 "
    "--out benchmarks/throughput-cifar10-bfloat16.json": TAKES_MINUTES,
    "python benchmarks/deployment.py --out benchmarks/deployment.json": TAKES_MINUTES,
    "python benchmarks/deployment.py --dtype bfloat16 "
    "--out benchmarks/deployment-bfloat16.json": TAKES_MINUTES,
    "python benchmarks/half_precision.py --out benchmarks/half_precision.json": TAKES_MINUTES,
    "python benchmarks/scaling.py --out benchmarks/scaling.json": TAKES_MINUTES,
    "python benchmarks/offshelf.py --out benchmarks/offshelf.json": TAKES_MINUTES,
    "pip install 'rnr-gym[imagenet]'": INSTALLS,
    "python benchmarks/imagenet_sample.py --out benchmarks/imagenet_sample.json": TAKES_MINUTES,
    "rnr-gym data cifar10": DOWNLOADS,
    "rnr-gym data imagenet": "needs images of ImageNet; `test_cli.py` has some",
    "rnr-gym export RNR-Digits-v0": TAKES_MINUTES,
    "rnr-gym classify rnr-cifar10 photo.jpg --compute 0.3": "needs an image",
    "rnr-gym demo": "serves a page until it is stopped",
    "rnr-gym compare RNR-Digits-v0 --agents static confidence thresholds fqi ppo "
    "--out reports/digits": TAKES_MINUTES,
    "rnr-gym compare RNR-Digits-v0 --agents random static blind confidence thresholds ppo "
    "--seeds 2 --out reports/first": TAKES_MINUTES,
    "rnr-gym compare RNR-Digits-v0 --agents static thresholds --seeds 1 --cost time "
    "--out reports/time": TAKES_MINUTES,
    "rnr-gym validate reports/digits": NEEDS_REPORT,
    "rnr-gym validate reports/first": NEEDS_REPORT,
    "rnr-gym finetune runs/dqn --out runs/dqn-finetuned": TAKES_MINUTES,
    "rnr-gym pretrain RNR-CIFAR100-v0 --out backbone.safetensors": TAKES_MINUTES,
    "rnr-gym compare RNR-CIFAR100-v0 --weights backbone.safetensors --agents ppo dqn "
    "--out reports/cifar100": NEEDS_REPORT,
}
"""Commands that are not run, each with the reason. Their arguments are checked all the same."""
SHORTENED = {
    "rnr-gym train RNR-Digits-v0 --agent dqn --out runs/dqn": ("--out", "--steps 2000 --out"),
    "rnr-gym train RNR-Digits-v0 --agent ppo --steps 100000 --out runs/first": ("100000", "4000"),
}
"""What is changed in a command so that it ends soon."""
FEWER_STEPS = {".learn(100_000)": ".learn(2_000)"}
"""The same in Python code."""


def run_python(block, document, namespace):
    """Run a block as part of its page; errors have the line numbers of the page."""
    code = block.code
    for text, shorter in FEWER_STEPS.items():
        code = code.replace(text, shorter)
    padded = "\n" * (block.line - 1) + code
    exec(compile(padded, document, "exec"), namespace)


def run_command(line):
    """Run a command for real, or check its arguments if it is one of `NOT_RUN`."""
    if line in NOT_RUN:
        check_command(shlex.split(line))
        return
    old, new = SHORTENED.get(line, ("", ""))
    program, *args = shlex.split(line.replace(old, new))
    known = program == "rnr-gym" and args[0] in QUICK
    assert known, f"neither one of QUICK nor listed in NOT_RUN: {line}"
    commands.succeeds(*args)


def check_command(words):
    """Fail for what a command that is not run names and is not there."""
    program, *args = words
    if program == "rnr-gym":
        parse(args)
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert re.search(rf"^{re.escape(args[0])}:", makefile, re.MULTILINE), words
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"\[(\w+)\]", args[-1]):
            assert extra in project["optional-dependencies"]
    elif args[:2] == ["-m", "cleanrl.dqn"]:
        assert args[args.index("--env-id") + 1].removeprefix("rnr_gym:") in IDS
    elif program == "python":
        assert (ROOT / args[0]).is_file(), words
    elif program == "ray":
        assert args[0] == "start"
    else:
        assert words in (["python3", "-m", "venv", ".venv"], ["source", ".venv/bin/activate"])


def parse(args):
    """Read arguments as `rnr-gym` does, without doing anything."""
    app = tyro.extras.SubcommandApp()
    for name, subcommand in cli.app._subcommands.items():
        # Tyro has no public list of them; older versions hold the function itself.
        function = getattr(subcommand, "target", subcommand)
        app.command(parsed_only(function), name=name)
    app.cli(args=args)


def parsed_only(function):
    """A function with the same arguments that does nothing."""

    @functools.wraps(function)
    def nothing(*args, **kwargs):
        return None

    return nothing


def runnable(document):
    """A document as a test's argument; what other libraries warn of is their own affair."""
    marks = []
    if document in LIBRARIES:
        marks.append(pytest.mark.filterwarnings("ignore"))
    return pytest.param(document, marks=marks)


@pytest.mark.parametrize("document", [runnable(name) for name in documents()])
def test_code_blocks_run(document, tmp_path, monkeypatch):
    if document in LIBRARIES:
        pytest.importorskip(LIBRARIES[document])
    # In order, as a reader would: commands write folders that code reads.
    digits.use_few_digits(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    # A cluster of its own, even where another one runs.
    monkeypatch.setenv("RAY_ADDRESS", "local")
    namespace = {"__name__": "__main__"}
    for block in blocks(document):
        if block.language == "python":
            run_python(block, document, namespace)
        elif block.language == "sh":
            for line in command_lines(block.code):
                run_command(line)
        else:
            assert block.language in NOT_CODE, f"{document}:{block.line}: {block.language!r}"


def test_every_exception_is_in_a_document():
    lines = set()
    python = ""
    for document in documents():
        for block in blocks(document):
            if block.language == "sh":
                lines.update(command_lines(block.code))
            elif block.language == "python":
                python += block.code
    assert NOT_RUN.keys() | SHORTENED.keys() <= lines
    assert all(text in python for text in FEWER_STEPS)
    assert LIBRARIES.keys() <= set(documents())


def test_command_with_known_options_is_accepted():
    check_command(shlex.split("rnr-gym train RNR-v0 --agent dqn --out x --no-exits"))
    check_command(["make", "docs"])


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("rnr-gym train --out x", "ENV"),
        ("rnr-gym train RNR-v0 --out x --sneed 1", "--sneed"),
        ("rnr-gym train RNR-v0 --out x --seed one", "one"),
        ("rnr-gym fly", "fly"),
    ],
)
def test_command_with_unknown_options_is_noticed(line, error, capsys):
    with pytest.raises(SystemExit):
        check_command(shlex.split(line))
    assert error in capsys.readouterr().err


def test_command_without_target_is_noticed():
    with pytest.raises(AssertionError, match="coffee"):
        check_command(["make", "coffee"])


# What documents name


@pytest.mark.parametrize("document", documents())
def test_code_uses_public_names(document):
    for block in blocks(document):
        if block.language == "python":
            assert "from rnr_gym" not in block.code, block.line
            assert "import rnr_gym." not in block.code, block.line
            used = re.findall(r"\brnr\.(\w+)", block.code)
            assert set(used) <= {*rnr_gym.__all__, "__all__"}, block.line


@pytest.mark.parametrize("document", [*documents(), "benchmarks/cifar10/README.md"])
def test_document_names_existing_files(document):
    text = (ROOT / document).read_text()
    for name in re.findall(r"`((?:benchmarks|docs|notebooks|rnr_gym|tests)/[\w./-]*)`", text):
        assert (ROOT / name).exists() or name.startswith("docs/_build"), name
    # README is not part of the site, whose links are checked below.
    if document == "README.md":
        for target in re.findall(r"\]\((docs/[^)#]+)\)", text):
            assert (ROOT / target).is_file(), target


# What has to be there


@pytest.fixture(scope="module")
def generate():
    """The module that writes pages."""
    pytest.importorskip("yaml", reason=NEEDS_EXTRA)
    return module_of(DOCS / "generate.py")


@pytest.fixture(scope="module")
def benchmark():
    """The module that tests other libraries."""
    return module_of(ROOT / "benchmarks" / "libraries.py")


@pytest.fixture(scope="module")
def entries(benchmark):
    """What it has found, by the file of tests."""
    found = json.loads(benchmark.RESULTS.read_text())["libraries"]
    return {entry["tests"]: entry for entry in found}


def test_every_library_has_passed(entries):
    files = {path.name for path in (ROOT / "tests" / "libraries").glob("test_*.py")}
    assert entries.keys() == files
    for entry in entries.values():
        assert entry["passed"], entry["name"]
        assert entry["steps"] >= 500, entry["name"]


def test_results_of_libraries_are_of_what_is_installed_now(benchmark, entries):
    for library in benchmark.LIBRARIES:
        # As it is read from JSON, which has no tuples.
        now = json.loads(json.dumps(asdict(library)))
        assert now.items() <= entries[library.tests].items(), "run `make libraries`"


def test_guides_of_libraries_are_run_by_their_tests(entries):
    run = {guide for entry in entries.values() for guide in entry["guides"]}
    assert LIBRARIES.keys() <= run


def test_unknown_library_is_an_error(benchmark, tmp_path):
    out = tmp_path / "libraries.json"
    with pytest.raises(SystemExit, match=r"`only` must be of Gymnasium, .*, got Acme"):
        benchmark.main(benchmark.Args(only=("Acme",), out=out))
    assert not out.exists()


def test_libraries_have_row(generate, entries):
    lines = generate.libraries_table().splitlines()
    rows = [line for line in lines if line.startswith("|")][2:]
    assert len(rows) == len(entries)
    for row, entry in zip(rows, entries.values(), strict=True):
        assert entry["name"] in row
        assert f"`{entry['line']}`" in row


def test_scaling_has_row_for_every_size(generate):
    tables = generate.scaling_tables()
    measured = json.loads(generate.SCALING.read_text())
    for entry in measured["series"]:
        rows = re.findall(rf"^\| {entry['name']} \|.*", tables, re.MULTILINE)
        # One row of exponents, and one for each size.
        assert len(rows) == 1 + len(entry["sizes"])
        assert rows[0].split(" | ")[2] == generate.with_range(entry["exponent"])
    for name in measured["long_runs"]:
        assert f"| {name} |" in tables


def test_ids_have_sentence_and_row(generate):
    assert list(generate.ABOUT) == list(IDS)
    rows = re.findall(r"^\| \[`([^`]+)`\]", generate.ids_table(), re.MULTILINE)
    assert rows == list(IDS)


def test_agents_have_row_and_paragraph(generate):
    rows = re.findall(r"^\| `([^`]+)` \|", generate.agents_table(), re.MULTILINE)
    assert rows == list(AGENTS)

    terms = re.findall(r"^(`[^\n]+`)\n: ", (DOCS / "routers.md").read_text(), re.MULTILINE)
    named = [name for term in terms for name in re.findall(r"`([^`]+)`", term)]
    assert sorted(named) == sorted(AGENTS)


def test_public_names_have_entry():
    text = (DOCS / "api.md").read_text()
    entries = re.findall(r"^\.\. auto\w+:: (\w+)", text, re.MULTILINE)
    assert sorted(entries) == sorted(set(rnr_gym.__all__) - {"__version__"})
    assert "`__version__`" in text


def test_subcommands_have_section(generate):
    sections = re.findall(r"^## rnr-gym (\S+)$", generate.command_page(), re.MULTILINE)
    assert sections == list(cli.app._subcommands)


def test_reference_scores_are_those_of_the_report(generate):
    page = generate.id_page("RNR-Digits-v0")
    report = Results.from_json(generate.json.loads((generate.RESULTS / "digits.json").read_text()))
    (static,) = (each for each in report.comparison.routers if each.router == "static")
    accuracy, _ = static.accuracy_at[report.comparison.budgets.index(0.3)]
    (row,) = re.findall(r"### Pretrained weights\n.*?\n(\| `static` [^\n]+)", page, re.DOTALL)
    assert row.split(" | ")[3] == f"{100 * accuracy:.1f}"


def test_leaderboard_has_every_row(generate):
    with generate.LEADERBOARD.open(newline="") as file:
        rows = list(csv.DictReader(file))
    shown = re.findall(
        r"^\| (\S.*?) \| .*\| (\d\.\d{4}) \[", generate.leaderboard_tables(), re.MULTILINE
    )
    assert shown == [(row["router"], f"{float(row['regret']):.4f}") for row in rows]


def test_id_without_results_says_so(generate):
    assert "There are none yet" in generate.id_page("RNR-CIFAR100-v0")
    assert "no accuracy was measured" in generate.id_page("RNR-ImageNet-v0")


def test_example_images_have_a_row_for_each_kind(generate):
    table = generate.example_images_table()
    for row in json.loads(generate.EXAMPLE_IMAGES.read_text())["rows"]:
        assert f"| {row['examples']} | {row['mean']:.1%} |" in table


# The site


class Page(HTMLParser):
    """Anchors of a page, what it links to, and what it loads."""

    def __init__(self, text):
        super().__init__()
        self.anchors = set()
        self.links = []
        self.loaded = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if "id" in attributes:
            self.anchors.add(attributes["id"])
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        elif "src" in attributes:
            self.loaded.append(attributes["src"])
        elif tag == "link" and attributes.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(attributes["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages of a fresh build, by path; a warning of Sphinx fails it."""
    for name in ("sphinx", "myst_nb", "furo", "sphinx_copybutton"):
        pytest.importorskip(name, reason=NEEDS_EXTRA)
    out = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "-n", "--keep-going", "-E", DOCS, out],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert built.returncode == 0, built.stderr
    return {path: Page(path.read_text()) for path in out.rglob("*.html")}


@pytest.mark.slow
def test_site_has_a_page_for_everything(site):
    names = {path.name for path in site}
    for env_id in IDS:
        assert f"{env_id.lower()}.html" in names
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"{notebook.stem}.html" in names
    (api,) = (page for path, page in site.items() if path.name == "api.html")
    for name in set(rnr_gym.__all__) - {"__version__"}:
        assert f"rnr_gym.{name}" in api.anchors


@pytest.mark.slow
def test_site_links_lead_somewhere(site):
    followed = 0
    for path, page in site.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            assert target.is_file(), f"{path.name}: {link}"
            if parts.fragment and target in site:
                assert unquote(parts.fragment) in site[target].anchors, f"{path.name}: {link}"
            followed += 1
    assert followed


@pytest.mark.slow
def test_site_loads_nothing_from_the_network(site):
    for path, page in site.items():
        for address in page.loaded:
            assert not urlsplit(address).netloc, f"{path.name} loads {address}"

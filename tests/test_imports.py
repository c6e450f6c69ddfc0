"""Importing is light, and imports inside the package go one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rnr_gym

PACKAGE = Path(rnr_gym.__file__).parent
ORDER = [
    {"storage", "registration"},
    {"data", "backbones"},
    {"routing"},
    {"training", "envs"},
    {"sb3"},
    {"agents"},
    {"classifier"},
    {"experiments"},
    {"cli"},
]
POSITION = {name: number for number, names in enumerate(ORDER) for name in names}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
EVERY = pytest.mark.parametrize(
    "path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix()
)


def fresh(code):
    """What a new interpreter prints."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


class Imports(ast.NodeVisitor):
    """Full names of all that a file imports when it runs, inside functions too; what only type checkers read is left out."""

    def __init__(self, package):
        self.package, self.found = package, set()

    def visit_If(self, node):
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)

    def visit_Import(self, node):
        self.found |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node):
        base = node.module or ""
        if node.level:
            base = ".".join(
                [
                    *self.package.split(".")[: len(self.package.split(".")) - node.level + 1],
                    *filter(None, [base]),
                ]
            )
        self.found |= {f"{base}.{alias.name}" for alias in node.names}


def imports(path):
    package = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
    visitor = Imports(package)
    visitor.visit(ast.parse(path.read_text()))
    return visitor.found


def home(path):
    """The top-level module that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@EVERY
def test_a_module_imports_only_from_its_own_place_or_before(path):
    assert home(path) in POSITION, f"`{home(path)}` has no place in the order yet"
    ours = [name.split(".")[1] for name in imports(path) if name.startswith("rnr_gym.")]
    later = {name for name in ours if POSITION.get(name, 0) > POSITION[home(path)]}
    assert not later
    assert set(ours) - POSITION.keys() <= set(rnr_gym.__all__) | {"__version__"}


def test_the_package_itself_imports_only_the_registration():
    found = {name for name in imports(PACKAGE / "__init__.py") if name.startswith("rnr_gym")}
    assert found == {"rnr_gym.registration.register"}


@EVERY
def test_the_core_knows_no_gymnasium_and_the_environments_no_sb3(path):
    outside = {name.split(".")[0] for name in imports(path)}
    position = POSITION.get(home(path), len(ORDER))
    if position <= POSITION["routing"] and home(path) != "registration":
        assert "gymnasium" not in outside
    if position <= POSITION["envs"]:
        assert not outside & {"stable_baselines3", "sb3_contrib"}


def test_the_walk_over_imports_sees_what_it_should(tmp_path):
    code = "import a.b\nif TYPE_CHECKING:\n    import c\nfrom d import e\ndef f():\n    from . import g\n    from .h import i\n"
    visitor = Imports("rnr_gym.envs")
    visitor.visit(ast.parse(code))
    assert visitor.found == {"a.b", "d.e", "rnr_gym.envs.g", "rnr_gym.envs.h.i"}


def test_importing_the_package_loads_neither_torch_nor_data():
    heavy = "('torch', 'torchvision', 'stable_baselines3', 'sklearn', 'matplotlib', 'scipy', 'rnr_gym.envs')"
    assert (
        fresh(f"import sys, rnr_gym; print([name for name in {heavy} if name in sys.modules])")
        == "[]"
    )


def test_every_public_name_is_there_and_no_other():
    for name in rnr_gym.__all__:
        assert getattr(rnr_gym, name) is not None
    with pytest.raises(AttributeError, match="`rnr_gym` has no attribute 'Nothing'"):
        _ = rnr_gym.Nothing


def test_the_environments_load_without_sb3():
    assert fresh("import sys, rnr_gym.envs; print('stable_baselines3' in sys.modules)") == "False"


def test_ids_are_registered_by_the_import_alone():
    code = "import gymnasium, rnr_gym; from rnr_gym.registration import IDS; print(all(name in gymnasium.registry for name in IDS))"
    assert fresh(code) == "True"

"""Importing is light, and imports inside the package go one way."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import rnr_gym

PACKAGE_DIR = Path(rnr_gym.__file__).parent
ORDER = (
    {"checks", "progress"},
    {"claims", "storage", "registration"},
    {"data"},
    {"backbones"},
    {"routing"},
    {"training", "envs", "testing"},
    {"sb3"},
    {"agents"},
    {"classifier"},
    {"onnx"},
    {"experiments"},
    {"demo"},
    {"cli"},
)
"""Folders and root modules; each imports from earlier sets and from itself, no more."""
POSITION = {name: number for number, names in enumerate(ORDER) for name in names}
TOP = PACKAGE_DIR / "__init__.py"
FILES = sorted(file for file in PACKAGE_DIR.rglob("*.py") if file != TOP)
FOLDERS = sorted(file.parent for file in FILES if file.name == "__init__.py")
EVERY_FILE = pytest.mark.parametrize(
    "file",
    FILES,
    ids=lambda file: file.relative_to(PACKAGE_DIR).as_posix(),
)
HEAVY = {
    "torch",
    "torchvision",
    "stable_baselines3",
    "sklearn",
    "matplotlib",
    "scipy",
    "rnr_gym.envs",
}
"""What takes long to import, and is not needed before an environment is made."""
FORMS = """
import a.b
if TYPE_CHECKING:
    import c
from d import e
def f():
    from . import g
    from .h import i
    from .. import j
"""
"""Code of a module of `rnr_gym.envs` that imports in every way there is."""


def run_python(code):
    """What a new interpreter prints."""
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    return process.stdout.strip()


class Imports(ast.NodeVisitor):
    """Collects the full names of all that a file imports when it runs, inside functions too.

    What only type checkers import is left out.

    Args:
        package: the package of the file, which relative imports start from.
    """

    def __init__(self, package):
        self.package = package
        self.names = set()

    def visit_If(self, node):
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)

    def visit_Import(self, node):
        self.names |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node):
        parts = []
        if node.level:
            # One dot is the package itself; every further dot drops its last part.
            parts = self.package.split(".")
            parts = parts[: len(parts) - node.level + 1]
        if node.module:
            parts.append(node.module)
        self.names |= {".".join([*parts, alias.name]) for alias in node.names}


def imported_names(file):
    """Full names of all that a file of the package imports."""
    package = ".".join(file.parent.relative_to(PACKAGE_DIR.parent).parts)
    visitor = Imports(package)
    visitor.visit(ast.parse(file.read_text()))
    return visitor.names


def imported_homes(file):
    """The folders and root modules that a file imports from."""
    names = imported_names(file)
    return {name.split(".")[1] for name in names if name.startswith("rnr_gym.")}


def home_of(file):
    """The folder or root module that a file belongs to."""
    return file.relative_to(PACKAGE_DIR).parts[0].removesuffix(".py")


def module_name(file):
    """The full name of a file's module."""
    parts = file.relative_to(PACKAGE_DIR.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def imported_modules(file, modules):
    """Which of `modules` a file imports, or imports something from."""
    imported = set()
    for name in imported_names(file):
        # `from rnr_gym.data import cifar` imports a module, `... import ImageSet` does not.
        if name not in modules:
            name = name.rpartition(".")[0]
        if name in modules:
            imported.add(name)
    return imported


@EVERY_FILE
def test_module_imports_only_from_earlier_folders(file):
    home = home_of(file)
    assert home in POSITION, f"`{home}` has no position in the order"

    # `__version__` is no module: it is there before anything else is imported.
    for imported in imported_homes(file) - {home, "__version__"}:
        assert imported in POSITION, f"`{imported}` is imported by its public name"
        assert POSITION[imported] < POSITION[home]


def test_order_names_what_is_there():
    assert set(POSITION) == {home_of(file) for file in FILES}


def test_modules_import_without_cycles():
    modules = {module_name(file) for file in FILES}
    graph = {module_name(file): imported_modules(file, modules) for file in FILES}
    # Raises `CycleError` if there is no order in which each module comes after its imports.
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) == modules
    assert order.index("rnr_gym.storage") < order.index("rnr_gym.cli")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_folder_has_a_docstring(folder):
    tree = ast.parse((folder / "__init__.py").read_text())
    assert ast.get_docstring(tree)


def test_every_folder_of_modules_is_a_package():
    homes = {file.parent for file in FILES}
    assert homes - {PACKAGE_DIR} == set(FOLDERS)


def test_package_itself_imports_only_registration():
    names = {name for name in imported_names(TOP) if name.startswith("rnr_gym")}
    assert names == {"rnr_gym.registration.register"}


@EVERY_FILE
def test_core_needs_no_gymnasium_and_envs_no_sb3(file):
    libraries = {name.split(".")[0] for name in imported_names(file)}
    home = home_of(file)
    if POSITION[home] <= POSITION["routing"] and home != "registration":
        assert "gymnasium" not in libraries
    if POSITION[home] <= POSITION["envs"]:
        assert not libraries & {"stable_baselines3", "sb3_contrib"}


def test_import_visitor_sees_every_form():
    visitor = Imports("rnr_gym.envs")
    visitor.visit(ast.parse(FORMS))
    assert visitor.names == {"a.b", "d.e", "rnr_gym.envs.g", "rnr_gym.envs.h.i", "rnr_gym.j"}


def test_package_import_loads_no_heavy_library():
    code = f"import sys, rnr_gym; print({HEAVY} & sys.modules.keys())"
    assert run_python(code) == "set()"


@pytest.mark.parametrize("name", rnr_gym.__all__)
def test_public_name_is_there(name):
    assert getattr(rnr_gym, name) is not None


def test_unknown_public_name_raises():
    with pytest.raises(AttributeError, match="module `rnr_gym` has no attribute 'Nothing'"):
        _ = rnr_gym.Nothing


def test_envs_import_without_sb3():
    code = "import sys, rnr_gym.envs; print('stable_baselines3' in sys.modules)"
    assert run_python(code) == "False"


def test_package_import_registers_every_id():
    code = """
import gymnasium, rnr_gym
from rnr_gym.registration import IDS
print(IDS.keys() <= gymnasium.registry.keys())
"""
    assert run_python(code) == "True"

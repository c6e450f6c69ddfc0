"""Builds the package and tries the wheel in an empty environment of every Python that is there.

Run: `make wheels`. It takes a few minutes for each Python, most of them to install torch.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fixtures.documents import ROOT, blocks

PYTHONS = ("3.11", "3.12", "3.13")


def main():
    """Try all of them; the exit code says whether the wheel works on each that was found."""
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        dist_dir = Path(folder) / "dist"
        build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist_dir)]
        subprocess.run([*build, str(ROOT)], check=True, stdout=subprocess.DEVNULL)
        (wheel,) = dist_dir.glob("*.whl")
        for version in PYTHONS:
            python = interpreter(version)
            if python is None:
                print(f"Python {version}: not found")
                continue
            print(f"Python {version}: installing {wheel.name}", flush=True)
            works = tried(python, wheel, Path(folder) / version)
            print(f"Python {version}: {'works' if works else 'FAILED'}", flush=True)
            if not works:
                failed.append(version)
    return 1 if failed else 0


def interpreter(version):
    """The path of an interpreter that runs and is of this version; None if there is none."""
    found = shutil.which(f"python{version}")
    if found is None:
        return None
    # A shim of a version manager is there even where it has no Python to start.
    shown = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    return found if re.match(rf"Python {re.escape(version)}\.", shown.stdout) else None


def tried(python, wheel, env_dir):
    """Whether the README's first example and the command work where only the wheel is installed."""
    example = next(block.code for block in blocks("README.md") if block.language == "python")
    bin_dir = env_dir / "bin"
    commands = [
        [python, "-m", "venv", str(env_dir)],
        [str(bin_dir / "python"), "-m", "pip", "install", "--quiet", str(wheel)],
        [str(bin_dir / "python"), "-c", example],
        [str(bin_dir / "rnr-gym"), "envs"],
    ]
    for command in commands:
        # Outside the checkout, so that nothing but the wheel can be imported.
        done = subprocess.run(command, cwd=env_dir.parent, check=False)
        if done.returncode != 0:
            return False
    shutil.rmtree(env_dir)
    return True


if __name__ == "__main__":
    sys.exit(main())

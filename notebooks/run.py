"""Run notebooks in new kernels and store the outputs in them.

`python notebooks/run.py` runs all notebooks of this folder; names of files may be given instead.
"""

import base64
import io
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image, ImageChops, ImageStat

TIMEOUT = 300
"""Seconds that one cell may take."""
COLOURS = 128
"""Colours of a stored diagram: so few make its file a third as large."""
VISIBLE = 0.3
"""Mean change of pixels, of 0..255, from which on a picture keeps its colours."""


def kernel_env() -> dict[str, str]:
    """The environment of the kernel: with pictures, and with the command `rnr-gym`."""
    # A backend that was chosen for other programs would show no pictures.
    env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    # The command is next to Python, also where the virtual environment is not activated.
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    return env


def smaller(png: str) -> str:
    """A picture in base64: diagrams with few colours, photographs as they were."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    reduced = picture.quantize(COLOURS, dither=Image.Dither.NONE)
    change = ImageStat.Stat(ImageChops.difference(picture, reduced.convert("RGB"))).mean
    if max(change) > VISIBLE:
        return png

    buffer = io.BytesIO()
    reduced.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def shrink_pictures(notebook: nbformat.NotebookNode) -> None:
    """Store every picture once, and diagrams with few colours."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                # Pillow's images come in both formats.
                data.pop("image/jpeg", None)
                data["image/png"] = smaller(data["image/png"])


def run(path: Path) -> None:
    """Run one notebook; raises `CellExecutionError` if a cell does, and stores nothing then."""
    notebook = nbformat.read(path, as_version=4)
    # What a notebook writes is not left in this folder.
    with tempfile.TemporaryDirectory() as working_dir:
        client = NotebookClient(
            notebook,
            timeout=TIMEOUT,
            kernel_name="python3",
            resources={"metadata": {"path": working_dir}},
            # Times would differ at every run, and so might where one line of text is cut off.
            record_timing=False,
            coalesce_streams=True,
        )
        client.execute(env=kernel_env())

    shrink_pictures(notebook)
    # The kernel adds its version, which is that of one machine.
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, path)


def main() -> None:
    paths = [Path(name) for name in sys.argv[1:]] or sorted(Path(__file__).parent.glob("*.ipynb"))
    for number, path in enumerate(paths, 1):
        print(f"{number} of {len(paths)}: {path.name}", flush=True)
        run(path)


if __name__ == "__main__":
    main()

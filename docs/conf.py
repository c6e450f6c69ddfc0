"""Sphinx's configuration. `generate.py` writes what is not in the repository as a page."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent))

import generate  # noqa: E402
import rendering  # noqa: E402

import rnr_gym  # noqa: E402

project = "rnr-gym"
author = "The rnr-gym developers"
copyright = author
version = rnr_gym.__version__
release = version

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "generated/parts"]

# Pages. `#name` in a link is a heading's name, as on GitHub.
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
# Notebooks are stored with their outputs.
nb_execution_mode = "off"
# Widgets would need scripts from the network.
nb_ipywidgets_js = {}

# Docstrings: Google style, single backticks for code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
# Docstrings give dtypes and shapes; the annotations would repeat the first only.
napoleon_attr_annotations = False
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "rnr-gym"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_math_renderer = "mathml"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}


def setup(app):
    """Write the generated pages, before Sphinx looks for pages."""
    generate.write_pages(HERE / "generated")
    rendering.setup(app)

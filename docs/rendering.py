"""How the site shows formulas, docstrings, and names of types: all of it without a network."""

from __future__ import annotations

import html
import re
from typing import Any

import numpy as np
from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.addnodes import desc_annotation, pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import rnr_gym

logger = logging.getLogger(__name__)
ARRAY = re.compile(
    r"(?:~numpy\.)?ndarray\[tuple\[(?:~typing\.)?Any, \.\.\.\], "
    r"(?:~numpy\.)?dtype\[~?(?P<dtype>[\w.]+)\]\]"
)
"""`NDArray[...]` as autodoc writes it into signatures, and as it shows it for properties."""
SYNONYMS = {
    r"\\dots\b": r"\\ldots",
    # Sizes of brackets, which browsers choose.
    r"\\[bB]igg?(?![A-Za-z])": "",
}
"""Commands of LaTeX that docutils does not know, and others that mean the same."""
MARKDOWN_DOCSTRINGS = {
    "rnr_gym.RoutingEnv": "Its docstring is the page :doc:`/generated/environment`.",
}
"""Objects whose docstring is Markdown, which autodoc cannot read, and what to say instead."""


def setup(app: Sphinx) -> None:
    """Connect what is defined below."""
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(inline_math, None),
        block_renderers=(block_math, None),
    )
    # Before napoleon, which comes at 500.
    app.connect("autodoc-process-docstring", fix_docstring, priority=400)
    app.connect("autodoc-process-signature", shorten_arrays)
    app.connect("doctree-read", shorten_properties)
    app.connect("missing-reference", resolve_type)


def inline_math(translator: Any, node: nodes.math) -> None:
    """A formula in a line, as MathML, which browsers show without a script."""
    translator.body.append(mathml(node, as_block=False))
    raise nodes.SkipNode


def block_math(translator: Any, node: nodes.math_block) -> None:
    """A formula that has a line of its own."""
    translator.body.append(f'<div class="math">{mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def mathml(node: nodes.Element, as_block: bool) -> str:
    """A formula; with a warning, and as LaTeX, where docutils does not know a command."""
    formula = node.astext()
    for pattern, known in SYNONYMS.items():
        formula = re.sub(pattern, known, formula)
    try:
        return tex2mathml(formula, as_block=as_block)
    except MathError as error:
        logger.warning("%s in %r", error, formula, location=node)
        return f"<code>{html.escape(formula)}</code>"


def fix_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Put a pointer in the place of a docstring that is Markdown; keep letters as they are."""
    if name in MARKDOWN_DOCSTRINGS:
        lines[:] = [MARKDOWN_DOCSTRINGS[name]]
    # Without the backslash, an argument that is described as `N.` would begin a numbered list.
    lines[:] = [re.sub(r"^(\s*\w+: [A-Z])\.$", r"\1\\.", line) for line in lines]


def shorten_arrays(
    app: Sphinx,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    signature: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    """Write `NDArray[float32]` again, which autodoc has expanded."""
    if signature is not None:
        signature = ARRAY.sub(short_array, signature)
    if returned is not None:
        returned = ARRAY.sub(short_array, returned)
    return signature, returned


def shorten_properties(app: Sphinx, doctree: nodes.document) -> None:
    """The same for properties, whose types have no event of their own."""
    for annotation in doctree.findall(desc_annotation):
        text = annotation.astext()
        if ARRAY.search(text):
            annotation.children = [nodes.Text(ARRAY.sub(short_array, text))]


def short_array(match: re.Match[str]) -> str:
    """`NDArray[float32]`, or `NDArray` where any dtype will do."""
    dtype = match["dtype"].removeprefix("numpy.")
    if hasattr(np, dtype):
        return f"NDArray[{dtype}]"
    return "NDArray"


def resolve_type(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element
) -> nodes.Element | None:
    """A type of a signature: a link if it is public, else its name as text.

    Classes live in other modules than the public names that the reference documents. Types of
    other packages have no link, because their documentation is not at hand when the site is built.
    """
    if node.get("refdomain") != "py":
        return None

    module, _, name = node["reftarget"].rpartition(".")
    if module == "rnr_gym":
        # Sphinx has looked for it: it is no public name.
        return None
    if module.startswith("rnr_gym.") and name in rnr_gym.__all__:
        domain = env.get_domain("py")
        return domain.resolve_xref(
            env, node["refdoc"], app.builder, "obj", f"rnr_gym.{name}", node, contnode
        )
    return contnode

"""Sphinx: `sphinx-build -W docs site` builds the documentation. Every warning is an error."""

import re

from deepjax import __version__

project = "deepjax"
version = release = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "deepjax"
nb_execution_mode = "off"
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath", "amsmath"]
default_role = "code"
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "none"
suppress_warnings = ["ref.python"]  # a word in backticks that is a field of several classes


def setup(app):
    """Docstrings are plain text, in which * and | are signs of a formula, not of reStructuredText."""
    app.connect("autodoc-process-docstring", _escape, priority=100)


def _escape(app, what, name, subject, options, lines):
    for i, line in enumerate(lines):
        if ">>>" not in line:
            parts = re.split(r"(`[^`]*`)", line)
            lines[i] = "".join(part if part.startswith("`") else re.sub(r"([*|\\])", r"\\\1", part) for part in parts)

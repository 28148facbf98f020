"""Sphinx: Markdown pages, and the API from the docstrings. `make docs` writes docs/_build/html."""

project = "robustlib"
copyright = "the robustlib authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "robustlib"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
# Links to files of the repository (code, notebooks, rows) lie outside of the pages.
suppress_warnings = ["myst.xref_missing"]
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False


def as_written(app, what, name, obj, options, lines) -> None:
    """Docstrings are plain text with `code`, not reStructuredText: quotes are doubled, indented
    blocks and stars kept as they are."""
    text = "\n".join(lines).replace("``", "`").replace("`", "``").replace("*", "\\*")
    out, block = [], False
    for line in text.splitlines():
        deep = line.startswith("    ")
        if deep and not block:
            out += ["", "::", ""]
        if block and not deep and line:
            out.append("")
        block = deep or (block and not line)
        out.append(line.replace("\\*", "*") if deep else line.replace("|", "\\|"))
    lines[:] = [*out, ""]


def setup(app) -> None:
    app.connect("autodoc-process-docstring", as_written)

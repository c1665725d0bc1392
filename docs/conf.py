"""Settings of Sphinx. `docs/build_site.py` writes the source folder and calls Sphinx with this file."""

from sphinx.application import Sphinx

from drpruning import __version__

project = "drpruning"
copyright = "the drpruning authors"  # noqa: A001 - Sphinx reads this name
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "index"
highlight_language = "text"  # indented blocks are commands and tables
default_role = "py:obj"  # `name` in a docstring links where the name has a page
suppress_warnings = ["misc.highlighting_failure"]  # a shell line with an unpaired quote is still shown

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # tests/test_tutorials.py runs the notebooks; their outputs are stored

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"drpruning {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5fa8", "color-brand-content": "#1f5fa8"},
    "dark_css_variables": {"color-brand-primary": "#7fb2ec", "color-brand-content": "#7fb2ec"},
}
copybutton_prompt_text = "$ "


def setup(app: Sphinx) -> None:
    """Leave the compiled module out of the list of sources, which would link to a page that viewcode does not write."""

    def drop_compiled(app: Sphinx) -> list[tuple[str, dict[str, object], str]]:
        getattr(app.env, "_viewcode_modules", {}).pop("drpruning._native", None)
        return []

    app.connect("html-collect-pages", drop_compiled, priority=400)  # before viewcode's

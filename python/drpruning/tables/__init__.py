"""One type of table, and a writer for each place where tables appear: terminal, HTML, Markdown, LaTeX."""

from drpruning.tables.cells import Cell, Row, Table

__all__ = ["Cell", "Row", "Table"]

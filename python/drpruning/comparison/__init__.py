"""Methods beside each other: paired runs from the same bases, what they reached, and how sure that is.

A *method* is a row of the table: a strategy with settings of its own. :mod:`~drpruning.comparison.methods` reads them,
:mod:`~drpruning.comparison.runs` turns them into run folders, :mod:`~drpruning.comparison.results` reads those back,
:mod:`~drpruning.comparison.metrics` compares, :mod:`~drpruning.comparison.tables` writes it down.
"""

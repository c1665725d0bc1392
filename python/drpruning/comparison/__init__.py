"""Methods side by side: paired runs from the same bases, their results, and intervals of their differences.

A *method* is a row of the table: a strategy with its settings. :mod:`~drpruning.comparison.methods` reads methods,
:mod:`~drpruning.comparison.runs` maps them to run folders, :mod:`~drpruning.comparison.scheduler` runs them,
:mod:`~drpruning.comparison.results` reads the finished runs, :mod:`~drpruning.comparison.metrics` computes differences,
:mod:`~drpruning.comparison.tables` tabulates them, :mod:`~drpruning.comparison.export_tables` writes files.
"""

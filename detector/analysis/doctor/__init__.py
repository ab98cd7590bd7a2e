"""What is wrong with a data set: findings as plain data, a table and a page of them, and a cleaned copy.

The data flow: ``reading`` makes a :class:`detector.analysis.doctor.columns.Split` of a data set, however broken;
``files`` examines the image files; ``annotations``, ``images``, ``duplicates`` and ``sets`` return findings;
``examination`` calls them all; ``fixing`` (with ``names``) fixes what needs no judgement; ``table`` and ``page`` show
the report.
"""

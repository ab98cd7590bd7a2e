"""What is wrong with a data set: findings as plain data, a table and a page of them, and a cleaned copy.

Read it as data flowing: ``reading`` or ``folders`` makes a :class:`~detector.analysis.doctor.columns.Split` of whatever
is there, however broken; ``files`` looks at the images; ``annotations``, ``images``, ``copies`` and ``sets`` return
findings; ``examination`` calls them all; ``fixing`` fixes what can be fixed without a judgement; ``table`` and
``page`` show the report.
"""

"""What only a GPU can show, in one short visit: is it right, how fast is it, and where does a step's time go.

To add a part, write a function of :class:`detector.dev.gpu_check.check.Check` in ``correctness`` or ``times`` that
returns what the JSON file keeps, or raises, and add it to ``PARTS`` in ``runner``.
"""

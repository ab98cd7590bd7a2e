"""The commands: each module has ``add_arguments(parser)`` and ``run(args)``.

Heavy imports stand inside ``run``, so that ``--help`` answers at once.
"""

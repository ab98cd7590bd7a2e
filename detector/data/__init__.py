"""Data sets, transforms, samplers and collation: from files to :class:`detector.structures.Batch`."""

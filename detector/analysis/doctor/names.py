"""Correcting the file names of COCO annotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from detector.analysis.doctor.columns import Split
from detector.analysis.doctor.files import FileFacts
from detector.data.names import Names, files_below, is_certain


def fix_names(tree: dict[str, Any], split: Split, facts: Sequence[FileFacts]) -> list[dict[str, Any]]:
    """Give images whose names have no file or lead out of the folder the name of the file that is meant, in place.

    Only if that is a single file, its folders do not contradict it, and no other image has it; returns every change.
    """
    names = Names(files_below(split.root))
    meant = {
        index: found[0]
        for index, own in enumerate(facts)
        if own.fault in ("file-missing", "file-outside") and split.files[index]
        if len(found := names.meant(split.files[index])) == 1 and is_certain(split.files[index], found[0])
    }
    times = Counter(file for index, file in enumerate(split.files) if index not in meant) + Counter(meant.values())
    changes = []
    for index, file in meant.items():
        image = tree["images"][index]
        if times[file] > 1 or not isinstance(image, dict):
            continue
        changes.append(
            {
                "check": facts[index].fault,
                "change": "renamed",
                "image": image.get("id"),
                "before": image["file_name"],
                "after": file,
            }
        )
        image["file_name"] = file
    return changes

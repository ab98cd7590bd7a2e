"""The report for a terminal, and as one JSON object."""

from __future__ import annotations

from typing import Any

import numpy as np

from detector.analysis.doctor.examination import Report
from detector.analysis.doctor.findings import Example, Finding
from detector.analysis.doctor.sets import SMALL_SIDES, SetFacts
from detector.data.transforms.resize import in_words
from detector.errors import counted

SHOWN = 3  # examples of each finding
NOT_LOOKED_FOR = "--quick read headers only: damaged and duplicate images were not looked for"


def format_report(report: Report) -> str:
    """Figures, findings and the verdict as text."""
    lines = [line for own in report.sets for line in _describe(own, report)]
    for finding in report.findings:
        lines += ["", *_format_finding(finding)]
    lines += ["", report.verdict]
    if report.is_quick:
        lines.append(NOT_LOOKED_FOR)
    return "\n".join(lines)


def _describe(own: SetFacts, report: Report) -> list[str]:
    lines = [f"{own.name}: {own.source}"]
    crowds = f", {counted(own.crowds, 'ignore region')}" if own.crowds else ""
    lines.append(
        f"  {counted(own.images, 'image')} ({own.empty:,} without {report.things}),"
        f" {counted(own.objects, report.things[:-1])} of {counted(len(own.classes), 'class')}{crowds}"
    )
    if own.objects and own.images:
        ordered = sorted(own.classes, key=lambda one: -one[1])
        shown = ordered if len(ordered) <= 6 else [*ordered[:3], ("…", -1, 0), *ordered[-3:]]
        lines.append("  " + ", ".join(name if count < 0 else f"{name} {count:,}" for name, count, _ in shown))
    if len(own.sizes):
        fractions = ", ".join(f"{own.fraction_under(side):.0%} under {side} px" for side in SMALL_SIDES)
        at = in_words(report.settings.resize)
        at += f" of tiles of {report.settings.tile}" if report.settings.tile else ""
        lines.append(
            f"  objects per image: median {np.median(own.objects_per_image):.0f}, at most"
            f" {max(own.objects_per_image):,}; size at {at}: median"
            f" {np.median(own.sizes):.0f} px, {fractions}"
        )
    return lines


def _format_finding(finding: Finding) -> list[str]:
    detail = f" ({finding.detail})" if finding.detail else ""
    lines = [
        f"{finding.severity.upper():8} {finding.split}: {finding.what}: {finding.count:,}{detail} [{finding.check}]"
    ]
    lines += [f"           {describe_example(example)}" for example in finding.examples[:SHOWN]]
    if finding.count > SHOWN:
        lines[-1] += ", …"
    lines.append(f"         → {finding.remedy}")
    return lines


def describe_example(example: Example) -> str:
    """One line: file, annotation, box, and what else is known."""
    parts = []
    if example.file:
        parts.append(f"{example.split}: {example.file}" if example.split != example.other_split else example.file)
    if example.other:
        is_across = example.split != example.other_split
        parts.append(f"like {example.other_split}: {example.other}" if is_across else f"like {example.other}")
    if example.annotation is not None:
        parts.append(f"annotation {example.annotation}")
    if example.box is not None:
        parts.append(f"[{', '.join(f'{number:g}' for number in example.box)}]")
    text = " ".join(parts)
    return f"{text}: {example.detail}" if text and example.detail else text + example.detail


def as_object(report: Report) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "verdict": report.verdict,
        "quick": report.is_quick,
        "findings": [
            {
                "check": finding.check,
                "severity": finding.severity,
                "split": finding.split,
                "count": finding.count,
                "what": finding.what,
                "detail": finding.detail,
                "remedy": finding.remedy,
                "examples": [_example_object(example) for example in finding.examples],
            }
            for finding in report.findings
        ],
        "splits": [_set_object(own) for own in report.sets],
    }


def _example_object(example: Example) -> dict[str, Any]:
    """The fields that are known; JSON has no NaN, so NaN and infinities become text."""
    known = {
        "split": example.split,
        "file": example.file,
        "annotation": example.annotation,
        "detail": example.detail,
        "other_split": example.other_split,
        "other": example.other,
    }
    box = [number if np.isfinite(number) else str(number) for number in example.box or ()]
    return {key: value for key, value in known.items() if value not in ("", None)} | ({"box": box} if box else {})


def _set_object(own: SetFacts) -> dict[str, Any]:
    quantiles = [0.01, 0.1, 0.5, 0.9, 0.99]
    return {
        "split": own.name,
        "source": own.source,
        "images": own.images,
        "images_without_objects": own.empty,
        "objects": own.objects,
        "crowds": own.crowds,
        "classes": [{"name": name, "objects": objects, "images": images} for name, objects, images in own.classes],
        "objects_an_image": {
            "median": float(np.median(own.objects_per_image)) if own.images else 0.0,
            "max": max(own.objects_per_image, default=0),
        },
        "object_size": {
            f"p{round(100 * quantile)}": round(float(np.quantile(own.sizes, quantile)), 2) for quantile in quantiles
        }
        if len(own.sizes)
        else {},
        "share_under": {str(side): round(own.fraction_under(side), 4) for side in SMALL_SIDES}
        if len(own.sizes)
        else {},
        "image_sizes": [{"size": size, "images": count} for size, count in own.image_sizes],
    }

"""The whole examination of a data set: train, or each of several sets to train on, and val."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from detector.analysis.doctor.annotations import check_annotations
from detector.analysis.doctor.columns import Split
from detector.analysis.doctor.duplicates import check_duplicates
from detector.analysis.doctor.files import FileFacts, look_at_files
from detector.analysis.doctor.findings import SEVERITIES, Finding, Severity, sort_findings
from detector.analysis.doctor.images import check_images, check_unlisted, image_sizes
from detector.analysis.doctor.sets import SetFacts, check_sets, describe
from detector.config.schema import ResizeConfig
from detector.data.names import leads_out
from detector.errors import counted


@dataclass(frozen=True)
class Settings:
    """The values of a config that affect the checks."""

    resize: ResizeConfig = field(default_factory=ResizeConfig)
    in_channels: int = 3
    max_detections: int = 100
    exif: str = "auto"
    max_value: int | None = None
    allow_outside: bool = False
    tile: int | None = None  # data.tiles.size


@dataclass(frozen=True)
class Report:
    """The splits, their files and figures, and all findings."""

    splits: Sequence[Split]
    files: Sequence[Sequence[FileFacts]]  # of each split
    sets: Sequence[SetFacts]
    findings: Sequence[Finding]
    settings: Settings
    is_quick: bool

    def count(self, severity: Severity) -> int:
        """Findings of one severity."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def things(self) -> str:
        """What the images are annotated with."""
        return "objects" if self.splits[0].has_boxes else "labels"

    @property
    def verdict(self) -> str:
        counts = {severity: self.count(severity) for severity in SEVERITIES}
        said = ", ".join(counted(count, name) for name, count in counts.items() if count)
        return said or "nothing found"


def examine(splits: Sequence[Split], settings: Settings, is_quick: bool) -> Report:
    """Every check on each split, and on all together."""
    files = [_look_at_files(split, settings, is_quick) for split in splits]
    sets = [
        describe(split, image_sizes(split, own), settings.resize, settings.tile)
        for split, own in zip(splits, files, strict=True)
    ]
    return Report(splits, files, sets, sort_findings(_findings(splits, files, sets, settings)), settings, is_quick)


def _look_at_files(split: Split, settings: Settings, is_quick: bool) -> list[FileFacts]:
    """The facts of each file; names that lead out of the folder are not followed."""
    is_outside = [not settings.allow_outside and leads_out(file) for file in split.files]
    inside = [split.path(index) for index, is_out in enumerate(is_outside) if not is_out]
    facts = iter(look_at_files(inside, is_quick, split.name, settings.in_channels))
    return [FileFacts("file-outside") if is_out else next(facts) for is_out in is_outside]


def _findings(
    splits: Sequence[Split], files: Sequence[Sequence[FileFacts]], sets: Sequence[SetFacts], settings: Settings
) -> Iterator[Finding]:
    for split, own in zip(splits, files, strict=True):
        yield from check_annotations(split, image_sizes(split, own))
        yield from check_images(split, own, settings.in_channels, settings.exif, settings.max_value)
    yield from check_unlisted(splits, files)
    yield from check_duplicates(splits, files)
    yield from check_sets(splits, sets, settings.max_detections)

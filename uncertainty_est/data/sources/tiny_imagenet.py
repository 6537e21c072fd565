"""Tiny ImageNet as it is published, whose validation images are told apart by a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from uncertainty_est.data.sources.image_files import ImageFiles
from uncertainty_est.data.sources.image_folder import ImageFolder, folders_in
from uncertainty_est.data.sources.table_files import TableFile
from uncertainty_est.own_data import Part

_TABLE = "val_annotations.txt"


@dataclass(eq=False, kw_only=True)
class TinyImageNet(ImageFolder):
    """200 classes of 500 training and 50 validation images, 64x64 colour: the folder ``tiny-imagenet-200``.

    The published validation images are the test part, since labels of the published test images are not; validation
    is cut from the training part. The table ``val/val_annotations.txt`` tells their classes, unless somebody has
    sorted them into a folder for each class.
    """

    parts: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "test": "val"}, init=False)

    @cached_property
    def class_names(self) -> list[str]:
        if "train" not in self._places:
            raise self._error("no train part there, which names the classes")
        return folders_in(self._places["train"])

    def list_part(self, part: Part, place: Path) -> tuple[ImageFiles, list[int]]:
        table = TableFile(place.parent / _TABLE, self.page)  # `place` is the one folder that lies beside the table
        if part == "train" or not table.path.is_file():
            return super().list_part(part, place)
        label = {name: number for number, name in enumerate(self.class_names)}
        files, labels = [], []
        for line in table.lines():
            name, name_of_class = (*line.split("\t"), "")[:2]
            if name_of_class not in label:
                raise table.error(f"has the line '{line}', which names no class of the training images")
            files.append(name)
            labels.append(label[name_of_class])
        return ImageFiles(place, files), labels

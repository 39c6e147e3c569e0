"""Fundus photographs with and without glaucoma, in one folder per split and class, the source in the file's name.

    <data_dir>/<train|val|test>/<0|1>/<SOURCE>-<number>.png

Names are those of SMDG (Kiefer et al. 2023), which gathers photographs of many cameras and hospitals: BEH-261,
EyePACS-Glaucoma-37, OIA-ODIR-TEST-OFFLINE-327. The source is the environment.
"""

import re
from collections import defaultdict
from typing import Annotated, ClassVar

from pydantic import AfterValidator

from domainbed.datasets import labels, splits
from domainbed.datasets.augment import AUGMENTATIONS
from domainbed.datasets.folder import Folder, FoundImage, valid_regex
from domainbed.datasets.labels import plain
from domainbed.datasets.listing import PassedOver, folders_in, images_below, images_in, some
from domainbed.errors import UserError, did_you_mean
from domainbed.hparams import Field, Names, names_in
from domainbed.registry import DATASETS

#: The text before the first hyphen; OIA-ODIR has one in its name.
SOURCE = r"^(OIA-ODIR|[^-]+)-"


@DATASETS.register("Glaucoma")
class Glaucoma(Folder):
    """Fundus photographs in <data_dir>/<train|val|test>/<0|1>/<SOURCE>-<n>.png; the source is the environment.

    The classes are 0, no glaucoma, and 1, glaucoma. The given split is kept.
    """

    class HParams(Folder.HParams):
        """What tells the environment, and an augmentation that suits fundus photographs."""

        environment_pattern: Annotated[str, AfterValidator(valid_regex)] = Field(
            SOURCE,
            description="regular expression searched in a file's name without suffix; its first group, or else the "
            "whole match, is the environment",
        )
        augment: Annotated[Names, names_in(AUGMENTATIONS)] = Field(
            ["crop_scale", "horizontal_flip", "rotation", "color_jitter"],
            description=Folder.HParams.model_fields["augment"].description,
        )

    layout: ClassVar[str] = "<data_dir>/<train|val|test>/<0|1>/<SOURCE>-<n>.png"
    source: ClassVar[str] = "https://www.kaggle.com/datasets/deathtrooper/multichannel-glaucoma-benchmark-dataset"
    hparams: HParams

    def _find(self) -> dict[str, list[FoundImage]]:
        passed_over = PassedOver()
        folders = folders_in(self._root, passed_over)
        tops = [name for name in folders if splits.spelled(name)]
        if not tops:
            raise self._fault(
                f"{str(self._root)!r} holds no folder of a split", "Give the folder that holds train, val and test"
            )
        pattern = re.compile(self.hparams.environment_pattern)
        found: dict[str, list[FoundImage]] = defaultdict(list)
        strange, unnamed = [], []
        for path in (path for top in tops for path in images_below(self._root / top, (top,), passed_over)):
            name = "/".join(path)
            match = pattern.search(path[-1].rpartition(".")[0])
            environment = match and (match[1] if pattern.groups else match[0])
            if len(path) != 3 or path[1] not in ("0", "1"):
                strange.append(name)
            elif not environment:
                unnamed.append(name)
            else:
                found[plain(environment)].append(FoundImage(name, path[1], None, splits.spelled(path[0])))
        if strange:
            raise self._fault(
                f"{str(self._root)!r} has other images: {some(strange)}", "Move them into such folders, or away"
            )
        if unnamed:
            raise UserError(
                f"Glaucoma: environment_pattern = {pattern.pattern!r} finds no environment in {some(unnamed)}. Rename "
                "these files, or give a pattern that matches"
            )
        shown = repr(str(self._root))
        if not found:
            unread = f" ({passed_over.what_is_unread()})" if passed_over.unread else ""
            raise self._fault(f"{shown} holds no image{unread}", "Give another folder")
        wanted = [plain(name) for name in self.hparams.environments or found]
        for name in wanted:
            if name not in found:
                raise UserError(f"no environment {name!r} in {shown}{did_you_mean(name, found)}")
        beside = sorted({*folders, *images_in(self._root)} - {*tops})
        if beside:
            self.log.append(f"{shown}: in no folder of a split, so not read: {some(beside)}")
        passed_over.report(shown, sum(map(len, found.values())), self.log, self.notes)
        return {name: found[name] for name in wanted}

    def _order(self, folders: set[tuple[str, str]]) -> labels.Scale:
        return labels.Scale(["no_glaucoma", "glaucoma"], {"0": 0, "1": 1}, ordinal=False)

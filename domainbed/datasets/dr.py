"""Folders of fundus photographs graded for diabetic retinopathy. Layouts are in `folder`, spellings in `labels`."""

from typing import Annotated, ClassVar

from pydantic import AfterValidator

from domainbed.datasets import labels
from domainbed.datasets.augment import AUGMENTATIONS
from domainbed.datasets.folder import Folder, valid_regex
from domainbed.datasets.preprocess import PREPROCESSINGS
from domainbed.hparams import Field, Names, names_in
from domainbed.registry import DATASETS

#: The two eyes of a patient: 10_left and 10_right, Patient001_L and Patient001-R, 7_OD and 7_OS, Image_01L.
EYES = r"(?i)^(.+?)(?:[ ._-]+|(?<=[0-9]))(?:left|right|l|r|od|os)$"


@DATASETS.register("DR")
class DR(Folder):
    """Fundus photographs in <data_dir>/<camera or hospital>/<grade of diabetic retinopathy, 0 to 4>/.

    The classes are the five grades of the international scale, also where nobody has one of them.
    """

    class HParams(Folder.HParams):
        """Defaults that suit fundus photographs."""

        preprocess: Annotated[Names, names_in(PREPROCESSINGS)] = Field(
            ["crop_retina", "resize"], description=Folder.HParams.model_fields["preprocess"].description
        )
        augment: Annotated[Names, names_in(AUGMENTATIONS)] = Field(
            ["crop_scale", "horizontal_flip", "rotation", "color_jitter"],
            description=Folder.HParams.model_fields["augment"].description,
        )
        group_pattern: Annotated[str | None, AfterValidator(valid_regex)] = Field(
            EYES, description=Folder.HParams.model_fields["group_pattern"].description
        )

    layout: ClassVar[str] = "<data_dir>/<environment>/<grade>/*.jpg"
    defaults: ClassVar[dict[str, object]] = {"steps": 10_000}

    def _order(self, folders: set[tuple[str, str]]) -> labels.Scale:
        index = {}
        for environment, folder in sorted(folders):
            grade = labels.grade(folder)
            if grade is None:
                raise self._fault(
                    f"{folder!r} of environment {environment!r} is no grade",
                    f"Rename or move it; known are {labels.GRADE_SPELLINGS}. For other classes use --dataset Folder",
                )
            index[folder] = grade
        return labels.Scale(list(labels.GRADES), index, ordinal=True)

"""Whether a run that goes on has the images that it began with."""

import unicodedata
from pathlib import Path

import pytest

from domainbed.datasets.prepare import check_same_images
from domainbed.errors import UserError

HEAD = "image,environment,split,class,group,content\n"
ROW = "{name}/1.jpg,cam,train,{name},{name},abc\n"


def test_an_earlier_run_wrote_names_as_they_were_on_disk(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "Modéré") for form in ("NFC", "NFD"))
    path = tmp_path / "images.csv"
    path.write_text(HEAD + ROW.format(name=apart), encoding="utf-8")
    check_same_images(path, HEAD + ROW.format(name=apart).replace(f",{apart}", f",{composed}"))
    with pytest.raises(UserError, match="are not those that this run began with"):  # another file
        check_same_images(path, HEAD + ROW.format(name=composed))
    with pytest.raises(UserError, match="are not those that this run began with"):  # te_<environment> would be another
        check_same_images(path, HEAD + ROW.format(name=apart).replace("cam", "cam\u200b"))
    path.write_text(HEAD + '"' + "x\n" * 100_000, encoding="utf-8")
    with pytest.raises(UserError, match="are not those that this run began with"):
        check_same_images(path, HEAD + ROW.format(name=composed))

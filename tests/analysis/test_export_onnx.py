"""Every registered algorithm as ONNX: onnxruntime answers what the algorithm's own methods answer."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_models import CLASSES, expected, saved

from domainbed.analysis import export
from domainbed.errors import UserError
from domainbed.registry import ALGORITHMS


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_every_algorithm_as_onnx(name: str, tmp_path: Path) -> None:
    algorithm, path = saved(name, tmp_path)
    if name == "CodePrior":
        with pytest.raises(UserError, match="answers nothing for an image alone.*--to safetensors"):
            export.analyse(path, tmp_path / "out", formats=["onnx"])
        return
    found = export.analyse(path, tmp_path / "out", formats=["onnx"])
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    names = [one.name for one in session.get_outputs()]
    x = torch.rand(3, 3, 16, 16)
    truth = expected(algorithm, x)
    assert {*names} == {*truth} == {*found["files"][0]["difference"]}
    for size in (1, 3):  # the batch is free
        for output, value in zip(names, session.run(None, {"x": x[:size].numpy()}), strict=True):
            assert value.dtype == (np.int64 if output == "codes" else np.float32)
            np.testing.assert_allclose(value, truth[output][:size].numpy(), atol=1e-4)
    about = json.loads(session.get_modelmeta().custom_metadata_map["domainbed"])
    assert about["algorithm"] == name and about["data"]["preprocess"] == ["resize"] and about["classes"] == CLASSES
    assert about["outputs"] == names and about["masks"] == ("softmax" if name == "UNet" else None)

"""Shapes at any size, the counts of the paper, and what sees what."""

import pytest
import torch

from domainbed.errors import UserError
from domainbed.networks.encoders import TimmEncoder
from domainbed.networks.unet import ConvPyramid, TimmPyramid, UNetwork, padded_shape


def unet(down: str = "maxpool", up: str = "transposed", width: int = 4, depth: int = 3, channels: int = 3) -> UNetwork:
    torch.manual_seed(0)
    return UNetwork(ConvPyramid(channels, width, depth, down), width, up, num_classes=2).eval()


@pytest.mark.parametrize("size", [(32, 32), (33, 33), (17, 23), (1, 5), (3, 40)])
@pytest.mark.parametrize(("down", "up"), [("maxpool", "transposed"), ("strided", "upsample")])
def test_logits_have_the_size_of_the_image(size: tuple[int, int], down: str, up: str) -> None:
    with torch.no_grad():
        assert unet(down, up)(torch.rand(2, 3, *size)).shape == (2, 2, *size)


def test_the_paper_s_number_of_convolutions_and_channels() -> None:
    """Ronneberger et al. 2015: "In total the network has 23 convolutional layers"; 64 to 1024 channels."""
    network = UNetwork(ConvPyramid(1, 64, 4, "maxpool"), 64, "transposed", 2)
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    assert len(layers) == 23
    assert network.encoder.channels == {0: 64, 1: 128, 2: 256, 3: 512, 4: 1024}


def test_only_strided_convolutions_and_upsampling_differ() -> None:
    def kinds(network: UNetwork) -> list[str]:
        return [type(module).__name__ for module in network.modules()]

    assert kinds(unet("strided")).count("Conv2d") == kinds(unet("maxpool")).count("Conv2d") + 3
    assert kinds(unet(up="upsample")).count("Upsample") == kinds(unet()).count("ConvTranspose2d") == 3


def test_an_image_that_was_padded_is_answered_as_if_its_border_went_on() -> None:
    network, image = unet(), torch.rand(1, 3, 13, 16)
    padded = torch.nn.functional.pad(image, (0, 0, 1, 2), mode="replicate")  # 16 rows, one above and two below
    with torch.no_grad():
        torch.testing.assert_close(network(image), network(padded)[..., 1:14, :])


@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_features_of_every_level_reach_the_answer_beside_those_from_below(level: int) -> None:
    network = unet()
    with torch.no_grad():
        features = network.encoder(torch.rand(1, 3, 16, 16))
        answer = network.decoder(features)
        features[level] = features[level].flip(-1)  # those of the deeper levels stay as they are
        assert (network.decoder(features) - answer).abs().max() > 1e-3


def test_an_answer_does_not_depend_on_the_batch_in_training_either() -> None:
    network, images = unet().train(), torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(network(images)[:1], network(images[:1]))


@pytest.mark.parametrize("model", ["test_resnet", "test_efficientnet", "test_convnext"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 17, 23)])
def test_an_encoder_of_timm(model: str, shape: tuple[int, int, int]) -> None:
    pyramid = TimmPyramid(TimmEncoder(model, padded_shape(model, shape)), model)
    network = UNetwork(pyramid, 4, "transposed", 3)
    x = torch.rand(2, *shape)
    assert network(x).shape == (2, 3, *shape[1:])
    network(x).sum().backward()
    assert not [name for name, value in network.named_parameters() if value.grad is None]
    aligned = pyramid(torch.rand(1, shape[0], 64, 64))
    for level, feature in aligned.items():
        assert feature.shape == (1, pyramid.channels[level], 64 >> level, 64 >> level)


def test_an_encoder_without_several_sizes_is_refused() -> None:
    with pytest.raises(UserError, match="test_vit has no features at several sizes.*resnet18"):
        TimmPyramid(TimmEncoder("test_vit", (3, 160, 160)), "test_vit")


@pytest.mark.parametrize("model", ["swin_tiny_patch4_window7_224", "test_convnext"])
def test_an_encoder_sees_padded_images_and_is_built_for_them(model: str) -> None:
    shape = (1, 40, 50)
    padded = padded_shape(model, shape)
    assert padded == (1, 64, 64)
    with torch.device("meta"):
        network = UNetwork(TimmPyramid(TimmEncoder(model, padded), model), 4, "transposed", 3)
        assert network(torch.rand(2, *shape)).shape == (2, 3, *shape[1:])


@pytest.mark.parametrize("model", ["inception_v3", "test_vit"])
def test_a_model_whose_features_are_not_halvings_of_the_image_is_refused(model: str) -> None:
    with pytest.raises(UserError, match=f"{model} has no features at several sizes"):
        padded_shape(model, (3, 64, 64))

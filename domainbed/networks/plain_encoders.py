"""Encoders that are not timm's: a perceptron for vectors and small images, a small CNN for digits, and none at all.

Both networks are the featurizers with which DomainBed (Gulrajani & Lopez-Paz 2021) trains on vectors and on MNIST's
digits, so that its published results can be compared with. They take values as they are: nothing is normalised.
`encoders` has timm's backbones, and the names of the encoders here (`PLAIN`).
"""

import math

from torch import Tensor, nn

from domainbed.errors import UserError
from domainbed.networks.encoders import Dropout
from domainbed.networks.stages import Stage, StagedEncoder

#: Channels and stride of the four convolutions of DomainBed's CNN, and groups of each normalisation.
CNN_CONVOLUTIONS = ((64, 1), (128, 2), (128, 1), (128, 1))
CNN_GROUPS = 8


class PerceptronEncoder(StagedEncoder):
    """`model: mlp`: fully connected layers on vectors, or on flattened images.

    Args:
        input_shape: (F,) or (C, H, W).
        width: of every layer.
        depth: number of layers, 2 or more; all but the last are followed by dropout and ReLU.
        dropout: share of the values that training sets to 0 after each layer but the last.

    Attributes:
        num_features: the width.
    """

    def __init__(self, input_shape: tuple[int, ...], width: int, depth: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        inputs = math.prod(input_shape)
        for _ in range(depth - 1):
            layers += [nn.Linear(inputs, width), *([Dropout(dropout)] if dropout else []), nn.ReLU()]
            inputs = width
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, width))
        self.num_features = width

    @property
    def name(self) -> str:
        return "mlp"

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, F) for vectors (B, D) or images (B, C, H, W)."""
        return self.layers(x)


class SmallCNN(StagedEncoder):
    """`model: mnist_cnn`: four convolutions, each with ReLU and then group normalisation, and the mean over places.

    Args:
        input_shape: (C, H, W). It is made for 28 x 28 px and takes any size.

    Attributes:
        num_features: 128.
    """

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = input_shape[0]
        for outputs, stride in CNN_CONVOLUTIONS:
            convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
            layers.append(nn.Sequential(convolution, nn.ReLU(), nn.GroupNorm(CNN_GROUPS, outputs)))
            inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.num_features = inputs
        self._size = input_shape[1:]

    @property
    def name(self) -> str:
        return "mnist_cnn"

    @property
    def stages(self) -> tuple[Stage, ...]:
        found, (height, width) = [], self._size
        for index, (channels, stride) in enumerate(CNN_CONVOLUTIONS):
            height, width = -(-height // stride), -(-width // stride)
            found.append(Stage(f"conv{index + 1}", f"layers.{index}", False, (channels, height, width)))
        return tuple(found)

    @property
    def map_shape(self) -> tuple[int, ...]:
        return self.stages[-1].shape

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 128) for images (B, C, H, W)."""
        return self.pool(self.features_map(x))

    def features_map(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def pool(self, features: Tensor) -> Tensor:
        return features.mean((2, 3))


class IdentityEncoder(StagedEncoder):
    """`model: none`: vectors as they are, so that a linear head is a linear probe.

    Args:
        input_shape: (F,).

    Attributes:
        num_features: F.
    """

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        (self.num_features,) = input_shape

    @property
    def name(self) -> str:
        return "model = none"

    def forward(self, x: Tensor) -> Tensor:
        """Return the vectors (B, F)."""
        return x


PlainEncoder = PerceptronEncoder | SmallCNN | IdentityEncoder


def check_plain(model: str, input_shape: tuple[int, ...]) -> None:
    """Raise `UserError` where an encoder of `PLAIN` can't take what has this shape, (F,) or (C, H, W)."""
    sizes = " x ".join(map(str, input_shape))
    if model == "mnist_cnn" and len(input_shape) == 1:
        raise UserError(
            f"model = mnist_cnn convolves images, but these are vectors of {sizes} numbers. Use model=mlp, or "
            "model=none for a linear probe"
        )
    if model == "none" and len(input_shape) > 1:
        raise UserError(
            f"model = none hands vectors on as they are, but these are images of {sizes} (channels, height, width). "
            "Use model=mlp, which flattens them, or a convolutional model"
        )


def plain_encoder(model: str, input_shape: tuple[int, ...], width: int, depth: int, dropout: float) -> PlainEncoder:
    """Return the encoder of a name in `PLAIN`.

    Args:
        model: the name.
        input_shape: (F,) or (C, H, W).
        width, depth, dropout: of `PerceptronEncoder`.

    Raises:
        UserError: the encoder can't take that shape.
    """
    check_plain(model, input_shape)
    if model == "mlp":
        return PerceptronEncoder(input_shape, width, depth, dropout)
    return SmallCNN(input_shape) if model == "mnist_cnn" else IdentityEncoder(input_shape)

"""An encoder and a decoder written as one list of layers, from the image to the code and back.

    conv 32 3, relu, maxpool 2, conv 16 3, relu, maxpool 2, code, conv 16 3, relu, upsample 2, upsample 2, conv image 3

    conv F K [stride S]        convolution with a kernel of K x K cells to F channels, `image` for those of the image
    transposed F K stride S    transposed convolution to F channels, K >= S
    maxpool S                  the largest of S x S cells
    upsample S                 every cell S x S times
    relu                       max(x, 0)
    leaky_relu A               A x below 0; Keras' A is 0.3, torch's 0.01
    code                       once: what comes before it encodes, what comes after it decodes

A convolution or a maximum divides the side by S and rounds up, as Keras' padding="same" does; `transposed` and
`upsample` multiply it by S. All of a list together multiply by what they divide by, so the decoder ends at the size of
the image, or above it where a side was rounded up; that surplus, which lies at the bottom and at the right, is cut off.
So every size works that is not too small. Fully connected layers are no part of a list: the code is the flattened grid,
and `LayerDecoder` begins with such a layer where it is given another code. Losses are not here.
"""

import math
import re
from dataclasses import dataclass

from torch import Tensor, nn

from domainbed.errors import UserError, did_you_mean

Shape = tuple[int, int, int]  # (C, H, W)

_COUNT, _FACTOR = r"[1-9]\d*", r"(?:[2-9]|[1-9]\d+)"
#: Kind of a layer to its form, in words and as a pattern of what follows the kind.
FORMS = {
    "conv": (
        "conv <channels, or image> <kernel> [stride <stride>]",
        rf"(?P<channels>{_COUNT}|image) (?P<kernel>{_COUNT})(?: stride (?P<stride>{_COUNT}))?",
    ),
    "transposed": (
        "transposed <channels, or image> <kernel> stride <stride>",
        rf"(?P<channels>{_COUNT}|image) (?P<kernel>{_COUNT}) stride (?P<stride>{_FACTOR})",
    ),
    "maxpool": ("maxpool <side, 2 or more>", rf"(?P<stride>{_FACTOR})"),
    "upsample": ("upsample <factor, 2 or more>", rf"(?P<stride>{_FACTOR})"),
    "relu": ("relu", ""),
    "leaky_relu": ("leaky_relu <slope>", r"(?P<slope>\d+|\d*\.\d+)"),
    "code": ("code", ""),
}


@dataclass(frozen=True)
class Layer:
    """One layer of a list.

    Attributes:
        place: where it stands and how it is written, for messages.
        kind: a key of `FORMS`.
        channels: those of its output; None for those of the image.
        kernel, stride: in cells. slope: below 0.
    """

    place: str
    kind: str
    channels: int | None = None
    kernel: int = 1
    stride: int = 1
    slope: float = 0.0

    @property
    def divides(self) -> int:
        """By what the side of the grid is divided."""
        return self.stride if self.kind in ("conv", "maxpool") else 1

    @property
    def multiplies(self) -> int:
        """By what the side of the grid is multiplied."""
        return self.stride if self.kind in ("transposed", "upsample") else 1


def parse(texts: list[str]) -> tuple[list[Layer], list[Layer]]:
    """Return the layers of the encoder and those of the decoder.

    Raises:
        ValueError: a layer that is unknown or not of its form, no or several `code`, a decoder that ends at another
            size than the image's. The message names the layer, what was found and what is known.
    """
    layers = [_read(text, f"layer {number}, {text!r},") for number, text in enumerate(texts, start=1)]
    codes = [index for index, layer in enumerate(layers) if layer.kind == "code"]
    if len(codes) != 1:
        raise ValueError(f"'code' stands there {len(codes)} times; it stands once, between encoder and decoder")
    divided, multiplied = (math.prod(getattr(one, what) for one in layers) for what in ("divides", "multiplies"))
    if divided != multiplied:
        raise ValueError(
            f"the side of the image is divided by {divided} and multiplied by {multiplied}; both are to be the same, "
            "by as many conv stride and maxpool as transposed and upsample"
        )
    return layers[: codes[0]], layers[codes[0] + 1 :]


def _read(text: str, place: str) -> Layer:
    kind, _, rest = " ".join(text.split()).partition(" ")
    if kind not in FORMS:
        raise ValueError(f"{place} is no layer{did_you_mean(kind, FORMS)}")
    form, pattern = FORMS[kind]
    match = re.fullmatch(pattern, rest)
    if match is None:
        hint = "" if kind == "leaky_relu" else "; sizes are whole numbers of 1 or more"
        raise ValueError(f"{place} is not of the form '{form}'{hint}")
    given = {key: value for key, value in match.groupdict().items() if value is not None}
    channels = int(given["channels"]) if given.get("channels", "image") != "image" else None
    layer = Layer(
        place, kind, channels, int(given.get("kernel", 1)), int(given.get("stride", 1)), float(given.get("slope", 0))
    )
    if kind == "transposed" and layer.kernel < layer.stride:
        raise ValueError(f"{place} leaves cells empty: its kernel is smaller than its stride")
    return layer


def build(layers: list[Layer], shape: Shape, image_channels: int) -> tuple[list[nn.Module], Shape]:
    """Return one module for each layer, and the shape of what the last one gives.

    Args:
        layers: of an encoder or a decoder.
        shape: of what the first one is given.
        image_channels: what `image` stands for.

    Raises:
        UserError: the grid has become too small to be divided further.
    """
    modules = []
    for layer in layers:
        module, shape = _build(layer, shape, image_channels)
        modules.append(module)
    return modules, shape


def _build(layer: Layer, shape: Shape, image_channels: int) -> tuple[nn.Module, Shape]:
    inputs, height, width = shape
    kernel, stride = layer.kernel, layer.stride
    if layer.divides > min(height, width):
        raise UserError(
            f"{layer.place} divides the side by {stride}, but {height} x {width} cells are left there: the images are "
            "too small for so many layers. Raise image_size, or leave some of them out"
        )
    outputs = layer.channels or image_channels
    smaller = (math.ceil(height / stride), math.ceil(width / stride))
    larger = (height * stride, width * stride)
    if layer.kind == "conv":
        top, bottom = _same_padding(height, kernel, stride)
        left, right = _same_padding(width, kernel, stride)
        if (top, left) == (bottom, right):
            return nn.Conv2d(inputs, outputs, kernel, stride, (top, left)), (outputs, *smaller)
        uneven = nn.ZeroPad2d((left, right, top, bottom))
        return nn.Sequential(uneven, nn.Conv2d(inputs, outputs, kernel, stride)), (outputs, *smaller)
    if layer.kind == "transposed":
        surplus = kernel - stride  # without padding it would give so many cells too many
        return nn.ConvTranspose2d(inputs, outputs, kernel, stride, (surplus + 1) // 2, surplus % 2), (outputs, *larger)
    if layer.kind == "maxpool":
        return nn.MaxPool2d(stride, ceil_mode=True), (inputs, *smaller)
    if layer.kind == "upsample":
        return nn.Upsample(scale_factor=stride, mode="nearest"), (inputs, *larger)
    return nn.LeakyReLU(layer.slope) if layer.kind == "leaky_relu" else nn.ReLU(), shape


def _same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the cells of zeros before and after a side so that a convolution gives ceil(side / stride) cells.

    As little as is needed, and the odd one after: Keras' and TensorFlow's padding="same".
    """
    total = max(0, (math.ceil(side / stride) - 1) * stride + kernel - side)
    return total // 2, total - total // 2


class LayerEncoder(nn.Module):
    """The layers before `code`.

    Args:
        layers: of `parse`.
        input_shape: (C, H, W) of the images.

    Attributes:
        grid: (C', H', W') of what the last layer gives. num_features: F = C' H' W'.
    """

    def __init__(self, layers: list[Layer], input_shape: Shape) -> None:
        super().__init__()
        modules, self.grid = build(layers, input_shape, input_shape[0])
        self.num_features = math.prod(self.grid)
        self.layers = nn.Sequential(*modules, nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, F) for images (B, C, H, W)."""
        return self.layers(x)


class LayerDecoder(nn.Module):
    """The layers after `code`.

    Args:
        layers: of `parse`.
        grid: (C', H', W') that the first layer is given, as the encoder leaves it.
        output_shape: (C, H, W) of the images.
        latent_dim: size D of a code that a fully connected layer turns into the grid; None for the flattened grid.

    Raises:
        UserError: the last layer has another number of channels than the images.
    """

    def __init__(self, layers: list[Layer], grid: Shape, output_shape: Shape, latent_dim: int | None = None) -> None:
        super().__init__()
        channels, self.height, self.width = output_shape
        modules, (outputs, *_) = build(layers, grid, channels)
        if outputs != channels:
            raise UserError(
                f"the last of the layers gives {outputs} channels, but the images have {channels}. Let 'conv image 3' "
                "be the last, or a transposed image"
            )
        connected = [nn.Linear(latent_dim, math.prod(grid))] if latent_dim else []
        self.layers = nn.Sequential(*connected, nn.Unflatten(1, grid), *modules)

    def forward(self, z: Tensor) -> Tensor:
        """Return (B, C, H, W), without an activation, for codes (B, D) or (B, C' H' W')."""
        return self.layers(z)[..., : self.height, : self.width]


def initialise_glorot(module: nn.Module) -> None:
    """Draw the weights of all layers anew, from U(-a, a) with a = sqrt(6 / (fan_in + fan_out)), and set biases to 0.

    Glorot & Bengio 2010, eq. 16; Keras' default. torch draws both from U(-b, b) with b = 1 / sqrt(fan_in).
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)

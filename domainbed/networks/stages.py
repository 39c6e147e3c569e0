"""Stages of an encoder: layers inserted behind them, and the map of features before it is pooled.

    encoder.insert_after("layer1", MixStyle())      # or by number: encoder.insert_after(1, MixStyle())
    features = encoder.features_map(x)              # (B, C, h, w), or tokens (B, N, C)
    encoder.pool(features)                          # (B, F): encoder(x)

Stage 0 is the stem, as `freeze_stages` counts them. An inserted layer is given what the next stage would get and may
change it, not its shape. Its weights are the encoder's, under `inserted.<number>`; without one, an encoder has the keys
that it always had. Which stages there are, each encoder says itself.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from domainbed.errors import UserError

#: Models with stages and a map, for messages.
EXAMPLES = "resnet50, tf_efficientnet_lite0, convnext_atto, vit_tiny_patch16_224 or mnist_cnn"


@dataclass(frozen=True)
class Stage:
    """A stage of an encoder.

    Attributes:
        name: of the stage, such as "stem" or "layer1".
        module: whose input (`is_input`) or output is what the stage gives, by its dotted name.
        is_input: whether it is the module's input.
        shape: what the stage gives for one image, (C, h, w) or (N, C) of tokens.
    """

    name: str
    module: str
    is_input: bool
    shape: tuple[int, ...]


class StagedEncoder(nn.Module):
    """An encoder that may have stages, and a map of features. This class has neither.

    Attributes:
        num_features: F.
        inserted: the layers that were inserted; None without any.
    """

    num_features: int

    def __init__(self) -> None:
        super().__init__()
        self.inserted: nn.ModuleList | None = None

    @property
    def name(self) -> str:
        """What `model` calls the encoder, for messages."""
        return type(self).__name__

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages behind which a layer can be inserted, from the stem on.

        Raises:
            UserError: the encoder has none.
        """
        raise no_stages(self.name, "it has none")

    @property
    def map_shape(self) -> tuple[int, ...]:
        """Shape of the map of features of one image, (C, h, w) or (N, C) of tokens.

        Raises:
            UserError: the encoder has no map.
        """
        raise no_map(self.name, "it does not pool")

    def features_map(self, x: Tensor) -> Tensor:
        """Return what is pooled, (B, C, h, w) or tokens (B, N, C), for images (B, C, H, W) in [0, 1].

        Tokens include those of no place, such as a class token.

        Raises:
            UserError: the encoder has no map.
        """
        raise no_map(self.name, "it does not pool")

    def pool(self, features: Tensor) -> Tensor:
        """Return the feature vectors (B, F) of maps from `features_map`.

        Raises:
            UserError: the encoder has no map.
        """
        raise no_map(self.name, "it does not pool")

    def insert_after(self, stage: int | str, module: nn.Module) -> None:
        """Insert a layer behind a stage; several behind one are called in the order of their insertion.

        Args:
            stage: its number, the stem being 0, or its name.
            module: from (B, C, h, w), or tokens (B, N, C), to the same shape.

        Raises:
            UserError: the encoder has no such stage.
        """
        stages = self.stages
        names = [one.name for one in stages]
        number = names.index(stage) if stage in names else stage
        if not isinstance(number, int) or not 0 <= number < len(stages):
            listed = ", ".join(f"{index} {name}" for index, name in enumerate(names))
            raise UserError(f"{self.name} has no stage {stage!r} to insert a layer behind. Its stages are {listed}")
        chosen = stages[number]
        owner = self.get_submodule(chosen.module)
        if chosen.is_input:
            owner.register_forward_pre_hook(partial(_change_input, module))
        else:
            owner.register_forward_hook(partial(_change_output, module))
        if self.inserted is None:
            self.inserted = nn.ModuleList()
        self.inserted.append(module)


def no_stages(model: str, why: str) -> UserError:
    """Return the error for a model without stages that can be told apart."""
    return UserError(
        f"no layer can be inserted between the stages of {model}: {why}. Choose another model, such as {EXAMPLES}"
    )


def no_map(model: str, why: str) -> UserError:
    """Return the error for a model without a map of features."""
    return UserError(f"{model} has no map of features: {why}. Choose another model, such as {EXAMPLES}")


def why_no_places(value: Any, size: tuple[int, ...]) -> str:
    """Return why a value is no map of features (B, C, h, w) of images, and no tokens (B, N, C); empty if it is.

    Args:
        value: what a stage gives.
        size: (H, W) of the images.
    """
    if not isinstance(value, Tensor):
        return f"a stage gives a {type(value).__name__}, not one tensor"
    if value.ndim == 3:
        return ""
    if value.ndim != 4:
        return f"a stage gives {value.ndim} dimensions, not 4 or the 3 of tokens"
    height, width = value.shape[2:]
    if abs(height * size[1] - width * size[0]) > max(size):  # an image's proportions, up to rounding
        return f"a stage gives {tuple(value.shape[1:])}, with the channels last"
    return ""


# partials of these, not closures: a copy of an encoder then has its own copy of the inserted layer


def _change_input(inserted: nn.Module, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inserted(arguments[0]), *arguments[1:])


def _change_output(inserted: nn.Module, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
    return inserted(output)

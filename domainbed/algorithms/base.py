"""The contract of an algorithm: DomainBed's, made whole.

A subclass writes `losses`; whatever else it can do it says by having the method (`Predictor`, `Reconstructor`, …), and
whoever needs a capability asks for it with `isinstance(algorithm, Reconstructor)`. The base class has none of them.
Device, precision and the optimiser's step belong to the engine, which is injected; without one, `update` does the three
lines itself, so that a test or a notebook needs nothing else.
"""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from pydantic import BeforeValidator
from torch import Tensor, nn
from torch.optim import SGD, Adadelta, Adam, AdamW, Optimizer

from domainbed import hparams, pretrained
from domainbed.algorithms import fine_tuning
from domainbed.algorithms.stepper import Stepper
from domainbed.errors import UserError
from domainbed.hparams import (
    Decay,
    Factor,
    Field,
    Kind,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Rate,
    StepCount,
    TwoOrMore,
    path_text,
)
from domainbed.minibatch import Minibatch, as_minibatches
from domainbed.networks.encoders import PLAIN, TimmEncoder, feature_width, first_stages, without_values
from domainbed.networks.plain_encoders import PlainEncoder, check_plain, plain_encoder


@runtime_checkable
class Predictor(Protocol):
    """Gives class logits (B, K) for images (B, C, H, W)."""

    def predict(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class Encoder(Protocol):
    """Gives a code (B, D) for images (B, C, H, W), without noise."""

    def encode(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class Posterior(Protocol):
    """Gives mean and logvar, (B, D) each, of q(z|x)."""

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class Decoder(Protocol):
    """Gives images (B, C, H, W) in [0, 1] for codes (B, D)."""

    def decode(self, z: Tensor) -> Tensor: ...


@runtime_checkable
class Reconstructor(Protocol):
    """Gives the reconstruction (B, C, H, W) in [0, 1] of images, without noise."""

    def reconstruct(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class Sampler(Protocol):
    """Draws n images (n, C, H, W) in [0, 1] from the model."""

    def sample(self, n: int) -> Tensor: ...


@runtime_checkable
class Coder(Protocol):
    """Gives a grid of discrete codes for images, and images for such a grid.

    Attributes:
        num_codes: K; a code is a whole number from 0 to K - 1.
        grid: (h, w).
    """

    num_codes: int
    grid: tuple[int, int]

    def codes(self, x: Tensor) -> Tensor:
        """Return codes (B, h, w), long, for images (B, C, H, W)."""
        ...

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] for codes (B, h, w)."""
        ...


@runtime_checkable
class Hierarchical(Protocol):
    """Has Gaussian latents on levels 1 to L; a code (B, D_1 + … + D_L) is all of them side by side, the lowest first.

    Attributes:
        latent_dims: D_1, …, D_L.
        image_level: index of the level whose posterior depends on the image alone; another one's also depends on the
            level from which it is drawn. The prior of the last level is N(0, I).
    """

    latent_dims: list[int]
    image_level: int

    def level_kl(self, x: Tensor) -> list[Tensor]:
        """Return what each level adds to the KL, (B, D_l) nats, given a sample of what it is conditioned on."""
        ...

    def decode_level(self, z: Tensor, level: int) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] for z (B, D_l) of a level, each level below at its prior's mean."""
        ...


@runtime_checkable
class PlaceKeeping(Protocol):
    """May have a code that is a map of places, flattened: (B, c h w), channel after channel.

    Attributes:
        latent_map: (c, h, w); None where its code is a plain vector.
    """

    latent_map: tuple[int, int, int] | None


def map_of(algorithm: Any) -> tuple[int, int, int] | None:
    """Return (c, h, w) of an algorithm's code if it is a map, else None."""
    return algorithm.latent_map if isinstance(algorithm, PlaceKeeping) else None


@runtime_checkable
class LabelConditioned(Protocol):
    """Has a prior p(z|y) and is told labels y (B,) by all who know them; the prior may be the same for each label."""

    def prior(self, y: Tensor) -> tuple[Tensor, Tensor]: ...

    def posterior(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor: ...

    def sample(self, n: int, y: Tensor | None = None) -> Tensor: ...


@runtime_checkable
class Segmenter(Protocol):
    """Gives logits (B, K, H, W) of a mask for images (B, C, H, W), for a softmax or, of kinds, a sigmoid."""

    def segment(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class ExplainsWeights(Protocol):
    """Says what its loss weights mean, for a run of `steps` steps of `batch_size` images: `weights.WeightMeaning`."""

    def explain_weights(self, steps: int, batch_size: int) -> Any: ...


@runtime_checkable
class SeesClassCounts(Protocol):
    """Wants the number of training images per class, (K,), once before the first step."""

    def set_class_counts(self, counts: Tensor) -> None: ...


@runtime_checkable
class SeesTrainingImages(Protocol):
    """Wants the training images of all sources, as they are, once before the first step and on the run's device.

    `batches()` iterates over (B, C, H, W) in [0, 1], as often as it is called. What is made of them belongs in weights
    or buffers: a run that goes on does not show them again.
    """

    def see_training_images(self, batches: Callable[[], Iterable[Tensor]]) -> None: ...


@runtime_checkable
class Baselines(Protocol):
    """Gives class logits (B, K) of classifiers to compare `predict` with, by name, for images (B, C, H, W)."""

    def baselines(self, x: Tensor) -> dict[str, Tensor]: ...


def handles_labels(algorithm: Any) -> bool:
    """Whether an algorithm, or a class of them, learns or predicts class labels, so that every image needs one."""
    return not algorithm.needs_masks and (algorithm.needs_labels or hasattr(algorithm, "predict"))


def is_classifier(algorithm: Any) -> bool:
    """Whether an algorithm predicts labels and does nothing else that an evaluation would report."""
    predicts = isinstance(algorithm, Predictor) and not isinstance(algorithm, Reconstructor)
    return predicts and not getattr(algorithm, "needs_masks", False)


def reports_training_loss(algorithm: Any) -> bool:
    """Whether what evaluations report of an algorithm is `losses`, because it says nothing else."""
    return type(algorithm).evaluation_terms is Algorithm.evaluation_terms and not is_classifier(algorithm)


def needs_label(algorithm: Any) -> bool:
    """Whether an algorithm can't reconstruct images without being told their labels: `reconstruct(x, y)`."""
    if not hasattr(algorithm, "reconstruct"):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(algorithm.reconstruct).parameters.values()
    return sum(one.kind in positional and one.default is one.empty for one in parameters) > 1


def reconstruct_with(algorithm: Any, x: Tensor, y: Tensor) -> Tensor:
    """Return the reconstruction (B, C, H, W) of images (B, C, H, W), given their labels (B,) only if it needs them."""
    return algorithm.reconstruct(x, y) if needs_label(algorithm) else algorithm.reconstruct(x)


class Algorithm(nn.Module):
    """What is trained. Subclasses write `losses`, and the capabilities that they have.

    Args:
        input_shape: (C, H, W) of the images; (F,) of vectors, for a class that `takes_vectors`.
        num_classes: K; 0 where the images have no labels. Where `needs_masks`, that of the masks.
        num_domains: number of training environments, the length of `minibatches`.
        hparams: an instance of the class's `HParams`, or a mapping of its keys.

    Attributes:
        step: () int64 buffer, the number of optimiser steps taken. Saved with the weights.
    """

    class HParams(hparams.HParams):
        """Options of every algorithm."""

        batch_size: PositiveInt = Field(22, description="images per training environment in one step")
        class_balanced: bool = Field(False, description="draw training images so that each class is equally frequent")
        lr: PositiveFloat = Field(1e-4, description="learning rate")
        optimizer: Literal["adam", "adamw", "sgd", "adadelta"] = Field(
            "adam", description="adam, adamw, sgd with momentum 0.9, or adadelta (Zeiler 2012 has lr 1)"
        )
        weight_decay: NonNegativeFloat = Field(0.0, description="weight decay of the optimiser")
        lr_schedule: Literal["constant", "cosine", "step"] = Field(
            "constant", description="learning rate: constant, cosine (to 0 at the last step), step (times lr_gamma)"
        )
        lr_warmup: StepCount = Field(0, description="steps over which the learning rate rises from 0")
        lr_step_size: PositiveInt = Field(1000, description="lr_schedule = step: steps between two changes")
        lr_gamma: PositiveFloat = Field(0.1, description="lr_schedule = step: factor of each change")
        clip_norm: PositiveFloat | None = Field(
            None, description="largest norm of the gradient of all weights together; null: as it is"
        )
        weight_ema: Decay = Field(
            0.0, description="decay of a running mean of the weights, which then is what is judged and kept; 0: none"
        )

        #: Keys that name a finished run (`finished.RunPath`), and the algorithm of a run that can serve there.
        runs: ClassVar[dict[str, str]] = {}

        def needs_run(self, key: str) -> bool:
            """Whether the algorithm can't do without the finished run of a key of `runs`."""
            return True

        def check_size(self, input_shape: tuple[int, int, int]) -> None:
            """Raise `UserError` where the algorithm can't take images (C, H, W), before any of them is decoded."""

        def why_no_vectors(self) -> str:
            """Return why vectors can't be learnt from with these settings, for a class that takes them; else \"\"."""
            return ""

        def idle(self) -> dict[str, str]:
            """Return what belongs to another schedule of the learning rate."""
            keys = () if self.lr_schedule == "step" else ("lr_step_size", "lr_gamma")
            return super().idle() | dict.fromkeys(keys, f"lr_schedule = {self.lr_schedule}")

    name: ClassVar[str] = ""
    #: Submodules without noise of their own, computed once per batch in evaluation however often they are asked.
    shared_in_evaluation: ClassVar[tuple[str, ...]] = ("encoder",)
    #: Whether training needs class labels.
    needs_labels: ClassVar[bool] = False
    #: Whether it learns from masks, which then take the place of labels in a minibatch, and K is the number of their
    #: classes. Its options are `MaskHParams`.
    needs_masks: ClassVar[bool] = False
    #: Number of training environments without which the method has nothing to compare.
    min_domains: ClassVar[int] = 1
    #: Hyper-parameters that make it ERM, to the same weights after the same steps; empty where none do.
    anchor: ClassVar[Mapping[str, Any]] = {}
    #: Whether each minibatch brings a second view of its images, augmented anew.
    needs_second_view: ClassVar[bool] = False
    #: Whether it also learns from vectors (F,), such as features of another model. It then asks nothing of x but what
    #: an encoder makes of it.
    takes_vectors: ClassVar[bool] = False

    step: Tensor
    hparams: Any

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, num_domains: int, hparams: Any) -> None:
        super().__init__()
        if len(input_shape) == 1:
            self.check_takes_vectors()
        self.input_shape, self.num_classes, self.num_domains = tuple(input_shape), num_classes, num_domains
        self.hparams = hparams if isinstance(hparams, self.HParams) else self.HParams(**hparams)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.engine: Any = None
        self._stepper: Stepper | None = None
        self.check_domains(num_domains)
        if self.needs_labels and num_classes < 2:
            raise UserError(
                f"{type(self).__name__} learns from labels, but these images have "
                f"{'one class only' if num_classes else 'no labels'}. Choose an algorithm that needs none, such as "
                "--algorithm AE, or give images of at least two classes"
            )

    @classmethod
    def check_domains(cls, num_domains: int) -> None:
        """Raise `UserError` where there are fewer training environments than the method compares."""
        if num_domains < cls.min_domains:
            raise UserError(
                f"{cls.name or cls.__name__} compares training environments and needs {cls.min_domains} of them, but "
                f"there {'is' if num_domains == 1 else 'are'} {num_domains} beside the target. Leave out fewer, give "
                "images of more environments, or choose an algorithm that learns from one, such as --algorithm ERM"
            )

    @property
    def second_order(self) -> bool:
        """Whether gradients are differentiated in turn, which compiled code does not allow."""
        return False

    @classmethod
    def check_takes_vectors(cls, hparams: Any = None, of: str = "the data set") -> None:
        """Raise `UserError` where vectors can't be learnt from, before any is read.

        Args:
            hparams: an instance of `HParams`; None to ask of the class alone.
            of: the name of the data set, for the message.
        """
        if not cls.takes_vectors:
            raise UserError(
                f"{cls.name or cls.__name__} learns from images, but {of} gives vectors. Choose an algorithm that "
                "takes vectors, such as --algorithm ERM, or a data set of images"
            )
        if hparams is not None and (why := hparams.why_no_vectors()):
            raise UserError(f"{of} gives vectors, and {why}")

    @property
    def batch_coupled(self) -> bool:
        """Whether a term of the loss is no mean over samples, so that a weight's meaning changes with the batch."""
        return False

    def losses(self, minibatches: list[Minibatch]) -> dict[str, Tensor]:
        """Return the terms of the loss, () tensors each. "loss" is minimised; every key is logged."""
        raise NotImplementedError

    def train_step(self, minibatches: list[Minibatch], stepper: Stepper) -> dict[str, Tensor]:
        """Move the weights once, by one optimiser step or several; return the terms to log, () tensors each.

        Override it where minimising `losses` is not enough: to take several steps, to look at gradients or change
        them, or to let optimisers take turns. Such a step is computed whole: a run in several processes, or with
        `accumulate`, is refused before it begins.
        """
        return stepper.minimise_losses(minibatches)

    def evaluation_terms(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return what an evaluation reports of one environment's images, () tensors each, means over images.

        Called in evaluation mode, without gradients; nothing may move. By default a classifier
        reports its cross-entropy, because a training objective may compare environments, and here is only one. What
        reconstructs, or does not predict, reports its `losses`.

        Args:
            x, y: as those of a `Minibatch`.
        """
        if is_classifier(self):
            return {"loss": nn.functional.cross_entropy(self.predict(x).float(), y)}  # type: ignore[operator]
        return self.losses([Minibatch(x, y)])

    def training_state(self) -> dict[str, Any]:
        """Return what parameters, buffers and optimisers don't hold and the next step needs.

        Tensors, numbers and text, in mappings and lists; saved in `state.pt`.
        """
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Put back what `training_state` returned."""

    def forward(self, minibatches: list[Minibatch]) -> dict[str, Tensor]:
        """`losses`, so that whatever wraps a module's forward (autocast, DDP, compilation) sees it."""
        return self.losses(minibatches)

    def optimizers(self) -> dict[str, Optimizer]:
        """Return new optimisers by name. One, "main", over all parameters that need a gradient."""
        return {"main": self.make_optimizer(p for p in self.parameters() if p.requires_grad)}

    def make_optimizer(
        self,
        parameters: Any,
        lr: float | None = None,
        weight_decay: float | None = None,
        betas: tuple[float, float] | None = None,
    ) -> Optimizer:
        """Return the optimiser that `hparams.optimizer` names, over some parameters.

        Those of a timm encoder get the rates that `encoder_lr`, `layer_decay` and `head_first` ask for.

        Args:
            parameters: to be moved.
            lr, weight_decay: those of `hparams` unless given.
            betas: of Adam and AdamW, torch's unless given; the others have none.
        """
        if isinstance(self.hparams, EncoderHParams) and self.hparams.has_groups:
            parameters = fine_tuning.groups(self, parameters)
        options: dict[str, Any] = {
            "lr": self.hparams.lr if lr is None else lr,
            "weight_decay": self.hparams.weight_decay if weight_decay is None else weight_decay,
        }
        if self.hparams.optimizer == "sgd":
            return SGD(parameters, momentum=0.9, fused=True, **options)
        if self.hparams.optimizer == "adadelta":
            return Adadelta(parameters, **options)
        options |= {} if betas is None else {"betas": betas}
        return {"adam": Adam, "adamw": AdamW}[self.hparams.optimizer](parameters, fused=True, **options)

    def after_step(self) -> None:
        """Hook for what moves without a gradient (codebooks, averages): once after each optimiser step."""

    def update(self, minibatches: Any, unlabeled: Any = None) -> dict[str, Tensor]:
        """Take one step and return its detached terms, () tensors each: DomainBed's name for it.

        Without an engine it is the plain step: schedule, clipping and averages of the weights are the engine's.

        Args:
            minibatches: one of each training environment: `Minibatch`, or a pair (x, y).
            unlabeled: of DomainBed's signature; no algorithm here learns from such images.
        """
        if unlabeled is not None:
            raise ValueError("no algorithm here learns from unlabeled images")
        minibatches = as_minibatches(minibatches)
        if self.engine is not None:
            return self.engine.step(minibatches)
        if self._stepper is None:
            self._stepper = Stepper(self)
        terms = self.train_step(minibatches, self._stepper)
        self.finish_step()
        self._stepper.taken += 1
        return {name: value.detach() for name, value in terms.items()}

    def finish_step(self) -> None:
        """Advance the step, then call `after_step`. Called once for each `train_step`."""
        self.step += 1
        self.after_step()


def concatenate(minibatches: Any) -> tuple[Tensor, Tensor]:
    """Join the minibatches of all environments: (B, C, H, W) and (B,). A single one is returned as it is."""
    if len(minibatches) == 1:
        ((x, y),) = minibatches
        return x, y
    return torch.cat([x for x, _ in minibatches]), torch.cat([y for _, y in minibatches])


class LabelHParams(Algorithm.HParams):
    """Options of algorithms that learn from class labels."""

    class_weights: Literal["none", "balanced"] | list[NonNegativeFloat] = Field(
        "none",
        description="weights of the classes in the label loss: none, balanced (N / (K N_k)), or a list of K numbers",
    )


class MaskHParams(Algorithm.HParams):
    """Options of algorithms that learn from masks."""

    output: Literal["auto", "softmax", "sigmoid"] = Field(
        "auto", description="softmax: one class for each pixel; sigmoid: kinds that may overlap; auto: as the masks are"
    )


def _as_text(value: Any) -> Any:
    """YAML and Python say true and false where the command line says "true" and "false"."""
    text = str(value) if isinstance(value, (bool, Path)) else value
    if isinstance(text, str) and text.lower() in ("auto", "true", "false"):
        return text.lower()
    return path_text(text) if isinstance(text, str) and pretrained.is_file(text) else text


class EncoderHParams(Algorithm.HParams):
    """Options of algorithms with an encoder that `model` names: a timm backbone, or one of `PLAIN`."""

    model: str = Field(
        "resnet50", description=f"name of a timm model, the encoder's backbone; or one of {', '.join(PLAIN)}"
    )
    pretrained: Annotated[str, BeforeValidator(_as_text), Kind("auto, true, false, or the path of a file")] = Field(
        "auto", description="auto, true, false, a .safetensors or .pth file, or <package>==<version>"
    )
    freeze_bn: bool = Field(False, description="keep the encoder's BatchNorm as pretrained; needs pretrained weights")
    freeze_stages: NonNegativeInt = Field(
        0, description="keep the encoder's first so many stages, the stem being one, as pretrained; needs such weights"
    )
    encoder_lr: PositiveFloat | None = Field(
        None, description="learning rate of the encoder's last layers; null: lr, which is that of all else"
    )
    layer_decay: Factor = Field(
        1.0, description="learning rate of a group of the encoder's layers as a multiple of that of the group after it"
    )
    head_first: StepCount = Field(0, description="steps in which only what comes after the encoder learns")
    dropout: Rate = Field(0.0, description="share of the encoder's features that training sets to 0")
    drop_path: Rate = Field(0.0, description="stochastic depth of the encoder: timm's drop_path_rate")
    finetune: bool = Field(
        False, description="a recipe for few steps from pretrained weights: AdamW, rates by layer, warm-up and cosine"
    )
    mlp_width: PositiveInt = Field(256, description="model=mlp: width of every layer, and number of features")
    mlp_depth: TwoOrMore = Field(3, description="model=mlp: number of layers")
    mlp_dropout: Rate = Field(0.0, description="model=mlp: share of each hidden layer that training sets to 0")

    presets = {
        "finetune": {
            "optimizer": "adamw",
            "weight_decay": 0.05,
            "lr": 1e-3,
            "encoder_lr": 3e-4,
            "layer_decay": 0.85,
            "lr_schedule": "cosine",
            "lr_warmup": 20,
            "head_first": 30,
            "dropout": 0.2,
            "drop_path": 0.1,
        }
    }

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        if self.pretrained == "false" and (reason := self.why_pretrained()):
            raise ValueError(reason)
        about_timm = [key for key in FINE_TUNING if self[key] != type(self).model_fields[key].default]
        about_timm += ["pretrained"] * (self.pretrained not in ("auto", "false"))
        if self.timm_model is None and about_timm:
            raise ValueError(
                f"{about_timm[0]} is about a timm encoder, but model = {self.model or 'null'}. Name one, such as "
                "model=resnet18, or leave it out"
            )

    def idle(self) -> dict[str, str]:
        """Return what belongs to another encoder."""
        keys = () if self.model == "mlp" else ("mlp_width", "mlp_depth", "mlp_dropout")
        return super().idle() | dict.fromkeys(keys, f"model = {self.model or 'null'}")

    def why_no_vectors(self) -> str:
        """Return that the encoder takes images, where it does."""
        if self.model in ("mlp", "none"):
            return ""
        return f"model = {self.model} takes images. Use model=mlp, or model=none for a linear probe"

    @property
    def timm_model(self) -> str | None:
        """timm's name of the encoder's backbone; None where the encoder is not timm's."""
        return None if self.model in (None, *PLAIN) else self.model

    @property
    def has_groups(self) -> bool:
        """Whether the optimiser has a group of parameters for each rate, and no weight decay of biases and norms."""
        return self.finetune or self.encoder_lr is not None or self.layer_decay < 1 or self.head_first > 0

    def why_pretrained(self) -> str:
        """Return why random weights won't do; empty where they will."""
        if self.freeze_bn:
            return (
                "freeze_bn = true would freeze the statistics of random weights. Give pretrained=<file>, or "
                "freeze_bn=false"
            )
        if self.freeze_stages:
            return (
                f"freeze_stages = {self.freeze_stages} would freeze random weights. Give pretrained=<file>, or "
                "freeze_stages=0"
            )
        if self.finetune:
            return (
                "finetune = true is a recipe for pretrained weights; its rates would hardly move random ones. Give "
                "pretrained=<file>, or finetune=false"
            )
        return ""

    def check_encoder_learns(self) -> None:
        """Raise `ValueError` where a penalty on features would have none to change: for methods that have one."""
        if self.model == "none":
            raise ValueError(
                "model = none has no encoder, and the penalty acts on the features of one. Use model=mlp, or "
                "--algorithm ERM for a linear classifier"
            )

    def encoder_shape(self, input_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the shape in which the encoder gets images (C, H, W)."""
        return input_shape


#: What a timm encoder alone has: the options of fine-tuning it.
FINE_TUNING = (
    "finetune", "freeze_bn", "freeze_stages", "encoder_lr", "layer_decay", "head_first", "dropout", "drop_path"
)  # fmt: skip


def build_encoder(hparams: EncoderHParams, input_shape: tuple[int, ...]) -> TimmEncoder | PlainEncoder:
    """Return the encoder that the hyper-parameters ask for; warn where it had to be random though none were asked for.

    Args:
        hparams: whose `model` is one of `PLAIN`, or a name of timm's.
        input_shape: (C, H, W) of images, or (F,) of vectors.

    Raises:
        UserError: the encoder can't take what has that shape, or its weights can't be had.
    """
    if hparams.timm_model is None:
        sizes = (hparams.mlp_width, hparams.mlp_depth, hparams.mlp_dropout)
        return plain_encoder(hparams.model, input_shape, *sizes)
    shape = hparams.encoder_shape(_image_shape(hparams.model, input_shape))
    weights = pretrained.locate(hparams.model, hparams.pretrained)
    if weights.source == "false" and hparams.pretrained != "false" and (reason := hparams.why_pretrained()):
        raise UserError(f"{weights.message}. {reason}")
    if weights.warning:
        warnings.warn(f"{weights.message}. To avoid it: {weights.advice}", stacklevel=3)
    encoder = TimmEncoder(hparams.model, shape, hparams.dropout, hparams.drop_path)
    if weights.source != "false":
        pretrained.load_weights(encoder.backbone, hparams.model, weights.source)
    if hparams.freeze_stages:
        encoder.freeze_stages(hparams.model, hparams.freeze_stages)
    if hparams.freeze_bn:
        encoder.freeze_batch_norm()
    return encoder


def check_encoder(hparams: EncoderHParams, input_shape: tuple[int, ...]) -> None:
    """Learn, before there are images, whether `build_encoder` would fail.

    Raises:
        UserError: the encoder can't take what has that shape, has no stochastic depth or fewer stages than are to be
            frozen, or the checkpoint can't be read or is another model's.
    """
    if hparams.timm_model is None:
        check_plain(hparams.model, input_shape)
        return
    shape = hparams.encoder_shape(_image_shape(hparams.model, input_shape))
    feature_width(hparams.model, shape)
    backbone = without_values(hparams.model, shape, hparams.drop_path)
    if hparams.freeze_stages:
        first_stages(backbone, hparams.model, hparams.freeze_stages)
    weights = pretrained.locate(hparams.model, hparams.pretrained)
    if weights.source != "false":
        pretrained.fitted(backbone, hparams.model, weights.source)


def _image_shape(model: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the shape (C, H, W) that a timm backbone is given.

    Raises:
        UserError: it is that of vectors, (F,).
    """
    if len(input_shape) == 1:
        raise UserError(
            f"model = {model} is a backbone of timm's, which takes images, but these are vectors of {input_shape[0]} "
            "numbers. Use model=mlp, or model=none for a linear probe"
        )
    channels, height, width = input_shape
    return channels, height, width


class LabelLoss(nn.Module):
    """Cross-entropy over K classes with optional class weights, per sample.

    Args:
        num_classes: K.
        class_weights: "none", "balanced", or K numbers.

    Raises:
        UserError: a list of another length than K.
    """

    weights: Tensor

    def __init__(self, num_classes: int, class_weights: str | list[float]) -> None:
        super().__init__()
        self.balanced = class_weights == "balanced"
        values = [1.0] * num_classes if isinstance(class_weights, str) else class_weights
        if len(values) != num_classes:
            raise UserError(f"class_weights has {len(values)} numbers, but there are {num_classes} classes")
        self.register_buffer("weights", torch.tensor(values))

    def set_class_counts(self, counts: Tensor) -> None:
        """Weigh classes by N / (K N_k) if "balanced" was asked for; a class without images gets weight 0."""
        if self.balanced:
            weights = counts.sum() / (len(counts) * counts.clamp(min=1))
            self.weights.copy_(torch.where(counts > 0, weights, 0.0))

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return (B,) nats for logits (B, K) and class indices (B,)."""
        return nn.functional.cross_entropy(logits.float(), y, reduction="none") * self.weights[y]

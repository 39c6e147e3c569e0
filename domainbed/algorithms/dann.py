"""DANN: features from which a discriminator can't tell the environment.

Ganin et al. 2016, "Domain-Adversarial Training of Neural Networks" (arXiv 1505.07818), as DomainBed has it: instead of
reversing gradients, discriminator and classifier take turns, each with an optimiser of its own.

    d = cross-entropy of the environments under the discriminator, + grad_penalty * |gradient in the features|^2
    d_steps_per_g_step steps on d, then one on  cross-entropy of the classes - lambda * d
"""

from typing import Any

import torch
from pydantic import create_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from domainbed.algorithms.base import concatenate
from domainbed.algorithms.erm import ERM
from domainbed.algorithms.stepper import Stepper
from domainbed.hparams import Field, NonNegativeFloat, PositiveFloat, PositiveInt, Rate, TwoOrMore
from domainbed.minibatch import Minibatch
from domainbed.registry import ALGORITHMS

BETA2 = 0.9  # of both optimisers, DomainBed's

#: `lambda` is the published name of a setting, and a word that Python keeps for itself.
_WithLambda: Any = create_model(  # type: ignore[call-overload]
    "_WithLambda",
    __base__=ERM.HParams,
    **{"lambda": (NonNegativeFloat, Field(1.0, description="weight of deceiving the discriminator"))},
)


@ALGORITHMS.register("DANN")
class DANN(ERM):
    """Domain-adversarial training: an encoder that deceives a discriminator of environments."""

    class HParams(_WithLambda):
        """Options of DANN."""

        lr_d: PositiveFloat | None = Field(None, description="learning rate of the discriminator; null: lr")
        weight_decay_d: NonNegativeFloat = Field(0.0, description="weight decay of the discriminator")
        d_steps_per_g_step: PositiveInt = Field(1, description="steps of the discriminator for each of the rest")
        grad_penalty: NonNegativeFloat = Field(
            0.0, description="weight of the squared gradient of the discriminator's loss in the features"
        )
        beta1: Rate = Field(0.5, description="Adam's decay of the mean gradient, of both optimisers")
        mlp_width: PositiveInt = Field(256, description="width of the discriminator")
        mlp_depth: TwoOrMore = Field(3, description="number of layers of the discriminator")
        mlp_dropout: Rate = Field(0.0, description="share of the discriminator's units that training sets to 0")

        def model_post_init(self, context: Any) -> None:
            super().model_post_init(context)
            self.check_encoder_learns()

        def idle(self) -> dict[str, str]:
            """Return what belongs to another optimiser."""
            of_adam = {} if self.optimizer in ("adam", "adamw") else {"beta1": f"optimizer = {self.optimizer}"}
            of_discriminator = ("mlp_width", "mlp_depth", "mlp_dropout")  # of the encoder, too, where model = mlp
            of_others = {key: why for key, why in super().idle().items() if key not in of_discriminator}
            return of_others | of_adam

    min_domains = 2

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Any) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        h = self.hparams
        widths = [self.encoder.num_features, *[h.mlp_width] * (h.mlp_depth - 1)]
        hidden = [
            layer
            for inputs, outputs in zip(widths, widths[1:], strict=False)
            for layer in (nn.Linear(inputs, outputs), nn.Dropout(h.mlp_dropout), nn.ReLU())
        ]
        self.discriminator = nn.Sequential(*hidden, nn.Linear(h.mlp_width, num_domains))

    @property
    def second_order(self) -> bool:
        """Whether there is a gradient in the loss."""
        return bool(self.hparams.grad_penalty > 0)

    def optimizers(self) -> dict[str, Optimizer]:
        h = self.hparams
        of_discriminator = {*self.discriminator.parameters()}
        rest = [p for p in self.parameters() if p.requires_grad and p not in of_discriminator]
        betas = (h.beta1, BETA2)
        return {
            "main": self.make_optimizer(rest, betas=betas),
            "discriminator": self.make_optimizer(
                self.discriminator.parameters(), lr=h.lr_d, weight_decay=h.weight_decay_d, betas=betas
            ),
        }

    def train_step(self, minibatches: list[Minibatch], stepper: Stepper) -> dict[str, Tensor]:
        h = self.hparams
        x, y = concatenate(minibatches)  # (B, C, H, W), (B,)
        environments = torch.cat([torch.full_like(batch.y, batch.environment) for batch in minibatches])  # (B,)
        features = self.encode(x)  # (B, F)
        guesses = self.discriminator(features).float()  # (B, num_domains)
        disc_loss = F.cross_entropy(guesses, environments)
        if h.grad_penalty:
            total = F.cross_entropy(guesses, environments, reduction="sum")
            (gradient,) = stepper.gradients(total, [features], create_graph=True)
            assert gradient is not None
            disc_loss = disc_loss + h.grad_penalty * gradient.float().square().sum(1).mean()
        y_loss = self.label_loss(self.head(features), y).mean()
        loss = y_loss - h["lambda"] * disc_loss
        # DomainBed counts from 1, so a run with one step each begins with the classifier's
        if (stepper.taken + 1) % (1 + h.d_steps_per_g_step) < h.d_steps_per_g_step:
            stepper.minimise(disc_loss, "discriminator")
        else:
            stepper.minimise(loss, "main")
        return {"loss": loss, "y_loss": y_loss, "disc_loss": disc_loss}

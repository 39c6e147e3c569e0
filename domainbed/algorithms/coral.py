"""CORAL: features whose means and covariances agree between environments.

Sun & Saenko 2016, "Deep CORAL" (arXiv 1607.01719), as DomainBed made it a method for many sources:

    loss = cross-entropy over all images + mmd_gamma * mean over pairs of environments of coral(features, features')

`objectives.alignment.coral` is the penalty. All environments pass the encoder together, as ERM's do, so mmd_gamma = 0
is ERM bit for bit; DomainBed passes them one by one, which only BatchNorm that is not frozen can tell.
"""

from typing import Any

from torch import Tensor

from domainbed.algorithms.base import concatenate
from domainbed.algorithms.erm import ERM
from domainbed.hparams import Field, NonNegativeFloat
from domainbed.minibatch import Minibatch
from domainbed.objectives.alignment import coral, mean_over_pairs
from domainbed.registry import ALGORITHMS


@ALGORITHMS.register("CORAL")
class CORAL(ERM):
    """ERM with a penalty on means and covariances of features that differ between environments."""

    class HParams(ERM.HParams):
        """Options of CORAL."""

        mmd_gamma: NonNegativeFloat = Field(1.0, description="weight of the penalty; 0 is ERM")

        def model_post_init(self, context: Any) -> None:
            super().model_post_init(context)
            self.check_encoder_learns()
            if self.batch_size < 2:
                raise ValueError("batch_size = 1, but one image has no covariance. Use batch_size=2 or more")

    min_domains = 2
    anchor = {"mmd_gamma": 0.0}

    @property
    def batch_coupled(self) -> bool:
        return True

    def losses(self, minibatches: list[Minibatch]) -> dict[str, Tensor]:
        x, y = concatenate(minibatches)  # (B, C, H, W), (B,)
        features = self.encode(x)  # (B, F)
        y_loss = self.label_loss(self.head(features), y).mean()
        penalty = mean_over_pairs(coral, features.split([len(x) for x, _ in minibatches]))
        return {"loss": y_loss + self.hparams.mmd_gamma * penalty, "y_loss": y_loss, "penalty": penalty}

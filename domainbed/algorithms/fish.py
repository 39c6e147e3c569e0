"""Fish: gradients that agree between environments, by a first-order meta-step.

Shi et al. 2022, "Gradient Matching for Domain Generalization" (arXiv 2104.09937), algorithm 1. One step visits the
environments in turn, with an optimiser step on the cross-entropy of each, and then goes only part of the way:

    weights' = weights;  for each environment: weights' <- optimiser step on its cross-entropy
    weights <- weights + meta_lr * (weights' - weights)

To first order this raises the inner product of the environments' gradients. As in DomainBed, the inner optimiser keeps
its moments from one step to the next, and buffers such as BatchNorm's statistics go part of the way, too.
"""

import torch
from torch import Tensor

from domainbed.algorithms.erm import ERM
from domainbed.algorithms.stepper import Stepper
from domainbed.hparams import Factor, Field
from domainbed.minibatch import Minibatch
from domainbed.registry import ALGORITHMS


@ALGORITHMS.register("Fish")
class Fish(ERM):
    """Gradient matching: an optimiser step on each environment in turn, of which a part is kept."""

    class HParams(ERM.HParams):
        """Options of Fish."""

        meta_lr: Factor = Field(0.5, description="share of the way through all environments that a step goes")

    min_domains = 2

    def train_step(self, minibatches: list[Minibatch], stepper: Stepper) -> dict[str, Tensor]:
        moving = [parameter.data for parameter in self.parameters() if parameter.requires_grad]
        moving += [buffer for buffer in self.buffers() if buffer.is_floating_point()]
        start = [tensor.clone() for tensor in moving]
        losses = []
        for x, y in minibatches:
            losses.append(self.label_loss(self.predict(x), y).mean())
            stepper.minimise(losses[-1])
        torch._foreach_lerp_(start, moving, self.hparams.meta_lr)
        torch._foreach_copy_(moving, start)
        return {"loss": torch.stack(losses).mean()}

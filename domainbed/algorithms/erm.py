"""Empirical risk minimisation: the baseline that every domain-generalisation method has to beat.

Vapnik 1998; as the baseline of Gulrajani & Lopez-Paz 2021, "In Search of Lost Domain Generalization"
(arXiv 2007.01434): one network, one cross-entropy over the images of all training environments.

    loss = mean over images of  class_weights[y] * -log softmax(head(encoder(x)))[y]

It does not know which environment an image comes from, and reconstructs nothing.
"""

from typing import Any

from torch import Tensor, nn

from domainbed.algorithms.base import Algorithm, EncoderHParams, LabelHParams, LabelLoss, build_encoder, concatenate
from domainbed.registry import ALGORITHMS


@ALGORITHMS.register("ERM")
class ERM(Algorithm):
    """Empirical risk minimisation: a backbone and a linear classifier on all environments together."""

    class HParams(EncoderHParams, LabelHParams):
        """Options of ERM."""

    needs_labels = True
    takes_vectors = True

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, num_domains: int, hparams: Any) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.encoder = build_encoder(self.hparams, input_shape)
        self.head = nn.Linear(self.encoder.num_features, num_classes)
        self.label_loss = LabelLoss(num_classes, self.hparams.class_weights)

    def set_class_counts(self, counts: Tensor) -> None:
        self.label_loss.set_class_counts(counts)

    def losses(self, minibatches: Any) -> dict[str, Tensor]:
        x, y = concatenate(minibatches)  # (B, C, H, W) or (B, F), (B,)
        return {"loss": self.label_loss(self.predict(x), y).mean()}

    def predict(self, x: Tensor) -> Tensor:
        return self.head(self.encode(x))  # (B, K)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)  # (B, F)

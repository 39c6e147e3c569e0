"""Terms of a loss, in nats: one value per sample, summed over pixels and latent dimensions.

`likelihoods`, `reconstruction`, `segmentation`, `gaussian` and `schedules` hold the mathematics; `weights` says what a
weight on a term means. Averaging over the batch is the algorithm's last line, but for the terms that are defined on a
batch and say so: `gaussian.free_bits`, `gaussian.capacity_penalty`, `segmentation.dice_loss`. Networks are not here.
"""

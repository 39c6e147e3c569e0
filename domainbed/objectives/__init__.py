"""Terms of a loss: one value per sample, in nats, summed over pixels and latent dimensions.

`likelihoods`, `gaussian` and `schedules` hold the mathematics; `weights` says what a weight on a term means. Averaging
over the batch is the algorithm's last line, never done here. Networks are not here.
"""

"""The plain autoencoder: what its losses compare, when it can't learn, noise, optimisers, and the contract."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from domainbed.algorithms.autoencoder import AE, LOSSES, OUTPUTS
from domainbed.networks.decoders import ConvDecoder
from domainbed.networks.encoders import ConvEncoder
from domainbed.testing import check_algorithm, minibatches

POOLED = (
    "conv 8 3, leaky_relu 0.3, maxpool 2, conv 8 2, leaky_relu 0.3, maxpool 2, code, "
    "conv 8 3, leaky_relu 0.3, upsample 2, conv 8 5, leaky_relu 0.3, upsample 2, conv image 3"
)
STRIDED = (
    "conv 8 3 stride 2, leaky_relu 0.3, conv 8 4 stride 2, leaky_relu 0.3, code, "
    "transposed 8 4 stride 2, leaky_relu 0.3, transposed image 3 stride 2"
)
SHAPE = (3, 16, 16)


def build(shape=SHAPE, **hparams) -> AE:
    torch.manual_seed(0)
    return AE(shape, 0, 2, {"layers": POOLED, "latent_dim": None} | hparams)


def images() -> torch.Tensor:
    return minibatches(SHAPE)[0][0]


@pytest.mark.parametrize(
    "hparams",
    [
        {"layers": POOLED, "latent_dim": None, "output": "relu", "loss": "bce_clipped", "initialisation": "glorot"},
        {"layers": STRIDED, "latent_dim": None, "output": "softmax", "loss": "log_cosh"},
        {"layers": STRIDED, "latent_dim": 8, "output": "linear", "loss": "bce", "noise": 0.1, "recon_reduction": "sum"},
    ],
    ids=["pooled", "strided", "denoising"],
)
@pytest.mark.filterwarnings("ignore:output = softmax over a single channel")
def test_it_keeps_the_contract_in_each_of_its_forms(hparams):
    check_algorithm(AE, **hparams)


def test_without_layers_it_has_strides_and_a_fully_connected_code():
    algorithm = AE(SHAPE, 0, 2, {"latent_dim": 5})
    assert isinstance(algorithm.encoder, ConvEncoder) and isinstance(algorithm.decoder, ConvDecoder)
    assert algorithm.encode(images()).shape == (4, 5)


def test_the_code_is_the_flattened_grid_or_a_fully_connected_one():
    x = images()
    grid, connected = build(), build(latent_dim=5)
    assert torch.equal(grid.encode(x), grid.encoder.layers[:-1](x).flatten(1))
    assert grid.encode(x).shape == (4, 8 * 4 * 4)
    assert connected.encode(x).shape == (4, 5)
    assert connected.decode(connected.encode(x)).shape == x.shape


def by_hand(raw: torch.Tensor, x: torch.Tensor, output: str, loss: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss per image and reconstruction, from what the decoder gives."""
    value = {
        "sigmoid": 1 / (1 + torch.exp(-raw)),
        "linear": raw,
        "relu": raw * (raw > 0),
        "softmax": raw.exp() / raw.exp().sum(1, keepdim=True),
    }[output]
    if loss == "bce":
        p = value if output == "sigmoid" else torch.sigmoid(value)
        return F.binary_cross_entropy(p, x, reduction="none").mean((1, 2, 3)), p
    if loss == "bce_clipped":
        p = torch.minimum(torch.maximum(value, torch.tensor(1e-7)), torch.tensor(1 - 1e-7))
        terms = -x * torch.log(p) - (1 - x) * torch.log(1 - p)
    else:
        terms = (value - x) ** 2 if loss == "mse" else torch.log(torch.cosh(value - x))
    return terms.mean((1, 2, 3)), value.clamp(0, 1)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("output", OUTPUTS)
def test_the_loss_and_the_reconstruction_are_those_of_the_output(output, loss):
    algorithm, x = build(output=output, loss=loss), images()
    with torch.no_grad():
        algorithm.decoder.layers[-1].weight *= 5  # so that outputs leave [0, 1]
        expected, reconstruction = by_hand(algorithm.decoder(algorithm.encode(x)), x, output, loss)
        terms = algorithm.losses([(x, torch.zeros(4))])
        torch.testing.assert_close(terms["loss"], expected.mean(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(algorithm.reconstruct(x), reconstruction)
        summed = build(output=output, loss=loss, recon_reduction="sum")
        summed.load_state_dict(algorithm.state_dict())
        torch.testing.assert_close(summed.losses([(x, torch.zeros(4))])["loss"], terms["loss"] * 3 * 16 * 16)


def test_a_softmax_sums_to_1_over_channels_and_warns_of_a_single_one():
    algorithm = build(output="softmax")
    sums = algorithm.reconstruct(images()).sum(1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    with pytest.warns(UserWarning, match="1 everywhere"):
        grey = build((1, 16, 16), output="softmax")
    assert grey.reconstruct(images()[:, :1]).eq(1).all()


def gradients(**hparams) -> float:
    """The largest gradient where every output lies below 0: the decoder's last bias is -5."""
    algorithm = build(**hparams)
    with torch.no_grad():
        algorithm.decoder.layers[-1].bias.fill_(-5.0)
    algorithm.losses([(images(), torch.zeros(4))])["loss"].backward()
    return max(p.grad.abs().max().item() for p in algorithm.parameters())


def test_below_0_the_clipped_cross_entropy_of_a_linear_or_relu_output_teaches_nothing():
    assert gradients(output="linear", loss="bce_clipped") == 0
    assert gradients(output="relu", loss="bce_clipped") == 0
    assert gradients(output="linear", loss="bce") > 0
    assert gradients(output="linear", loss="mse") > 0
    assert gradients(output="sigmoid", loss="bce_clipped") > 0


def test_noise_corrupts_the_input_in_training_only_and_not_the_target():
    algorithm, x = build(noise=0.5), images()
    seen = []
    algorithm.encoder.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    training = algorithm.losses([(x, torch.zeros(4))])["loss"]
    assert (seen[0] - x).std().item() == pytest.approx(0.5, rel=0.1)
    assert abs((seen[0] - x).mean().item()) < 0.05
    expected = (algorithm.output(algorithm.encode(seen[0])) - x).square().mean()
    torch.testing.assert_close(training, expected)
    algorithm.eval()
    algorithm.losses([(x, torch.zeros(4))])
    assert seen[-1] is x


def test_glorot_reaches_every_layer():
    algorithm = build(initialisation="glorot", latent_dim=5)
    for name, p in algorithm.named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
        else:
            area = p[0, 0].numel() if p.ndim == 4 else 1
            assert p.abs().max() <= math.sqrt(6 / (area * (p.shape[0] + p.shape[1]))), name


def test_adadelta_is_torchs():
    algorithm, reference = (build(optimizer="adadelta", lr=0.7) for _ in range(2))
    optimizer = torch.optim.Adadelta(reference.parameters(), lr=0.7)
    for seed in range(3):
        batches = minibatches(SHAPE, seed)
        algorithm.update(batches)
        optimizer.zero_grad()
        reference.losses(batches)["loss"].backward()
        optimizer.step()
    for (name, p), other in zip(algorithm.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(p, other), name
    assert not torch.equal(p, build().state_dict()[name])


def test_layers_are_a_text_or_a_list():
    texts = [part.strip() for part in POOLED.split(",")]
    assert AE.HParams(layers=POOLED, latent_dim=None).layers == texts
    assert AE.HParams(layers=texts, latent_dim=None).layers == texts


@pytest.mark.parametrize(
    ("hparams", "says"),
    [
        ({"layers": "conv 8 3, rleu, code"}, "layer 2, 'rleu'"),
        ({"latent_dim": None}, "Give layers, or a size"),
    ],
)
def test_a_mistake_is_found_before_anything_is_built(hparams, says):
    with pytest.raises(ValidationError, match=says):
        AE.HParams(**hparams)

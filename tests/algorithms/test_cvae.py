"""CVAE: what its label does to posterior, prior and decoder, and what the judge does to it."""

import pytest
import torch
from torch import Tensor, distributions
from torch.nn import functional as F

from domainbed.algorithms import finished
from domainbed.algorithms.autoencoder import AE
from domainbed.algorithms.cvae import CVAE, perturb
from domainbed.algorithms.erm import ERM
from domainbed.errors import UserError
from domainbed.evaluator import evaluate
from domainbed.testing import (
    NUM_CLASSES,
    SHAPES,
    NoNoise,
    build,
    check_algorithm,
    check_batch_size_does_not_matter,
    minibatches,
    untrained_run,
)

CONDITIONINGS = ["decoder", "prior", "posterior"]
SMALL = {"latent_dim": 6, "width": 8, "likelihood": "bernoulli"}


def tiny(conditioning: str = "decoder", **hparams) -> CVAE:
    """A CVAE for the images of `minibatches`, without a judge unless one is given."""
    algorithm = build(CVAE, **({"judge_run": None, "conditioning": conditioning} | SMALL | hparams))
    assert isinstance(algorithm, CVAE)
    return algorithm


def judged(**hparams) -> CVAE:
    """The same with an untrained ERM as judge."""
    return tiny(**({"judge_run": untrained_run(ERM, SHAPES[0]), "judge_weight": 10.0} | hparams))


def batch() -> tuple[Tensor, Tensor]:
    x, _ = minibatches()[0]
    return x, torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize("conditioning", ["decoder", "posterior"])  # the default's is in test_contract.py
def test_contract(conditioning):
    check_algorithm(CVAE, conditioning=conditioning, judge_weight=10.0, latent_dim=6, width=8)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_the_batch_size_does_not_matter(conditioning):
    assert not judged(conditioning=conditioning).batch_coupled
    check_batch_size_does_not_matter(CVAE, conditioning=conditioning, judge_weight=10.0, **SMALL)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_the_kl_is_that_of_the_label_s_posterior_and_prior(conditioning):
    algorithm, (x, y) = tiny(conditioning).eval(), batch()
    mean, logvar = algorithm.posterior(x)  # the image's part
    label_mean, label_logvar = torch.zeros(2, len(y), 6)
    if conditioning != "decoder":
        label_mean, label_logvar = algorithm.embedding.weight[y].chunk(2, dim=1)
    posterior = distributions.Normal(mean + label_mean, (0.5 * (logvar + label_logvar)).exp())
    prior = distributions.Normal(torch.zeros(4, 6), torch.ones(4, 6))
    if conditioning == "prior":
        prior = distributions.Normal(label_mean, (0.5 * label_logvar).exp())
    expected = distributions.kl_divergence(posterior, prior).sum(1).mean()
    torch.testing.assert_close(algorithm.losses([(x, y)])["KLD_loss"], expected)


def test_the_kl_pays_for_the_label_s_mean_in_posterior_only():
    for conditioning, pays in {"posterior": True, "prior": False}.items():
        algorithm, (x, y) = tiny(conditioning).eval(), batch()
        before = algorithm.losses([(x, y)])["KLD_loss"]
        algorithm.embedding.weight.data[:, :6] += 5.0
        assert (algorithm.losses([(x, y)])["KLD_loss"] > before + 1.0) == pays


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_the_decoder_sees_the_label_in_decoder_alone(conditioning):
    algorithm, (x, y) = tiny(conditioning).eval(), batch()
    other, z = (y + 1) % NUM_CLASSES, torch.randn(4, 6)
    assert torch.equal(algorithm.decode(z, y), algorithm.decode(z, other)) == (conditioning != "decoder")
    assert not torch.allclose(algorithm.reconstruct(x, y), algorithm.reconstruct(x, other), atol=1e-3)


def test_without_a_label_an_image_is_the_mean_over_all_labels():
    algorithm, z = tiny().eval(), torch.randn(4, 6)
    each = [algorithm.decode(z, torch.tensor([k] * 4)) for k in range(NUM_CLASSES)]
    torch.testing.assert_close(algorithm.decode(z), sum(each) / NUM_CLASSES)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_labels_that_occur_teach_their_own_row_of_the_embedding(conditioning):
    algorithm = tiny(conditioning, perturbed_share=0.0)
    x, _ = batch()
    algorithm.losses([(x, torch.tensor([0, 2, 2, 0]))])["loss"].backward()
    taught = algorithm.embedding.weight.grad.ne(0).any(1)
    assert taught.tolist() == [True, False, True]


@pytest.mark.parametrize("num_classes", [2, 10])
def test_a_perturbed_label_is_another_class_and_each_other_is_equally_likely(num_classes):
    torch.manual_seed(0)
    n, share = 100_000, 0.1
    y = torch.full((n,), num_classes - 1)
    given = perturb(y, share, num_classes)
    counts = given.bincount(minlength=num_classes).double()
    expected = torch.full((num_classes,), n * share / (num_classes - 1), dtype=torch.float64)
    expected[num_classes - 1] = n * (1 - share)
    chi_square = ((counts - expected).square() / expected).sum()
    limit = {2: 10.8, 10: 27.9}[num_classes]  # exceeded once in 1000 times, with 1 and 9 degrees of freedom
    assert chi_square < limit
    assert given.dtype == torch.int64


def test_with_share_0_no_label_is_perturbed_and_with_nearly_1_none_is_left():
    y = torch.arange(3000) % 3
    assert torch.equal(perturb(y, 0.0, 3), y)
    assert perturb(y, 0.9999999, 3).ne(y).all()


def test_labels_are_perturbed_in_training_and_never_in_evaluation():
    batches = [batch()]
    with NoNoise():  # uniform draws are 1/2: every label is perturbed at a share above that, none below
        for training, differs in {True: True, False: False}.items():
            terms = [tiny(perturbed_share=share).train(training).losses(batches)["loss"] for share in (0.0, 0.9)]
            assert (terms[0] != terms[1]) == differs


def test_the_judge_neither_moves_nor_leaves_evaluation():
    algorithm = judged(lr=0.1)
    before = {key: value.clone() for key, value in algorithm.judge.state_dict().items()}
    assert any("running_mean" in key for key in before)
    algorithm.train()
    for seed in range(3):
        algorithm.update(minibatches(seed=seed))
    assert not any(module.training for module in algorithm.judge.algorithm.modules())
    moved = [key for key, value in algorithm.judge.state_dict().items() if not torch.equal(value, before[key])]
    assert not moved


def test_the_judge_teaches_decoder_embedding_and_encoder():
    algorithm = judged()
    y_loss = algorithm.losses([batch()])["y_loss"]
    own = {key: value for key, value in algorithm.named_parameters() if not key.startswith("judge.")}
    gradients = torch.autograd.grad(y_loss, list(own.values()), allow_unused=True)
    without = [key for key, g in zip(own, gradients, strict=True) if g is None or not g.any()]
    assert without == []


def test_the_judge_s_term_is_its_cross_entropy_for_the_reconstruction_times_the_weight():
    algorithm, (x, y) = judged(judge_weight=7.0).eval(), batch()
    oracle = finished.build(untrained_run(ERM, SHAPES[0])).eval()
    with NoNoise(), torch.no_grad():
        terms = algorithm.losses([(x, y)])
        expected = F.cross_entropy(oracle.predict(algorithm.reconstruct(x, y)), y)
    torch.testing.assert_close(terms["y_loss"], expected)
    torch.testing.assert_close(terms["loss"], terms["recon_loss"] + terms["KLD_weighted"] + 7.0 * expected)


def test_clean_and_perturbed_labels_are_judged_apart():
    algorithm, (x, y) = judged().eval(), batch()  # labels 0, 1, 2, 1; the next classes are 1, 2, 0, 2
    algorithm.judge.algorithm.predict = lambda images: F.one_hot(torch.full((len(images),), 1), 3).float()
    terms = algorithm.losses([(x, y)])
    assert (terms["judged_clean"].item(), terms["judged_perturbed"].item()) == (0.5, 0.25)
    assert not {"judged_clean", "judged_perturbed"} & algorithm.train().losses([(x, y)]).keys()


def test_a_saved_model_holds_its_judge():
    first, (x, y) = judged().eval(), batch()
    second = finished.construct(CVAE, SHAPES[0], NUM_CLASSES, 2, first.hparams)  # reads no finished run
    second.load_state_dict(first.state_dict())
    with NoNoise():
        assert second.eval().losses([(x, y)]) == first.losses([(x, y)])


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_samples_are_drawn_from_the_label_s_prior(conditioning, monkeypatch):
    algorithm, n = tiny(conditioning).eval(), 20_000
    monkeypatch.setattr(algorithm, "decode", lambda z, y: (z, y))
    with torch.no_grad():
        z, _ = algorithm.sample(n, torch.full((n,), 2))
        _, y = algorithm.sample(n)
    mean, sigma = torch.zeros(6), torch.ones(6)
    if conditioning == "prior":
        mean, logvar = algorithm.embedding.weight[2].detach().chunk(2)
        sigma = (0.5 * logvar).exp()
    torch.testing.assert_close(z.mean(0), mean, atol=4 * sigma.max().item() / n**0.5, rtol=0)
    torch.testing.assert_close(z.std(0), sigma, atol=0, rtol=0.03)
    torch.testing.assert_close(y.bincount() / n, torch.full((3,), 1 / 3), atol=0.015, rtol=0)


def test_an_evaluation_gives_the_true_label_and_says_so():
    algorithm, (x, y) = tiny().eval(), batch()
    with torch.no_grad():
        outputs = evaluate(algorithm, [(x, y)], list("abcd"))
        mse = (algorithm.reconstruct(x, y) - x).square().mean((1, 2, 3))
    assert outputs.needs_label
    torch.testing.assert_close(outputs.per_image["mse"], mse)


def test_the_encoder_of_the_mnist_presets_has_about_8000_parameters():
    algorithm = CVAE((1, 28, 28), 10, 1, {"latent_dim": 10, "width": 10})
    encoder = [*algorithm.encoder.parameters(), *algorithm.to_posterior.parameters()]
    assert 7_500 < sum(p.numel() for p in encoder) < 8_500


def test_what_can_not_be_is_one_message():
    message = "judge_run is not given.* with judge_weight=0 none is needed. .* --algorithm ERM"
    with pytest.raises(UserError, match=message):
        finished.bind(CVAE.HParams(judge_weight=100), "none", 0)
    with pytest.raises(UserError, match=message):
        CVAE(SHAPES[0], 3, 2, {"judge_weight": 100})
    assert finished.bind(CVAE.HParams(), "none", 0).judge_run is None
    with pytest.raises(UserError, match="one class only"):
        CVAE((3, 32, 32), 1, 1, {})
    erm, judge = untrained_run(ERM, SHAPES[0]), {"judge_weight": 1.0, **SMALL}
    with pytest.raises(UserError, match="judge_run: that run tells 3 classes apart, but these images have 5"):
        CVAE(SHAPES[0], 5, 1, {"judge_run": erm, **judge})
    with pytest.raises(UserError, match=r"judge_run: .* takes images of 3 x 32 x 32"):
        CVAE((3, 64, 64), 3, 1, {"judge_run": erm, **judge})
    with pytest.raises(UserError, match="is a run of AE, which predicts no classes"):
        CVAE(SHAPES[0], 3, 1, {"judge_run": untrained_run(AE, SHAPES[0]), **judge})


@pytest.mark.parametrize(("conditioning", "knows"), [("decoder", True), ("prior", True), ("posterior", False)])
def test_samples_show_the_label_that_was_asked_for_unless_the_prior_knows_none(conditioning, knows):
    torch.manual_seed(0)
    patterns = torch.rand(3, 1, 8, 8).round()
    algorithm = CVAE((1, 8, 8), 3, 1, {"conditioning": conditioning, "perturbed_share": 0.0, "lr": 1e-2, **SMALL})
    for _ in range(200):
        y = torch.randint(3, (64,))
        algorithm.update([(patterns[y] * (0.4 + 0.6 * torch.rand(64, 1, 1, 1)), y)])  # each of a brightness of its own
    y = torch.arange(300) % 3
    with torch.no_grad():
        samples = algorithm.eval().sample(300, y)
    closest = F.cosine_similarity(samples.flatten(1)[:, None], patterns.flatten(1)[None], dim=2).argmax(1)
    share = (closest == y).float().mean()
    assert share > 0.95 if knows else share < 0.5

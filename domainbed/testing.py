"""Checks of the contract of an algorithm, for the built-in ones and for yours.

    from domainbed.testing import check_algorithm

    def test_mine():
        check_algorithm(Mine, latent_dim=8)

Each check is a function of the class and some hyper-parameters and fails with an `AssertionError` that says what to
mend. They run on tiny images in seconds.
"""

import atexit
import copy
import inspect
import re
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.overrides import TorchFunctionMode

from domainbed import checkpoint
from domainbed.algorithms import finished
from domainbed.algorithms.base import (
    FINE_TUNING,
    Algorithm,
    Decoder,
    Encoder,
    Hierarchical,
    Posterior,
    Predictor,
    Reconstructor,
    Sampler,
    Segmenter,
    reconstruct_with,
)
from domainbed.engine import Engine
from domainbed.errors import UserError
from domainbed.hparams import parse
from domainbed.minibatch import Minibatch
from domainbed.objectives.segmentation import IGNORE_INDEX
from domainbed.registry import ALGORITHMS

NUM_CLASSES, NUM_DOMAINS, BATCH = 3, 2, 4
SHAPES = ((3, 32, 32), (1, 32, 32), (3, 33, 33), (1, 17, 23))
VECTOR_SHAPE = (12,)
SMALL_BACKBONE = "test_resnet"  # timm's model for tests


def build(
    cls: type[Algorithm], shape: tuple[int, ...] = SHAPES[0], num_domains: int = NUM_DOMAINS, **hparams: Any
) -> Algorithm:
    """Return an instance, with a tiny random backbone and untrained parts where the class has any and none is named."""
    return cls(shape, NUM_CLASSES, num_domains, small(cls, shape) | hparams)


def small(cls: type[Algorithm], shape: tuple[int, ...]) -> dict[str, Any]:
    """Return hyper-parameters that a test can't leave at their defaults: the backbone, and runs that it is built on."""
    found: dict[str, Any] = {}
    if "model" in cls.HParams.model_fields:
        found |= {"model": SMALL_BACKBONE, "pretrained": "false"}
    for key, name in cls.HParams.runs.items():
        found[key] = untrained_run(ALGORITHMS[name], shape)
    torch.manual_seed(0)
    return found


@cache
def untrained_run(cls: type[Algorithm], shape: tuple[int, ...], num_classes: int = NUM_CLASSES) -> finished.FinishedRun:
    """Return the description of a model that a run of no steps would export, with random weights."""
    algorithm = cls(shape, num_classes, NUM_DOMAINS, small(cls, shape))
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config = {
        "algorithm": cls.name,
        "algorithms": {cls.name: algorithm.hparams.model_dump(mode="json", exclude=set(algorithm.hparams.runs))},
        "datasets": {"test": {"preprocess": ["resize"]}},
    }
    meta = {
        "input_shape": list(shape),
        "classes": [str(index) for index in range(num_classes)],
        "num_domains": NUM_DOMAINS,
        "sources": [str(index) for index in range(NUM_DOMAINS)],
        "target": "none",
        "seed": 0,
        "step": 0,
        "runs": {key: run.model_dump(mode="json") for key, run in finished.runs_of(algorithm.hparams).items()},
    }
    checkpoint.export(folder / finished.EXPORTED, algorithm, config, meta)
    return finished.read(folder / finished.EXPORTED)


def minibatches(
    shape: tuple[int, ...] = SHAPES[0],
    seed: int = 0,
    batch: int = BATCH,
    algorithm: Algorithm | None = None,
    num_domains: int = NUM_DOMAINS,
) -> list[Minibatch]:
    """Return smooth random images in [0, 1], each environment of another brightness, with what is learnt from them.

    For a shape (F,) they are vectors, normal ones, each environment with another mean. What is learnt is
    labels; for an `algorithm` that needs masks, those of the form that its `output` asks for, with some pixels that
    nobody labelled.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for domain in range(num_domains):
        if len(shape) == 1:
            vectors = torch.randn(batch, *shape, generator=generator) + domain
            made.append(Minibatch(vectors, torch.randint(NUM_CLASSES, (batch,), generator=generator), domain))
            continue
        coarse = torch.rand(batch, shape[0], 4, 4, generator=generator) * (0.5 + 0.5 * domain / (num_domains - 1))
        images = torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bilinear")
        labels = torch.randint(NUM_CLASSES, (batch,), generator=generator)
        learns_masks = algorithm is not None and algorithm.needs_masks
        second = None
        if algorithm is not None and algorithm.needs_second_view:
            second = (images + 0.05 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
        target = _masks(images, algorithm) if learns_masks else labels
        made.append(Minibatch(images, target, domain, second))
    return made


def _masks(images: Tensor, algorithm: Any) -> Tensor:
    """Return masks of images (B, C, H, W): brighter pixels are of a higher class, or of more kinds."""
    brightness = images.mean(1)  # (B, H, W)
    thresholds = brightness.flatten().quantile(torch.arange(1, NUM_CLASSES + 1) / (NUM_CLASSES + 1))
    kinds = brightness[:, None] > thresholds[None, :, None, None]  # (B, K, H, W)
    if algorithm.hparams.output == "sigmoid":
        masks = kinds.float()
        masks[..., :2, :2] = torch.nan
    else:
        masks = kinds[:, 1:].sum(1)  # (B, H, W)
        masks[..., :2, :2] = IGNORE_INDEX
    return masks


def check_shapes(cls: type[Algorithm], **hparams: Any) -> None:
    """Every capability returns what its protocol says, for grey and colour images of even and odd sizes."""
    for shape in SHAPES:
        algorithm = build(cls, shape, **hparams)
        batches = minibatches(shape, algorithm=algorithm)
        losses = algorithm.update(batches)
        assert "loss" in losses, f"losses() returned {sorted(losses)}: 'loss' is what is minimised"
        for key, value in losses.items():
            assert value.shape == (), f"losses()[{key!r}] has shape {tuple(value.shape)}: take the mean over the batch"
            assert value.isfinite(), f"losses()[{key!r}] is {value.item()} for images of shape {shape}"
        assert algorithm.step.item() == 1, (
            f"the step is {algorithm.step.item()} after one update: leave it to the base class"
        )
        x, y = batches[0]
        algorithm.eval()
        with torch.no_grad():
            if isinstance(algorithm, Predictor):
                _has_shape("predict", algorithm.predict(x), (BATCH, NUM_CLASSES))
            if isinstance(algorithm, Segmenter):
                _has_shape("segment", algorithm.segment(x), (BATCH, NUM_CLASSES, *shape[1:]))
            if isinstance(algorithm, Reconstructor):
                _is_image("reconstruct", reconstruct_with(algorithm, x, y), (BATCH, *shape))
            if isinstance(algorithm, Encoder):
                code = algorithm.encode(x)
                assert code.ndim == 2 and len(code) == BATCH, f"encode() returned {tuple(code.shape)}, not (B, D)"
                if isinstance(algorithm, Decoder):
                    _is_image("decode", algorithm.decode(code), (BATCH, *shape))
            if isinstance(algorithm, Posterior):
                mean, logvar = algorithm.posterior(x)
                assert mean.shape == logvar.shape, f"posterior() returned {tuple(mean.shape)} and {tuple(logvar.shape)}"
            if isinstance(algorithm, Hierarchical):
                kl = [tuple(one.shape) for one in algorithm.level_kl(x)]
                assert kl == [(BATCH, size) for size in algorithm.latent_dims], f"level_kl() returned {kl}"
                for level, size in enumerate(algorithm.latent_dims):
                    _is_image("decode_level", algorithm.decode_level(x.new_zeros(BATCH, size), level), (BATCH, *shape))
            if isinstance(algorithm, Sampler):
                _is_image("sample", algorithm.sample(BATCH), (BATCH, *shape))


def check_vectors(cls: type[Algorithm], **hparams: Any) -> None:
    """A class that `takes_vectors` learns from them and says as much of them as of images; another one refuses them."""
    if not cls.takes_vectors:
        try:
            build(cls, VECTOR_SHAPE, **hparams)
        except UserError as error:
            assert "vectors" in str(error), f"what refuses vectors does not say so: {error}"
            return
        raise AssertionError("takes_vectors is False, but vectors are not refused: call super().__init__ first")
    for model in ("mlp", "none") if "model" in cls.HParams.model_fields else (None,):
        of_images = {"model", "pretrained", *FINE_TUNING} if model else set()
        kept = {key: value for key, value in hparams.items() if key not in of_images}
        kept |= {"model": model} if model else {}
        try:
            algorithm = build(cls, VECTOR_SHAPE, **kept)
        except ValidationError as error:
            assert model == "none" and "model=mlp" in str(error), f"model = {model} is refused for vectors: {error}"
            continue
        batches = minibatches(VECTOR_SHAPE, algorithm=algorithm)
        for key, value in algorithm.update(batches).items():
            assert value.isfinite(), f"losses()[{key!r}] is {value.item()} for vectors"
        algorithm.eval()
        with torch.no_grad():
            if isinstance(algorithm, Predictor):
                _has_shape("predict", algorithm.predict(batches[0][0]), (BATCH, NUM_CLASSES))
            if isinstance(algorithm, Encoder):
                code = algorithm.encode(batches[0][0])
                assert code.ndim == 2 and len(code) == BATCH, f"encode() returned {tuple(code.shape)}, not (B, D)"


def check_every_parameter_learns(cls: type[Algorithm], **hparams: Any) -> None:
    """Three updates move every parameter that asks for a gradient.

    Not one: a residual block that begins as the identity hides its inner weights from the first gradient.
    """
    algorithm = build(cls, **hparams)
    before = {key: value.clone() for key, value in algorithm.named_parameters()}
    _train(algorithm, 0, 3)
    trainable = {key: value for key, value in algorithm.named_parameters() if value.requires_grad}
    untouched = [key for key, value in trainable.items() if torch.equal(value, before[key])]
    assert not untouched, f"three updates left these untouched: {untouched}"


def check_overfits_one_batch(cls: type[Algorithm], **hparams: Any) -> None:
    """The loss of one batch, seen again and again, falls by at least a tenth of what it was."""
    algorithm = build(cls, **({"lr": 3e-3} | hparams))
    batches = minibatches(algorithm=algorithm)
    losses = []
    for step in range(60):
        torch.manual_seed(step)
        losses.append(algorithm.update(batches)["loss"].item())
    start, end = losses[0], sum(losses[-5:]) / 5
    assert end < start - 0.1 * abs(start), f"60 steps on one batch took the loss from {start:.4g} to {end:.4g} only"


def check_batch_size_does_not_matter(cls: type[Algorithm], **hparams: Any) -> None:
    """In evaluation and without noise, each term of a batch is the mean of the terms of its images."""
    algorithm = build(cls, **hparams)
    if algorithm.batch_coupled:
        return
    algorithm.eval()
    x, y = minibatches(algorithm=algorithm)[0]
    with torch.no_grad(), NoNoise():
        together = algorithm.evaluation_terms(x, y)
        alone = [algorithm.evaluation_terms(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    for key, value in together.items():
        mean = torch.stack([one[key] for one in alone]).mean()
        assert torch.allclose(value, mean, rtol=1e-3, atol=1e-5), (
            f"evaluation_terms()[{key!r}] is {value.item():.6g} for {len(x)} images together, but {mean.item():.6g} is "
            "the mean of them alone. Keep a value per image until the last line, or let `batch_coupled` return True"
        )


def check_resume_is_exact(cls: type[Algorithm], precision: str = "float32", **hparams: Any) -> None:
    """Three steps, saved after the first and gone on with in a new object, give what three steps in one go give."""
    straight, first = build(cls, **hparams), build(cls, **hparams)
    engines = [Engine("cpu", precision) for _ in range(3)]
    engines[0].prepare(straight)
    engines[1].prepare(first)
    _train(straight, 0, 3)
    _train(first, 0, 1)
    torch.manual_seed(1)
    second = cls(SHAPES[0], NUM_CLASSES, NUM_DOMAINS, first.hparams)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    engines[2].prepare(second)
    engines[2].load_state(copy.deepcopy(engines[1].state()))
    _train(second, 1, 3)
    differing = [
        key for key, value in straight.state_dict().items() if not torch.equal(value, second.state_dict()[key])
    ]
    assert not differing, (
        f"after a resume these differ from an uninterrupted run: {differing}. Whatever changes during training must be "
        "a parameter or a buffer, or live in an optimiser"
    )


def check_parts_make_the_same_step(cls: type[Algorithm], **hparams: Any) -> None:
    """A batch that is computed in two pieces takes the step that it takes whole; BatchNorm is frozen for that.

    The step is SGD's unless `hparams` name another optimiser: Adam's first one has the gradient's sign, which rounding
    decides where the gradient is next to nothing.
    """
    hparams = {"optimizer": "sgd"} | hparams
    whole, pieces = build(cls, **hparams), build(cls, **hparams)
    engines = [Engine("cpu", "float32", accumulate=accumulate) for accumulate in (1, 2)]
    engines[0].prepare(whole)
    try:
        engines[1].prepare(pieces)
    except UserError:  # it says itself that it can't be
        steps_itself = type(whole).train_step is not Algorithm.train_step
        assert whole.batch_coupled or steps_itself or len(whole.optimizers()) > 1, "refused without a reason"
        return
    found = []
    for algorithm in (whole, pieces):
        for module in algorithm.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()
        torch.manual_seed(1000)
        losses = algorithm.update(minibatches(algorithm=algorithm))
        gradients = [one.grad.flatten() for one in algorithm.parameters() if one.grad is not None]
        found.append((losses, torch.cat(gradients)))
    (losses, gradient), (losses_of_pieces, gradient_of_pieces) = found
    for key, value in losses.items():
        assert torch.allclose(value.float(), losses_of_pieces[key], rtol=1e-3, atol=1e-5), (
            f"losses()[{key!r}] is {value.item():.6g} for a whole batch, but {losses_of_pieces[key].item():.6g} in two "
            "pieces. Draw noise by `objectives.rows`, take means over images alone, or let `batch_coupled` return True"
        )
    difference = (gradient - gradient_of_pieces).norm() / gradient.norm().clamp(min=1e-12)
    assert difference < 1e-3, f"the gradient in two pieces differs by {difference:.2g} of its norm from that in one"
    for key, value in whole.state_dict().items():
        if not value.is_floating_point():
            continue
        other = pieces.state_dict()[key]
        scale = (value - other).abs().max() / value.abs().max().clamp(min=1e-3)
        assert scale < 1e-4, f"{key} differs after a step in two pieces; collect what `after_step` needs with `rows`"


def check_save_and_load(cls: type[Algorithm], **hparams: Any) -> None:
    """What a checkpoint holds is enough to give the same answers again."""
    algorithm = build(cls, **hparams)
    _train(algorithm, 0, 2)
    algorithm.eval()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder) / "last", algorithm, {"step": 2})
        torch.manual_seed(1)
        loaded = cls(SHAPES[0], NUM_CLASSES, NUM_DOMAINS, algorithm.hparams)
        checkpoint.load_weights(Path(folder) / "last", loaded)
    loaded.eval()
    x, y = minibatches()[0]
    for name, answer in _answers(algorithm, x, y).items():
        assert torch.equal(answer, _answers(loaded, x, y)[name]), f"{name} answers differently after saving and loading"


def check_evaluation_is_deterministic(cls: type[Algorithm], **hparams: Any) -> None:
    """In evaluation, what takes no noise answers the same twice, whatever else is in the batch, and moves nothing."""
    algorithm = build(cls, **hparams)
    _train(algorithm, 0, 1)
    algorithm.eval()
    before = copy.deepcopy(algorithm.state_dict())
    x, y = minibatches()[0]
    first = _answers(algorithm, x, y)
    torch.manual_seed(99)
    second = _answers(algorithm, x, y)
    single = _answers(algorithm, x[:1], y[:1])
    with torch.no_grad():
        algorithm.evaluation_terms(*minibatches(algorithm=algorithm)[0])
    for name, answer in first.items():
        assert torch.equal(answer, second[name]), (
            f"{name} answers differently the second time: use no noise in evaluation"
        )
        assert torch.allclose(answer[:1], single[name], rtol=1e-3, atol=1e-4), (
            f"{name} depends on the rest of the batch"
        )
    moved = [key for key, value in algorithm.state_dict().items() if not torch.equal(value, before[key])]
    assert not moved, f"evaluation changed these: {moved}"


def check_runs_on_a_gpu(cls: type[Algorithm], **hparams: Any) -> None:
    """With its weights and the images on a GPU, all that it computes is there, too; see `fake_gpu`, no GPU is needed.

    Followed are `losses`, `after_step`, and what the protocols up to `Sampler` answer. What makes every step wait for
    the GPU is a warning, and so is what can't be followed without one.
    """
    from domainbed.fake_gpu import WarnOfSynchronisation, fake_gpu, place  # private parts of torch: here alone

    algorithm = build(cls, **hparams)
    made, author = minibatches(algorithm=algorithm), inspect.getfile(cls)
    with fake_gpu() as gpu:
        algorithm.to(gpu)
        batches = [minibatch.map(lambda tensor: tensor.to(gpu)) for minibatch in made]
        x, y = batches[0]
        watch = WarnOfSynchronisation(author)
        try:
            with watch:
                losses = algorithm(batches)
                for parameter in algorithm.parameters():
                    parameter.grad = torch.zeros_like(parameter)  # the way back is not walked
                algorithm.finish_step()
                algorithm.eval()
                with torch.no_grad():
                    answers = _answers(algorithm, x, y)
                    if isinstance(algorithm, Sampler):
                        answers["sample"] = algorithm.sample(BATCH)
                    if isinstance(algorithm, Encoder) and isinstance(algorithm, Decoder):
                        answers["decode"] = algorithm.decode(algorithm.encode(x))
        except RuntimeError as error:
            where = place(traceback.extract_tb(error.__traceback__), author)
            assert not re.search("two (different )?devices", str(error)), (
                f"on a GPU {where} fails ({error}). Keep tensors in buffers, and make new ones with device="
            )
            if not watch.warned:
                warnings.warn(f"{where} can't be followed without a GPU: {error}", stacklevel=2)
            return
    for name, value in (losses | answers).items():
        assert value.device == x.device, f"{name} is on {value.device}, while the images are on {x.device}"


def check_anchored(cls: type[Algorithm], **hparams: Any) -> None:
    """With the hyper-parameters of `anchor` three steps give the weights that ERM's give, to a relative 1e-6."""
    if not cls.anchor:
        return
    erm_class = ALGORITHMS["ERM"]
    of_erm = {key: value for key, value in hparams.items() if key in erm_class.HParams.model_fields}
    anchored, erm = build(cls, **{**hparams, **cls.anchor}), build(erm_class, **of_erm)
    for algorithm in (anchored, erm):
        _train(algorithm, 0, 3)
    weights = anchored.state_dict()
    for key, expected in erm.state_dict().items():
        difference = (weights[key] - expected).abs().max() if expected.is_floating_point() else torch.zeros(())
        assert difference <= 1e-6 * expected.abs().max(), (
            f"with {dict(cls.anchor)} {key} is {difference.item():.3g} from ERM's after three steps. Compute the label "
            "loss as ERM does, and draw no random number that it does not draw"
        )


def check_alive(cls: type[Algorithm], **hparams: Any) -> None:
    """Each hyper-parameter that the class adds to ERM's changes what ten steps on three environments lead to.

    A number is doubled, halved or raised by one, a switch turned, another choice taken, whichever is admitted beside
    the other values; numbers of steps are 3 to begin with. A key that has no effect has to say so in `idle`.
    """
    fields = cls.HParams.model_fields
    of_erm = ALGORITHMS["ERM"].HParams.model_fields
    inherited = {key for key in of_erm if key in fields and fields[key].description == of_erm[key].description}
    inherited |= {*Algorithm.HParams.model_fields, *cls.HParams.runs}
    start = {key: 3 for key, info in fields.items() if _is_step_count(info) and key not in inherited} | hparams
    usual, idle = _outcome_of_ten_steps(cls, start), build(cls, **start).hparams.idle()
    dead = []
    for key in [key for key in fields if key not in {*inherited, *idle}]:
        outcomes = []
        for other in _other_values(fields[key], build(cls, **start).hparams[key]):
            with suppress(ValidationError, UserError):  # not beside the other values
                outcomes.append(_outcome_of_ten_steps(cls, start | {key: other}))
        if outcomes and all(torch.equal(usual, outcome) for outcome in outcomes):
            dead.append(key)
    assert not dead, (
        f"these change nothing in ten steps: {dead}. Drop the setting, mend what it should do, or name it in "
        "HParams.idle where another setting silences it"
    )


def _is_step_count(info: Any) -> bool:
    return any(getattr(item, "text", "").startswith("a step count") for item in info.metadata)


def _other_values(info: Any, value: Any) -> Iterator[Any]:
    """Yield other values of a number, a switch or a choice; nothing for what has no obvious other."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        for other in (2 * value, value / 2, value + 1, 0.9):
            with suppress(ValidationError):
                if (admitted := parse(info, other)) != value:
                    yield admitted
                    return
    for kind in (info.annotation, *get_args(info.annotation)):
        if get_origin(kind) is Literal:
            yield from (choice for choice in get_args(kind) if choice != value)


def _outcome_of_ten_steps(cls: type[Algorithm], hparams: dict[str, Any]) -> Tensor:
    """Return what any size of network has: the last loss, and what the algorithm answers, one after the other."""
    algorithm = build(cls, num_domains=3, **hparams)
    terms: dict[str, Tensor] = {}
    for step in range(10):
        torch.manual_seed(1000 + step)
        terms = algorithm.update(minibatches(seed=step, algorithm=algorithm, num_domains=3))
    x, y = minibatches()[0]
    answers = [answer.flatten() for answer in _answers(algorithm.eval(), x, y).values()]
    return torch.cat([terms["loss"].flatten(), *answers])


CHECKS: tuple[Callable[..., None], ...] = (
    check_shapes,
    check_vectors,
    check_every_parameter_learns,
    check_overfits_one_batch,
    check_batch_size_does_not_matter,
    check_parts_make_the_same_step,
    check_resume_is_exact,
    check_save_and_load,
    check_evaluation_is_deterministic,
    check_anchored,
    check_runs_on_a_gpu,
)


def check_algorithm(cls: type[Algorithm], **hparams: Any) -> None:
    """Run every check on a class.

    Args:
        cls: a subclass of `Algorithm`.
        hparams: hyper-parameters that make it small.

    Raises:
        AssertionError: the first promise that the class does not keep.
    """
    for check in CHECKS:
        check(cls, **hparams)


class NoNoise(TorchFunctionMode):
    """While active, normal draws are 0 and uniform draws 1/2, so that a sample is its distribution's centre."""

    CENTRES = {torch.randn_like: 0.0, torch.randn: 0.0, torch.rand_like: 0.5, torch.rand: 0.5, Tensor.normal_: 0.0}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result.fill_(self.CENTRES[func]) if func in self.CENTRES else result


def _train(algorithm: Algorithm, start: int, end: int) -> None:
    for step in range(start, end):
        torch.manual_seed(1000 + step)
        algorithm.update(minibatches(seed=step, algorithm=algorithm))


def _answers(algorithm: Algorithm, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return what takes no noise."""
    with torch.no_grad():
        found = {
            name: getattr(algorithm, name)(x) for name in ("predict", "encode", "segment") if hasattr(algorithm, name)
        }
        if isinstance(algorithm, Reconstructor):
            found["reconstruct"] = reconstruct_with(algorithm, x, y)
        if isinstance(algorithm, Posterior):
            found["posterior"] = torch.cat(algorithm.posterior(x), dim=1)
    return found


def _has_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    assert tuple(value.shape) == shape, f"{name}() returned {tuple(value.shape)}, not {shape}"


def _is_image(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    _has_shape(name, value, shape)
    low, high = value.aminmax()
    assert low >= 0 and high <= 1, f"{name}() returned values from {low.item():.3g} to {high.item():.3g}, not in [0, 1]"

"""Rates by layer: the groups of parameters with which a timm encoder is fine-tuned, and what a run says of them.

    rate of a group of layers = encoder_lr * layer_decay^(groups between it and the encoder's last)

The groups are timm's, those of BEiT (Bao et al. 2022): the stem, then each block. As in BEiT, tensors with one
dimension (biases, weights of norms) and those that the model itself names (positions) have no weight decay. What is not
part of a timm encoder has the rate `lr`. That the encoder waits until step `head_first` is a number in its groups; the
engine, which has the schedule, reads it.
"""

from collections.abc import Iterable
from typing import Any

from timm.layers import DropPath
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.optim import Optimizer

from domainbed.errors import UserError
from domainbed.networks.encoders import Dropout, TimmEncoder, stages_of

#: Key of an encoder's parameter groups in an optimiser: the step at which their schedule begins.
START = "starts_at_step"


def encoders_of(algorithm: nn.Module) -> list[TimmEncoder]:
    """Return the timm encoders of an algorithm."""
    return [module for module in algorithm.modules() if isinstance(module, TimmEncoder)]


def groups(algorithm: Any, parameters: Iterable[Any]) -> list[Any]:
    """Return groups of parameters for an optimiser, those of timm encoders by layer, then all others.

    Args:
        parameters: those that the optimiser moves. Groups that are made already are returned as they are.
    """
    parameters, h = list(parameters), algorithm.hparams
    if not all(isinstance(parameter, Tensor) for parameter in parameters):
        return parameters
    left = {id(parameter): parameter for parameter in parameters}
    found: dict[tuple[float, float, int | None], list[Tensor]] = {}
    for encoder in encoders_of(algorithm):
        backbone: Any = encoder.backbone
        for group in param_groups_layer_decay(
            backbone,
            weight_decay=h.weight_decay,
            no_weight_decay_list=tuple(getattr(backbone, "no_weight_decay", tuple)()),
            layer_decay=h.layer_decay,
        ):
            rate = (h.encoder_lr or h.lr) * group["lr_scale"]
            chosen = [left.pop(id(parameter)) for parameter in group["params"] if id(parameter) in left]
            found.setdefault((rate, group["weight_decay"], h.head_first), []).extend(chosen)
    for parameter in left.values():
        weight_decay = h.weight_decay if parameter.ndim > 1 else 0.0
        found.setdefault((h.lr, weight_decay, None), []).append(parameter)
    return [
        {"params": chosen, "lr": rate, "weight_decay": weight_decay} | ({} if start is None else {START: start})
        for (rate, weight_decay, start), chosen in found.items()
        if chosen
    ]


def check(algorithm: Any, optimizers: dict[str, Optimizer]) -> None:
    """Raise `UserError` where a setting of fine-tuning would have no effect, as in a plug-in with other ways.

    Args:
        optimizers: of the algorithm, before the first step.
    """
    h, encoders = algorithm.hparams, encoders_of(algorithm)
    name = algorithm.name or type(algorithm).__name__
    asked = {"freeze_stages": h.freeze_stages, "dropout": h.dropout, "drop_path": h.drop_path}
    asked |= {"encoder_lr": h.encoder_lr, "layer_decay": h.layer_decay < 1, "head_first": h.head_first}
    keys = [key for key, value in asked.items() if value]
    if keys and not encoders:
        raise UserError(f"{name} has no encoder made by build_encoder, so {keys[0]} has no effect. Leave it out")
    modules = [module for encoder in encoders for module in encoder.modules()]
    honoured = {
        "freeze_stages": not all(one.requires_grad for encoder in encoders for one in encoder.parameters()),
        "dropout": any(isinstance(module, Dropout) for module in modules),
        "drop_path": any(isinstance(module, DropPath) and module.drop_prob for module in modules),
    }
    for key, is_so in honoured.items():
        if h[key] and not is_so:
            raise UserError(f"{name} makes its encoder without build_encoder, so {key} has no effect. Use {key}=0")
    if h.has_groups:
        grouped = {
            id(parameter)
            for optimizer in optimizers.values()
            for group in optimizer.param_groups
            if START in group
            for parameter in group["params"]
        }
        learning = [one for encoder in encoders for one in encoder.backbone.parameters() if one.requires_grad]
        if any(id(parameter) not in grouped for parameter in learning):
            key = next((key for key in ("encoder_lr", "layer_decay", "head_first") if key in keys), "finetune")
            raise UserError(
                f"{name} makes its optimisers itself, so {key} has no effect on its encoder. Leave it out, or let "
                "`optimizers` call self.make_optimizer(parameters)"
            )


def describe(algorithm: Any, optimizers: dict[str, Optimizer], steps: int) -> str:
    """Return a sentence on what is frozen and which rates there are; empty where nothing was asked for.

    Args:
        optimizers: of the algorithm, before the first step.
        steps: of the run.
    """
    h, said = algorithm.hparams, []
    for encoder in encoders_of(algorithm):
        if h.freeze_stages:
            names = list(stages_of(encoder.backbone, h.model))
            said.append(
                f"{h.freeze_stages} of {len(names)} stages of the encoder are frozen "
                f"({', '.join(names[: h.freeze_stages])})"
            )
    if h.has_groups:
        all_groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
        of_encoder = [group["lr"] for group in all_groups if START in group]
        others = [group["lr"] for group in all_groups if START not in group]
        if of_encoder:
            low, high = min(of_encoder), max(of_encoder)
            rates = f"the rate {high:.3g}" if low == high else f"rates from {low:.3g} to {high:.3g}"
            said.append(f"the encoder learns in {_groups(len(set(of_encoder)))} with {rates}")
        if others:
            said.append(f"{'the rest' if of_encoder else 'what comes after it'} with the rate {max(others):.3g}")
        if of_encoder and h.head_first >= steps:
            said.append(f"the encoder never moves, because head_first = {h.head_first} is no less than {steps} steps")
        elif of_encoder and h.head_first:
            said.append(f"the encoder waits for {h.head_first} steps")
    said += [f"dropout {h.dropout:g}"] * bool(h.dropout) + [f"drop path up to {h.drop_path:g}"] * bool(h.drop_path)
    return f"fine-tuning: {'; '.join(said)}" if said else ""


def _groups(number: int) -> str:
    return f"{number} group{'s' * (number != 1)} of layers"

"""`new`: write a file to start an algorithm of one's own from."""

import keyword
import re
from pathlib import Path

from domainbed.cli import Parser
from domainbed.errors import UserError, explain_os_errors
from domainbed.files import write_atomically
from domainbed.registry import ALGORITHMS

TEMPLATE = '''\
"""{name}: say in one sentence what it does.

Give the paper, and the loss as a formula. As it stands it is ERM with a penalty on how much the risks of the training
environments differ (VREx, Krueger et al. 2021, arXiv 2003.00688, eq. 8):

    loss = mean over environments of risk_e + {penalty} * variance over environments of risk_e

    python {file}                                                        checks the contract
    python train_subset.py try_it --plugin {file} --algorithm {name}      trains it
"""

import torch

from domainbed.algorithms.base import concatenate
from domainbed.algorithms.erm import ERM
from domainbed.hparams import Field, NonNegativeFloat
from domainbed.registry import ALGORITHMS


@ALGORITHMS.register("{name}")
class {name}(ERM):
    """Say it in one line; `python -m domainbed list` shows it."""

    class HParams(ERM.HParams):
        """Options of {name}."""

        {penalty}: NonNegativeFloat = Field(10.0, description="weight of the penalty; 0 is ERM")

    min_domains = 2  # it compares environments; 1 where it does not
    anchor = {{"{penalty}": 0.0}}  # the settings that make it ERM, which check_anchored holds it to

    @property
    def batch_coupled(self):
        return True  # a term depends on the whole batch; False where every term is a mean over images

    def losses(self, minibatches):
        """Return the terms, () tensors; "loss" is minimised, all are logged.

        For several optimiser steps, or several optimisers, write train_step(minibatches, stepper) instead.
        """
        x, y = concatenate(minibatches)  # (B, C, H, W) in [0, 1], (B,)
        nll = self.label_loss(self.predict(x), y)  # (B,)
        risks = torch.stack([part.mean() for part in nll.split([len(y) for _, y in minibatches])])  # (environments,)
        penalty = risks.var(unbiased=False)
        return {{"loss": nll.mean() + self.hparams.{penalty} * penalty, "risk": nll.mean(), "penalty": penalty}}


if __name__ == "__main__":
    from domainbed.testing import check_algorithm, check_alive

    check_algorithm({name})
    check_alive({name})
    print("{name} keeps the contract")
'''


def main(argv: list[str]) -> int:
    """Run the command and return its exit status."""
    parser = Parser("Write a file to start an algorithm of your own from, in the current folder.", "new")
    parser.add_argument("name", help="of the class and in the registry, such as MyMethod")
    name = parser.parse_args(argv).name
    check(name)
    path = Path(f"{snake_case(name)}.py")
    if path.exists():
        raise UserError(f"{path} exists already. Choose another name, or move the file away")
    with explain_os_errors(f"writing {path}"), write_atomically(path) as draft:
        draft.write_text(TEMPLATE.format(name=name, file=path, penalty="penalty_weight"), encoding="utf-8")
    print(f"wrote {path}. Check it: python {path}")
    print(f"Train it: python train_subset.py try_it --plugin {path} --algorithm {name}")
    return 0


def check(name: str) -> None:
    """Raise `UserError` where a name can't be that of a new algorithm."""
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UserError(f"{name!r} can't be the name of a class. Use letters, digits and _, such as MyMethod")
    if name in ALGORITHMS:
        raise UserError(f"an algorithm named {name!r} exists already. Choose another name")


def snake_case(name: str) -> str:
    """Return the file's name for a class: my_method for MyMethod, vrex for VREx."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()

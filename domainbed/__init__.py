"""Autoencoders and domain generalisation: does what a model learns survive the next camera?

import domainbed
run = domainbed.train("ERM", "DR", data_dir="DR2/", steps=300)
algorithm = domainbed.load("results/train_output/DR/full_training", target="idrid")
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load", "train"]

if TYPE_CHECKING:
    from domainbed.api import train
    from domainbed.checkpoint import load


def __getattr__(name: str) -> Any:
    if name == "load":  # imported when used: the command line must answer before torch is there
        from domainbed.checkpoint import load

        return load
    if name == "train":
        from domainbed.api import train

        return train
    raise AttributeError(f"module 'domainbed' has no attribute {name!r}")

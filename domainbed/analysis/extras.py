"""Libraries that only some commands need: asked for by name, with the one line that installs them."""

import importlib
import importlib.util
import sys
from typing import Any

from domainbed.errors import UserError


def require(module: str, extra: str, what: str) -> Any:
    """Import and return a module of an extra.

    Args:
        module: as in `import`. extra: of setup.py. what: needs it, for the message, such as "the map by UMAP".

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name != module.partition(".")[0]:
            raise  # it is there, and something that it needs is not: its own message is the better one
        raise missing(module, extra, what) from None


def check(module: str, extra: str, what: str) -> None:
    """Raise `UserError` where a module of an extra is not installed; for before long work, since nothing is imported.

    Args:
        module, extra, what: as of `require`.
    """
    if module not in sys.modules and importlib.util.find_spec(module) is None:
        raise missing(module, extra, what)


def missing(module: str, extra: str, what: str) -> UserError:
    """Return the error for a module that is not installed; arguments as of `require`."""
    name = module.partition(".")[0]
    return UserError(
        f'{what} needs {name}, which is not installed. Install it: pip install "domainbed-ae[{extra}]", or in a '
        f'checkout: pip install -e ".[{extra}]"'
    )

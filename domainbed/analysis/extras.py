"""Libraries that only some commands need: asked for by name, with the one line that installs them."""

import importlib
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
        raise UserError(
            f"{what} needs {module.partition('.')[0]}, which is not installed. Install it: pip install "
            f'"domainbed-ae[{extra}]", or in a checkout: pip install -e ".[{extra}]"'
        ) from None

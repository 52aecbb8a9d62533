"""Entry of the ``gpuconv`` command and of ``python -m gpuconv``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; needs the ``cli`` extra."""
    try:
        from .cli.main import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "click"):
            raise
        sys.exit(f"gpuconv: the command line needs {error.name!r}; install it with: pip install 'gpuconv[cli]'")
    app()


if __name__ == "__main__":
    main()

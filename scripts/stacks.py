"""Set up an environment that not every machine can have: another Python, and packages of an exact release.

    python scripts/stacks.py FOLDER PYTHON PACKAGE...

Where that Python or those packages cannot be had, the reason is written to FOLDER/.why-not, for the lane to say, and
the exit status is 0 all the same; FOLDER/.stamp says that everything is there.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path


def interpreter(name: str) -> str | None:
    """Return the path of a Python by name, from the path or where pyenv keeps its versions."""
    found = shutil.which(name)
    if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
        return found  # not one of pyenv's stand-ins for a version that is not chosen
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    kept = sorted((root / "versions").glob(f"{name.removeprefix('python')}.*/bin/{name}"))
    return str(kept[-1]) if kept else None


def main() -> int:
    folder, name, *packages = sys.argv[1:]
    venv = Path(folder)
    shutil.rmtree(venv, ignore_errors=True)
    python, why = interpreter(name), None
    if python is None:
        why = f"no {name} here"
    else:
        tools = [[python, "-m", "venv", folder], [f"{folder}/bin/python", "-m", "pip", "install", *packages]]
        for command in tools:
            if subprocess.run(command, check=False).returncode != 0:
                why = f"{' '.join(command[1:4])} failed: {', '.join(packages)} cannot be had here"
                break
    venv.mkdir(exist_ok=True)
    (venv / (".stamp" if why is None else ".why-not")).write_text(f"{why or ''}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Device code, Triton in `tl`, CUDA C in `cu`; entered by backends, and by packs for what it is hashed from.

Both subpackages live in the repository's `kernels/` folder. An installed copy has them here; in a checkout this
module adds that folder to its search path.
"""

from pathlib import Path

_repo = Path(__file__).resolve().parents[2]
if (_repo / "pyproject.toml").is_file() and (_repo / "kernels" / "tl").is_dir():
    __path__.append(str(_repo / "kernels"))

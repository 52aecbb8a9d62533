"""The examples in the docstrings of every module that imports without an optional package."""

import doctest
import importlib
import pkgutil

import pytest

import gpuconv

KERNELS = "gpuconv.kernels"
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(gpuconv.__path__, "gpuconv.", onerror=lambda name: None)
    if not module.name.startswith(KERNELS) and module.name != "gpuconv.__main__"
)
OPTIONAL = ("torch", "triton", "cupy", "typer", "rich")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"needs {error.name}")
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_public_functions_have_examples() -> None:
    without = []
    for name in gpuconv.__all__:
        thing = getattr(gpuconv, name)
        if callable(thing) and not isinstance(thing, type) and ">>> " not in (thing.__doc__ or ""):
            without.append(name)
    assert without == []

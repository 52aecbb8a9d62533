"""How float32 products are formed: torch's own setting for cuDNN, unless ``precision=`` says otherwise."""

from collections.abc import Iterator

import pytest
import torch

import gpuconv
from gpuconv.normalize.conv import PRECISIONS, effective_precision

CONV = torch.backends.cudnn.conv


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = CONV.fp32_precision
    yield
    CONV.fp32_precision = before


@pytest.mark.parametrize(("setting", "expected"), (("tf32", "tf32"), ("ieee", "ieee"), ("none", "ieee")))
def test_follows_torch(setting: str, expected: str) -> None:
    CONV.fp32_precision = setting
    assert effective_precision("conv2d", None, "float32", "cuda:0") == expected


@pytest.mark.parametrize(("allowed", "expected"), ((False, "ieee"), (True, "tf32")))
def test_follows_the_older_switch(allowed: bool, expected: str) -> None:
    with torch.backends.cudnn.flags(allow_tf32=allowed):  # torch's test suite forbids to assign the switch
        assert effective_precision("conv2d", None, "float32", "cuda:0") == expected


@pytest.mark.parametrize("setting", ("tf32", "ieee"))
@pytest.mark.parametrize("requested", PRECISIONS)
def test_the_argument_overrides(requested: str, setting: str) -> None:
    CONV.fp32_precision = setting
    assert effective_precision("conv2d", requested, "float32", "cuda:0") == requested


@pytest.mark.parametrize("dtype", ("float16", "bfloat16", "float64"))
def test_other_types_have_no_choice(dtype: str) -> None:
    CONV.fp32_precision = "tf32"
    assert effective_precision("conv2d", None, dtype, "cuda:0") == "ieee"
    assert effective_precision("conv2d", "tf32x3", dtype, "cuda:0") == "ieee"


def test_the_cpu_is_exact_unless_asked() -> None:
    CONV.fp32_precision = "tf32"
    x, w = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)
    assert gpuconv.explain(gpuconv.conv2d, x, w).problem.precision == "ieee"
    assert gpuconv.explain(gpuconv.conv2d, x, w, precision="tf32x3").problem.precision == "tf32x3"


@pytest.mark.parametrize("name", ("conv2d", "conv_transpose2d"))
def test_derivatives_keep_what_the_forward_pass_had(name: str) -> None:
    """Also where the setting changes in between."""
    x, w = torch.ones(1, 2, 4, 4, requires_grad=True), torch.ones(2, 2, 3, 3, requires_grad=True)
    y = getattr(gpuconv, name)(x, w, precision="tf32x3")
    CONV.fp32_precision = "tf32"
    with gpuconv.dispatch.record_plans() as plans:
        y.sum().backward()
    assert len(plans) == 2 and {plan.problem.precision for plan in plans} == {"tf32x3"}

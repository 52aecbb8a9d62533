"""Causal and separable convolutions of CuPy's arrays: what NumPy's have, by the CUDA kernels."""

from __future__ import annotations

import numpy as np
import pytest
from fake_cupy import ALLOCATED, asnumpy, guarded

import gpuconv
from gpuconv.dispatch import record_plans


def drawn(rng, *shape):
    return rng.integers(-3, 4, shape).astype(np.float32)


def laid(x, last):
    return np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) if last else x


def on_device(given):
    return {name: guarded(value, value.dtype.name) for name, value in given.items()}


def by_cupy(plans):
    return {plan.solver.id.partition(".")[0] for plan in plans} == {"cupy"}


IDS = np.array([[0, 0, 0, 1, 1, 2, 2, -1, 3], [5, 4, 4, 4, 4, 4, -1, -1, 5]], np.int32)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("variant", ["plain", "state", "short", "packed", "empty"])
def test_causal_conv1d(variant, last, rng):
    length = {"short": 2, "empty": 0}.get(variant, 9)
    given = {"x": laid(drawn(rng, 2, 5, length), last), "weight": drawn(rng, 5, 4), "bias": drawn(rng, 5)}
    if variant == "packed":
        given |= {"seq_idx": IDS}
        given["x"][..., 7] = np.nan
    elif variant != "plain":
        given |= {"initial_state": drawn(rng, 2, 5, 3)}
    wanted = gpuconv.causal_conv1d(**given, activation="relu", return_state=variant != "packed")
    with record_plans() as plans:
        found = gpuconv.causal_conv1d(**on_device(given), activation="relu", return_state=variant != "packed")
    assert by_cupy(plans) and len(plans) == 1
    for one, other in zip(*((r if isinstance(r, tuple) else (r,)) for r in (found, wanted)), strict=True):
        np.testing.assert_array_equal(asnumpy(one), other, strict=True)
        assert length < 3 or one.strides == other.strides
    for memory in ALLOCATED:
        memory.check(variant)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_types(dtype, rng):
    x, w = drawn(rng, 2, 5, 9), drawn(rng, 5, 4)
    if dtype == "bfloat16":
        found = gpuconv.causal_conv1d(guarded(x, dtype), guarded(w, dtype), seq_idx=guarded(IDS, "int32"))
        wanted = gpuconv.causal_conv1d(x, w, seq_idx=IDS)
    else:
        found = gpuconv.causal_conv1d(guarded(x, dtype), guarded(w, "float32"))
        wanted = gpuconv.causal_conv1d(x, w)
    assert found.dtype.name == dtype
    np.testing.assert_array_equal(asnumpy(found).astype(np.float32), wanted)


@pytest.mark.parametrize("entries", [None, [3, 0], [-1, 2], [-1, -1]], ids=str)
@pytest.mark.parametrize("circular", [False, True])
def test_causal_conv1d_update(circular, entries, rng):
    given = {"x": drawn(rng, 2, 5), "weight": drawn(rng, 5, 4), "bias": drawn(rng, 5)}
    if circular:
        given |= {"cache_seqlens": np.array([7, 2], np.int32)}
    if entries is not None:
        given |= {"conv_state_indices": np.array(entries, np.int32)}
    state = drawn(rng, 2 if entries is None else 4, 5, 6)
    held = guarded(state, "float32")
    for x in (given["x"], drawn(rng, 2, 5, 2), drawn(rng, 2, 5, 8)):
        given["x"] = x
        wanted = gpuconv.causal_conv1d_update(state=state, **given)
        with record_plans() as plans:
            found = gpuconv.causal_conv1d_update(state=held, **on_device(given))
        assert by_cupy(plans)
        np.testing.assert_array_equal(asnumpy(found), wanted, strict=True)
        np.testing.assert_array_equal(asnumpy(held), state)


@pytest.mark.parametrize("name", ["depthwise_separable_conv2d", "separable_conv2d"])
def test_separable(name, rng):
    shapes = [(4, 1, 3, 2), (3, 4, 1, 1)] if "depthwise" in name else [(3, 4, 3, 1), (3, 3, 1, 2)]
    arrays = [drawn(rng, 2, 4, 5, 6), *(drawn(rng, *shape) for shape in shapes)]
    wanted = getattr(gpuconv, name)(*arrays, padding=1, between="relu")
    with record_plans() as plans:
        found = getattr(gpuconv, name)(*(guarded(a, "float32") for a in arrays), padding=1, between="relu")
    assert by_cupy(plans) and len(plans) == 2
    np.testing.assert_array_equal(asnumpy(found), wanted, strict=True)
    explained = gpuconv.explain(getattr(gpuconv, name), *(guarded(a, "float32") for a in arrays), padding=1)
    assert [step.solver for step in explained.steps] == [plan.solver.id for plan in plans]


def test_scaled_convolutions_have_no_cuda_kernel(rng):
    """They say so, and what would run them; the problem is described all the same."""
    x, w = (guarded(rng.integers(-9, 9, s).astype(np.int8), "int8") for s in ((2, 4, 5, 6), (3, 4, 3, 3)))
    scales = {"input_scale": 0.5, "weight_scale": guarded(np.ones(3, np.float32), "float32")}
    with pytest.raises(gpuconv.NoSolverError, match="backend='cupy' cannot run this call: that backend has no solver"):
        gpuconv.scaled_conv2d(x, w, **scales, backend="cupy")
    with pytest.raises(gpuconv.NoSolverError, match=r"(?s)^scaled_conv2d: no solver can .*triton\.conv\.scaled"):
        gpuconv.scaled_conv2d(x, w, **scales)
    assert gpuconv.explain(gpuconv.scaled_conv2d, x, w, **scales).problem.out_dtype == "float32"

"""Windows of padding alone in CUDA C++: their index is an element of the plane, and takes no gradient."""

import harness
import numpy as np
import pytest
import torch
from hollow_windows import hollow_cases

import gpuconv


@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_index_is_an_element_and_takes_no_gradient(ndim):
    for case in hollow_cases(ndim, 2, seed=3):
        x = harness.on_device(case.x.numpy(), "float64")
        arguments = {"solver": "cupy.pool.max.fprop.window", "return_indices": True}
        y, indices = harness.run(getattr(gpuconv, case.name), x, *case.args, **arguments).results
        np.testing.assert_array_equal(y, case.y)
        reads = case.reads.numpy()
        np.testing.assert_array_equal(indices[reads], case.indices.numpy()[reads])
        assert indices.min() >= 0 and indices.max() < case.x[0, 0].numel()
        backward = getattr(gpuconv, f"{case.name}_with_indices_backward")
        held = [harness.on_device(values, kind) for values, kind in ((np.ones(y.shape), "float64"), (indices, "int64"))]
        ran = harness.run(backward, held[0], x, *case.args, held[1], solver="cupy.pool.max.bwd.gather")
        np.testing.assert_allclose(ran.result, case.gradient(torch.ones_like(case.y)))


def test_long_windows_of_padding_alone():
    """Windows whose elements many threads share."""
    arguments = (256, 1, ((382, 383),), 3)  # taps at ..., -1, 2, ... of two elements, and the same one further
    ran = harness.run(
        gpuconv.max_pool1d, harness.on_device(np.ones((1, 1, 2)), "float64"), *arguments,
        solver="cupy.pool.max.fprop.block", return_indices=True,
    )  # fmt: skip
    np.testing.assert_array_equal(ran.results[0], [[[-np.inf, 1]]])
    np.testing.assert_array_equal(ran.results[1], [[[1, 0]]])

"""Windows of padding alone on Triton, by every solver: their index is an element of the plane, without a gradient."""

import pytest
import torch
from hollow_windows import hollow_cases

import gpuconv
from gpuconv.dispatch import record_plans
from gpuconv.errors import NoSolverError


@pytest.mark.parametrize("solver", ("general", "separable", "tiled"))
@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_index_is_an_element_and_takes_no_gradient(ndim, solver):
    ran = 0
    for case in hollow_cases(ndim, 3, seed=3):
        arguments = {"return_indices": True, "backend": f"triton.pool.max.fprop.{solver}"}
        try:
            with record_plans() as plans:
                y, indices = getattr(gpuconv, case.name)(case.x, *case.args, **arguments)
        except NoSolverError:  # the tiled one takes few dilations
            continue
        assert [plan.solver.id for plan in plans] == [arguments["backend"]]
        ran += 1
        assert torch.equal(y, case.y)
        assert torch.equal(indices[case.reads], case.indices[case.reads])
        assert int(indices.min()) >= 0 and int(indices.max()) < case.x[0, 0].numel()
        backward = getattr(gpuconv, f"{case.name}_with_indices_backward")
        dx = backward(case.y.new_ones(case.y.shape), case.x, *case.args, indices, backend="triton")
        torch.testing.assert_close(dx, case.gradient(torch.ones_like(case.y)))
    assert ran or solver != "general"

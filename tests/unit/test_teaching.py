"""The teaching algorithms equal the solvers, exactly, on integers; and a transposed convolution is C.T."""

from dataclasses import dataclass
from math import prod

import numpy as np
import pytest

import gpuconv
from gpuconv.backends.numpy import teaching

IM2COL, TAPS = "numpy.conv.fprop.im2col", "numpy.conv.fprop.taps"
COL2IM, TAPS_TRANSPOSED = "numpy.conv.dgrad.col2im", "numpy.conv.dgrad.taps"
FORWARD = {
    "direct": teaching.direct,
    "im2col_gemm": teaching.im2col_gemm,
    "toeplitz_conv": teaching.toeplitz_conv,
}


@dataclass(frozen=True, slots=True)
class Case:
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    c: int = 2
    k: int = 3
    n: int = 2

    @property
    def geometry(self) -> dict:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    @property
    def ndim(self) -> int:
        return len(self.size)


CASES = {
    "1d": Case((9,), (3,), (1,), ((0, 0),), (1,)),
    "1d-stride-dilation": Case((11,), (3,), (2,), ((2, 1),), (3,)),
    "1d-stride-beyond-kernel": Case((13,), (2,), (5,), ((0, 3),), (1,)),
    "1d-kernel-beyond-input": Case((2,), (5,), (1,), ((4, 0),), (1,)),
    "1d-grouped": Case((7,), (2,), (1,), ((1, 1),), (2,), groups=3, c=6, k=3),
    "1d-depthwise": Case((8,), (3,), (1,), ((2, 0),), (1,), groups=4, c=4, k=8),
    "2d": Case((5, 6), (3, 2), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    "2d-asymmetric": Case((5, 6), (3, 2), (2, 1), ((2, 0), (1, 3)), (1, 2)),
    "2d-grouped": Case((4, 5), (2, 3), (1, 2), ((1, 0), (0, 2)), (2, 1), groups=2, c=4, k=6),
    "2d-depthwise": Case((5, 4), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), groups=3, c=3, k=3),
    "2d-1x1": Case((4, 3), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), c=5, k=4),
    "2d-empty-batch": Case((4, 3), (2, 2), (1, 1), ((0, 0), (0, 0)), (1, 1), n=0),
    "3d": Case((3, 4, 5), (2, 3, 2), (1, 1, 1), ((0, 0), (1, 1), (0, 0)), (1, 1, 1)),
    "3d-everything": Case((4, 5, 3), (2, 2, 3), (2, 1, 3), ((1, 0), (0, 2), (3, 2)), (3, 2, 1), groups=2, c=4, k=2),
    "3d-depthwise": Case((3, 4, 3), (2, 2, 2), (1, 2, 1), ((1, 0), (0, 1), (1, 1)), (1, 1, 2), groups=2, c=2, k=4),
}


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-9, 10, shape)


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_forward_equals_the_solvers(case: Case, name: str, rng: np.random.Generator) -> None:
    x = integers(rng, case.n, case.c, *case.size)
    w = integers(rng, case.k, case.c // case.groups, *case.kernel)
    ours = FORWARD[name](x, w, **case.geometry)
    conv = getattr(gpuconv, f"conv{case.ndim}d")
    for solver in (IM2COL, TAPS) if case.c == case.groups else (IM2COL,):
        np.testing.assert_array_equal(ours, conv(x, w, **case.geometry, backend=solver), strict=True)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_transposed_is_the_transpose_of_the_matrix(case: Case, rng: np.random.Generator) -> None:
    out = gpuconv.explain(getattr(gpuconv, f"conv{case.ndim}d"), *_pair(case, rng), **case.geometry).problem.output_size
    y = integers(rng, case.n, case.k, *out)
    w = integers(rng, case.k, case.c // case.groups, *case.kernel)
    conv_transpose = getattr(gpuconv, f"conv_transpose{case.ndim}d")
    for extra in {tuple(0 for _ in out), tuple(max(s, d) - 1 for s, d in zip(case.stride, case.dilation))}:
        ours = teaching.toeplitz_conv_transpose(y, w, **case.geometry, output_padding=extra)
        for solver in (COL2IM, TAPS_TRANSPOSED) if case.c == case.groups else (COL2IM,):
            theirs = conv_transpose(y, w, **case.geometry, output_padding=extra, backend=solver)
            np.testing.assert_array_equal(ours, theirs, strict=True)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_matrix_and_its_transpose_are_the_data_gradient(case: Case, rng: np.random.Generator) -> None:
    x, w = _pair(case, rng)
    matrix = teaching.toeplitz_matrix(w, case.size, **case.geometry)
    y = teaching.direct(x, w, **case.geometry)
    assert matrix.shape == (case.k * prod(y.shape[2:]), case.c * prod(case.size))
    for image, result in zip(x, y):
        np.testing.assert_array_equal(matrix @ image.ravel(), result.ravel())
    dy = integers(rng, *y.shape).astype(float)
    input_grad = getattr(gpuconv, f"conv{case.ndim}d_input_grad")
    dx = input_grad(x.shape, w.astype(float), dy, **case.geometry)
    np.testing.assert_array_equal(dx.reshape(case.n, matrix.shape[1]), dy.reshape(case.n, len(matrix)) @ matrix)


def test_the_matrix_of_a_1d_convolution_is_toeplitz() -> None:
    matrix = teaching.toeplitz_matrix(np.array([[[5, 7, 9]]]), (6,), (1,), [(1, 1)], (1,), 1)
    assert matrix.tolist() == [
        [7, 9, 0, 0, 0, 0],
        [5, 7, 9, 0, 0, 0],
        [0, 5, 7, 9, 0, 0],
        [0, 0, 5, 7, 9, 0],
        [0, 0, 0, 5, 7, 9],
        [0, 0, 0, 0, 5, 7],
    ]
    assert all((matrix[1:, 1:] == matrix[:-1, :-1]).ravel())


def _pair(case: Case, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    x = integers(rng, case.n, case.c, *case.size)
    return x, integers(rng, case.k, case.c // case.groups, *case.kernel)

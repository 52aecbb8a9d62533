"""The models themselves: barriers, boxes, splits over a cluster, and what they refuse."""

from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from gluon_model import rebuild
from machine import Barrier, Executor, Machine
from tensors import Fragment, KernelError, Layout, Map, MapIm2col, View, local_shape, origin, reshaped_splits, rounded


def test_a_phase_ends_when_neither_arrivals_nor_bytes_are_pending():
    barrier = Barrier(0, 0, 0, pair=False)
    with pytest.raises(KernelError, match="before it is initialised"):
        barrier.settle(1)
    barrier.count = barrier.pending = 2
    barrier.settle(expected=-8)  # bytes may land before they are expected
    barrier.settle(1, expected=24)
    barrier.settle(1)
    assert barrier.phase == 0
    barrier.settle(expected=-16)
    assert (barrier.phase, barrier.pending) == (1, 2)
    with pytest.raises(KernelError, match="more arrivals"):
        barrier.settle(3)


@pytest.mark.parametrize("start", [(0, 0, 0), (0, -2, 3), (1, 4, -3), (-1, 7, 0), (0, 9, 9)])
def test_a_box_is_zero_outside_of_its_tensor(start):
    array = np.arange(1, 97, dtype=np.float32).reshape(3, 4, 8)
    padded = np.pad(array, 16)
    box = Map(array, (2, 4, 8)).read(start)
    at = tuple(slice(first + 16, first + 16 + size) for first, size in zip(start, (2, 4, 8), strict=True))
    np.testing.assert_array_equal(box, padded[at])
    target = np.zeros_like(array)
    Map(target, (2, 4, 8)).write(start, np.ones((2, 4, 8), np.float32))
    assert target.sum() == (box != 0).sum()


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_im2col_boxes_are_the_columns_of_unfold(axes, stride, dilation):
    rng = np.random.default_rng(axes)
    size, pad, taps = (7, 6, 5)[:axes], 1, 3
    x = rng.integers(-9, 9, (2, *size, 8)).astype(np.float32)
    high = pad - (taps - 1) * dilation
    known = {"strides": (stride,) * axes, "lower": (-pad,) * axes, "upper": (high,) * axes}
    tensor = MapIm2col(x, (16, 8), **known)
    padded = torch.nn.functional.pad(torch.from_numpy(x).movedim(-1, 1), (pad, pad) * axes)
    for offset in (0, dilation, 2 * dilation):
        part = padded
        for axis in range(axes):
            places = torch.arange(tensor.positions[axis]) * stride + offset
            part = part.index_select(2 + axis, places)
        right = part.movedim(1, -1).reshape(-1, 8).numpy()
        for first in (0, 3, len(right) - 2):
            place, coordinates = first, []
            for axis in reversed(range(axes)):
                coordinates.insert(0, place % tensor.positions[axis] * stride - pad)
                place //= tensor.positions[axis]
            box = tensor.read((place, *coordinates, 0), (offset,) * axes)
            np.testing.assert_array_equal(box[: len(right) - first], right[first : first + 16])
            assert not box[len(right) - first :].any()


def test_im2col_refuses_what_the_instruction_does_not_define():
    x = np.zeros((1, 8, 8, 8), np.float32)
    with pytest.raises(KernelError, match="corners"):
        MapIm2col(x, (8, 8), strides=(1, 1), lower=(-129, 0), upper=(0, 0))
    tensor = MapIm2col(x, (8, 8), strides=(2, 2), lower=(-1, -1), upper=(-1, -1))
    with pytest.raises(KernelError, match="no position"):
        tensor.read((0, 0, -1, 0), (0, 0))
    with pytest.raises(KernelError, match="offsets"):
        tensor.read((0, -1, -1, 0), (256, 0))
    split = MapIm2col(x, (8, 8), layout=Layout(((1, 0),)), strides=(1, 1))
    with pytest.raises(KernelError, match="wrong pixel"):
        split.start((0, 0, 0, 0), 1)


def test_what_is_not_finite_does_not_fill_the_padding_of_an_im2col_box():
    x = np.full((1, 4, 4, 8), np.nan, np.float32)
    tensor = MapIm2col(x, (16, 8), lower=(-1, -1), upper=(-1, -1))
    box = tensor.read((0, -1, -1, 0), (0, 0)).reshape(4, 4, 8)
    assert not box[0].any() and not box[:, 0].any() and np.isnan(box[1:, 1:]).all()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda x: Map(x, (1, 4)), "rows are no multiples of 16 bytes"),
        (lambda x: Map(x[:, :12], (1, 8), itemsize=2), None),
        (lambda x: Map(np.zeros((4, 12), np.float32), (1, 8)), "strides are no multiples"),
        (lambda x: Map(x, (512, 8)), "256 elements"),
        (lambda x: MapIm2col(x.reshape(1, 4, 4, 8), (8, 8), strides=(9, 1)), "8 is the most"),
    ],
)
def test_maps_that_the_driver_refuses(make, match):
    x = np.zeros((8, 16), np.float32)
    if match is None:
        make(x)
        return
    with pytest.raises(KernelError, match=match):
        make(x)


def test_numbers_of_a_kernel_are_float32():
    assert (Fragment(np.ones(4, np.float32)) * -2.0 + 1.5).values.dtype == np.float32
    assert (Fragment(np.arange(4)) + 1).values.dtype == np.int64


def test_splits_over_a_cluster():
    assert local_shape((4, 6), ((0, 1),)) == (4, 3)
    assert origin((4, 6), ((0, 1),), 1) == (0, 3)
    with pytest.raises(KernelError, match="cannot be split"):
        local_shape((3, 4), ((1, 0),))
    assert reshaped_splits((1, 4, 8), ((0, 1, 0),), (32,)) == ((1,),)
    assert reshaped_splits((4, 8), ((0, 1),), (4, 2, 4)) == ((0, 1, 0),)
    with pytest.raises(KernelError, match="inside of an axis"):
        reshaped_splits((2, 4, 8), ((0, 1, 0),), (8, 8))


def test_views_stay_inside_of_what_they_view():
    machine = Machine()
    view = machine.allocate("bfloat16", [4, 2, 8], None)
    assert view.index(3).region == (0, 0, 48, 64)
    with pytest.raises(KernelError, match="slot 4 of 4"):
        view.index(4)
    with pytest.raises(KernelError, match="larger"):
        view.index(0).reinterpret(shape=[4, 8], layout=Layout())
    with pytest.raises(KernelError, match="starts at 1"):
        view.index(0).reshape([16]).slice(1, 4)
    assert np.isnan(view.data).all()


def test_an_accumulator_is_not_read_while_products_are_added():
    value = Fragment(np.zeros((2, 2), np.float32))
    value.products = 1
    with pytest.raises(KernelError, match="accumulator"):
        _ = value.values
    value.add_product(np.ones((2, 2), np.float32))
    np.testing.assert_array_equal((value * 2 + 1).values, np.full((2, 2), 3))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_is_torchs(dtype):
    values = np.random.default_rng(0).normal(size=4096).astype(np.float32) * 1e3
    values[:4] = np.inf, -np.inf, np.nan, 0
    right = torch.from_numpy(values).to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(rounded(values, dtype), right)


def test_deadlock_and_what_is_left_in_flight():
    machine = Executor(0)
    barrier = machine.allocate_barriers(1).index(0)
    machine.initialise(barrier, 1)
    machine.forget()

    def waiting():
        slots = machine.allocate_barriers(1)
        machine.initialise(slots.index(0), 1)
        yield from machine.wait(slots.index(0), 0)

    with pytest.raises(KernelError, match="deadlock"):
        machine.run(waiting, (1, 1, 1))

    def leaving():
        slots = machine.allocate_barriers(1)
        machine.initialise(slots.index(0), 1)
        view: View = machine.allocate("bfloat16", [8], None)
        yield from machine.load(Map(np.zeros(8, np.float32), (8,)), [0], None, slots.index(0), view, False)

    faults = 0
    for seed in range(8):
        machine = Executor(seed)
        try:
            machine.run(leaving, (1, 1, 1))
        except KernelError as fault:
            faults += "in flight" in str(fault)
    assert faults


def test_a_division_of_negative_numbers_is_refused():
    def kernel(a, b):
        return a // b + a % b

    module = ModuleType("module")
    module.kernel = SimpleNamespace(fn=kernel)
    rebuilt = rebuild(Executor(0), [module]).kernel
    assert rebuilt(7, 3) == 3
    with pytest.raises(KernelError, match="negative"):
        rebuilt(-7, 3)


def test_an_edit_that_fits_nowhere_is_an_error():
    def kernel(a):
        return a + 1

    module = ModuleType("module")
    module.kernel = SimpleNamespace(fn=kernel)
    assert rebuild(Executor(0), [module], [("kernel", "a + 1", "a + 2")]).kernel(1) == 3
    for edit in (("kernel", "b", "c"), ("other", "a", "b")):
        with pytest.raises(LookupError):
            rebuild(Executor(0), [module], [edit])

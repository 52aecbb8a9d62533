"""``causal_conv1d`` against torch's depthwise convolution of a padded sequence: layouts, states, packed sequences."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from operand_layouts import ODD, STRIDES, odd, place
from referee import check_against
from torch.autograd import gradcheck, gradgradcheck

import gpuconv
from gpuconv.arrays import is_channels_last
from gpuconv.testing import forbid_aten

ACTIVATED: dict[str, Callable[..., torch.Tensor]] = {
    **{name: getattr(F, name) for name in ("relu", "relu6", "hardswish", "silu", "gelu")},
    **{name: getattr(torch, name) for name in ("sigmoid", "tanh")},
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "swish": F.silu,
}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def plain(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """Return torch's convolution of the sequence behind ``width - 1`` zeros."""
    return F.conv1d(F.pad(x, (w.shape[-1] - 1, 0)), w[:, None], b, groups=len(w))


def drawn(rng: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)


def operands(rng: torch.Generator, length: int, width: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Return x of two sequences in three channels, weight and bias."""
    return [drawn(rng, 2, 3, length, dtype=dtype), drawn(rng, 3, width, dtype=dtype), drawn(rng, 3, dtype=dtype)]


def transposed(x: torch.Tensor) -> torch.Tensor:
    """Return x with channels innermost."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def innermost(x: Any) -> bool:
    """Tell whether channels are innermost in (batch, dim, seqlen), seen as an image of one line."""
    image = torch.as_tensor(x).unsqueeze(2)
    return is_channels_last(tuple(image.shape), image.stride())


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs))


# the convolution


@pytest.mark.parametrize("width", range(1, 32))
def test_every_width(width: int, torch_rng: torch.Generator) -> None:
    """Of sequences shorter and longer than the filter, in both layouts, of tensors and of arrays."""
    for length in (1, 2, 17):
        x, w, b = operands(torch_rng, length, width)
        expected = {None: plain(x, w), b: plain(x, w, b)}
        for given in (x, transposed(x)):
            for bias in (None, b):
                with forbid_aten():
                    y = gpuconv.causal_conv1d(given, w, bias)
                close(y, expected[bias])
                assert innermost(y) == innermost(given) and y.is_contiguous() == given.is_contiguous()
            z = gpuconv.causal_conv1d(given.numpy(), w.numpy(), b.numpy())
            assert isinstance(z, np.ndarray) and innermost(z) == innermost(given)
            close(z, expected[b])


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type(dtype: torch.dtype, last: bool, torch_rng: torch.Generator) -> None:
    x, w, b = operands(torch_rng, 33, 4, dtype)
    x = transposed(x) if last else x
    before = drawn(torch_rng, 2, 3, 3, dtype=dtype)

    def joined(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return F.conv1d(torch.cat([before, x], -1), w[:, None], b, groups=3)

    def packed(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([plain(x[..., :10], w, b), plain(x[..., 10:], w, b)], -1)

    for grad in (False, True):
        given = [t.requires_grad_(grad) for t in (x, w, b)]
        with forbid_aten():
            y, state = gpuconv.causal_conv1d(*given, return_state=True)
            z = gpuconv.causal_conv1d(*given, initial_state=before)
            s = gpuconv.causal_conv1d(*given, seq_idx=(torch.arange(33) >= 10).int().expand(2, 33))
        check_against(plain, y.detach(), (x, w, b), {}, 4)
        check_against(joined, z.detach(), (x, w, b, before), {}, 4)
        check_against(packed, s.detach(), (x, w, b), {}, 4)
        assert torch.equal(state, x[..., -3:]) and innermost(state) == innermost(x)
        assert all(innermost(each) == last for each in (y, z, s))


@pytest.mark.parametrize(
    ("of_x", "of_w", "of_b"),
    [(torch.bfloat16, torch.float32, torch.float32), (torch.float32, torch.bfloat16, torch.bfloat16),
     (torch.float16, torch.bfloat16, torch.float32), (torch.float32, torch.float64, torch.float32)],
)  # fmt: skip
def test_mixed_types(of_x: torch.dtype, of_w: torch.dtype, of_b: torch.dtype, torch_rng: torch.Generator) -> None:
    """Products in the type that holds all, one rounding to that of x at the end; states are of the type of x."""
    x, w, b = (t.to(d) for t, d in zip(operands(torch_rng, 9, 4), (of_x, of_w, of_b)))
    wide = torch.promote_types(torch.promote_types(of_x, of_w), of_b)
    y, state = gpuconv.causal_conv1d(x, w, b, activation="silu", return_state=True)
    exact = gpuconv.causal_conv1d(x.to(wide), w.to(wide), b.to(wide), activation="silu")
    assert torch.equal(y, exact.to(of_x)) and state.dtype is of_x
    close(gpuconv.causal_conv1d(x, w, b, activation="silu", initial_state=torch.zeros_like(state)), y)
    close(gpuconv.causal_conv1d(x, w, b, activation="silu", seq_idx=torch.zeros(2, 9, dtype=torch.int32)), y)
    steps = [gpuconv.causal_conv1d_update(x[..., i], state.zero_() if not i else state, w, b) for i in range(9)]
    close(torch.stack(steps, -1), gpuconv.causal_conv1d(x, w, b))
    if torch.bfloat16 not in (of_x, of_w, of_b):
        z = gpuconv.causal_conv1d(x.numpy(), w.numpy(), b.numpy(), activation="silu")
        assert torch.equal(torch.from_numpy(z), y)


@pytest.mark.parametrize("activation", ACTIVATED)
def test_activation(activation: str, torch_rng: torch.Generator) -> None:
    x, w, b = operands(torch_rng, 9, 4)
    expected = ACTIVATED[activation](plain(x, w, b))
    for requires in (False, True):  # fused, and composed where gradients are recorded
        close(gpuconv.causal_conv1d(x, w.requires_grad_(requires), b, activation=activation), expected)
    close(gpuconv.causal_conv1d(*(t.detach().numpy() for t in (x, w, b)), activation=activation), expected.detach())
    state = x.new_zeros(2, 3, 3)
    close(gpuconv.causal_conv1d_update(x, state, w.detach(), b, activation=activation), expected.detach())


def test_weight_of_a_depthwise_convolution(torch_rng: torch.Generator) -> None:
    x, w, b = operands(torch_rng, 9, 4)
    assert torch.equal(gpuconv.causal_conv1d(x, w[:, None], b), gpuconv.causal_conv1d(x, w, b))
    states = torch.zeros(2, 2, 3, 3, dtype=x.dtype)
    one = gpuconv.causal_conv1d_update(x[..., 0], states[0], w[:, None], b)
    assert torch.equal(one, gpuconv.causal_conv1d_update(x[..., 0], states[1], w, b))


@pytest.mark.parametrize("layout", STRIDES)
@pytest.mark.parametrize("operand", ["x", "weight", "bias", "initial_state", "seq_idx"])
def test_every_layout(operand: str, layout: str, rng: np.random.Generator) -> None:
    """Sums of small integers are exact: in every layout what a contiguous copy gives, bit for bit."""
    values = {"x": (2, 4, 9), "weight": (4, 3), "bias": (4,), "initial_state": (2, 4, 2)}
    given: dict[str, Any] = {name: rng.integers(-3, 4, shape).astype(np.float32) for name, shape in values.items()}
    given["seq_idx"] = np.sort(rng.integers(-1, 3, (2, 9)).astype(np.int32))
    given.pop("seq_idx" if operand == "initial_state" else "initial_state")
    placed = place(given[operand], layout)
    given[operand] = np.ascontiguousarray(placed.view())
    expected = gpuconv.causal_conv1d(**given)
    found = gpuconv.causal_conv1d(**{**given, operand: placed.view()})
    np.testing.assert_array_equal(found, expected, strict=True)
    if "reversed" not in layout:
        tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in given.items()}
        view = torch.from_numpy(placed.buffer).as_strided(placed.shape, placed.strides, placed.offset)
        y = gpuconv.causal_conv1d(**{**tensors, operand: view})
        np.testing.assert_array_equal(y.numpy(), expected, strict=True)
        assert innermost(y) == innermost(view if operand == "x" else tensors["x"])


@pytest.mark.parametrize("layout", ODD)
def test_what_numpy_alone_has(layout: str, rng: np.random.Generator) -> None:
    x, w, b, s = (rng.integers(-3, 4, n).astype(np.float32) for n in ((2, 4, 9), (4, 3), 4, (2, 4, 2)))
    expected = gpuconv.causal_conv1d(x, w, b, initial_state=s)
    found = gpuconv.causal_conv1d(*(odd(a, layout) for a in (x, w, b)), initial_state=odd(s, layout))
    np.testing.assert_array_equal(found, expected)
    state = s.copy()
    found = gpuconv.causal_conv1d_update(odd(x, layout), state, odd(w, layout), odd(b, layout))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(state, x[..., -2:])


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 3, 0), (0, 3, 0), (2, 3, 1), (2, 1, 5), (1, 3, 2)])
def test_empty_and_short(shape: tuple[int, ...], last: bool, torch_rng: torch.Generator) -> None:
    x = drawn(torch_rng, *shape)
    x = (transposed(x) if last else x).requires_grad_()
    w, b = (drawn(torch_rng, *sizes).requires_grad_() for sizes in ((shape[1], 4), (shape[1],)))
    before = drawn(torch_rng, *shape[:2], 3).requires_grad_()
    whole = torch.cat([before, x], -1)
    expected = F.conv1d(F.pad(whole, (1, 0)), w[:, None], b, groups=shape[1])[..., 1:]  # torch wants an output
    expected = expected[..., 2:] if shape[2] == 0 else plain(whole, w, b)[..., 3:]
    y, state = gpuconv.causal_conv1d(x, w, b, initial_state=before, return_state=True)
    close(y, expected if shape[2] else expected.reshape(shape))
    close(state, whole[..., -3:])
    ours = torch.autograd.grad([y.sum() + state.square().sum()], (x, w, b, before))
    theirs = torch.autograd.grad([expected.sum() + whole[..., -3:].square().sum()], (x, w, b, before))
    close_all(ours, theirs)
    for options in ({}, {"seq_idx": torch.zeros(shape[0], shape[2], dtype=torch.int64)}):
        z = gpuconv.causal_conv1d(x, w, b, activation="silu", **options)
        assert z.shape == shape and all(g is not None for g in torch.autograd.grad(z.sum(), (x, w, b)))
        n = gpuconv.causal_conv1d(*(t.detach().numpy() for t in (x, w, b)), activation="silu")
        close(n, z.detach())
    kept = before.detach().clone()
    assert gpuconv.causal_conv1d_update(x.detach(), kept, w.detach(), b.detach()).shape == shape
    close(kept, whole[..., -3:].detach())


def close_all(ours: Any, theirs: Any) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


# states


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("width", [1, 2, 4, 7])
def test_handing_over_at_every_point(width: int, last: bool, torch_rng: torch.Generator) -> None:
    x, w, b = operands(torch_rng, 9, width)
    x = transposed(x) if last else x
    y = plain(x, w, b)
    whole = F.pad(x, (width - 1, 0))
    for library in (lambda t: t, torch.Tensor.numpy):
        given, weight, bias = library(x), library(w), library(b)
        for cut in range(10):
            first, state = gpuconv.causal_conv1d(given[..., :cut], weight, bias, return_state=True)
            second, end = gpuconv.causal_conv1d(given[..., cut:], weight, bias, initial_state=state, return_state=True)
            close(np.concatenate([first, second], -1), y)
            close(state, whole[..., cut : cut + width - 1])
            close(end, whole[..., 9:])
            again = gpuconv.causal_conv1d_update(given[..., cut:], state, weight, bias)
            close(again, second)
            close(state, end)


def test_a_state_is_a_copy(torch_rng: torch.Generator) -> None:
    x, w, _ = operands(torch_rng, 9, 4)
    for library in (lambda t: t, torch.Tensor.numpy):
        for given in (library(x), library(transposed(x))):
            before = np.asarray(given).copy()
            for length in (2, 9):
                state = gpuconv.causal_conv1d(given[..., :length], library(w), return_state=True)[1]
                state[...] = 7
                np.testing.assert_array_equal(given, before)


def fresh(library: Callable[..., Any], *shape: int) -> Any:
    return library(torch.full(shape, 0.0, dtype=torch.float64))


@pytest.mark.parametrize("library", [lambda t: t, torch.Tensor.numpy], ids=["torch", "numpy"])
@pytest.mark.parametrize("more", [0, 1, 4])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_step_by_step(width: int, more: int, library: Callable[..., Any], torch_rng: torch.Generator) -> None:
    """By single elements and by several at once, some of them more than the state holds, straight and in circles."""
    x, w, b = operands(torch_rng, 12, width)
    y, length = plain(x, w, b), width - 1 + more
    given, weight, bias = library(x), library(w), library(b)
    starts = np.array([0, 5], np.int32)
    for sizes in ((1,) * 12, (1, 2, 3, 5, 1), (7, 5), (12,)):
        state, circle = fresh(library, 2, 3, length), fresh(library, 2, 3, length)
        straight, around, at = [], [], 0
        for size in sizes:
            part = given[..., at] if size == 1 else given[..., at : at + size]
            straight.append(gpuconv.causal_conv1d_update(part, state, weight, bias))
            seen = library(torch.from_numpy(starts + at))
            around.append(gpuconv.causal_conv1d_update(part, circle, weight, bias, cache_seqlens=seen))
            assert straight[-1].shape == part.shape and isinstance(straight[-1], type(given))
            at += size
        for found in (straight, around):
            parts = [np.asarray(part).reshape(2, 3, -1) for part in found]
            close(np.concatenate(parts, -1), y)
        close(state, F.pad(x, (length, 0))[..., 12:])
        for row in range(2 if length else 0):
            places = (starts[row] + np.arange(12 - min(12, length), 12)) % length
            close(np.asarray(circle)[row][:, places], x[row, :, 12 - min(12, length) :])


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("library", [lambda t: t, torch.Tensor.numpy], ids=["torch", "numpy"])
@pytest.mark.parametrize("chosen", [[3, 0], [4, -1], [-1, 0], [-1, -7], [-7, -9], [0, 4]], ids=str)
def test_entries_of_a_larger_state(
    chosen: list[int], library: Callable[..., Any], circular: bool, torch_rng: torch.Generator
) -> None:
    """Entries that no sequence has stay bit for bit; padding gives zeros, whatever it holds."""
    x, w, b = operands(torch_rng, 3, 4)
    x[torch.tensor(chosen) < 0] = torch.nan
    cache = drawn(torch_rng, 5, 3, 6)
    seen = library(torch.tensor([4, 9], dtype=torch.int64))
    options = {"cache_seqlens": seen} if circular else {}
    state = library(cache.clone())
    y = gpuconv.causal_conv1d_update(
        library(x), state, library(w), library(b), activation="silu", **options,
        conv_state_indices=library(torch.tensor(chosen, dtype=torch.int32)),
    )  # fmt: skip
    expected = cache.clone()
    for row, entry in enumerate(chosen):
        if entry < 0:
            close(y[row], torch.zeros(3, 3, dtype=torch.float64))
            continue
        mine = cache[entry : entry + 1].clone()
        alone = {"cache_seqlens": torch.tensor([4, 9])[row : row + 1]} if circular else {}
        close(y[row], gpuconv.causal_conv1d_update(x[row : row + 1], mine, w, b, activation="silu", **alone)[0])
        expected[entry] = mine[0]
    np.testing.assert_array_equal(np.asarray(state), expected.numpy())


def test_a_refused_step_leaves_the_state() -> None:
    x, w, state = torch.ones(1, 2), torch.ones(2, 3), torch.zeros(1, 2, 2)
    for options in ({"backend": "cupy"}, {"activation": "rulu"}, {"cache_seqlens": torch.zeros(2, dtype=torch.int32)}):
        with pytest.raises((RuntimeError, ValueError)):
            gpuconv.causal_conv1d_update(x, state, w, **options)
    assert not state.any()
    with pytest.raises(IndexError):
        gpuconv.causal_conv1d_update(x, state, w, conv_state_indices=torch.tensor([1]))
    with pytest.raises(IndexError):
        gpuconv.causal_conv1d_update(*(t.numpy() for t in (x, state, w)), conv_state_indices=np.array([1]))
    assert not state.any()


def test_gradients_go_through_a_state(torch_rng: torch.Generator) -> None:
    """As through any tensor that is written to: of all steps, what one call over all of them has."""
    x, w, b = (t.requires_grad_() for t in operands(torch_rng, 6, 3))
    before = drawn(torch_rng, 2, 3, 2).requires_grad_()
    state = before * 1
    steps = [gpuconv.causal_conv1d_update(x[..., i], state, w, b, activation="silu") for i in range(6)]
    whole = F.silu(F.conv1d(torch.cat([before, x], -1), w[:, None], b, groups=3))
    leaves = (x, w, b, before)
    seed = torch.stack([whole.detach().cos(), whole.detach().sin()])[0]
    close_all(torch.autograd.grad(torch.stack(steps, -1), leaves, seed), torch.autograd.grad(whole, leaves, seed))
    with pytest.raises(RuntimeError, match="leaf"):
        gpuconv.causal_conv1d_update(x[..., 0], before, w, b)


# packed sequences


def of_definition(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the extension's result by its definition, output by output: taps of other numbers do not count."""
    y = torch.zeros_like(x)
    width = w.shape[1]
    for row, at in itertools.product(range(len(x)), range(x.shape[2])):
        if ids[row, at] < 0:
            continue
        y[row, :, at] = b
        for tap in range(width):
            place = at - (width - 1) + tap
            if place >= 0 and ids[row, place] == ids[row, at]:
                y[row, :, at] += w[:, tap] * x[row, :, place]
        y[row, :, at] = F.silu(y[row, :, at])
    return y


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("width", [1, 2, 4, 9])
def test_packed(width: int, dtype: torch.dtype, last: bool, torch_rng: torch.Generator) -> None:
    """Numbers in any order, a number that comes back after another sequence among them, and padding."""
    x, w, b = operands(torch_rng, 12, width)
    x = transposed(x) if last else x
    ids = torch.tensor([[0, 0, 0, 1, 2, 2, 0, 0, 3, 3, 3, -1], [-2, 7, 7, 7, 7, 7, 7, 7, 5, -1, 5, 5]], dtype=dtype)
    for grad in (False, True):
        with forbid_aten():
            y = gpuconv.causal_conv1d(x, w.requires_grad_(grad), b, activation="silu", seq_idx=ids)
        close(y, of_definition(x, w.detach(), b, ids))
        assert innermost(y) == last
    z = gpuconv.causal_conv1d(*(t.detach().numpy() for t in (x, w, b)), activation="silu", seq_idx=ids.numpy())
    close(z, y.detach())
    assert innermost(z) == last


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("lengths", [(5, 4, 3), (1, 1, 10), (2, 3, 7), (11, 1)], ids=str)
def test_packed_sequences_are_calls_of_their_own(
    lengths: tuple[int, ...], bad: float, torch_rng: torch.Generator
) -> None:
    """What another sequence holds, or its gradient, reaches no result and no gradient."""
    x, w, b = operands(torch_rng, 12, 4)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).int().expand(2, 12)
    at = 0
    for length in lengths:
        own = slice(at, at + length)
        given = torch.full_like(x, bad)
        given[..., own] = x[..., own]
        seed = torch.full_like(x, bad)
        seed[..., own] = torch.randn(2, 3, length, generator=torch_rng, dtype=x.dtype)
        y = gpuconv.causal_conv1d(given.requires_grad_(), w, b, activation="silu", seq_idx=ids)
        part = x[..., own].clone().requires_grad_()
        alone = gpuconv.causal_conv1d(part, w, b, activation="silu")
        torch.testing.assert_close(y[..., own], alone)
        (ours,) = torch.autograd.grad(y, given, seed)
        (theirs,) = torch.autograd.grad(alone, part, seed[..., own])
        torch.testing.assert_close(ours[..., own], theirs)
        z = gpuconv.causal_conv1d(*(t.detach().numpy() for t in (given, w, b)), seq_idx=ids.numpy())
        close(z[..., own], gpuconv.causal_conv1d(x[..., own], w, b))
        at += length


def test_padding_holds_anything_and_has_no_gradient(torch_rng: torch.Generator) -> None:
    x, w, b = operands(torch_rng, 8, 4)
    ids = torch.tensor([[-1, 0, 0, 0, 1, 1, -1, -1]] * 2, dtype=torch.int32)
    x[..., ids[0] < 0] = torch.nan
    leaves = [t.requires_grad_() for t in (x, w, b)]
    y = gpuconv.causal_conv1d(*leaves, activation="sigmoid", seq_idx=ids)
    assert y.isfinite().all() and not y[..., ids[0] < 0].any() and y[..., ids[0] >= 0].all()
    grads = torch.autograd.grad(y.square().sum(), leaves)
    assert all(g.isfinite().all() for g in grads) and not grads[0][..., ids[0] < 0].any()
    nothing = gpuconv.causal_conv1d(*leaves, seq_idx=torch.full((2, 8), -1, dtype=torch.int32))
    assert not nothing.any() and not any(g.any() for g in torch.autograd.grad(nothing.sum(), leaves))


def test_two_runs_are_bit_equal(torch_rng: torch.Generator) -> None:
    x, w, b = (t.float().requires_grad_() for t in operands(torch_rng, 50, 5))
    ids = torch.arange(50).div(7, rounding_mode="floor").int().expand(2, 50)
    for options in ({}, {"seq_idx": ids}, {"initial_state": torch.ones(2, 3, 4)}):
        runs = []
        for _ in range(2):
            y = gpuconv.causal_conv1d(x, w, b, activation="gelu", **options)
            runs.append([y, *torch.autograd.grad(y.square().sum(), (x, w, b))])
        for one, other in zip(*runs, strict=True):
            assert torch.equal(one, other)


# gradients


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("variant", ["plain", "state", "packed"])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_gradcheck(activation: str | None, variant: str, last: bool, torch_rng: torch.Generator) -> None:
    x, w, b = operands(torch_rng, 6, 3)
    leaves = [t.requires_grad_() for t in ((transposed(x) if last else x), w, b)]
    ids = torch.tensor([[0, 0, 1, 1, 1, -1], [0, 1, 1, 1, 1, 2]], dtype=torch.int32)
    if variant == "state":
        leaves.append(drawn(torch_rng, 2, 3, 2).requires_grad_())

    def call(x: Any, w: Any, b: Any, before: Any = None) -> Any:
        if variant == "packed":
            return gpuconv.causal_conv1d(x, w, b, activation=activation, seq_idx=ids)
        return gpuconv.causal_conv1d(x, w, b, activation=activation, initial_state=before, return_state=True)

    assert gradcheck(call, leaves, check_forward_ad=True)
    assert gradgradcheck(call, leaves)
    y = call(*leaves)
    y = y if variant == "packed" else y[0]
    (grad,) = torch.autograd.grad(y, leaves[0], y.detach().cos())
    assert innermost(grad) == last

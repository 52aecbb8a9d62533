"""Questions about sizes: answers against live torch and brute force, formulas that hold, and errors that help."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpuconv import shapes
from gpuconv.shapes import PADDINGS, Answer, Window, ask_input, ask_output, ask_output_padding, ask_padding

DRAWS = 1500
MOST = 40


def drawn(rng: np.random.Generator, kind: str) -> Window:
    """Draw a layer that torch takes, symmetric where torch is."""

    def below(most: int) -> int:
        return int(rng.integers(0, most))

    kernel, stride, dilation = 1 + below(6), 1 + below(5), 1 + below(4)
    if kind == "pool":
        pad = below(kernel // 2 + 1)
        return Window(kernel, stride, pad, pad, dilation, "pool", ceil_mode=bool(below(2)))
    pad = below(7)
    extra = below(max(stride, dilation)) if kind == "transposed" else 0
    return Window(kernel, stride, pad, pad, dilation, kind, extra)


def by_torch(size: int, w: Window, average: bool = False) -> int | None:
    """Return the output size that torch gives, None where it refuses."""
    x, weight = torch.empty(1, 1, size, device="meta"), torch.empty(1, 1, w.kernel, device="meta")
    try:
        if w.kind == "transposed":
            y = F.conv_transpose1d(x, weight, None, w.stride, w.pad_lo, w.output_padding, 1, w.dilation)
        elif w.kind == "conv":
            y = F.conv1d(x, weight, None, w.stride, w.pad_lo, w.dilation)
        elif average:
            y = F.avg_pool1d(x, w.kernel, w.stride, w.pad_lo, w.ceil_mode)
        else:
            y = F.max_pool1d(x, w.kernel, w.stride, w.pad_lo, w.dilation, w.ceil_mode)
    except RuntimeError:
        return None
    return y.shape[-1] or None  # before 2.13 meta tensors pass an output of size 0


def asked(question: Any, *arguments: Any) -> Answer | None:
    try:
        answer: Answer = question(*arguments)
    except ValueError:
        return None
    return answer


@pytest.mark.parametrize("kind", ["conv", "transposed", "pool"])
def test_output_sizes_are_torchs(kind: str, rng: np.random.Generator) -> None:
    accepted = 0
    for _ in range(DRAWS):
        window, size = drawn(rng, kind), int(rng.integers(1, MOST))
        answer, wanted = asked(ask_output, size, window), by_torch(size, window)
        assert (answer and answer.value) == wanted, (size, window)
        if kind == "pool" and window.dilation == 1:
            assert by_torch(size, window, average=True) == wanted, (size, window)
        if answer:
            accepted += 1
            assert numbers_hold(answer), answer
    assert accepted > DRAWS // 2


def numbers_hold(answer: Answer) -> bool:
    """Evaluate the numbers of an answer: both sides of each equation are equal."""
    left, _, right = answer.numbers.partition(" = ")
    value, less, _ = right.partition(", less 1")
    expression = left.replace("ceil", "-(-1) * math_ceil").replace("-(-1) * ", "")
    computed = eval(expression, {"math_ceil": lambda x: -int(-x // 1), "max": max})
    return computed == int(value) and int(value) - bool(less) == answer.value


@pytest.mark.parametrize("kind", ["conv", "transposed", "pool"])
def test_input_sizes_by_brute_force(kind: str, rng: np.random.Generator) -> None:
    found = 0
    for _ in range(DRAWS // 5):
        window = drawn(rng, kind)
        outputs = {size: by_torch(size, window) for size in range(1, MOST)}
        for output in {int(rng.integers(1, 12)) for _ in range(3)}:
            sizes = [size for size, given in outputs.items() if given == output]
            answer = asked(ask_input, output, window)
            inside = [size for size in answer.value if size < MOST] if answer else []
            assert inside == sizes, (output, window)
            found += bool(sizes)
    assert found > DRAWS // 10


def test_pool_input_sizes_with_both_pads() -> None:
    for kernel, stride, dilation in np.ndindex(6, 5, 3):
        k, s, d = kernel + 1, stride + 1, dilation + 1
        for lo, hi in np.ndindex(k // 2 + 1, k // 2 + 1):
            for ceil_mode in (False, True):
                outputs = [shapes.pool_output_size(n, k, s, lo, hi, d, ceil_mode) for n in range(1, 60)]
                for o in range(1, 8):
                    sizes = [n for n, given in enumerate(outputs, 1) if given == o]
                    assert list(shapes.pool_input_sizes(o, k, s, lo, hi, d, ceil_mode)) == sizes, (o, k, s, lo, hi, d)


def test_transposed_input_size_says_what_is_near(rng: np.random.Generator) -> None:
    refused = 0
    for _ in range(DRAWS):
        w, output = drawn(rng, "transposed"), int(rng.integers(1, MOST))
        axes = (w.kernel, w.stride, w.pad_lo, w.pad_hi, w.dilation)
        sizes = [
            n for n in range(1, 3 * MOST) if shapes.conv_transpose_output_size(n, *axes, w.output_padding) == output
        ]
        try:
            assert sizes == [shapes.conv_transpose_input_size(output, *axes, w.output_padding)]
        except ValueError as error:
            assert not sizes
            refused += 1
            for n, given in re.findall(r" (\d+) gives (-?\d+)", str(error)):
                assert shapes.conv_transpose_output_size(int(n), *axes, w.output_padding) == int(given)
            hint = re.search(r"output_padding=(\d+) gives \d+ from (\d+)", str(error))
            if hint:
                extra, size = map(int, hint.groups())
                assert shapes.conv_transpose_output_size(size, *axes, extra) == output
    assert refused > DRAWS // 5


def test_output_padding_is_torchs(rng: np.random.Generator) -> None:
    accepted = hinted = 0
    for _ in range(DRAWS):
        w, size = drawn(rng, "transposed"), int(rng.integers(1, 12))
        least = ask_like(size, w)
        if least is None:
            continue
        output = max(1, least + int(rng.integers(-3, w.stride + 2)))
        module = torch.nn.ConvTranspose1d(1, 1, w.kernel, w.stride, w.pad_lo, dilation=w.dilation, device="meta")
        try:
            given = module(torch.empty(1, 1, size, device="meta"), output_size=(output,)).shape[-1]
        except ValueError:
            given = None
        try:
            answer = ask_output_padding(size, output, w)
        except ValueError as error:
            assert given is None
            hint = re.search(r"padding=(\d+)(?: and output_padding=(\d+))? would do", str(error))
            if hint:
                hinted += 1
                pad, extra = int(hint[1]), int(hint[2] or 0)
                other = Window(w.kernel, w.stride, pad, pad, w.dilation, "transposed", extra)
                assert by_torch(size, other) == output
            continue
        accepted += 1
        assert given == output
        assert (
            ask_output(
                size, Window(w.kernel, w.stride, w.pad_lo, w.pad_hi, w.dilation, "transposed", answer.value)
            ).value
            == output
        )
    assert accepted > DRAWS // 5 and hinted > 20


def ask_like(size: int, w: Window) -> int | None:
    """Return the output size without an output padding."""
    answer = asked(ask_output, size, Window(w.kernel, w.stride, w.pad_lo, w.pad_hi, w.dilation, w.kind))
    return answer and answer.value


def layers() -> Iterator[tuple[int, int, int]]:
    for kernel, stride, dilation in np.ndindex(7, 5, 4):
        yield kernel + 1, stride + 1, dilation + 1


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_named_padding_does_what_it_says() -> None:
    for k, s, d in layers():
        w, total = Window(k, s, dilation=d), d * (k - 1)
        assert ask_padding("valid", w).value == (0, 0)
        assert ask_padding("causal", w).value == (total, 0)
        assert ask_padding("full", w).value == (total, total)
        lo, hi = ask_padding("half", w).value
        assert lo == hi and by_torch(30, Window(k, 1, lo, hi, d)) == 30 + total % 2
        for size in (1, 7, 30):
            answer = ask_padding("same", w, size)
            padded = F.pad(torch.empty(1, 1, size, device="meta"), answer.value)
            assert F.conv1d(padded, torch.empty(1, 1, k, device="meta"), None, s, 0, d).shape[-1] == -(-size // s)
            assert any("no integer padding" in note for note in answer.notes) == (answer.value[0] != answer.value[1])
        if s == 1:
            x, weight = torch.arange(9.0).reshape(1, 1, 9), torch.ones(1, 1, k)
            padded = F.pad(x, ask_padding("same", w).value)
            assert torch.equal(F.conv1d(padded, weight, dilation=d), F.conv1d(x, weight, padding="same", dilation=d))


def test_divide_divides_and_multiply_multiplies() -> None:
    for k, s, d in layers():
        fits = [p for p in range(d * k) if all(by_torch(m * s, Window(k, s, p, p, d)) == m for m in (1, 2, 5, 9))]
        answer = asked(ask_padding, "divide", Window(k, s, dilation=d))
        assert (answer and answer.value) == ((fits[0],) * 2 if fits else None)
        for name in ("divide", "same"):
            answer = asked(ask_padding, name, Window(k, s, dilation=d, kind="transposed"), 6)
            if name == "same":
                assert answer is not None
            if answer:
                (lo, hi), extra = answer.value, answer.output_padding
                assert ask_output(6, Window(k, s, lo, hi, d, "transposed", extra)).value == 6 * s
                if lo == hi:
                    assert by_torch(6, Window(k, s, lo, hi, d, "transposed", extra)) == 6 * s


@pytest.mark.parametrize("kind", ["conv", "transposed", "pool"])
def test_padding_for_a_size_by_brute_force(kind: str, rng: np.random.Generator) -> None:
    found = 0
    for _ in range(DRAWS // 2):
        w, size, wanted = drawn(rng, kind), int(rng.integers(1, 24)), int(rng.integers(1, 24))
        most = w.kernel // 2 if kind == "pool" else 80
        like = {p: Window(w.kernel, w.stride, p, p, w.dilation, kind, 0, w.ceil_mode) for p in range(most + 1)}
        fits = [p for p, window in like.items() if by_torch(size, window) == wanted]
        answer = asked(ask_padding, wanted, w, size)
        if answer and answer.value[0] == answer.value[1]:
            assert answer.value[0] == fits[0], (w, size, wanted)
            found += 1
        else:
            assert not fits, (w, size, wanted)
        if answer and answer.value[0] != answer.value[1]:
            lo, hi = answer.value
            assert ask_output(size, Window(w.kernel, w.stride, lo, hi, w.dilation, kind)).value == wanted
    assert found > DRAWS // 30


CONV = Window(5, 2, 6, 6, 7)
WRONG = {
    "no such size": (lambda: ask_output(0, CONV), "size must be at least 1, but got 0"),
    "too small": (
        lambda: ask_output(10, Window(5, dilation=7)),
        "does not fit into 10+0+0: it fits from a size of 29, or with 19 more of padding, on",
    ),
    "cropped away": (lambda: ask_output(1, Window(3, 1, 4, 4, kind="transposed")), "at most 2 in total leaves one"),
    "too many": (lambda: ask_input(1, Window(1, 1, 3, 3)), "the least one, 1, gives 7 already"),
    "transposed": (
        lambda: ask_input(28, Window(3, 2, 1, 1, kind="transposed")),
        "no input size gives 28: 14 gives 27 and 15 gives 29; output_padding=1 gives 28 from 14",
    ),
    "transposed, small": (lambda: ask_input(1, Window(5, 2, kind="transposed")), "the least one, 1, gives 5"),
    "same without a size": (lambda: ask_padding("same", Window(3, 2)), "depends on the input size: give it"),
    "divide": (
        lambda: ask_padding("divide", Window(4)),
        "no integer padding does: the total is 3; same_upper splits 3 as 1+2, same_lower as 2+1",
    ),
    "divide, transposed": (
        lambda: ask_padding("divide", Window(4, kind="transposed")),
        "no integer padding does: the total is 3",
    ),
    "size without a size": (lambda: ask_padding(8, Window(3)), "depends on the input size"),
    "unknown": (lambda: ask_padding("some", Window(3)), "want must be a size or one of valid, same, half"),
    "smaller than without": (
        lambda: ask_padding(3, Window(3), 10),
        "without any there are 8 outputs already, and padding adds to them",
    ),
    "pool": (
        lambda: ask_padding(9, Window(2, 2, kind="pool"), 10),
        "no padding that pooling accepts gives 9: 0 gives 5, 1 gives 6",
    ),
    "pool, named": (
        lambda: ask_padding("full", Window(3, kind="pool")),
        "padding 2+2 would be full, but padding of a pooling must be at most half of the kernel, 1 for a kernel of 3",
    ),
    "transposed, larger": (
        lambda: ask_padding(40, Window(3, 2, kind="transposed"), 14),
        "no padding gives 40: without any the output has 29",
    ),
    "not transposed": (
        lambda: ask_output_padding(3, 6, CONV),
        "of transposed convolutions alone, and this is a convolution",
    ),
    "kernel": (lambda: Window(0), "kernel must be at least 1, but got 0"),
    "kind": (lambda: Window(3, kind="fold"), "kind must be one of conv, transposed, pool, but got 'fold'"),
    "output padding": (
        lambda: Window(3, 2, kind="transposed", output_padding=2),
        "smaller than either stride or dilation (here at most 1), but got 2",
    ),
    "output padding of others": (lambda: Window(3, output_padding=1), "output_padding is of transposed"),
    "ceil mode": (lambda: Window(3, ceil_mode=True), "ceil_mode is of poolings alone"),
    "pool padding": (
        lambda: Window(3, pad_lo=2, kind="pool"),
        "at most half of the kernel, 1 for a kernel of 3, but got 2",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_help(case: str) -> None:
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_answers_name_their_source() -> None:
    for window in (CONV, Window(3), Window(3, kind="pool"), Window(3, 2, kind="transposed")):
        for answer in (ask_output(40, window), ask_input(41 if window.kind == "transposed" else 9, window)):
            assert re.search(r"Dumoulin & Visin 2016.*relationship \d+", answer.source) and "torch.nn" in answer.source
    for name in PADDINGS:
        assert ask_padding(name, Window(3)).source


def test_json_is_plain() -> None:
    assert ask_output(100, CONV).to_json()["value"] == 42
    assert ask_input(42, CONV).to_json()["value"] == {"from": 99, "to": 100}
    assert ask_padding("same", Window(4)).to_json()["value"] == [1, 2]
    assert ask_padding("divide", Window(4, 2, kind="transposed")).to_json()["output_padding"] == 0

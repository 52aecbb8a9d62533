"""`gpuconv.shapes` against torch's own output sizes and against brute force."""

import functools
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from gpuconv import shapes
from gpuconv.shapes import map_axes

RANKS = (1, 2, 3)
DRAWS = 100
LEAST = 2500

Case = dict[str, tuple[int, ...]]
Check = Callable[[np.random.Generator], tuple[Case, bool]]


def sweep(check: Check, examples: int, accepted: int, refused: int = 0) -> None:
    """Run `check` on `DRAWS` cases from each of `examples` seeds; count the distinct cases and ask for that many."""
    seen: tuple[set[str], set[str]] = (set(), set())

    @settings(max_examples=examples, deadline=None)
    @given(st.integers(0, 2**64 - 1))
    def run(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(DRAWS):
            case, was_refused = check(rng)
            seen[was_refused].add(repr(case))

    run()
    assert len(seen[False]) >= accepted, f"{len(seen[False])} distinct cases that torch accepts"
    assert len(seen[True]) >= refused, f"{len(seen[True])} distinct cases that torch refuses"


def torch_op(name: str, rank: int) -> Callable[..., torch.Tensor]:
    """The function of `torch.nn.functional`: ``torch_op("conv", 2)`` is ``F.conv2d``."""
    return getattr(F, f"{name}{rank}d")


def draw(rng: np.random.Generator, rank: int, **limits: tuple[int, int]) -> Case:
    """One value per axis for each name, from its inclusive limits."""
    return {k: tuple(rng.integers(lo, hi, rank, endpoint=True).tolist()) for k, (lo, hi) in limits.items()}


def torch_size(call: Callable[[], torch.Tensor]) -> tuple[int, ...] | None:
    """The sizes that torch gives, or None where it refuses."""
    try:
        return tuple(call().shape[2:])
    except RuntimeError:
        return None


def conv_size(call: Callable[[str], torch.Tensor], device: str) -> tuple[int, ...] | None:
    """The sizes of a convolution. Before torch 2.13 meta tensors got outputs of size 0, which real ones are refused."""
    got = torch_size(lambda: call(device))
    if got is None or 0 not in got or device != "meta":
        return got
    with torch.backends.mkldnn.flags(enabled=False):
        return torch_size(lambda: call("cpu"))


def blank(sizes: tuple[int, ...], device: str = "meta") -> torch.Tensor:
    return torch.empty((1, 1, *sizes), device=device)


def check_conv(rng: np.random.Generator, rank: int, device: str) -> tuple[Case, bool]:
    c = draw(rng, rank, size=(1, 40), kernel=(1, 6), stride=(1, 5), pad=(0, 6), dilation=(1, 4))

    def call(device: str) -> torch.Tensor:
        x, w = blank(c["size"], device), blank(c["kernel"], device)
        return torch_op("conv", rank)(x, w, None, c["stride"], c["pad"], c["dilation"])

    got = conv_size(call, device)
    ours = map_axes(shapes.conv_output_size, c["size"], c["kernel"], c["stride"], c["pad"], c["pad"], c["dilation"])
    assert got == (ours if min(ours) > 0 else None), c
    return c, got is None


def check_conv_transpose(rng: np.random.Generator, rank: int, device: str) -> tuple[Case, bool]:
    c = draw(rng, rank, size=(1, 20), kernel=(1, 6), stride=(1, 5), pad=(0, 4), dilation=(1, 4), extra=(0, 2))
    if device == "meta":
        # Meta tensors do not check torch's limit on the output padding; real ones do.
        c["extra"] = map_axes(lambda e, s, d: min(e, max(s, d) - 1), c["extra"], c["stride"], c["dilation"])
    x, w = blank(c["size"], device), blank(c["kernel"], device)
    got = torch_size(
        lambda: torch_op("conv_transpose", rank)(x, w, None, c["stride"], c["pad"], c["extra"], 1, c["dilation"])
    )
    axes = (c["size"], c["kernel"], c["stride"], c["pad"], c["pad"], c["dilation"], c["extra"])
    ours = map_axes(shapes.conv_transpose_output_size, *axes)
    allowed = all(map_axes(lambda e, s, d: e < max(s, d), c["extra"], c["stride"], c["dilation"]))
    # Meta tensors let an output of size 0 pass as long as another axis is not empty; real ones refuse it.
    accepted = min(ours) > 0 or (device == "meta" and min(ours) == 0 < max(ours))
    assert got == (ours if accepted and allowed else None), c
    return c, got is None


def check_pool(rng: np.random.Generator, rank: int, device: str, average: bool) -> tuple[Case, bool]:
    c = draw(rng, rank, size=(1, 40), kernel=(1, 8), stride=(1, 9), pad=(0, 4), dilation=(1, 1 if average else 4))
    # Torch's limit, which does not count the dilation.
    half = map_axes(lambda k: shapes.pad_half(k)[0], c["kernel"])
    if rng.random() < 0.95:
        c["pad"] = map_axes(min, c["pad"], half)
    ceil_mode = bool(rng.integers(2))
    c["ceil_mode"] = (int(ceil_mode),)
    x = blank(c["size"], device)
    pool = torch_op("avg_pool" if average else "max_pool", rank)
    arguments = (c["kernel"], c["stride"], c["pad"], *(() if average else (c["dilation"],)))
    got = torch_size(lambda: pool(x, *arguments, ceil_mode=ceil_mode))
    axes = (c["size"], c["kernel"], c["stride"], c["pad"], c["pad"], c["dilation"], (ceil_mode,) * rank)
    ours = map_axes(shapes.pool_output_size, *axes)
    allowed = all(map_axes(lambda p, h: p <= h, c["pad"], half))
    if average and rank == 3:
        # A rule of avg_pool3d alone: the kernel must fit without the padding.
        allowed = allowed and all(map_axes(lambda n, k: n >= k, c["size"], c["kernel"]))
    assert got == (ours if min(ours) > 0 and allowed else None), c
    return c, got is None


CHECKS: dict[str, Callable[[np.random.Generator, int, str], tuple[Case, bool]]] = {
    "conv": check_conv,
    "conv_transpose": check_conv_transpose,
    "max_pool": functools.partial(check_pool, average=False),
    "avg_pool": functools.partial(check_pool, average=True),
}


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("operator", CHECKS)
def test_output_size_is_torchs(operator: str, rank: int) -> None:
    """Sizes equal, and torch refuses exactly where a size is <= 0 or a documented limit is broken."""
    assert len(CHECKS) * len(RANKS) * LEAST >= 20_000
    refused = LEAST // 200
    sweep(lambda rng: CHECKS[operator](rng, rank, "meta"), 50, accepted=LEAST - refused, refused=refused)


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
@pytest.mark.parametrize("rank", (1, 2))
@pytest.mark.parametrize("operator", CHECKS)
def test_output_size_of_real_tensors(operator: str, rank: int) -> None:
    """Meta tensors and real ones agree, on a smaller sample; oneDNN would accept some outputs of size 0."""
    with torch.backends.mkldnn.flags(enabled=False):
        sweep(lambda rng: CHECKS[operator](rng, rank, "cpu"), 5, accepted=200, refused=1)


@pytest.mark.parametrize("rank", RANKS)
def test_asymmetric_padding_is_pad_then_conv(rank: int) -> None:
    """Pairs, negative ones included, against `F.pad` and then a convolution or pooling without padding."""

    def one(rng: np.random.Generator) -> tuple[Case, bool]:
        c = draw(rng, rank, size=(6, 30), kernel=(1, 6), stride=(1, 5), lo=(-2, 6), hi=(-2, 6), dilation=(1, 3))
        flat = [p for pair in zip(reversed(c["lo"]), reversed(c["hi"]), strict=True) for p in pair]
        x = F.pad(blank(c["size"]), flat)

        def call(device: str) -> torch.Tensor:
            padded, w = F.pad(blank(c["size"], device), flat), blank(c["kernel"], device)
            return torch_op("conv", rank)(padded, w, None, c["stride"], 0, c["dilation"])

        got = conv_size(call, "meta")
        pool = torch_size(lambda: torch_op("max_pool", rank)(x, c["kernel"], c["stride"], 0, c["dilation"]))
        axes = (c["size"], c["kernel"], c["stride"], c["lo"], c["hi"], c["dilation"])
        ours = map_axes(shapes.conv_output_size, *axes)
        assert ours == map_axes(shapes.pool_output_size, *axes)
        assert got == pool == (ours if min(ours) > 0 else None), c
        return c, got is None

    sweep(one, 6, accepted=200, refused=1)


@pytest.mark.parametrize("rank", RANKS)
def test_output_size_argument_is_torchs(rank: int) -> None:
    """`conv_transpose_output_padding` accepts, refuses and gives what `nn.ConvTransposeNd` does for output_size."""

    def one(rng: np.random.Generator) -> tuple[Case, bool]:
        c = draw(rng, rank, size=(1, 12), kernel=(1, 5), stride=(1, 5), pad=(0, 3), dilation=(1, 4))
        axes = (c["size"], c["kernel"], c["stride"], c["pad"], c["pad"], c["dilation"])
        least = map_axes(shapes.conv_transpose_output_size, *axes)
        c["want"] = map_axes(lambda m, s: max(1, m + int(rng.integers(-(s > 3), s + (s > 3)))), least, c["stride"])
        module = getattr(torch.nn, f"ConvTranspose{rank}d")
        module = module(1, 1, c["kernel"], c["stride"], c["pad"], dilation=c["dilation"], device="meta")
        try:
            got = tuple(module(blank(c["size"]), output_size=c["want"]).shape[2:])
        except ValueError:
            got = None
        try:
            extra = map_axes(shapes.conv_transpose_output_padding, c["size"], c["want"], *axes[1:])
        except ValueError:
            extra = None
        assert (got is None) == (extra is None), c
        if extra is not None:
            assert got == c["want"] == map_axes(shapes.conv_transpose_output_size, *axes, extra), c
            assert all(map_axes(lambda e, s: 0 <= e < s, extra, c["stride"])), c
        return c, got is None

    sweep(one, 5, accepted=100, refused=20)
    with pytest.raises(ValueError, match=r"output_size of 5, but valid sizes range from 3 to 4"):
        shapes.conv_transpose_output_padding(2, 5, 3, 2, 1, 1)


GRID = list(itertools.product((1, 2, 3, 4, 7), (1, 2, 3, 5), (0, 1, 2, 5), (0, 1, 3), (1, 2, 3)))


def test_inverses() -> None:
    """`conv_input_sizes` by brute force; each size is recovered by the output padding that is its offset there."""
    for k, s, lo, hi, d in GRID:
        outputs = {n: shapes.conv_output_size(n, k, s, lo, hi, d) for n in range(1, 90)}
        for output in range(-2, 12):
            sizes = [n for n, o in outputs.items() if o == output]
            assert list(shapes.conv_input_sizes(output, k, s, lo, hi, d)) == sizes, (output, k, s, lo, hi, d)
        for n, o in outputs.items():
            extra = shapes.conv_transpose_output_padding(o, n, k, s, lo, hi, d)
            assert extra == (n + lo + hi - shapes.effective_kernel(k, d)) % s
            assert shapes.conv_transpose_output_size(o, k, s, lo, hi, d, extra) == n


def test_ceil_mode_by_counting_windows() -> None:
    """A window counts while the one before has not reached the end and it starts before the padding at the end."""
    for k, s, d, n in itertools.product(range(1, 6), range(1, 8), range(1, 4), range(1, 24)):
        eff = shapes.effective_kernel(k, d)
        for lo, hi in itertools.product(range(eff // 2 + 1), repeat=2):
            if n + lo + hi < eff:
                continue
            count = 1
            while (count - 1) * s + eff < n + lo + hi and count * s < n + lo:
                count += 1
            assert shapes.pool_output_size(n, k, s, lo, hi, d, ceil_mode=True) == count, (n, k, s, lo, hi, d)


@pytest.mark.parametrize("ceil_mode", (False, True))
def test_pool_window_is_torchs(ceil_mode: bool) -> None:
    """Window sums and both divisors of avg_pool1d, first and last tap of max_pool1d."""

    def one(rng: np.random.Generator) -> tuple[Case, bool]:
        c = draw(rng, 1, size=(13, 30), kernel=(1, 5), stride=(1, 7), pad=(0, 6), dilation=(1, 3))
        (n,), (k,), (s,), (d,) = c["size"], c["kernel"], c["stride"], c["dilation"]
        ramp = torch.arange(n, dtype=torch.float64)[None]
        p = min(c["pad"][0], k // 2)
        count = shapes.pool_output_size(n, k, s, p, p, 1, ceil_mode)
        windows = [shapes.pool_window(i, n, k, s, p, p) for i in range(count)]
        sums = [sum(range(max(a, 0), min(b, n))) for a, b in windows]
        padded = [t / (b - a) for t, (a, b) in zip(sums, windows, strict=True)]
        inside = [t / (min(b, n) - max(a, 0)) for t, (a, b) in zip(sums, windows, strict=True)]
        assert F.avg_pool1d(ramp, k, s, p, ceil_mode, True)[0].tolist() == padded, c
        assert F.avg_pool1d(ramp, k, s, p, ceil_mode, False)[0].tolist() == inside, c
        count = shapes.pool_output_size(n, k, s, p, p, d, ceil_mode)
        taps = [[t for t in range(*shapes.pool_window(i, n, k, s, p, p, d), d) if 0 <= t < n] for i in range(count)]
        assert F.max_pool1d(ramp, k, s, p, d, ceil_mode)[0].tolist() == [t[-1] for t in taps], c
        assert (-F.max_pool1d(-ramp, k, s, p, d, ceil_mode))[0].tolist() == [t[0] for t in taps], c
        return c, False

    sweep(one, 10, accepted=500)


def test_adaptive_windows_are_torchs() -> None:
    for n, o in itertools.product(range(1, 31), range(1, 41)):
        ramp = torch.arange(n, dtype=torch.float64)[None]
        starts, ends = shapes.adaptive_windows(n, o)
        assert (-F.adaptive_max_pool1d(-ramp, o))[0].tolist() == list(starts)
        assert (F.adaptive_max_pool1d(ramp, o) + 1)[0].tolist() == list(ends)
        assert shapes.adaptive_longest(n, o) == max(b - a for a, b in zip(starts, ends, strict=True))
        means = [sum(range(a, b)) / (b - a) for a, b in zip(starts, ends, strict=True)]
        assert F.adaptive_avg_pool1d(ramp, o)[0].tolist() == pytest.approx(means, rel=1e-15)


@pytest.mark.parametrize("dtype", ("float16", "bfloat16", "float32", "float64"))
def test_fractional_starts_are_torchs(dtype: str) -> None:
    """Starts equal to torch's on the CPU, where it computes in the dtype of the input; hard samples included."""
    kind = getattr(torch, dtype)
    hard = [0.0, 0.5, 1 - torch.finfo(kind).eps / 2, *(i / 12 for i in range(1, 12))]
    differs = 0

    def one(rng: np.random.Generator) -> tuple[Case, bool]:
        c = draw(rng, 1, size=(2, 120), kernel=(1, 5), output=(1, 60))
        (n,), k = c["size"], min(c["kernel"][0], c["size"][0])
        o = min(c["output"][0], n - k + 1)
        samples = torch.zeros(1, 20, 2, dtype=torch.float64)
        samples[0, :, 0] = torch.tensor([*hard, *rng.random(20 - len(hard))])
        samples = samples.to(kind).clamp(max=1 - torch.finfo(kind).eps / 2)
        # A falling ramp: the first element of a window is its largest.
        x = -torch.arange(n, dtype=kind).expand(1, 20, 1, n)
        torch_starts = -F.fractional_max_pool2d(x, (1, k), (1, o), _random_samples=samples)[0, :, 0]
        ours = [shapes.fractional_pool_starts(n, o, k, u, dtype) for u in samples[0, :, 0].tolist()]
        assert torch_starts.to(torch.int64).tolist() == [list(s) for s in ours], c
        if dtype in ("float32", "float64"):
            assert all(list(s) == sorted(s) and s[0] >= 0 and s[-1] == n - k for s in ours), c
        nonlocal differs
        differs += ours != [shapes.fractional_pool_starts(n, o, k, u, "float64") for u in samples[0, :, 0].tolist()]
        return c, False

    sweep(one, 4, accepted=200)
    assert (differs > 0) == (dtype != "float64")
    assert shapes.fractional_pool_starts(4, 0, 2, 0.5) == ()


PADS = list(itertools.product(range(1, 10), range(1, 8), range(1, 5)))


def test_pad_divide_is_the_least_padding() -> None:
    for k, s, d in PADS:
        total = d * (k - 1)
        fits = [
            p for p in range(total + 2) if all(shapes.conv_output_size(m * s, k, s, p, p, d) == m for m in range(1, 30))
        ]
        assert (not fits) == (s == 1 and total % 2 == 1)
        if not fits:
            with pytest.raises(ValueError, match=f"stride=1 with kernel={k} and dilation={d}"):
                shapes.pad_divide(k, s, d)
            continue
        p = shapes.pad_divide(k, s, d)
        assert p == min(fits)
        for n in range(1, 8 * s):
            rest = n % s
            assert shapes.conv_output_size(n, k, s, p, p, d) == n // s + (rest > 0 and rest + 2 * p > total)
            if rest and total + 1 - s >= 0:
                up = (total + 1 - s) % 2 == 1 and rest == s - 1
                assert shapes.conv_output_size(n, k, s, p, p, d) == n // s + up


def test_multiply_output_padding() -> None:
    for k, s, d in PADS:
        for lo, hi in ((0, 0), (1, 1), (0, 3), (5, 2)):
            fits = [e for e in range(max(s, d)) if shapes.conv_transpose_output_size(9, k, s, lo, hi, d, e) == 9 * s]
            if fits:
                assert [shapes.multiply_output_padding(k, s, lo, hi, d)] == fits
            else:
                with pytest.raises(ValueError, match="at least 0 and smaller than either stride or dilation"):
                    shapes.multiply_output_padding(k, s, lo, hi, d)
        if s > 1:
            p = shapes.pad_divide(k, s, d)
            extra = shapes.multiply_output_padding(k, s, p, p, d)
            assert extra == max((d * (k - 1) + 1 - s) % 2 if d * (k - 1) + 1 >= s else 0, s - 1 - d * (k - 1))


def test_same_upper_and_lower() -> None:
    """The output is ceil(n / s), with the least padding that gives it, the odd element on the named side."""
    for k, s, d in PADS:
        for n in range(1, 30):
            lo, hi = shapes.pad_same_upper(n, k, s, d)
            assert shapes.pad_same_lower(n, k, s, d) == (hi, lo)
            assert 0 <= hi - lo <= 1
            assert shapes.conv_output_size(n, k, s, lo, hi, d) == -(-n // s)
            if lo + hi > 0:
                assert shapes.conv_output_size(n, k, s, lo, hi - 1, d) < -(-n // s)
            if s == 1:
                assert (lo, hi) == shapes.pad_same(k, d)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_pad_same_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    for k, d in itertools.product(range(1, 8), range(1, 5)):
        x = torch.randint(-4, 5, (1, 1, 11), generator=generator).double()
        w = torch.randint(-4, 5, (1, 1, k), generator=generator).double()
        ours = F.conv1d(F.pad(x, shapes.pad_same(k, d)), w, dilation=d)
        assert torch.equal(ours, F.conv1d(x, w, padding="same", dilation=d))


def test_other_pads() -> None:
    for k, _, d in PADS:
        total = d * (k - 1)
        assert shapes.conv_output_size(50, k, 1, *shapes.pad_valid(), d) == 50 - total
        assert shapes.conv_output_size(50, k, 1, *shapes.pad_half(k, d), d) == 50 + total % 2
        assert shapes.conv_output_size(50, k, 1, *shapes.pad_full(k, d), d) == 50 + total
        assert shapes.conv_output_size(50, k, 1, *shapes.pad_causal(k, d), d) == 50
        x = torch.ones(1, 1, 12, requires_grad=True)
        y = F.conv1d(F.pad(x, shapes.pad_causal(k, d)), torch.ones(1, 1, k), dilation=d)
        (grad,) = torch.autograd.grad(y[0, 0, 6], x)
        assert grad[0, 0].nonzero().max() == 6


# The longest path of ResNet-50 up to its last feature map; the stride is in the 3x3 convolutions.
RESNET50 = [(7, 2, 3, 1), (3, 2, 1, 1)] + [
    (3, 2 if first and stage else 1, 1, 1)
    for stage, blocks in enumerate((3, 4, 6, 3))
    for first in (True, *(False,) * (blocks - 1))
]
WORKED = [
    (shapes.conv_output_size, (100, 5, 2, 6, 6, 7), 42),
    (shapes.pad_divide, (5, 1, 6), 12),
    (shapes.pad_same, (5, 6), (12, 12)),
    (shapes.pad_divide, (7, 5, 6), 16),
    (shapes.conv_output_size, (100, 7, 5, 16, 16, 6), 20),
    (shapes.conv_transpose_output_size, (100, 4, 7, 5, 5, 6, 1), 703),
    (shapes.multiply_output_padding, (4, 5, 1, 1), 3),
    (shapes.conv_transpose_output_size, (100, 4, 5, 1, 1, 1, 3), 500),
    (shapes.conv_transpose_output_size, (2, 3, 2, 1, 1, 1, 1), 4),
    (shapes.conv_transpose_output_padding, (2, 4, 3, 2, 1, 1), 1),
    (shapes.conv_output_size, (50, 3, 2, 4, 4, 3), 26),
    (shapes.conv_output_size, (100, 5, 1, 2, 2, 1), 100),
    (shapes.conv_output_size, (28, 3), 26),
    (shapes.receptive_field, ([(7, 2, 3, 1), (3, 2, 1, 1)],), shapes.ReceptiveField(11, 4, 0.0)),
    (shapes.receptive_field, (RESNET50,), shapes.ReceptiveField(427, 32, 0.0)),
]


@pytest.mark.parametrize(("formula", "arguments", "want"), WORKED)
def test_worked_number(formula: Callable[..., object], arguments: tuple[object, ...], want: object) -> None:
    assert formula(*arguments) == want


LAYERS = [
    (torch.nn.Conv1d(1, 1, 5, 2, 6, 7), (100,), (42,)),
    (torch.nn.Conv1d(1, 1, 5, 1, 12, 6), (100,), (100,)),
    (torch.nn.Conv1d(1, 1, 7, 5, 16, 6), (100,), (20,)),
    (torch.nn.ConvTranspose1d(1, 1, 4, 7, 5, 1, dilation=6), (100,), (703,)),
    (torch.nn.ConvTranspose1d(1, 1, 4, 5, 1, 3), (100,), (500,)),
    (torch.nn.ConvTranspose2d(1, 1, 3, 2, 1, 1), (2, 2), (4, 4)),
    (torch.nn.Conv2d(16, 33, (3, 5), (2, 1), (4, 2), (3, 1)), (50, 100), (26, 100)),
    (torch.nn.Conv2d(64, 128, 3, groups=4), (28, 28), (26, 26)),
]


@pytest.mark.parametrize(("layer", "size", "want"), LAYERS)
def test_worked_number_in_torch(layer: torch.nn.Conv2d, size: tuple[int, ...], want: tuple[int, ...]) -> None:
    """The worked numbers are torch's too, on real tensors."""
    output = layer(torch.empty(20, layer.in_channels, *size))
    assert output.shape == (20, layer.out_channels, *want)


def measured_field(layers: list[shapes.Layer], size: int, index: int) -> tuple[int, int]:
    """First and last input pixel with a gradient from output `index` of a stack of all-ones convolutions."""
    x = torch.ones(1, 1, size, dtype=torch.float64, requires_grad=True)
    y: torch.Tensor = x
    for kernel, stride, pad, dilation in layers:
        y = F.conv1d(y, torch.full((1, 1, kernel), 1 / kernel, dtype=x.dtype), None, stride, pad, dilation)
    (grad,) = torch.autograd.grad(y[0, 0, index], x)
    taps = grad[0, 0].nonzero()
    return int(taps.min()), int(taps.max())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.integers(1, 3)), max_size=4))
@example(RESNET50)
def test_receptive_field_by_gradient(layers: list[shapes.Layer]) -> None:
    field = shapes.receptive_field(layers)
    # The first output whose field lies inside the input, and an input that ends beyond the next output's field.
    index = max(0, -int((field.start - (field.size - 1) / 2) // field.jump)) + field.size
    size = int(field.start + (index + 2) * field.jump) + field.size + sum(d * k for k, _, _, d in layers) * field.jump
    for i in (index, index + 1):
        first, last = measured_field(layers, size, i)
        assert last - first + 1 == field.size
        assert (first + last) / 2 == field.start + i * field.jump


def formulas(n: int) -> tuple[int, ...]:
    """Every formula that works on a SymInt without a decision."""
    return (
        shapes.effective_kernel(n, 2),
        shapes.conv_output_size(n, 3, 2, 1, 2, 2),
        shapes.conv_transpose_output_size(n, 3, 2, 1, 0, 2, 1),
        shapes.pool_output_size(n, 3, 2, 1, 1),
        *shapes.adaptive_window(2, n, 5),
        *shapes.adaptive_window(2, 40, n),
        *(*shapes.pad_same(n, 3), *shapes.pad_half(n), *shapes.pad_full(n), *shapes.pad_causal(n, 2)),
    )


def decisions(n: int) -> tuple[int, ...]:
    """Every formula that compares a value with another."""
    field = shapes.receptive_field([(n, 2, 1, 1), (3, 1, 1, 2)])
    return (
        shapes.pool_output_size(n, 3, 2, 1, 1, 1, True),
        *shapes.pool_window(3, n, 3, 2, 1, 1),
        *shapes.pad_same_upper(n, 3, 2),
        *shapes.pad_same_lower(n, 4, 3),
        shapes.pad_divide(n, 4),
        shapes.conv_transpose_output_padding(n, 2 * n + 2, 3, 2),
        shapes.multiply_output_padding(3, n, 1, 1),
        *itertools.chain(*shapes.adaptive_windows(n, 3)),
        *(field.size, field.jump),
    )


@pytest.mark.parametrize("fn", (formulas, decisions))
def test_symbolic_sizes_in_make_fx(fn: Callable[[int], tuple[int, ...]]) -> None:
    """A trace keeps the formulas symbolic: the same graph is right for other sizes, and plain ones add no guard."""

    def sizes(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.new_ones(()) * value for value in fn(x.shape[0])])

    graph = make_fx(sizes, tracing_mode="symbolic")(torch.ones(20, dtype=torch.float64))
    if fn is formulas:
        assert not graph.shape_env.guards
    for n in (20, 22, 28):
        assert graph(torch.ones(n, dtype=torch.float64)).tolist() == list(fn(n))


@pytest.mark.parametrize("fn", (formulas, decisions))
def test_symbolic_sizes_in_compile(fn: Callable[[int], tuple[int, ...]]) -> None:
    torch.compiler.reset()
    compiled = torch.compile(lambda x: fn(x.shape[0]), dynamic=True, fullgraph=True, backend="eager")
    for n in (20, 23, 31):
        assert compiled(torch.ones(n)) == fn(n)

"""Questions about sizes along one axis, answered with the formula that was used, its numbers and its source.

The other modules compute; these functions say how, and answer a question that has no answer with what would have one.
``gpuconv shape`` prints what they return.
"""

from .axes import Size
from .conv import conv_input_sizes, conv_transpose_output_padding, conv_transpose_output_size
from .inverse import conv_transpose_input_size, pool_input_sizes
from .window import Answer, Window, _formula, _name, _numbers, _output, _source

__all__ = ["ask_input", "ask_output", "ask_output_padding"]


def ask_output(size: Size, window: Window) -> Answer:
    """Answer: which output size does an input of `size` have?

    Raises
    ------
    ValueError
        If `size` is below 1, or no window fits; the message says from which size or padding on one does.

    Examples
    --------
    >>> print(ask_output(100, Window(5, 2, 6, 6, 7)))
    output size of a convolution of 100: 42
      formula  o = (n + pad_lo + pad_hi - d (k - 1) - 1) // s + 1
      here     (100 + 6 + 6 - 7 * (5 - 1) - 1) // 2 + 1 = 42
      source   Dumoulin & Visin 2016, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285, \
relationship 15; torch.nn.Conv2d, Shape
      note     sizes 99 to 100 have it: a stride of 2 skips up to 1 element at the end
    """
    _positive("size", size)
    output = _output(size, window)
    if output < 1:
        raise ValueError(_too_small(size, window, output))
    notes = []
    if window.kind != "transposed":
        same = _inputs(output, window)
        if len(same) > 1:
            skips = f": a stride of {window.stride} skips up to {_elements(len(same) - 1)} at the end"
            notes.append(f"sizes {same.start} to {same.stop - 1} have it{'' if window.ceil_mode else skips}")
    question = f"output size of a {_name(window)} of {size}"
    return Answer(question, output, _formula(window), _numbers(size, window, output), _source(window), tuple(notes))


def _elements(count: Size) -> str:
    return f"{count} element" + ("" if count == 1 else "s")


def _positive(name: str, value: Size) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, but got {value}")


def _too_small(size: Size, window: Window, output: Size) -> str:
    w = window
    if w.kind == "transposed":
        return (
            f"the output would have {output} elements: padding {w.pad_lo}+{w.pad_hi} takes away more than there is; "
            f"at most {w.pad_lo + w.pad_hi + output - 1} in total leaves one"
        )
    extent, missing = w.extent, w.extent - size - w.pad_lo - w.pad_hi
    return (
        f"a kernel of {extent} elements (dilation {w.dilation} * (kernel {w.kernel} - 1) + 1) does not fit into "
        f"{size}+{w.pad_lo}+{w.pad_hi}: it fits from a size of {size + missing}, or with {missing} more of padding, on"
    )


def _inputs(output: Size, window: Window) -> range:
    w = window
    if w.kind == "pool":
        return pool_input_sizes(output, w.kernel, w.stride, w.pad_lo, w.pad_hi, w.dilation, w.ceil_mode)
    return conv_input_sizes(output, w.kernel, w.stride, w.pad_lo, w.pad_hi, w.dilation)


def ask_input(output: Size, window: Window) -> Answer:
    """Answer: which input sizes have an output of `output`?

    The value is a range, of one size for a transposed convolution.

    Raises
    ------
    ValueError
        If `output` is below 1, or no size has it; the message names what is next to it.

    Examples
    --------
    >>> ask_input(42, Window(5, 2, 6, 6, 7)).text()
    '99 to 100'
    """
    _positive("output size", output)
    w = window
    question = f"input sizes of a {_name(window)} with {output} outputs"
    if w.kind == "transposed":
        n = conv_transpose_input_size(output, w.kernel, w.stride, w.pad_lo, w.pad_hi, w.dilation, w.output_padding)
        formula = "n = (o + pad_lo + pad_hi - d (k - 1) - 1 - output_padding) / s + 1"
        inner = f"{output} + {w.pad_lo} + {w.pad_hi} - {w.dilation} * ({w.kernel} - 1) - 1 - {w.output_padding}"
        source = f"{_source(w)}, solved for n"
        return Answer(question, range(n, n + 1), formula, f"({inner}) / {w.stride} + 1 = {n}", source)
    found = _inputs(output, window)
    if not found:
        least = _output(1, window)
        raise ValueError(f"no input size gives {output}: the least one, 1, gives {least} already")
    if w.ceil_mode:
        formula = "f(o - 1) < n <= f(o) with f(o) = max((o - 1) s + d (k - 1) + 1 - pad_lo - pad_hi, o s - pad_lo)"
        bounds = [
            max((o - 1) * w.stride + w.extent - w.pad_lo - w.pad_hi, o * w.stride - w.pad_lo)
            for o in (output - 1, output)
        ]
        numbers = f"{bounds[0]} < n <= {bounds[1]}"
    else:
        formula = "(o - 1) s + c <= n < o s + c with c = d (k - 1) + 1 - pad_lo - pad_hi"
        c = w.extent - w.pad_lo - w.pad_hi
        numbers = f"{(output - 1) * w.stride + c} <= n < {output * w.stride + c}"
    return Answer(question, found, formula, numbers, f"{_source(window)}, solved for n")


def ask_output_padding(size: Size, output: Size, window: Window) -> Answer:
    """Answer: with which ``output_padding`` does a transposed convolution of `size` have `output`?

    That of `window` does not count.

    Raises
    ------
    ValueError
        If there is none; the message says which sizes there are, and which padding would do.

    Examples
    --------
    >>> ask_output_padding(14, 28, Window(3, 2, 1, 1, kind="transposed")).value
    1
    """
    w = window
    if w.kind != "transposed":
        raise ValueError(f"output_padding is of transposed convolutions alone, and this is a {_name(window)}")
    _positive("size", size)
    _positive("output size", output)
    try:
        extra = conv_transpose_output_padding(size, output, w.kernel, w.stride, w.pad_lo, w.pad_hi, w.dilation)
    except ValueError as error:
        raise ValueError(f"{str(error).removeprefix('conv_transpose: ')}{_other_padding(size, output, w)}") from None
    least = output - extra
    formula = "output_padding = o - ((n - 1) s - pad_lo - pad_hi + d (k - 1) + 1), from 0 to s - 1"
    source = "torch.nn.ConvTranspose2d, output_size; " + _source(w).partition(";")[0]
    question = f"output padding of a transposed convolution of {size} to {output}"
    return Answer(question, extra, formula, f"{output} - {least} = {extra}", source)


def _other_padding(size: Size, output: Size, window: Window) -> str:
    w = window
    for extra in range(max(w.stride, w.dilation)):
        most = conv_transpose_output_size(size, w.kernel, w.stride, 0, 0, w.dilation, extra)
        if most >= output and (most - output) % 2 == 0:
            also = f" and output_padding={extra}" if extra else ""
            return f"; padding={(most - output) // 2}{also} would do"
    return ""

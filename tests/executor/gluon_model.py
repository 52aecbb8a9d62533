"""Rebuilds a module of Gluon kernels over a machine: the same source that the compiler takes, as Python generators.

Each call of another kernel function, of TMA, a barrier, a product or of shared memory becomes ``yield from``, so that
the machine can stop a partition there. ``//`` and ``%`` of negative numbers are refused: Triton rounds towards zero.
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from collections.abc import Iterable
from types import GeneratorType, ModuleType, SimpleNamespace

import numpy as np
from machine import Machine
from tensors import Fragment, KernelError, Layout, Pointer, View, rounded

__all__ = ["Edit", "rebuild"]

Edit = tuple[str, str, str]
"""A function, a piece of its source, and what takes its place: a fault that is planted."""

WAITING = {"tma", "mbarrier", "cluster"}
WAITING_FUNCTIONS = {"warpgroup_mma", "warpgroup_mma_wait", "fence_async_shared", "gl.warp_specialize", "gl.barrier"}
WAITING_FUNCTIONS |= {"gl.inline_asm_elementwise"}
SHARED_METHODS = {"store", "load"}


class _Rewrite(ast.NodeTransformer):
    def __init__(self, functions: Iterable[str]):
        self.functions = WAITING_FUNCTIONS | set(functions)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.decorator_list, node.returns = [], None
        for argument in (*node.args.args, *node.args.kwonlyargs):
            argument.annotation = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        return ast.copy_location(ast.Assign([node.target], self.visit(node.value)), node)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        name = ast.unparse(node.func)
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute):
            owner, method = ast.unparse(node.func.value), node.func.attr
            if method == "to":
                return ast.copy_location(ast.Call(ast.Name("_to", ast.Load()), [node.func.value, *node.args], []), node)
            waits = owner in WAITING or name in self.functions or (method in SHARED_METHODS and owner != "gl")
        else:
            waits = name in self.functions
        if not waits:
            return node
        call = ast.Call(ast.Name("_call", ast.Load()), [node.func, *node.args], node.keywords)
        return ast.copy_location(ast.YieldFrom(call), node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        functions = {ast.FloorDiv: "_floordiv", ast.Mod: "_mod"}
        if type(node.op) not in functions:
            return node
        function = ast.Name(functions[type(node.op)], ast.Load())
        return ast.copy_location(ast.Call(function, [node.left, node.right], []), node)


def _call(function, *args, **kwargs):
    """Run a function whether or not it stops anywhere."""
    result = function(*args, **kwargs)
    if isinstance(result, GeneratorType):
        result = yield from result
    return result


def _natural(*numbers) -> None:
    if any(isinstance(number, int | np.integer) and number < 0 for number in numbers):
        raise KernelError(f"a division of negative numbers {numbers}: Triton rounds towards zero, Python down")


def _floordiv(left, right):
    _natural(left, right)
    return left.combine(right, np.floor_divide) if isinstance(left, Fragment) else left // right


def _mod(left, right):
    _natural(left, right)
    return left.combine(right, np.mod) if isinstance(left, Fragment) else left % right


def _to(value, dtype):
    return value.map(lambda values: rounded(values, dtype)) if isinstance(value, Fragment) else value


def _barriers(machine: Machine) -> SimpleNamespace:
    def predicated(operation):
        def call(*args, pred=True, **kwargs):
            if pred:
                yield from operation(*args, **kwargs)

        return call

    return SimpleNamespace(
        allocate_mbarrier=lambda batch=1, two_ctas=False: machine.allocate_barriers(batch, two_ctas),
        init=machine.initialise,
        wait=predicated(machine.wait),
        arrive=predicated(lambda barrier, count=1: machine.arrive(barrier, count)),
        expect=predicated(machine.expect),
        invalidate=lambda barrier: None,
    )


def _tma(machine: Machine) -> SimpleNamespace:
    def async_load(tensor, coordinates, barrier, view, pred=True, multicast=False):
        if pred:
            yield from machine.load(tensor, coordinates, None, barrier, view, multicast)

    def async_load_im2col(tensor, coordinates, offsets, barrier, view, pred=True, multicast=False):
        if pred:
            yield from machine.load(tensor, coordinates, [int(offset) for offset in offsets], barrier, view, multicast)

    return SimpleNamespace(
        async_load=async_load,
        async_load_im2col=async_load_im2col,
        async_store=machine.store,
        store_wait=machine.store_wait,
    )


def _language(machine: Machine) -> SimpleNamespace:
    def fragment(values: np.ndarray, layout: Layout | None) -> Fragment:
        """Cut the part of the current CTA out of a tensor."""
        splits = layout.for_axes(values.ndim) if layout else ()
        for bit, basis in enumerate(splits):
            half = machine.current.rank >> bit & 1
            for axis, step in enumerate(basis):
                if step:
                    values_of = np.split(values, 2, axis)
                    values = values_of[half]
        shape = list(values.shape)
        for basis in splits:
            shape = [size * 2 if step else size for size, step in zip(shape, basis, strict=True)]
        return Fragment(values, shape, splits)

    def load(pointer: Pointer, mask=None, other=0):
        offset = pointer.offset
        if not isinstance(offset, Fragment):
            return pointer.array[offset]
        inside = (
            np.broadcast_to(mask.values, offset.values.shape)
            if mask is not None
            else np.ones(offset.values.shape, bool)
        )
        machine.read_global(pointer.array, offset.values[inside])
        values = np.full(offset.values.shape, np.nan if mask is None else other, np.float32)
        values[inside] = pointer.array[offset.values[inside]]
        return Fragment(values, offset.shape, offset.splits)

    def store(pointer: Pointer, value: Fragment, mask=None):
        offsets = np.broadcast_to(pointer.offset.values, value.values.shape)
        inside = np.broadcast_to(mask.values, offsets.shape) if mask is not None else np.ones(offsets.shape, bool)
        machine.write_global(pointer.array, offsets[inside])
        pointer.array[offsets[inside]] = value.values[inside]

    def where(condition, yes, no):
        if isinstance(condition, Fragment):
            yes = yes.values if isinstance(yes, Fragment) else yes
            no = no.values if isinstance(no, Fragment) else no
            return condition.map(lambda mask: np.where(mask, yes, no))
        return yes if condition else no

    signals = {"ld.acquire.gpu": machine.await_signal, "st.release.gpu": machine.signal, "st.global.u64": machine.wipe}

    def inline_asm_elementwise(asm, _, arguments, **__):
        if "%cluster_ctarank" in asm:
            return machine.current.rank
        if asm == "mov.u32 $0, 0;":
            return 0
        for instruction, operation in signals.items():
            if instruction in asm:
                if instruction.startswith("st.") and f"and.b32 t, t, {32 * _WARPS - 1};" not in asm:
                    raise KernelError("every warp of a partition writes a signal: one that is late gives it again")
                return operation(arguments[0])
        raise KernelError(f"no model of: {asm}")

    def warp_specialize(partitions, warps, registers):
        bodies = [
            (function.__name__, lambda f=function, a=arguments: _call(f, *a)) for function, arguments in partitions
        ]
        yield from machine.spawn(bodies)

    def elementwise(function):
        return lambda value: value.map(function) if isinstance(value, Fragment) else function(value)

    return SimpleNamespace(
        **{name: name for name in ("float16", "bfloat16", "float32", "int8", "int16", "int32", "int64", "float8e4nv")},
        program_id=lambda axis: machine.program[axis],
        num_programs=lambda axis: machine.grid[axis],
        cdiv=lambda a, b: -(-a // b),
        where=where,
        static_range=range,
        static_assert=_static_assert,
        NVMMADistributedLayout=lambda **known: Layout.of(**known),
        NVMMASharedLayout=lambda **known: Layout.of(**known),
        SliceLayout=lambda dim, parent: parent.without(dim),
        zeros=lambda shape, dtype, layout=None: fragment(np.zeros(shape, np.float32), layout),
        arange=lambda start, end, layout=None: fragment(np.arange(start, end), layout),
        expand_dims=lambda value, axis: value.expand_dims(axis),
        convert_layout=lambda value, layout: value,
        allocate_shared_memory=machine.allocate,
        load=load,
        store=store,
        maximum=lambda a, b: a.combine(b, np.maximum) if isinstance(a, Fragment) else max(a, b),
        minimum=lambda a, b: a.combine(b, np.minimum) if isinstance(a, Fragment) else min(a, b),
        exp=elementwise(np.exp),
        exp2=elementwise(np.exp2),
        log=elementwise(np.log),
        erf=elementwise(np.vectorize(math.erf, otypes=[np.float32])),
        inline_asm_elementwise=inline_asm_elementwise,
        warp_specialize=warp_specialize,
        barrier=machine.join,
        num_warps=lambda: _WARPS,
    )


_WARPS = 4
"""Warps of a partition as its code sees them; the machine runs a partition as one."""


def _static_assert(condition, message="") -> None:
    if not condition:
        raise KernelError(f"static_assert: {message}")


def _products(machine: Machine) -> dict:
    def warpgroup_mma(a: View, b: View, acc: Fragment, use_acc=True, is_async=False):
        return (yield from machine.multiply(a, b, acc, is_async, use_acc))

    def warpgroup_mma_wait(pending, deps=()):
        yield from machine.multiply_wait(pending)
        return deps[0] if len(deps) == 1 else tuple(deps)

    return {
        "warpgroup_mma": warpgroup_mma,
        "warpgroup_mma_wait": warpgroup_mma_wait,
        "warpgroup_mma_init": lambda acc: acc,
        "fence_async_shared": machine.fence,
    }


def _source(function) -> str:
    source = textwrap.dedent(inspect.getsource(function))
    return source[source.index("def ") :]


def rebuild(machine: Machine, modules: Iterable[ModuleType], edits: Iterable[Edit] = ()) -> SimpleNamespace:
    """Return the kernel functions of modules over a machine, with pieces of their source replaced."""
    found = {
        name: member
        for module in modules
        for name, member in vars(module).items()
        if inspect.isfunction(getattr(member, "fn", None))
    }
    space = {
        "gl": _language(machine),
        "tma": _tma(machine),
        "mbarrier": _barriers(machine),
        "cluster": SimpleNamespace(barrier=machine.cluster_barrier),
        **_products(machine),
        **{function.__name__: function for function in (_call, _floordiv, _mod, _to, min, max, range)},
    }
    edits = list(edits)
    unused = {edit[0] for edit in edits} - found.keys()
    if unused:
        raise LookupError(f"no kernel function {sorted(unused)}")
    for name, kernel in found.items():
        source = _source(kernel.fn)
        for function, old, new in edits:
            if function == name:
                if source.count(old) != 1:
                    raise LookupError(f"{old!r} stands {source.count(old)} times in {name}")
                source = source.replace(old, new)
        for key, value in kernel.fn.__globals__.items():
            if key.isupper() or isinstance(getattr(value, "value", None), int | str | bool):
                space.setdefault(key, getattr(value, "value", value))
        tree = ast.fix_missing_locations(_Rewrite(found).visit(ast.parse(source)))
        exec(compile(tree, f"<{name} over a machine>", "exec"), space)
    return SimpleNamespace(**{name: space[name] for name in found})

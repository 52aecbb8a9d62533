"""Names and costs of the pooling kernels, which Triton asks for on the host for its profiler (proton)."""


def _name(kernel, c, *parts):
    return "_".join((kernel, f"{c['T']}x{c['R']}x{c['S']}", *parts, f"i{64 if c['INDEX64'] else 32}"))


def general_name(kernel, c):
    """Name a general kernel after its constants `c`: window, axis, in sums how they finish, tile, and index type."""
    finish = (str(c["FINISH"]),) if "FINISH" in c else ()
    return _name(kernel, c, "dhwa"[c["AXIS"]], *finish, f"{c['BLOCK_M']}x{c['BLOCK_L']}")


def taps_name(kernel, c):
    """Name the kernel of taps after its constants `c`: window, tile, and index type."""
    return _name(kernel, c, f"{c['BLOCK_M']}x{c['BLOCK_L']}")


def tiled_name(kernel, c):
    """Name a tiled kernel after its constants `c`: window, strides, tile, and index type."""
    stride = f"s{c['STRIDE_D']}{c['STRIDE_H']}{c['STRIDE_W']}"
    return _name(kernel, c, stride, f"{c['TILE_P']}x{c['TILE_Q']}x{c['BLOCK_M']}x{c['BLOCK_L']}")


def general_metadata(grid, kernel, args):
    """Report one comparison or addition per element of each window as FLOPs, along the axes that are pooled."""
    axis, taps = args["AXIS"], (args["T"], args["R"], args["S"])
    work = taps[0] * taps[1] * taps[2] if axis == 3 else taps[axis]
    return {"name": kernel.name, "flops": grid[0] * args["BLOCK_M"] * args["BLOCK_L"] * work}


def taps_metadata(grid, kernel, args):
    """Report the bytes that must move: an index and a tap of each window."""
    windows = args["n"] * args["c"] * args["o"] * args["p"] * args["q"]
    return {"name": kernel.name, "bytes": windows * (8 + args["taps_ptr"].element_size())}


def tiled_metadata(grid, kernel, args):
    """Report one comparison or addition per element of each window as FLOPs."""
    work = args["T"] * args["R"] * args["S"] * args["TILE_P"] * args["TILE_Q"]
    return {"name": kernel.name, "flops": grid[0] * args["BLOCK_M"] * args["BLOCK_L"] * work}


def bytes_metadata(grid, kernel, args):
    """Report the bytes that must move between x, or its gradient, and y; indices come on top."""
    planes = args["n"] * args["c"]
    elements = planes * (args["d"] * args["h"] * args["w"] + args["o"] * args["p"] * args["q"])
    tensor = args["x_ptr"] if "x_ptr" in args else args["dx_ptr"]
    return {"name": kernel.name, "bytes": elements * tensor.element_size()}

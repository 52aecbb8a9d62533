"""The cost model: estimated microseconds of a launch that is described, whether its kernel is written or not.

A launch is described by :class:`Work`: what one program computes, reads, issues and waits for, and how many programs
there are. With the rates of a GPU (:class:`.constants.Constants`) each of these becomes a time of the busiest
multiprocessor, which runs ``ceil(programs / multiprocessors)`` programs, ``resident`` of them at once:

======== ================================================================================================
term     microseconds
======== ================================================================================================
pipe     FLOPs, padding of tiles included, over the rate of the tensor cores or of the FMA pipe, times what
         tiles of this shape and operands on this path reach of it
l2       bytes that programs read through L2 over its bandwidth, or over what one multiprocessor takes
l1       bytes that programs move through L1 and shared memory, which are one, over 128 a clock (assumed)
dram     bytes that must move at least over the bandwidth of memory
issue    instructions of warps over those that a multiprocessor issues
wait     round trips to memory that one program makes in turn, times the rounds of programs
======== ================================================================================================

The estimate is the longest term, a fraction of the others (what does not hide behind it), a fixed time, and for further
launches theirs and the time of the bytes that they move. All of it is arithmetic on arrays, with one element for each
config. :mod:`gpuconv.tuning.fitting` finds the constants under which the model agrees best with timings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .constants import Constants

__all__ = ["Work", "concatenate", "estimate", "overheads", "terms"]

_BYTES_PER_CLOCK = 64
"""Bytes that one multiprocessor takes from L2 in a clock at most (A100 white paper; assumed for others)."""


_L1_BYTES_PER_CLOCK = 128
"""Bytes that L1 and shared memory of one multiprocessor move in a clock: a line of 32 banks of 4 bytes.

Assumed: nobody has measured it for this library, nor what bank conflicts and partial lines leave of it.
"""


@dataclass(frozen=True, slots=True)
class Work:
    """Launches described by what they do. Every field is an array of one element per config, or a number for all.

    `pipe` and `path` are places in :data:`.constants.PIPES` and :data:`.constants.PATHS`. `flops`, `l2_bytes`,
    `l1_bytes`, `instructions` (of warps) and `chain` (round trips to memory in turn) are of one program, `dram_bytes`
    and `extra_bytes` (of passes before and after) of everything. `l1_bytes` are loads as they are issued (lanes that a
    mask turns off included), stores, and what is written to shared memory and read from it, operands of products on
    tensor cores included; 0 where a kernel is not described that far.
    """

    programs: Any
    resident: Any
    pipe: Any
    path: Any
    flops: Any
    feed: Any
    l2_bytes: Any
    dram_bytes: Any
    instructions: Any
    chain: Any
    extra_bytes: Any = 0.0
    launches: Any = 1.0
    l1_bytes: Any = 0.0


def concatenate(works: Sequence[Work]) -> Work:
    """Return the configs of several works in one, in their order."""
    columns: dict[str, Any] = {}
    sizes = [len(np.atleast_1d(np.asarray(work.programs))) for work in works]
    for field in fields(Work):
        parts = [np.broadcast_to(getattr(work, field.name), size) for work, size in zip(works, sizes, strict=True)]
        columns[field.name] = np.concatenate(parts)
    return Work(**columns)


def terms(work: Work, constants: Constants) -> dict[str, np.ndarray]:
    """Return the microseconds of each term of `work` that may hide behind another, by name; see the module."""
    value = constants.values
    sms, clock = value["sms"], value["clock_ghz"]
    programs = np.maximum(np.asarray(work.programs, float), 1)
    busy = np.ceil(programs / sms)
    rounds = np.ceil(programs / (sms * np.asarray(work.resident)))
    per_sm = np.minimum(value["l2_tb_s"] * 1e6 / np.minimum(programs, sms), _BYTES_PER_CLOCK * clock * 1e3)
    rate = constants.pipe_rates[work.pipe] * constants.efficiencies[work.path]
    return {
        "pipe": busy * work.flops * (sms / 1e6) / (rate * work.feed),
        "l2": busy * work.l2_bytes / per_sm,
        "l1": busy * work.l1_bytes / (_L1_BYTES_PER_CLOCK * clock * 1e3),
        "dram": np.asarray(work.dram_bytes / (value["dram_tb_s"] * 1e6), float),
        "issue": busy * work.instructions / (value["issue_per_clock"] * clock * 1e3),
        "wait": rounds * work.chain * value["latency_us"],
    }


def overheads(work: Work, constants: Constants) -> dict[str, np.ndarray]:
    """Return the microseconds of `work` that hide behind nothing: of its launches, and of passes before and after."""
    value = constants.values
    extra = np.asarray(work.extra_bytes, float)
    in_l2 = extra < value["l2_mib"] * 2**20
    return {
        "launch": value["fixed_us"] + (np.asarray(work.launches) - 1) * value["launch_us"],
        "passes": extra / np.where(in_l2, value["l2_tb_s"] * 1e6, value["dram_tb_s"] * 1e6),
    }


def estimate(work: Work, constants: Constants) -> np.ndarray:
    """Return the estimated microseconds of each config of `work` on a GPU."""
    found = list(terms(work, constants).values())
    longest, total = found[0], found[0]
    for term in found[1:]:
        longest, total = np.maximum(longest, term), total + term
    beside = overheads(work, constants)
    return np.atleast_1d(beside["launch"] + longest + constants.values["loss"] * (total - longest) + beside["passes"])

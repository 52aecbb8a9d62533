"""Print the networks of this folder, what is replaced in each, and how long its comparison takes.

Columns: seconds of the comparison, of one pass forward and backward by torch and by gpuconv on the CPU; the largest
difference in float32 and in float64, relative to the scale of its tensor; what one such pass counts.

    python tests/models/run.py [NAME ...]
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings

import torch
from zoo import NETWORKS, missing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(NETWORKS)}")
    parser.add_argument("--list", action="store_true", help="print the list and compare nothing")
    chosen = parser.parse_args()
    unknown = [name for name in chosen.names if name not in NETWORKS]
    if unknown:
        parser.error(f"NAME is {unknown[0]!r}; it must be one of {', '.join(NETWORKS)}")
    names = chosen.names or list(NETWORKS)
    if chosen.list:
        for name in names:
            print(f"{name:<14}{missing(NETWORKS[name]) or NETWORKS[name].shows}")
        return 0
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    from compare import compare

    print(f"{'network':<14}{'seconds':>8}{'torch':>8}{'gpuconv':>9}{'float32':>9}{'float64':>9}{'MFLOPs':>8}  replaced")
    failed, start = 0, time.perf_counter()
    for name in names:
        why = missing(NETWORKS[name])
        if why:
            print(f"{name:<14}not run ({why})")
            continue
        try:
            outcome = compare(NETWORKS[name])
        except AssertionError as error:
            failed += 1
            print(f"{name:<14}FAILED  {error}")
            continue
        whole, theirs, ours = outcome.seconds
        row = f"{name:<14}{whole:8.2f}{theirs:8.3f}{ours:9.3f}"
        row += "".join(f"{error:9.1e}" for error in outcome.errors.values()) + f"{outcome.flops / 1e6:8.1f}"
        kept = f"; kept: {len(outcome.kept)}" if outcome.kept else ""
        print(f"{row}  {outcome.kinds}{kept}", flush=True)
    print(f"{len(names)} networks, {failed} failed, {time.perf_counter() - start:.1f} seconds")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

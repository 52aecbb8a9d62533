"""Calls from a pack in a process that cannot import Triton; prints what was launched, written and run, as JSON."""

import importlib.util
import json
import os
import sys


class _Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, _Absent())
_find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "triton" else _find_spec(name, package)

import stub_alone  # noqa: E402
from launch_cases import DY, MANY_DY, MANY_X, B, W, X  # noqa: E402

import gpuconv  # noqa: E402
import gpuconv.launcher.record  # noqa: E402

CALLS = {
    "fprop": lambda: gpuconv.conv2d(X, W, B, padding=1),
    "dgrad": lambda: gpuconv.conv2d_input_grad(X.shape, W, DY, padding=1),
    "wgrad": lambda: gpuconv.conv2d_weight_grad(MANY_X, W.shape, MANY_DY, padding=1),
    "max_pool": lambda: gpuconv.max_pool2d(X, 3, 2, 1),
}
WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
PROCESSES = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "os.system")


def _writes(event, args):
    if event != "open":
        return event in WRITES
    _, mode, flags = args
    return bool(set(mode or "") & set("wax+")) or bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def main():
    events = []
    sys.addaudithook(lambda event, args: events.append((event, args)) if stub_alone.watching else None)
    told = {}
    with stub_alone.stub() as gpu:
        for name, call in CALLS.items():
            launches = []
            for _ in range(3):
                gpu.reset()
                with stub_alone.watched():
                    call()
                launches.append([stub_alone.facts(launch) for launch in gpu.launches()])
            told[name] = launches
        shifted = X.new_zeros(X.numel() + 8).as_strided(X.shape, X.stride(), 1)
        try:
            gpuconv.max_pool2d(shifted, 3, 2, 1)
            unaligned = "it ran"
        except RuntimeError as error:
            unaligned = str(error)
        explained = str(gpuconv.explain(gpuconv.conv2d, X, W, B, padding=1))
        lacking = str(gpuconv.explain(gpuconv.conv2d, X, W, padding=1, activation="tanh", backend="triton"))
    print(
        json.dumps(
            {
                "told": told,
                "noticed": len(events),
                "wrote": [str(args) for event, args in events if _writes(event, args)],
                "ran": [event for event, _ in events if event in PROCESSES],
                "triton": [name for name in sys.modules if name.partition(".")[0] == "triton"],
                "explained": explained,
                "unaligned": unaligned,
                "lacking": lacking,
            }
        )
    )


if __name__ == "__main__":
    main()

"""Lanes run two at a time: each with half of the processors, after what it reads, and alone where it must."""

import re
import threading

import pytest

from scripts import lanes


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Put lanes in place that say what ran beside them, and with how many workers."""
    running, seen, lock = set(), {}, threading.Lock()
    both = threading.Barrier(2)

    def lane(name: str) -> lanes.Result:
        with lock:
            running.add(name)
        if name in ("first", "second"):
            both.wait(timeout=60)  # fails where either is started after the other has ended
        lanes.say(f"{name} was here")
        with lock:
            seen[name] = (set(running), lanes.WORKERS.get())
            running.remove(name)
        return lanes.Result(name, lanes.PASSED)

    names = ("first", "second", "reads", "read", "alone")
    monkeypatch.setattr(lanes, "LANES", {name: (f"title of {name}", lane) for name in names})
    monkeypatch.setattr(lanes, "AFTER", {"reads": "read"})
    monkeypatch.setattr(lanes, "ALONE", {"alone"})
    monkeypatch.setattr(lanes, "BUILD", tmp_path)
    return seen


def test_two_lanes_at_a_time(fake, capfd):
    chosen = ["alone", "first", "second", "reads", "read"]
    results = lanes.run_lanes(chosen, 4)
    assert [result.lane for result in results] == chosen
    assert fake["alone"] == ({"alone"}, 4)
    assert all(fake[name][1] == 2 for name in chosen[1:])
    assert list(fake).index("read") < list(fake).index("reads"), "a lane ran before what it reads was there"
    assert "read" not in fake["reads"][0]
    printed = capfd.readouterr().out
    for name in chosen:
        assert printed.count(f"title of {name}\n{name} was here\n") == 1


@pytest.mark.parametrize(("chosen", "processors"), [(["read"], 4), (["read", "alone"], 4), (["reads", "read"], 1)])
def test_a_lane_that_is_alone_has_every_processor(fake, chosen, processors):
    assert [result.lane for result in lanes.run_lanes(chosen, processors)] == chosen
    assert all(fake[name] == ({name}, processors) for name in chosen)
    assert list(fake) == sorted(chosen, key=lambda name: (name == "alone", name == "reads"))


def test_what_a_command_prints_goes_where_its_lane_says(tmp_path, capfd):
    log = tmp_path / "lane.log"
    with log.open("w") as output:
        token = lanes.OUTPUT.set(output)
        try:
            assert lanes.run(["python3", "-c", "import sys; print('out'); sys.exit('err')"]) == 1
        finally:
            lanes.OUTPUT.reset(token)
    assert log.read_text().splitlines()[1:] == ["out", "err"]
    assert capfd.readouterr().out == ""


def test_every_lane_is_named_where_lanes_are_listed():
    readme = (lanes.REPO / "README.md").read_text(encoding="utf-8").partition("\n## Tests\n")[2].partition("\n## ")[0]
    contributing = (
        (lanes.REPO / ".github" / "CONTRIBUTING.md")
        .read_text(encoding="utf-8")
        .partition("\n## Lanes\n")[2]
        .partition("\n## ")[0]
    )
    ci = (lanes.REPO / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    told = {
        "README.md": set(re.findall(r"^\| ([a-z-]+) \|", readme, re.MULTILINE)) - {"lane"},
        "CONTRIBUTING.md": {name for row in re.findall(r"^\| (`.*?) \|", contributing, re.MULTILINE)
                            for name in re.findall(r"`([a-z0-9-]+)`", row)},
        "ci.yml": {word for word in re.findall(r"[a-z0-9-]+", ci) if word in lanes.LANES},
    }  # fmt: skip
    of_tests = {"stack-gpu-image", "numpy-alone"}  # told in README's words about `make test-full`
    assert told["README.md"] == {name.removesuffix("-triton36") for name in lanes.LANES} - of_tests
    assert told["CONTRIBUTING.md"] == {*lanes.LANES}
    assert told["ci.yml"] >= {*lanes.LANES} - {"gpu"}

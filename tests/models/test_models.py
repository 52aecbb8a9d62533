"""Networks that others wrote compute the same once their modules are replaced, and as before once they are not.

``python tests/models/run.py`` prints the list, and times.
"""

from __future__ import annotations

import socket
from typing import Any

import pytest
from compare import compare
from zoo import NETWORKS, missing


@pytest.fixture(autouse=True)
def without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded: a connection is a failure."""

    def connect(self: Any, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str) -> None:
    """Outputs, every gradient, buffers, the state and FLOPs are equal; after ``undo`` bit for bit."""
    if why := missing(NETWORKS[name]):
        pytest.skip(f"not run: {why}")
    outcome = compare(NETWORKS[name])
    assert outcome.flops > 0 and outcome.kinds


def test_enough_of_them_differ() -> None:
    run = [network for network in NETWORKS.values() if not missing(network)]
    if not run:
        pytest.skip("not run: no network can be built")
    assert len(run) >= 8 and len({network.shows for network in NETWORKS.values()}) == len(NETWORKS)

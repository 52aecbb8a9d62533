"""Every distinct specialisation that the interpret lane launched, built as far as types and shapes are checked."""

from __future__ import annotations

from specialisations import refusal


def test_front_end_takes_what_was_interpreted(launch: str) -> None:
    assert (refused := refusal(launch)) is None, refused

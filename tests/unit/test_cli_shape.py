"""``gpuconv shape``: what it prints, as text and as JSON, and its errors."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("typer", reason="the command line needs typer")
pytest.importorskip("rich", reason="the command line needs rich")

from typer.testing import CliRunner

from gpuconv.cli.main import app
from gpuconv.shapes import Window, ask_output


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["shape", *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_prints_the_answer_of_the_library() -> None:
    words = ["--size", "100", "--kernel", "5", "--padding", "6", "--dilation", "7", "--stride", "2"]
    status, text, _ = run(*words)
    assert status == 0
    assert text == f"42\n{ask_output(100, Window(5, 2, 6, 6, 7))}\n"
    assert "relationship 15" in text and "(100 + 6 + 6 - 7 * (5 - 1) - 1) // 2 + 1 = 42" in text


FIRST_LINES = {
    "--size 28,28 --kernel 3": "26x26",
    "--size 28x30 --kernel 3x5 --padding 1,2": "28x30",
    "--size 28x30 --kernel 3 --padding 1:2,0:1": "29x29",
    "--size 28 --kernel 4 --padding same": "28",
    "--size 29 --kernel 3 --stride 2 --padding same_upper": "15",
    "--size 29 --kernel 4 --stride 2 --padding same_lower": "15",
    "--size 10 --kernel 3 --padding causal": "10",
    "--size 100 --kernel 4 --stride 7 --padding 5 --dilation 6 --output-padding 1 --transposed": "703",
    "--size 14 --kernel 3 --stride 2 --padding 1 --transposed --want 28": "1",
    "--kernel 3 --stride 2 --padding 1 --transposed --output-padding 1 --want 28": "14",
    "--size 7 --kernel 2 --stride 3 --pool": "2",
    "--size 7 --kernel 2 --stride 3 --pool --ceil-mode": "3",
    "--size 8 --kernel 2 --pool": "4",  # the stride of a pooling is its kernel by default
    "--kernel 5 --padding 6 --dilation 7 --stride 2 --want 42": "99 to 100",
    "--kernel 3 --want 26,28": "28, 30",
    "--kernel 4 --want same": "1+2",
    "--kernel 3,5 --want same": "1+1, 2+2",
    "--kernel 3 --want half --size 28,28": "1+1, 1+1",
    "--kernel 3 --want full": "2+2",
    "--kernel 3 --dilation 4 --want causal": "8+0",
    "--kernel 7 --stride 5 --dilation 6 --want divide": "16+16",
    "--kernel 7 --stride 2 --size 224 --want 112": "3+3",
}


@pytest.mark.parametrize("words", FIRST_LINES)
def test_first_line_is_the_answer(words: str) -> None:
    status, text, error = run(*words.split())
    assert (status, error) == (0, "")
    assert text.splitlines()[0] == FIRST_LINES[words]


def test_axes_that_are_the_same_are_told_once() -> None:
    assert run("--size", "28,28", "--kernel", "3")[1].count("formula") == 1
    assert run("--size", "28,30", "--kernel", "3")[1].count("formula") == 2


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("--size 100 --kernel 5 --padding 6 --dilation 7 --stride 2", 42),
        ("--size 28,30 --kernel 3", [26, 28]),
        ("--kernel 5 --padding 6 --dilation 7 --stride 2 --want 42", {"from": 99, "to": 100}),
        ("--kernel 4 --want same", [1, 2]),
    ],
)
def test_json_is_json_alone(words: str, answer: object) -> None:
    status, text, _ = run(*words.split(), "--json")
    found = json.loads(text)
    assert status == 0 and found["answer"] == answer
    assert all(axis["formula"] and axis["numbers"] and axis["source"] for axis in found["axes"])


ERRORS = {
    "--size 10 --kernel 5 --dilation 7": "it fits from a size of 29, or with 19 more of padding, on",
    "--kernel 4 --want divide": "no integer padding does: the total is 3; same_upper splits 3 as 1+2",
    "--kernel 3": "give --size for an output size, or --want for input sizes or a padding",
    "--size a --kernel 3": "--size must be a number such as 28, or one for each axis such as 28,28; but got 'a'",
    "--size 8 --kernel 3 --padding wide": "or pairs lo:hi, or one of valid, same, half, full, causal, divide,",
    "--size 8 --kernel 3 --want wide": "--want must be a number such as 28",
    "--size 8 --kernel 2.5": "--kernel must be a number such as 28",
    "--size 8,8 --kernel 3,3,3": "one for each axis, but --size has 2, --kernel has 3",
    "--size 8 --kernel 3 --padding 1 --want same": "--want asks for the padding here: leave --padding out",
    "--size 8 --kernel 3 --padding 1 --want 8": "--want asks for the padding here: leave --padding out",
    "--kernel 3 --stride 2 --padding same_upper --want 8": "depends on the input size: give --size",
    "--size 8 --kernel 3 --transposed --output-padding 0 --want 8": "leave --output-padding out",
    "--size 8 --kernel 3 --transposed --pool": "--transposed and --pool exclude each other",
    "--size 8 --kernel 3 --pool --padding 2": "at most half of the kernel",
    "--size 14 --kernel 3 --stride 2 --padding 1 --transposed --want 30": "padding=0 and output_padding=1 would do",
}


@pytest.mark.parametrize("words", ERRORS)
def test_errors_help_and_show_no_traceback(words: str) -> None:
    status, text, error = run(*words.split())
    assert (status, text) == (2, "")
    assert error.startswith("error: ") and ERRORS[words] in error and "Traceback" not in error

"""Text that somebody else wrote marks up nothing where it is shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console
from rich.markdown import Markdown

from deftx.data.catalogue import OwnBenchmark
from deftx.literal import literal

OWN = {"name": "reviews", "source_language": "sor"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", r"\<script\>alert(1)\</script\>"),
        ("[here](javascript:alert(1))", r"\[here\](javascript:alert(1))"),
        ("<img src=x onerror=y>", r"\<img src=x onerror=y\>"),
        ("`code`\n# heading", r"\`code\` # heading"),
        ("\x1b[31mred\x07", r"\[31mred"),
        ("rank_l 90%, a | b", "rank_l 90%, a | b"),
    ],
)
def test_what_would_be_markup_is_shown_as_it_is(text: str, shown: str) -> None:
    assert literal(text) == shown


@given(st.text(alphabet=st.sampled_from(list("<>[]()!`*_\\#\n\t\x1b\x07ab:/. ")), max_size=60))
def test_no_link_no_element_and_no_control_character(text: str) -> None:
    shown = literal(text)
    assert shown.isprintable()
    console = Console(width=10_000, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(Markdown(f"x {shown}", hyperlinks=True))
    assert "<a href" not in console.export_html()


@pytest.mark.parametrize("label", ["good\nbad", "\x1b[31mgood", "a\x00"])
def test_labels_hold_no_control_characters(label: str) -> None:
    with pytest.raises(ValidationError, match="a line break or another control character"):
        OwnBenchmark.model_validate({**OWN, "labels": [label, "bad"]})

"""Valid input, spoilt: bytes flipped, cut, put in, copied and left out, and values of a structure replaced.

Hypothesis draws the changes as plain numbers, which is fast and shrinks; a number is taken modulo what there is to
choose from. What a change does to a file depends on its form: `FORMS`.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
import yaml
from hypothesis import strategies as st

Change = tuple[int, int, int]
"""What is done, where, and with what or how much."""

CHANGES = st.tuples(
    st.integers(0, 2**16), st.booleans(), st.lists(st.tuples(*[st.integers(0, 2**16)] * 3), min_size=1, max_size=4)
)
"""Which file of a folder, whether its structure is changed or its bytes, and how."""

_DEEP, _LONG, _BOMB = "@deep@", "@long@", "@bomb@"
VALUES: Sequence[Any] = (
    None, True, False, 0, 1, -1, -4, 2**31, 2**63, 10**30, 1_000_000_000, 0.5, 1e308, float("nan"), float("inf"),
    float("-inf"), "", "x", "1", "no", "\0", "\x1b]0;title\x07", "\ud800", "a\nb", "\u202e", "=1+1", "../../etc/passwd",
    "/etc/passwd", "<script>", "%s{0}", "x" * 10_000, "9" * 5000, _DEEP, _LONG, _BOMB, [], {}, [[]], [None], {"": 0},
    [-4, -4], [2**40, 2**40], [0], [1e308], ["a"] * 1000, {"a": {"b": ["c"]}}, {"from": 1, "to": 10**11, "step": 1},
    {"model_type": "bert"}, {"kind": "local", "path": "/"},
)  # fmt: skip
TENSORS: Sequence[torch.Tensor] = (
    torch.zeros(1).expand(2**34), torch.zeros(1, dtype=torch.int64).expand(2**34), torch.tensor([float("nan")]),
    torch.ones(4, 4), torch.ones(0), torch.tensor([-1, 2]), torch.tensor(True), torch.ones(2, dtype=torch.complex64),
    torch.ones(4).bfloat16(), torch.tensor([2.5e18, 2.5e18]),
)  # fmt: skip
"""One number without end, no number, and numbers of other kinds."""
SNIPPETS: Sequence[bytes] = (
    b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"', b"'", b"\\", b"\n", b"\r", b"\r\n", b"\t",
    b",", b";", b":", b"- ", b"? ", b"<<: ", b"&a [*a, *a]", b"&b ", b"*b", b"!!python/object/apply:os.system [x]",
    b"!!binary x", b"2026-99-99", b"0x", b"1e999", b".nan", b"[", b"]", b"{", b"}", b"[" * 5000,
    b'{"a":' * 5000, b"9" * 5000,
    b"1_0:59", b"\xe2\x80\xa8", b"\xc2\x85", b"\x1b[2J", b"<mask>", b"NaN", b"Infinity", b"null", b"-1",
    b"../../x", b"a" * 9000, b"\xcc\x81" * 500, b"\xf0\x9f\x98\x80", b"---\n",
)  # fmt: skip


def spoilt(content: bytes, form: str, structure: bool, changes: Sequence[Change]) -> bytes:
    """The content after some changes, of its structure where that is wanted and the form has one."""
    inside = FORMS.get(form)
    return inside(content, changes) if structure and inside else _bytes(content, changes)


def _bytes(content: bytes, changes: Sequence[Change]) -> bytes:
    for what, where, extent in changes:
        at = where * (len(content) + 1) // (2**16 + 1)
        end = at + 1 + extent % max(1, min(256, len(content)))
        if what % 6 == 0:
            content = content[:at] + bytes([(*content[at : at + 1], 0)[0] ^ (1 << extent % 8)]) + content[at + 1 :]
        elif what % 6 == 1:
            content = content[:at]
        elif what % 6 in (2, 3):
            content = content[:at] + SNIPPETS[extent % len(SNIPPETS)] + content[at:]
        elif what % 6 == 4:
            content = content[:end] + content[at:]
        else:
            content = content[:at] + content[end:]
    return content


def _json(content: bytes, changes: Sequence[Change]) -> bytes:
    return _written(_altered(json.loads(content), changes))


def _yaml(content: bytes, changes: Sequence[Change]) -> bytes:
    levels = ["&a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    levels += [f"&a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    written = _written(_altered(yaml.safe_load(content), changes))  # JSON is YAML
    return written.replace(f'"{_BOMB}"'.encode(), f"[{', '.join(levels)}]".encode(), 1)


def _safetensors(content: bytes, changes: Sequence[Change]) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = _json(content[8 : 8 + length], changes)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _pickle(content: bytes, changes: Sequence[Change]) -> bytes:
    """What torch saved with other values in it, or its pickle with other bytes and the checksum put right."""
    written = io.BytesIO()
    if changes[0][0] % 2:
        torch.save(_altered(torch.load(io.BytesIO(content), weights_only=False), changes, tensors=True), written)
        return written.getvalue()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w") as new:
        for name in old.namelist():
            part = old.read(name)
            new.writestr(name, _bytes(part, changes) if name.endswith("data.pkl") else part)
    return written.getvalue()


FORMS: dict[str, Callable[[bytes, Sequence[Change]], bytes]] = {
    ".json": _json, ".yaml": _yaml, ".safetensors": _safetensors, ".bin": _pickle,
}  # fmt: skip


def _written(value: Any) -> bytes:
    text = json.dumps(value)
    deep, long = "[" * 5000 + "]" * 5000, "9" * 5000
    return text.replace(f'"{_DEEP}"', deep).replace(f'"{_LONG}"', long).encode()


def _altered(value: Any, changes: Sequence[Change], *, tensors: bool = False) -> Any:
    root = [value]
    for what, where, which in changes:
        places = list(_places(root))
        holder, key = places[where % len(places)]
        values = (*VALUES, *TENSORS) if tensors else VALUES
        hostile = deepcopy(values[which % len(values)])
        if what % 4 < 2 or holder is root:
            holder[key] = hostile
        elif what % 4 == 2:
            del holder[key]
        elif isinstance(holder, list):
            holder.append(hostile)
        else:
            holder[hostile if isinstance(hostile, str) else str(key) + "x"] = holder[key]
    return root[0]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in range(len(value)) if isinstance(value, list) else [*value]:
        yield value, key
        if isinstance(value[key], tuple):
            value[key] = list(value[key])
        if isinstance(value[key], list | dict):
            yield from _places(value[key])

"""JSON within bounds: what parsers disagree on, what blows up later and what blows up now."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeify.checkpoint.json_text import parse_json, read_json
from moeify.errors import CheckpointError

HERE = Path("x.json")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"a": 1, "a": 1}', "names 'a' twice"),
        (b'{"b": {"a": 1, "\\u0061": 2}}', "names 'a' twice"),
        (b'{"a": ' + b"9" * 4301 + b"}", "a number of 4301 digits, more than 4300"),
        (b'{"a": -' + b"9" * 5000 + b"}", "a number of 5000 digits"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "100 levels deep"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not valid JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not valid JSON"),
        (b'{"a": "\\ud800"}', "not Unicode"),
        (b'{"\\udfff": 1}', "not Unicode"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": "\xed\xa0\x80"}', "not valid JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "not valid JSON"),
        (b'{"a": 1}x', "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
    ],
)
def test_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"^x {reason}|^x is nested.*{reason}|{reason}"):
        parse_json(raw, "x", HERE)


@pytest.mark.parametrize(
    "text",
    [
        '{"model_max_length": 1000000000000000019884624838656}',
        '{"a": -9223372036854775809}',
        '{"a": -' + "9" * 4300 + "}",
        '{"a": "\\ud83d\\ude00"}',
        '{"a": 0.12345678901234567890123}',
        '{"a": "12345678901234567890123"}',
        '{"a": Infinity}',
        '{"a": ' + "[" * 98 + "]" * 98 + "}",
        "{}",
    ],
)
def test_accepted(text: str) -> None:
    assert parse_json(text.encode(), "x", HERE) == json.loads(text)


_MEASURED = """
import sys, time
from pathlib import Path
from moeify.checkpoint.json_text import parse_json
from moeify.errors import CheckpointError
raw = eval(sys.argv[1])
Path('/proc/self/clear_refs').write_text('5')
peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) / 1000
before, started = peak(), time.process_time()
try: parse_json(raw, 'x', Path('x')); done = 'read'
except CheckpointError as error: done = 'refused'
print(done, peak() - before, time.process_time() - started)
"""
TENSOR = (
    'b\',\'.join(b\'"model.layers.%d.mlp.experts.up_proj.weight":{"dtype":"F32","shape":[0,4],'
    '"data_offsets":[0,0]}\' % i for i in range({count}))'
)


@pytest.mark.parametrize(
    ("raw", "outcome"),
    [
        ("b'{\"a\":[' + b'[],' * 15_000_000 + b'0]}'", "refused"),
        ("b'{\"a\":[' + b'{},' * 600_000 + b'0]}'", "refused"),
        ("b'{\"a\":[' + b'0,' * 20_000_000 + b'0]}'", "refused"),
        ("('{\"a\":\"\U0001f600' + 'x' * 40_000_000 + '\"}').encode()", "refused"),
        ("('{\"a\":\"\U0001f600' + 'x' * 10_500_000 + '\"}').encode()", "read"),
        ("b'{\"a\":\"' + b'x' * 42_000_000 + b'\"}'", "read"),
        ("b'{' + " + TENSOR.replace("{count}", "1_000_000") + " + b'}'", "refused"),
        ("b'{' + " + TENSOR.replace("{count}", "70_000") + " + b'}'", "read"),
        (
            "b'{\"weight_map\":{' + b','.join(b'\"model.layers.%d.mlp.experts.weight_packed\":"
            "\"model-00001-of-00062.safetensors\"' % i for i in range(210_000)) + b'}}'",
            "read",
        ),
    ],
)
def test_memory_stays_within_100_mb(raw: str, outcome: str) -> None:
    done = subprocess.run([sys.executable, "-c", _MEASURED, raw], capture_output=True, text=True, check=True)
    what, megabytes, seconds = done.stdout.split()
    assert what == outcome
    assert float(megabytes) <= 100
    assert float(seconds) <= 5


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "big.json").write_bytes(b"{" + b" " * 50_000_000 + b"}")
    for name, reason in (("big.json", "more than"), ("absent.json", "missing"), (".", "regular")):
        with pytest.raises(CheckpointError, match=reason):
            read_json(tmp_path / name)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_what_python_writes_is_read_or_refused(value: object) -> None:
    text = json.dumps({"value": value})
    try:
        found = parse_json(text.encode(), "x", HERE)
    except CheckpointError as error:
        assert "Unicode" in error.message
    else:
        assert json.dumps(found) == text

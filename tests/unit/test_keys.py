"""Stored results keep their keys: those of 200 specs of all profiles, as they were once written."""

import json
from pathlib import Path

import pytest

from robustlib import specs

KEYS = json.loads(Path(__file__).with_name("keys.json").read_text("utf-8"))


@pytest.mark.parametrize("key", KEYS)
def test_a_stored_key_stays(key):
    ((kind, values),) = KEYS[key].items()
    assert specs.key(specs.from_dict(specs.KINDS[kind], values)) == key

"""Whatever comes from outside is taken, or refused on one line that names it and leaves nothing.

The strategies draw what people mistype, what a transfer cuts off and what somebody hostile sends.
Each defect that they found is an @example or a plain test of its own. HYPOTHESIS_MAX=20 draws 20
times as many examples, other ones on every call.
"""

import contextlib
import datetime
import io
import json
import os
import pickle
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import matplotlib.font_manager  # noqa: F401 - it lists the fonts in a home before it is another
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import robustlib
from robustlib import (
    batch,
    checkpoints,
    cli,
    models,
    profile_files,
    profiles,
    specs,
    store,
    sweeps,
)
from robustlib.data import load, packs, sources
from robustlib.specs import Pretrain, Ticket, Transfer, columns, from_dict, key, to_dict

TIMES = int(os.environ.get("HYPOTHESIS_MAX", "1"))
SPECS = (Pretrain, Ticket, Transfer)


def fuzzed(n: int) -> settings:
    """The same n examples on every call; other ones, and more, where HYPOTHESIS_MAX says so."""
    return settings(
        derandomize=TIMES == 1,
        max_examples=n * TIMES,
        deadline=None,
        database=None,
        # The fixture is for all: each example makes a room of its own.
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def room() -> Iterator[Path]:
    """An empty current folder, store and data root, in which a call must leave no trace."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        here = Path(name).resolve()
        for part in ("files", "cwd", "home"):
            (here / part).mkdir()
        patch.setenv("ROBUSTLIB_STORE", str(here / "store"))
        patch.setenv("ROBUSTLIB_DATA", str(here / "data"))
        patch.setenv("HOME", str(here / "home"))
        patch.chdir(here / "cwd")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield here


def listing(here: Path) -> list[str]:
    return sorted(str(p.relative_to(here)) for p in here.rglob("*"))


def attempt(call: Callable[[], Any], here: Path, *says: str, longest: int = 1500) -> Any:
    """What the call returns, or None if it refuses as it should; it leaves no trace either way."""
    before = listing(here)
    try:
        out = call()
    except (ValueError, FileNotFoundError) as e:
        out, message = None, str(e)
        assert isinstance(e, ValueError) or "there is no such file" in message, repr(e)
        one_line(message, longest)
        assert all(s in message for s in says), (says, message)
    assert listing(here) == before
    return out


def one_line(message: str, longest: int = 1500) -> None:
    assert len(message.splitlines()) == 1 and message.isprintable(), repr(message)
    assert len(message) <= longest, (len(message), message)


# --- values that no one should send

LONG = "x" * 10_000
odd_text = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", " ", "\n", "a\nb", "\0", "a\0b", "\x1b[31m", "\u2028", "\ud800", LONG]),
    st.sampled_from(["nan", "inf", "1/0", "8/255/3", "-1/3", "1e400", "0x10", "None", "True"]),
    st.sampled_from(["{eps}", "%s", "~nobody/x.pt", "../x", "pgd", "omp", "digits", "all"]),
)
odd_numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.booleans(),
    st.sampled_from([2**31, 2**63, -0.0, 5e-324, 1.5]),
    st.sampled_from([400, 5000]).map(lambda digits: 10**digits),  # 5000: python will not print it
)
plain = st.recursive(  # what JSON and TOML can hold
    st.none() | odd_numbers | odd_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_text, inner, max_size=3),
    max_leaves=5,
)
odd_objects = st.sampled_from(
    [
        *(1j, b"0.5", b"\n" * 10_000, (), (1,), {1}, object, len, Ellipsis),
        *(Decimal("NaN"), Decimal("1e999999"), Fraction(1, 3), datetime.date(2020, 1, 1)),
        *(np.zeros((3, 3)), np.ones(1), np.float32("nan"), np.int8(-1), np.bool_(True)),
        *(np.str_("pgd"), np.datetime64("NaT"), ["x" * 500] * 9, torch.zeros(2, 2)),
        *(Pretrain, Pretrain(), Ticket(), Transfer(), Pretrain(source=LONG)),
    ]
)
values = plain | odd_objects


def fitting(name: str) -> st.SearchStrategy:
    """Values that a field takes, so that an odd one in another field is met, and combinations."""
    declared = next(get_type_hints(c)[name] for c in SPECS if name in get_type_hints(c))
    if get_origin(declared) is Literal:
        return st.sampled_from(get_args(declared))
    if declared in (float, float | None):
        return st.sampled_from([0, 0.5, "1/4", 0.0, 1])
    if declared in (int, int | None):
        return st.sampled_from([0, 1, 8, 2.0])
    if declared is bool:
        return st.booleans()
    if get_origin(declared) is tuple:
        return st.sampled_from([(), [0.5], ["1/4", 0.5]])
    if name == "mask_from":
        return st.sampled_from([None, Pretrain(), Pretrain(seed=1)])
    if name in specs.KINDS:
        return st.just(specs.KINDS[name]())
    return st.sampled_from(["digits", "glyphs", ""])


def arguments(cls: type, odd: st.SearchStrategy) -> st.SearchStrategy:
    names = st.sampled_from([f.name for f in fields(cls)])
    good = names.flatmap(lambda n: st.tuples(st.just(n), fitting(n)))
    bad = st.tuples(names, odd)
    return st.lists(good | good | bad, max_size=6).map(dict)


def is_sound(spec: Any) -> None:
    text = json.dumps(to_dict(spec), allow_nan=False)
    back = from_dict(type(spec), json.loads(text))
    assert back == spec and key(back) == key(spec) and columns(back) == columns(spec)
    short = json.loads(json.dumps(to_dict(spec, defaults=False)))
    assert from_dict(type(spec), short) == spec


def names_one(message: str, cls: type, given_: dict) -> None:
    """The message begins with a field that is to blame, and says what it was."""
    name = re.match(r"(\w+)[=: ]", message).group(1)
    below = {n for c in SPECS for n in (c.__name__, *(f.name for f in fields(c)))}
    assert name in below, message
    if name in given_ and isinstance(given_[name], str | bytes | int | float):
        value = given_[name]
        short = specs.shown(value)
        if f"{name}={short}" not in message:  # a number that fits is shown as the number it is
            x = Fraction(value) if isinstance(value, str) and "/" in value else value
            short = f"{float(x):g}"
        assert f"{name}={short}" in message, message


# --- specs


@fuzzed(300)
@given(st.sampled_from(SPECS).flatmap(lambda c: st.tuples(st.just(c), arguments(c, values))))
@example((Pretrain, {"epochs": 10**5000}))  # had no name: python does not write such an int
@example((Pretrain, {"arch": 10**5000}))
@example((Pretrain, {"source": np.zeros((3, 3))}))  # had several lines
@example((Pretrain, {"objective": LONG}))  # was 10 kB long
@example((Ticket, {"pretrain": ["x" * 500] * 9}))
@example((Ticket, {"pretrain": Pretrain(source=LONG), "scheme": "dense", "sparsity": 0.1}))
@example((Transfer, {"ticket": Pretrain(source=LONG)}))
def test_a_spec_is_sound_or_refused(case):
    cls, given_ = case
    try:
        is_sound(cls(**given_))
    except ValueError as e:
        one_line(str(e), 1200 if any(type(v) in SPECS for v in given_.values()) else 600)
        names_one(str(e), cls, given_)


@fuzzed(200)
@given(st.sampled_from(SPECS), st.data())
def test_a_spec_from_data_is_sound_or_refused(cls, data):
    table = data.draw(arguments(cls, values) | plain | st.dictionaries(odd_text, plain, max_size=2))
    if isinstance(table, dict):
        nested = specs.KINDS | {"mask_from": Pretrain}
        for name in nested.keys() & table.keys():
            below = nested[name]
            table[name] = data.draw(arguments(below, plain) | plain)
    for text in (False, True):
        try:
            given_ = json.loads(json.dumps(table)) if text else table
        except (TypeError, ValueError):  # is no JSON
            continue
        try:
            is_sound(from_dict(cls, given_))
        except ValueError as e:
            one_line(str(e), 1200)
            names_one(str(e), cls, {})


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e400", '"1e400"', "[1e400]", "-1e-400"])
def test_the_numbers_that_json_should_not_have(text):
    for name in ("eps", "lr", "epochs"):
        try:
            is_sound(from_dict(Pretrain, json.loads(f'{{"{name}": {text}}}')))
        except ValueError as e:
            assert str(e).startswith(f"{name}=") and "nan" not in name
            one_line(str(e), 600)
        else:
            assert text == "-1e-400"  # which is 0


# --- bytes that were cut, flipped or made up

edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "insert", "delete", "truncate", "append"]),
        st.floats(0, 1),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for how, where, new in changes:
        i = int(where * len(data))
        if how == "flip":
            data = data[:i] + bytes(b ^ 1 << new[0] % 8 for b in data[i : i + 1]) + data[i + 1 :]
        elif how == "set":
            data = data[:i] + new + data[i + len(new) :]
        elif how == "insert":
            data = data[:i] + new + data[i:]
        elif how == "delete":
            data = data[:i] + data[i + len(new) :]
        elif how == "truncate":
            data = data[:i]
        else:
            data = data + new * (1 + i % 7)
    return data


class Payload:
    """Unpickled, it makes a folder: that nothing was run is seen on disk."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


# --- packs


@lru_cache
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {"class_names": np.array(["a", "b"]), "origin": np.array("")}
    for split, n in (("train", 30), ("test", 6)):
        made[f"x_{split}"] = rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
        made[f"y_{split}"] = np.arange(n, dtype=np.int64) % 2
    return made


@lru_cache
def whole_pack(compressed: bool) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays())
    return buffer.getvalue()


def npy(descr: str, shape: str, data: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode("latin1")
    size = len(header).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + size + header + data


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def as_members() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(whole_pack(False))) as archive:
        return {n: archive.read(n) for n in archive.namelist()}


def read_pack(content: bytes | None) -> packs.Pack | None:
    """The pack that a file of this content is read as, by every way there is, or None."""
    with room() as here:
        (here / "data").mkdir()
        path = here / "data" / "mine.npz"
        path.mkdir() if content is None else path.write_bytes(content)
        pack = attempt(lambda: packs.read(path), here, "mine.npz")
        data = attempt(lambda: load("mine", size=8), here, "mine")
        row = next(r for r in sources.available() if r.name == "mine")
        one_line(row.note + ".")
        if pack is None:
            assert data is None
        else:
            packs.validate(pack, path)
        if data is not None:
            assert data.class_names == pack.class_names
            assert min(map(len, (data.train, data.val, data.test))) > 0
            assert data.train.x.shape[1:3] == (8, 8)
    return pack


@fuzzed(150)
@given(st.booleans(), edits)
def test_a_pack_of_damaged_bytes(compressed, changes):
    pack = read_pack(edited(whole_pack(compressed), changes))
    if pack is not None:  # the checksum of the zip guards what is in it
        assert np.array_equal(pack.arrays["x_train"], arrays()["x_train"])


some_arrays = st.one_of(
    st.sampled_from(sorted(arrays())).map(lambda k: arrays()[k]),
    st.tuples(
        st.sampled_from(["u1", "i1", "i8", ">i8", "f8", "U0", "U3", "S2", "?", "c8", "M8[s]"]),
        st.sampled_from([(), (0,), (2,), (30,), (6, 1), (30, 8, 8, 1), (6, 4, 4, 1), (6, 0, 0, 3)]),
    ).map(lambda t: np.zeros(t[1], t[0])),
    st.sampled_from([-1, 1, 2, 2**62]).map(lambda k: np.full(30, k, np.int64)),
    st.just(np.zeros(2, [("a", "u1"), ("b", "O")])),
    st.just(np.array([None, {}], dtype=object)),
)
array_names = st.sampled_from([*sorted(arrays()), "x_val", "y_val", "m_train", "../x", "a/b"])


@fuzzed(150)
@given(
    st.dictionaries(array_names, some_arrays, max_size=2),
    st.lists(st.sampled_from(sorted(arrays())), max_size=1),
)
def test_a_pack_of_odd_arrays(changed, missing):
    buffer = io.BytesIO()
    np.savez(buffer, **{k: v for k, v in (arrays() | changed).items() if k not in missing})
    read_pack(buffer.getvalue())


@fuzzed(150)
@given(
    st.sampled_from([*sorted(as_members()), "more.npy", "x\ny.npy", "\n", "a/../b", LONG]),
    st.sampled_from(["'|u1'", "'<i8'", "'<U0'", "'<U9'", "'|O'", "'|V0'", "[]", "('u1', 9)"])
    | st.text("'|<u1{}()[],", max_size=9),
    st.sampled_from(["()", "(0,)", "(10**9,)", "(1000000000000,)", "(-1,)", "(-2, -3)", "(True,)"])
    | st.sampled_from([f"({2**70}, 0)", f"({2**63},)", "(0, 99999999999, 99999999999)", "None"])
    | st.text("()0123456789,-", max_size=12),
    st.binary(max_size=64),
    st.sampled_from([(1, 0), (2, 0), (3, 0), (9, 9)]),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]),
)
# Text of no length takes no bytes: there may be 10**12 of them in a small file.
@example("class_names.npy", "'<U0'", "(1000000000000,)", b"", (1, 0), zipfile.ZIP_STORED)
@example("origin.npy", "'<U1'", "()", b"\xff" * 4, (1, 0), zipfile.ZIP_STORED)
@example("class_names.npy", "'<U1'", "(2,)", b"\xff" * 8, (1, 0), zipfile.ZIP_STORED)
@example("x_train.npy", "'|u1'", f"({2**70}, 0)", b"", (1, 0), zipfile.ZIP_STORED)
@example("x_train.npy", "'|u1'", "(" * 300, b"", (1, 0), zipfile.ZIP_STORED)
@example("x_train.npy", "'|u1'", "(1," + " " * 20_000 + ")", b"1", (1, 0), zipfile.ZIP_STORED)
@example("x\ny.npy", "'|O'", "()", b"", (1, 0), zipfile.ZIP_DEFLATED)
def test_a_pack_of_made_up_members(name, descr, shape, data, version, method):
    try:
        member = npy(descr, shape, data, version)
        content = zipped(as_members() | {name: member}, method)
    except (OverflowError, UnicodeEncodeError):  # no such file can be
        return
    read_pack(content)


@pytest.mark.parametrize(
    "content",
    [
        *(None, b"", b"PK", b"PK\x05\x06" + bytes(18), b"\x93NUMPY" + whole_pack(False)),
        *(b"<html>" + whole_pack(False), npy("'|u1'", "(1,)", b"1") + whole_pack(True)),
        pytest.param(zipped(as_members(), zipfile.ZIP_BZIP2), id="bzip2"),
        pytest.param(zipped({k[:-4]: v for k, v in as_members().items()}), id="no suffix"),
        pytest.param(zipped(as_members() | {"x_train": b"raw"}), id="a name twice"),
    ],
)
def test_a_file_that_is_no_pack(content):
    assert read_pack(content) is None or b"x_train.npy" not in content


def test_a_pack_that_claims_gigabytes_takes_none():
    data = bytearray(zipped({"x_train.npy": npy("'|u1'", f"({2**33},)", b"")}))
    # The directory at the end says the same as the header: it is all a lie, and numpy would ask
    # for the memory first.
    at = data.index(b"PK\x01\x02")
    start = len(npy("'|u1'", f"({2**33},)", b""))
    data[at + 24 : at + 28] = min(2**33 + start, 2**32 - 2).to_bytes(4, "little")
    assert read_pack(bytes(data)) is None
    for name in ("x_test", "class_names"):
        honest = npy("'|u1'", f"({2**31},)", b"")
        data = bytearray(zipped(as_members() | {f"{name}.npy": honest}))
        at = data.index(f"{name}.npy".encode(), data.index(b"PK\x01\x02")) - 46
        data[at + 24 : at + 28] = (2**31 + len(honest)).to_bytes(4, "little")
        with room() as here:
            (here / "mine.npz").write_bytes(data)
            with pytest.raises(ValueError, match=f"mine.npz: {name}: says 2147.* holds less"):
                packs.read(here / "mine.npz")


def test_a_pickle_in_a_pack_is_not_run():
    with room() as here:
        buffer = io.BytesIO()
        payload = np.array([Payload(here / "proof")], dtype=object)
        np.savez(buffer, **arrays() | {"more": payload})
        (here / "mine.npz").write_bytes(buffer.getvalue())
        assert attempt(lambda: packs.read(here / "mine.npz"), here, "mine.npz: more") is None


# --- checkpoints

FORMS = ("zip", "legacy", "safetensors")


@lru_cache
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return models.build("resnet10s", 3, width=2).state_dict()


def saved(content: Any, form: str = "zip") -> bytes:
    if form == "safetensors":
        return safetensors.torch.save({k: v.clone() for k, v in content.items()})
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=form == "zip")
    return buffer.getvalue()


@lru_cache
def whole_checkpoint(form: str) -> bytes:
    return saved(weights(), form)


def read_checkpoint(content: bytes, suffix: str = ".pt") -> Any:
    with room() as here:
        path = here / "files" / f"mine{suffix}"
        path.write_bytes(content)
        model = attempt(lambda: checkpoints.load(path), here, "mine", longest=4000)
    if model is not None:
        found = checkpoints.describe(model)
        assert (found["arch"], found["width"]) == ("resnet10s", 2)
        for name, tensor in model.state_dict().items():
            assert torch.isfinite(tensor).all()
            assert not name.endswith(("running_var", "std")) or (tensor >= 0).all()
    return model


@fuzzed(50)
@given(st.sampled_from(FORMS), edits)
def test_a_checkpoint_of_damaged_bytes(form, changes):
    content = edited(whole_checkpoint(form), changes)
    read_checkpoint(content, ".safetensors" if form == "safetensors" else ".pt")


@fuzzed(30)
@given(
    st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x08\0\0\0\0\0\0\0", b"\xff" * 8]),
    st.binary(max_size=200),
    st.sampled_from(checkpoints.SUFFIXES),
)
def test_a_checkpoint_of_random_bytes(head, rest, suffix):
    assert read_checkpoint(head + rest, suffix) is None


CHANGES: dict[str, Callable[[torch.Tensor], Any]] = {
    "drop": lambda t: ...,
    "scalar": lambda t: torch.tensor(1.0),
    "empty": lambda t: t[:0],
    "flat": lambda t: t.flatten(),
    "twice": lambda t: torch.stack([t, t]),
    "nan": lambda t: t.float() * float("nan"),
    "inf": lambda t: t.float() / 0,
    "negative": lambda t: -t.abs() - 1,
    **{str(d): lambda t, d=d: t.to(d) for d in (torch.float64, torch.int64, torch.bool)},
    **{str(d): lambda t, d=d: t.to(d) for d in (torch.float16, torch.complex64, torch.uint8)},
    "expanded": lambda t: torch.zeros(1).expand(10**9),
    "expanded alike": lambda t: t.flatten()[:1].expand(t.numel()).view(t.shape) if t.ndim else t,
    "wide": lambda t: torch.zeros(10**12, 0),
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "parameter": lambda t: torch.nn.Parameter(t, requires_grad=False),
    **{str(o): lambda t, o=o: o for o in (None, 3, "text", [1], {}, {"a": torch.ones(1)})},
}
odd_keys = st.sampled_from(["", "a\nb", LONG, "module.fc.weight", "model.fc.weight", "attacker.x"])
odd_keys |= st.sampled_from(["n_averaged", "0.mean", "0.std", "a." * 10**5 + "conv1.weight"])
state_keys = st.sampled_from(["conv1.weight", "bn1.running_var", "fc.weight", "fc.bias", "mean"])
state_keys |= st.sampled_from(["std", "bn1.num_batches_tracked", *sorted(weights())])


@fuzzed(80)
@given(
    st.dictionaries(
        state_keys | odd_keys, st.sampled_from(sorted(CHANGES)), min_size=1, max_size=2
    ),
    st.sampled_from(["", "model", "state_dict", "state_dict_ema"]),
    st.sampled_from(["", "module.", "model.", "module.model.", "net._orig_mod.", "1."]),
    st.sampled_from(FORMS),
)
# Empty tensors may be of any shape: the layers that it called for overflowed.
@example({"conv1.weight": "wide"}, "", "", "zip")
@example({"conv1.weight": "torch.int64"}, "", "", "zip")  # was taken, its fractions cut off
@example({"bn1.running_var": "negative"}, "", "", "zip")  # was taken, and every output was nan
@example({"a\nb": "scalar"}, "", "model.", "zip")
@example({LONG: "scalar"}, "", "", "safetensors")
def test_a_checkpoint_of_odd_tensors(changed, under, prefix, form):
    state = dict(weights())
    for name, change in changed.items():
        try:
            state[name] = CHANGES[change](state.get(name, torch.ones(2)))
        except (RuntimeError, IndexError):  # torch makes no such thing
            return
        if state[name] is ...:
            del state[name]
    state = {prefix + k: v for k, v in state.items()}
    try:
        content = saved({under: state} if under and form != "safetensors" else state, form)
    except Exception:  # nor does it save such a thing
        return
    read_checkpoint(content, ".safetensors" if form == "safetensors" else ".pt")


@fuzzed(20)
@given(
    st.sampled_from(["all", "a weight", "a key", "beside", "metadata"]),
    st.sampled_from(["zip", "legacy", "pickle"]),
    st.integers(0, 5),
    edits | st.just([]),
)
# A name in the file that a terminal would act on was printed as it is.
@example("a key", "zip", 0, [("set", 0.91796875, b"\x01")])
def test_the_code_in_a_checkpoint_is_not_run(place, form, protocol, changes):
    with room() as here:
        payload, state = Payload(here / "proof"), dict(weights())
        content = {
            "all": payload,
            "a weight": state | {"fc.bias": payload},
            "a key": {"model": state | {(1, 2): payload}},
            "beside": {"state_dict": state, "optimizer": [payload]},
            "metadata": {"model": state, "args": {"lr": payload}},
        }[place]
        if form == "pickle":
            data = pickle.dumps(payload, protocol)
        else:
            buffer = io.BytesIO()
            old = form == "legacy"
            torch.save(
                *(content, buffer),
                _use_new_zipfile_serialization=not old,
                pickle_protocol=2 + protocol % 3,
            )
            data = buffer.getvalue()
        path = here / "files" / "mine.ckpt"
        path.write_bytes(edited(data, changes))
        model = attempt(lambda: checkpoints.load(path), here, "mine.ckpt", longest=4000)
        assert model is None or changes
        assert not (here / "proof").exists()


@fuzzed(50)
@given(odd_text | plain)
@example("~nobody/x.pt")  # pathlib could not tell whose home that is
@example(LONG + ".pt")  # the system's own error is 10 kB long
@example("a\nb.pt")
def test_a_checkpoint_of_no_such_name(source):
    with room() as here:
        one = attempt(lambda: checkpoints.load(source), here, "=", longest=4000)
        assert one is None


# --- profiles

LINES = """
about = "a test"
seeds = [0, 1]
[pretrain]
source = "glyphs"
width = 4
[[objective]]
objective = "natural"
[[objective]]
objective = "pgd"
eps = [0.1, "8/255"]
[ticket]
sparsity = [0.0, 0.9]
[[transfer]]
task = "digits"
n_train = ["all", 50]
""".strip().splitlines()
toml_values = st.one_of(
    st.sampled_from("1 0 -1 1.5 nan inf -inf true [] [[]] {} [1,2] [0,[1]] ['all'] 1e400".split()),
    st.sampled_from(["''", "'a'", '"\\n"', "2020-01-01", "07:32:00", "0x10", "{a=1}", "[{}]"]),
    st.sampled_from(["'{eps}'", "'{width.__class__}'", "'{seed}'", "'{'", "'{0}'", "'{width!r}'"]),
    st.integers().map(str),
    st.text(max_size=10).map(json.dumps),
    st.just(f"'{LONG}'"),
)
toml_keys = st.one_of(
    st.sampled_from([f.name for cls in SPECS for f in fields(cls)]),
    st.sampled_from(
        [
            *sorted({"about", "seeds", *profile_files.TABLES}),
            '"a\\nb"',
            "''",
            "pretrain.width",
            "é",
            LONG,
        ]
    ),
)
toml_lines = st.one_of(
    st.tuples(toml_keys, toml_values).map(" = ".join),
    st.sampled_from(["[pretrain]", "[[pretrain]]", "[objective]", "[[transfer]]", "[x]", "[[[["]),
    st.sampled_from(["[pretrain.width]", "[a.b]", "# text", "\0", '"""', "=", "a", "[" * 5000]),
)


def read_profile(content: bytes) -> profiles.Profile | None:
    with room() as here:
        path = here / "files" / "mine.toml"
        path.write_bytes(content)
        profile = attempt(lambda: profiles.profile(str(path)), here, "mine.toml")
    if profile is not None:
        assert profiles.grid(profile)
        assert isinstance(profile.about, str)
    return profile


@fuzzed(200)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(LINES)),
            st.sampled_from(["replace", "insert", "delete"]),
            toml_lines,
        ),
        min_size=1,
        max_size=3,
    )
)
def test_a_profile_of_odd_lines(changes):
    lines = list(LINES)
    for at, how, line in changes:
        lines[at : at + (how != "insert")] = [] if how == "delete" else [line]
    read_profile("\n".join(lines).encode())


@fuzzed(100)
@given(edits)
def test_a_profile_of_damaged_bytes(changes):
    read_profile(edited("\n".join(LINES).encode(), changes))


@fuzzed(50)
@given(st.binary(max_size=200) | odd_text.map(lambda t: t.encode(errors="surrogatepass")))
@example(b"a = " + b"[" * 100_000)  # tomllib went deeper than Python does
@example(b"#" * 2**21)
@example(b"\xff\xfe")
def test_a_profile_of_anything(content):
    assert read_profile(content) is None


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        # 10**15 specs: the list of them was begun.
        ("width = 4", "\n".join(f"{n} = {list(range(1, 1001))}" for n in
         ("width", "epochs", "steps", "batch_size", "replays")), "specs, at most 100000"),
        ("seeds = [0, 1]", f"seeds = {list(range(100_001))}", "specs, at most 100000"),
        ("width = 4", "checkpoint = '{width:999999999}'", "checkpoint='{width:999999999}'"),
        ("width = 4", "checkpoint = '{source.__class__}'", "checkpoint='{source.__class__}'"),
        ("width = 4", "checkpoint = 3", "checkpoint=3: must be text"),
        ("about = \"a test\"", "about = 3", "about=3: must be text"),
        ("seeds = [0, 1]", "seeds = 3", "seeds=3: must be a list"),
        ("seeds = [0, 1]", "seeds = {}", "seeds={}: must be a list"),
        ("[pretrain]", "[[pretrain]]", "pretrain=.*: must be a table"),
        ("[ticket]", "[[ticket.x]]", "field of .ticket.='x'"),
        ("[ticket]", "[[ticket]]\nmask_from = 'x'", "mask_from='x': must be a table"),
        ("sparsity = [0.0, 0.9]", "rounds = [0.5]", "rounds=0.5: must be a list of numbers"),
        ("[[transfer]]", "[transfer]", "transfer=.*: must be a list of tables"),
        ("[[transfer]]", "transfer = ['', 3]\n[x]", "table='x'"),
    ],
)  # fmt: skip
def test_a_bad_profile_says_what_is_bad(old, new, says):
    text = "\n".join(LINES)
    assert old in text
    with room() as here:
        path = here / "files" / "mine.toml"
        path.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=f"mine.toml: .*{says}") as error:
            profiles.profile(str(path))
    one_line(str(error.value))


@fuzzed(50)
@given(odd_text | plain)
@example(LONG + ".toml")  # the system's own error is 10 kB long
@example("a\nb.toml")
@example("\0.toml")
def test_a_profile_of_no_such_name(name):
    with room() as here:
        assert attempt(lambda: profiles.profile(name), here, "profile=") is None


# --- the command line


def said(argv: list[str]) -> tuple[int, str]:
    """What a command line exits with and says; it does no work, and leaves no trace."""

    def no_run(spec: Any, recompute: bool) -> Any:
        specs.kind(spec)
        return store.Artifact(spec, columns(spec), {}, store.path(spec))

    def no_work(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("this would be work")

    out, err = io.StringIO(), io.StringIO()
    with room() as here, pytest.MonkeyPatch.context() as patch:
        patch.setattr(robustlib, "run", no_run, raising=False)
        patch.setattr(batch, "run_study", no_work)
        patch.setattr(sweeps, "sweep", no_work)
        patch.setattr(batch.sweeps, "compute", no_work)
        patch.setattr("runpy.run_path", no_work)
        before = listing(here)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(argv)
        assert listing(here) == before
    message = err.getvalue()
    assert code in (0, 1, 2), code
    assert "Traceback" not in message + out.getvalue()
    if code:
        assert message.startswith("robustlib: ") and message.endswith("\n"), message
        one_line(message[:-1], 3000)
        assert code == 2 or message.endswith("this would be work\n"), message
    return code, message


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


PREFIXES = {
    "pretrain": {"": Pretrain},
    "ticket": {"": Ticket, "pretrain.": Pretrain},
    "transfer": {"": Transfer, "ticket.": Ticket, "ticket.pretrain.": Pretrain},
}
# A network of its own has no flag.
FLAGS = {
    command: [
        *(flag(p + f.name) for p, c in levels.items() for f in fields(c) if f.name != "mask_from"),
        *("--recompute", "--no-recompute"),
    ]
    for command, levels in PREFIXES.items()
}
RUNS = ["--workers", "--scheduler", "--retries", "--out", "--csv", "--dry-run", "--no-dry-run"]
FLAGS |= {
    "study": ["--profile", *RUNS],
    "sweep": ["quick", *RUNS],
    "batch": ["--grid", "-g", "-p", "--parameter", *RUNS],
    "data list": ["--size"],
    "data build": ["mine", ".", "--size", "--test-fraction", "--seed", "--folder"],
    "data": [],
    "results": [
        "--kind",
        "--csv",
        "--all-columns",
        "--where",
        "-w",
        "--sort",
        "--columns",
        "--latex",
    ],
    "figures": ["detail", "--rows", "--profile", "--venue", "--out"],
}
words = st.one_of(
    # No command line holds a nul.
    odd_text.filter(lambda t: "\0" not in t),
    odd_numbers.map(specs.shown),
    st.sampled_from(
        ["--", "-", "--=", "-1", "--help", "8/255", "9" * 400 + "/1", "9" * 5000 + "/1"]
    ),
    st.sampled_from([LONG + ".toml", LONG + ".json", "a\nb.toml", "x.ipynb", "~nobody/x.json"]),
    st.sampled_from(["tcp://", "tcp://x", "a=1", "a=", "=", "a=1,2", "quick", "fp32", "natural"]),
    st.sampled_from([flag for flags in FLAGS.values() for flag in flags]),
)


def line(command: str) -> st.SearchStrategy:
    known = st.sampled_from(FLAGS[command] or ["--x"])
    pair = st.tuples(known, words) | st.tuples(known, words).map(lambda t: ("=".join(t),))
    return st.lists(pair | st.tuples(words), max_size=4).map(
        lambda parts: [*command.split(), *(word for part in parts for word in part)]
    )


@fuzzed(100)
@given(st.sampled_from(sorted(FLAGS)).flatmap(line))
@example(["pretrain", "--lr", "9" * 400 + "/1"])  # an OverflowError, with its traceback
@example(["pretrain", "--lr", "9" * 5000 + "/1"])  # a message about digits, that named nothing
@example(["data", "build", "mine", "a\nb"])  # two lines
@example(["data", "build", "mine", "~nobody/x"])  # pathlib could not tell whose home that is
@example(["data", "build", "mine", LONG])
@example(["sweep", LONG + ".json"])
@example(["sweep", "a\nb.json"])
@example(["batch", LONG + ".ipynb"])
@example(["study", "--scheduler", LONG + ".toml"])
@example(["pretrain", "--checkpoint", LONG, "--lr", "\x1b[31m"])
def test_a_command_line_is_run_or_refused(argv):
    said(argv)


@fuzzed(30)
@given(st.lists(words, max_size=3))
def test_a_command_line_of_anything(argv):
    said(argv)


places = st.sampled_from(
    [(c, p, f.name) for c, levels in PREFIXES.items() for p, k in levels.items() for f in fields(k)]
)


NO_VALUE = (*specs.KINDS, "mask_from", "decay_norms", "recalibrate")


@fuzzed(70)
@given(places.filter(lambda p: p[2] not in NO_VALUE), words)
@example(("pretrain", "", "lr"), "9" * 400 + "/1")
@example(("pretrain", "", "lr"), "9" * 5000 + "/1")
@example(("transfer", "ticket.pretrain.", "eps"), "nan")
def test_a_refused_flag_is_named_with_its_value(place, word):
    command, prefix, name = place
    # It may pass for a flag, or for nothing, or is shown as escapes.
    if word.startswith("-") or not word.strip() or not word.isprintable():
        return
    code, message = said([command, f"{flag(prefix + name)}={word}"])
    if code:
        assert name in message or flag(prefix + name) in message, message
        shown = [word, repr(word), "value has 5000 digits"]  # which Python does not print
        with contextlib.suppress(ValueError):
            shown += [f"{float(word):g}", repr(float(word))]
        # The parser breaks what is long into lines.
        short, found = ["".join(s.split())[:30] for s in shown], "".join(message.split())
        assert any(s in found for s in short), message


def test_a_folder_that_is_refused_leaves_no_data_root():
    with room() as here:
        for name in ("ant", "bee"):
            (here / "files" / name).mkdir()
            for i in range(3):
                (here / "files" / name / f"{i}.png").write_bytes(b"no picture")
        build = ["data", "build", "mine", str(here / "files")]
        before = listing(here)
        assert cli.main(build) == 2
        assert listing(here) == before

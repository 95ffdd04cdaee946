"""A stranger reads what statecells-build writes: with the package gguf, numpy and docs/format.md."""

import json
import math

import gguf
import numpy as np
import pytest
from format_page import decode, stems

SCHEMES = ["sign", "sign+row_scale", "sign+vals"]
ATOMS, CODES = 48, 13
QUICK = ["--dict-iters", "1", "--dict-refine", "1"]
SIDECARS = {
    "sign": ["dict", "codes"],
    "sign+row_scale": ["dict", "codes", "row_scale"],
    "sign+vals": ["dict", "codes", "vals"],
}


def value(reader, key):
    return reader.get_field(key).contents()


def dense(path, stem):
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    tensor = tensors[stem + ".weight"]
    return gguf.dequantize(tensor.data, tensor.tensor_type)


def gap(weights, decoded) -> float:
    weights, decoded = weights.astype(np.float64), decoded.astype(np.float64)
    return math.sqrt(((weights - decoded) ** 2).sum() / (weights**2).sum())


def plainly_decoded(path, stem):
    """The formula of docs/format.md, one row and one slot after the other."""
    t = {x.name: x.data for x in gguf.GGUFReader(path).tensors}
    atoms, codes = t[stem + ".dict"].astype(np.float64), t[stem + ".codes"]
    vals = t.get(stem + ".vals", np.ones(codes.shape)).astype(np.float64)
    scales = t.get(stem + ".row_scale", np.ones(len(codes))).astype(np.float64)
    rows = np.zeros((len(codes), atoms.shape[1]))
    for r, row in enumerate(codes):
        for slot, code in enumerate(int(c) for c in row):
            if code != 0:
                rows[r] += math.copysign(vals[r, slot], code) * atoms[abs(code) - 1]
        rows[r] *= scales[r]
    return rows


@pytest.fixture(scope="module", params=[(s, d) for s in SCHEMES for d in ("f16", "f32")], ids="-".join)
def coded(request, random_model, build, tmp_path_factory):
    scheme, dict_type = request.param
    path = tmp_path_factory.mktemp("coded") / "coded.gguf"
    flags = ["--scheme", scheme, "--dict-type", dict_type, "--dict-M", str(ATOMS), "--dict-k", str(CODES)]
    return scheme, dict_type, build(random_model, path, *flags, *QUICK)


def test_tensors_have_the_types_and_shapes_of_the_page(coded, random_model):
    scheme, dict_type, path = coded
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    source = {t.name: t for t in gguf.GGUFReader(random_model).tensors}
    types = {"dict": dict_type.upper(), "codes": "I16", "vals": "F16", "row_scale": "F16"}
    for name, weight in source.items():
        stem, (d_in, d_out) = name.removesuffix(".weight"), (int(n) for n in weight.shape)
        shapes = {"dict": [d_in, ATOMS], "codes": [CODES, d_out], "vals": [CODES, d_out], "row_scale": [d_out]}
        found = {n.rpartition(".")[2] for n in tensors if n.startswith(stem + ".")}
        assert found == set(SIDECARS[scheme])
        for suffix in found:
            tensor = tensors[f"{stem}.{suffix}"]
            assert tensor.tensor_type.name == types[suffix]
            assert [int(n) for n in tensor.shape] == shapes[suffix]


def test_metadata_are_those_of_the_page(coded):
    scheme, _, path = coded
    reader = gguf.GGUFReader(path)
    assert value(reader, "statecells.enabled") is True
    assert value(reader, "statecells.version") == 1
    assert value(reader, "statecells.scheme") == scheme
    assert (value(reader, "statecells.dict.M"), value(reader, "statecells.dict.k")) == (ATOMS, CODES)
    assert math.isinf(value(reader, "statecells.default_gap_tol"))
    assert len(stems(reader)) == 6
    record = json.loads(value(reader, "statecells.record"))
    assert record
    tensors = {t.name: t for t in reader.tensors}
    for stem in stems(reader):
        assert value(reader, f"statecells.{stem}.scheme") == scheme
        sidecars = [tensors[f"{stem}.{suffix}"] for suffix in SIDECARS[scheme]]
        n_weights = int(tensors[stem + ".dict"].shape[0]) * int(tensors[stem + ".codes"].shape[1])
        bits = 8 * sum(int(t.n_bytes) for t in sidecars) / n_weights
        assert value(reader, f"statecells.{stem}.bpw") == pytest.approx(bits, rel=1e-6)


def test_the_decoder_of_the_page_follows_its_formula(coded, page):
    _, _, path = coded
    for stem in stems(gguf.GGUFReader(path)):
        expected = plainly_decoded(path, stem)
        found = page["decode_global"](path, stem)
        assert found.shape == expected.shape
        # CODES + 1 roundings to F32
        np.testing.assert_allclose(found, expected, rtol=0, atol=(CODES + 1) * 2**-24 * np.abs(expected).max() * 4)


def test_what_the_page_decodes_has_the_recorded_gap(coded, page, random_model):
    """The recorded gap is measured on what the codec itself decodes."""
    _, _, path = coded
    reader = gguf.GGUFReader(path)
    for stem in stems(reader):
        found = gap(dense(random_model, stem), page["decode_global"](path, stem))
        recorded = value(reader, f"statecells.{stem}.gap")
        assert 0 < recorded < 1
        assert found == pytest.approx(recorded, rel=1e-6)


def shapes_in_file(path) -> dict[str, list[int]]:
    """Dimensions as they stand in the file, innermost first."""
    return {t.name: [int(n) for n in t.shape] for t in gguf.GGUFReader(path).tensors}


def check_gaps(path, page, thin_model):
    """What the page decodes has the recorded gap, for every matrix of the file."""
    model, n_embd, n_ff = thin_model
    reader = gguf.GGUFReader(path)
    assert stems(reader)
    for stem in stems(reader):
        d_in, d_out = (n_ff, n_embd) if stem.endswith("down") else (n_embd, n_ff)
        weights = dense(model, stem).reshape(d_out, d_in)
        decoded = decode(page, path, stem, d_in, d_out)
        assert decoded.shape == weights.shape
        assert gap(weights, decoded) == pytest.approx(value(reader, f"statecells.{stem}.gap"), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("sections", [1, 2, 7])
def test_sections_of_few_rows(sections, thin_model, page, build, tmp_path):
    model, _, n_ff = thin_model
    path = build(model, tmp_path / "coded.gguf", "--no-calib", "--S", str(sections), "--outliers", "0.02")
    shapes = shapes_in_file(path)
    assert len(shapes["blk.0.ffn_up.codes"]) == 2, "one tile of rows"
    assert shapes["blk.0.ffn_up.dict"] == [8, 16, sections][: 2 + (sections > 1)]
    if (n_ff, sections) == (1, 1):
        # One pair of planes as well: ffn_down has one block of inputs, and two tiles.
        assert shapes["blk.0.ffn_down.codes"] == [32, 1, 2]
        assert shapes["blk.0.ffn_up.row_scale"] == [1]
    check_gaps(path, page, thin_model)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("atoms", "codes"), [(1, 1), (3, 1), (3, 2)])
def test_dictionaries_of_few_atoms_and_rows(scheme, atoms, codes, thin_model, page, build, tmp_path):
    model, n_embd, n_ff = thin_model
    flags = ["--scheme", scheme, "--dict-M", str(atoms), "--dict-k", str(codes)]
    path = build(model, tmp_path / "coded.gguf", *flags, *QUICK)
    shapes = shapes_in_file(path)
    assert shapes["blk.0.ffn_up.dict"] == [n_embd, atoms][: 1 + (atoms > 1)]
    assert shapes["blk.0.ffn_up.codes"] == [codes, n_ff][: 1 + (n_ff > 1)]
    check_gaps(path, page, thin_model)


BASES = ["none", "identity", "diagonal", "lowrank:1", "circulant", "block:1", "block:52", "lowrank:1+diagonal"]


@pytest.mark.parametrize("base", BASES)
def test_bases_and_deltas_of_few_rows(base, thin_model, page, seeddelta_build, tmp_path):
    flags = ["--base", base, "--delta-k", "1", "--targets", "gate,up,down"]
    if base in ("identity", "circulant"):
        flags.append("--row-scale")
    path = seeddelta_build(thin_model[0], tmp_path / "coded.gguf", *flags)
    assert len(stems(gguf.GGUFReader(path))) == 3
    check_gaps(path, page, thin_model)


def test_smollm2_read_by_the_page(smollm2, page, build, tmp_path):
    path = build(smollm2, tmp_path / "coded.gguf", "--layers", "0-1", "--row-scale", "--dict-M", "256", "--dict-k", "16", *QUICK)
    reader, source = gguf.GGUFReader(path), gguf.GGUFReader(smollm2)
    assert set(stems(reader)) == {f"blk.{layer}.ffn_{part}" for layer in (0, 1) for part in ("gate", "up", "down")}
    for stem in stems(reader):
        recorded = value(reader, f"statecells.{stem}.gap")
        assert gap(dense(smollm2, stem), page["decode_global"](path, stem)) == pytest.approx(recorded, rel=1e-6)
    # everything else is the source, byte for byte
    kept = {t.name: t for t in reader.tensors}
    for tensor in source.tensors:
        if tensor.name.removesuffix(".weight") not in stems(reader):
            copy = kept[tensor.name]
            assert copy.tensor_type == tensor.tensor_type
            assert np.array_equal(copy.data, tensor.data)
    for key in source.fields:
        if not key.startswith("GGUF."):
            assert value(reader, key) == value(source, key)

"""Where perplexity and divergence come from."""

import numpy as np
import pytest
import where_lost

CONTEXT, VOCABULARY, CHUNKS = 8, 5, 2


def logits_file(path, values, tokens):
    """As llama-perplexity writes it; `values`: log-probabilities, [chunks, predicted, vocabulary]."""
    raw = [where_lost.MAGIC, np.array([CONTEXT, VOCABULARY, len(tokens)], dtype="<u4").tobytes(), tokens.astype("<i4").tobytes()]
    for row in values.reshape(-1, VOCABULARY):
        scale = (row.max() - row.min()) / 65535
        packed = np.zeros(2 * ((VOCABULARY + 1) // 2), dtype="<u2")
        packed[:VOCABULARY] = np.round((row - row.min()) / scale) if scale else 0
        raw += [np.array([scale, row.min()], dtype="<f4").tobytes(), packed.tobytes()]
    path.write_bytes(b"".join(raw))
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Logits of a base and of one that is half as sure, and their log-probabilities."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, VOCABULARY, (CHUNKS, CONTEXT))
    logits = 3 * rng.standard_normal((CHUNKS, CONTEXT - 1 - CONTEXT // 2, VOCABULARY))
    both = [x - np.log(np.exp(x).sum(axis=2, keepdims=True)) for x in (logits, logits / 2)]
    paths = [logits_file(tmp_path / name, x, tokens) for name, x in zip(("base", "coded"), both, strict=True)]
    return paths, both, tokens


def test_divergence_and_loss_are_those_of_the_distributions(files):
    paths, (base, coded), tokens = files
    found = where_lost.read(*paths)
    first = CONTEXT // 2 + 1
    target = tokens[:, first:].ravel()
    base, coded = base.reshape(-1, VOCABULARY), coded.reshape(-1, VOCABULARY)
    rows = np.arange(len(target))
    assert np.array_equal(found.target, target)
    assert list(found.place) == CHUNKS * list(range(first, CONTEXT))
    assert found.divergence == pytest.approx((np.exp(base) * (base - coded)).sum(axis=1), abs=1e-3)
    assert found.loss == pytest.approx(-base[rows, target], abs=1e-3)
    assert found.loss_coded == pytest.approx(-coded[rows, target], abs=1e-3)
    assert (found.entropy < found.entropy_coded).all()
    # Without a temperature the loss is the loss.
    plain = int(np.argmin(abs(where_lost.TEMPERATURES - 1)))
    assert found.tempered[:, plain] == pytest.approx(found.loss_coded, abs=1e-5)


def test_the_same_model_loses_nothing(files):
    paths, _, _ = files
    found = where_lost.read(paths[0], paths[0])
    assert abs(found.divergence).max() < 1e-6
    assert np.array_equal(found.loss, found.loss_coded)


def test_every_token_is_of_one_kind_and_shares_add_up(files):
    paths, _, _ = files
    vocabulary = ["Ġthe", "ing", "Ċ", "Ġ12", "ĠParis"]
    tokens = where_lost.read(*paths)
    by_kind = [mask for name, mask in where_lost.groups(tokens, vocabulary) if name in {where_lost.kind(t) for t in vocabulary}]
    assert (np.sum(by_kind, axis=0) == 1).all()
    table = where_lost.table(tokens, vocabulary)
    assert table.splitlines()[2].startswith("| all | 100.0% |")
    assert "| 100% |" in table.splitlines()[2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ġthe", "word begins"),
        ("ing", "word goes on"),
        ("▁The", "capitalized"),
        ("Ġ", "blank or new line"),
        ("ĊĊ", "blank or new line"),
        ("Ġ1990", "number"),
        ("().", "punctuation"),
    ],
)
def test_kinds(text, expected):
    assert where_lost.kind(text) == expected


def test_wrong_files_are_told_by_name(files, tmp_path):
    (base, _), (values, _), tokens = files
    bad = tmp_path / "bad"
    bad.write_bytes(b"GGUF")
    with pytest.raises(where_lost.LogitsError, match="bad: no logits"):
        where_lost.read(str(bad), base)
    other = logits_file(tmp_path / "other", values, tokens[:, ::-1])
    with pytest.raises(where_lost.LogitsError, match="of another text"):
        where_lost.read(base, other)
    bad.write_bytes((tmp_path / "base").read_bytes()[:-5])
    with pytest.raises(where_lost.LogitsError, match="ends before"):
        where_lost.read(base, str(bad))


def test_wrong_use_is_told():
    assert where_lost.main([]) == 2

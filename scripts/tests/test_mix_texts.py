"""Every article goes to one part, and nothing that is measured on is fitted."""

import mix_texts


def wikitext(n: int) -> str:
    return "".join(f" \n = Article {i} = \n \n = = Section = = \n words of {i} \n" for i in range(n))


def test_every_article_is_in_one_part():
    other = "".join(f"line {i}\n" for i in range(4000))
    made = mix_texts.mix(wikitext(80), other)
    assert sorted(made) == ["mixed-calibration.txt", "wikitext-tuning.txt", "wikitext.txt"]
    for i in range(80):
        assert sum(f" = Article {i} = \n" in text for text in made.values()) == 1
        assert sum(f" words of {i} \n" in text for text in made.values()) == 1
    # The other text comes in turn, in its order and whole lines.
    lines = [line for line in made["mixed-calibration.txt"].splitlines() if line.startswith("line ")]
    assert lines == [f"line {i}" for i in range(len(lines))]
    assert "line" not in made["wikitext.txt"]
    assert made == mix_texts.mix(wikitext(80), other)


def test_what_cannot_be_cut_is_refused(tmp_path, capsys):
    (tmp_path / "wiki").write_text("no titles")
    (tmp_path / "other").write_text("text\n")
    arguments = [str(tmp_path / name) for name in ("wiki", "other", "out")]
    assert mix_texts.main(arguments) == 1
    assert "too few articles" in capsys.readouterr().err
    (tmp_path / "wiki").write_text(wikitext(80))
    assert mix_texts.main(arguments) == 1
    assert "shorter" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

"""Texts in Latin letters, by uroman."""

from __future__ import annotations

import pytest

from speechssl.errors import ConfigError
from speechssl.text import romanise
from speechssl.text.romanise import load_romaniser


def test_words_of_other_scripts_come_in_latin_letters() -> None:
    spell = load_romaniser()
    assert [spell(word) for word in ("Москва", "Αθήνα", "日本", "plain")] == ["Moskva", "Athena", "riben", "plain"]


def test_a_missing_uroman_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(romanise, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"`romanise` must be false .* \(pip install 'speechssl\[romanise\]'\)"):
        load_romaniser()

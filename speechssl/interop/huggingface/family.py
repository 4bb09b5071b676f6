"""What sets the families of Hugging Face's folders apart: one record for each, read in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from speechssl.config.model import ModelConfig
from speechssl.interop.foreign import read_field, refuse_field
from speechssl.parsing import show


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        model_type: what config.json calls it.
        prefix: what models with a head put before the names of the network's weights.
        classes: for each kind of ours its class there; a kind that is missing has none.
        weights: whose names in `interop.names` it has.
        network: our keys that have one value there.
        fields: each of our keys that it has a field for: the field and the default that a file without it means.
        choices: the same for keys with other words: the field, the default, and our word for each of theirs.
        fixed: fields that have one value here, which is their default there too.
        shared: fields for which our network has no key, and the key whose value is theirs when written.
    """

    model_type: str
    prefix: str
    classes: Mapping[str, str]
    weights: str
    network: Mapping[str, Any]
    fields: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, Any]
    choices: Mapping[str, tuple[str, Any, Mapping[Any, str]]] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)

    def find_misfit(self, config: ModelConfig) -> tuple[str, str] | None:
        """Find a key of a network whose value the family has no place for, and what it must be; None: there is none."""
        for name, value in self.network.items():
            if getattr(config, name) != value:
                return name, str(value).lower()
        for name, (_, _, words) in self.choices.items():
            if getattr(config, name) not in words.values():
                return name, f"one of {', '.join(dict.fromkeys(words.values()))}"
        return None

    def read(self, stored: dict[str, Any], where: str, key: str) -> dict[str, Any]:
        """Read the values of our keys that a `config.json` has.

        Raises:
            CheckpointError: a value of another type, or a word that has no place here.
        """
        values = {
            ours: read_field(stored, theirs, default, where, key) for ours, (theirs, default) in self.fields.items()
        }
        for ours, (theirs, default, words) in self.choices.items():
            word = stored.get(theirs, default)
            if not isinstance(word, str | None) or word not in words:
                raise refuse_field(theirs, f"one of {', '.join(str(each) for each in words)}", word, where, key)
            values[ours] = words[word]
        return values

    def write(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Give the fields of a `config.json` for the values of our keys."""
        fields = {theirs: values[ours] for ours, (theirs, _) in self.fields.items()}
        for ours, (theirs, _, words) in self.choices.items():
            fields[theirs] = next(word for word, value in words.items() if value == values[ours])
        return fields | {theirs: values[ours] for theirs, ours in self.shared.items()} | dict(self.fixed)

    def list_dropped(self, stored: dict[str, Any], values: Mapping[str, Any]) -> tuple[str, ...]:
        """List the fields for which our network has no key and which say another thing than its nearest."""
        said = {theirs: stored.get(theirs, values[ours]) for theirs, ours in self.shared.items()}
        return tuple(f"{name}={show(value)}" for name, value in said.items() if value != values[self.shared[name]])

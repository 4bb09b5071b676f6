"""From a request to the typed configuration: hydra composes `conf/`, the schema checks, dataclasses come out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, field, fields, make_dataclass, replace
from functools import cache
from typing import Any

from hydra import compose as compose_overrides
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from speechssl.cli.verbs import VERBS, map_keys
from speechssl.cli.words import Request, describe_type, escape, find_conf_folder, find_key, read_words
from speechssl.config.knobs import MISSING, check, check_choice, check_finite
from speechssl.config.model import SET_ANEW
from speechssl.config.objective import keep_own_keys, list_objectives
from speechssl.errors import ConfigError
from speechssl.parsing import parsing
from speechssl.printable import abbreviate, is_storable

OBJECTIVE = "objective"
"""The section whose keys depend on what is chosen for it."""

STORED_MODEL = "init"
"""Name that a checkpoint's own network has in the group `model`."""


def build_config(request: Request) -> Any:
    """Compose a request's configuration; with `init`, around the network that the checkpoint stores.

    Returns:
        the verb's dataclass of `speechssl.config`.

    Raises:
        ConfigError: one sentence about the first word that is wrong.
        CheckpointError: `init` does not load, or has gone and no run began with it.
    """
    tree, left = build_tree(request)
    config = _convert(request, tree)
    if left:
        from speechssl.training.network import tell_left

        tell_left(config.init, config.model, left)
    if request.verb == "bench" and config.job == "ctc":
        return replace(config, model=_tune(request).model)
    return config


def build_tree(request: Request) -> tuple[DictConfig, dict[str, Any]]:
    """Compose as `build_config`, as a tree that may still have keys missing.

    Returns:
        The tree, and the keys of the stored network that are not taken: see `read_network`.
    """
    tree = compose_tree(request)
    if not tree.get("init"):
        return tree, {}
    from speechssl.training.network import read_network

    out = "" if OmegaConf.is_missing(tree, "out") else str(tree["out"])
    stored, left = read_network(str(tree["init"]), out, bool(tree["overwrite"]), request.verb == "pretrain")
    return compose_tree(request, stored), left


def compose(verb: str, words: Sequence[str], stored_model: Mapping[str, Any] | None = None) -> Any:
    """Compose the configuration of one command from the words after the verb.

    Args:
        verb: name of the verb.
        words: main inputs and key=value overrides, as typed.
        stored_model: keys of `model` from a checkpoint; they take the place of the preset that `model=` names. What
            is not among them is that of the preset of the checkpoint's name, where there is one, or the schema's.
    """
    requests = read_words(verb, words)
    if len(requests) > 1:
        raise ConfigError(
            f"`speechssl {verb}` must be given single values, but a list a,b makes {len(requests)} jobs (add -m)"
        )
    return compose_request(requests[0], stored_model)


def compose_request(request: Request, stored_model: Mapping[str, Any] | None = None) -> Any:
    """Compose the configuration of one request; see `compose`."""
    return _convert(request, compose_tree(request, stored_model))


def compose_tree(request: Request, stored_model: Mapping[str, Any] | None = None) -> DictConfig:
    """Compose the configuration of one request as a tree that may still have keys missing."""
    if stored_model is None and not request.hydra:
        # Hydra takes a tenth of a second, and the files of the package are always the same.
        tree = deepcopy(_compose_package_files(request.verb, tuple(request.choices.items())))
    else:
        tree = _compose_files(request, stored_model)
    for key, value in request.values.items():
        declared = find_key(request.verb, key)
        _check_owner(key, tree)
        must = describe_type(declared)
        # A mapping may get names that its default does not have, at once or one by one.
        is_open = declared.type_name == "dict" or declared.default == ""
        with parsing(f"`{key}`", must, ConfigError):
            try:
                OmegaConf.update(tree, key, value, merge=True, force_add=is_open)
            except OmegaConfBaseException as error:
                raise ConfigError(f"`{key}` must be {must}, but is {abbreviate(repr(value))}") from error
    with parsing("the configuration", "one that its schema fits", ConfigError):
        OmegaConf.to_container(tree, resolve=True)
    return tree


@cache
def _compose_package_files(verb: str, choices: tuple[tuple[str, str], ...]) -> DictConfig:
    return _compose_files(Request(verb, dict(choices)), None)


def _compose_files(request: Request, stored_model: Mapping[str, Any] | None) -> DictConfig:
    """Compose the files that a request chooses; no value of its own is set yet."""
    with _open_conf(request.verb):
        overrides = _build_overrides(request, stored_model)
        try:
            tree = compose_overrides(config_name=request.verb, overrides=overrides)
            if OBJECTIVE in tree:
                _choose_objective(tree)
            return tree
        except MissingConfigException as error:
            raise ConfigError(_explain_missing_file(request.verb, error)) from error
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(f"the configuration must compose, but {_first_line(error)}") from error


def to_yaml(config: Any) -> str:
    """Write a configuration as YAML, as `--cfg` prints it and `config.yaml` holds it."""
    return str(OmegaConf.to_yaml(OmegaConf.create(asdict(config))))


@contextmanager
def _open_conf(verb: str) -> Iterator[None]:
    """Open `conf/` for hydra: the package's own, never another `conf` that happens to be importable."""
    store = ConfigStore.instance()
    if f"{verb}_schema.yaml" not in store.repo:
        store.store(name=f"{verb}_schema", node=_open_objective(VERBS[verb].schema))
    with initialize_config_dir(str(find_conf_folder()), job_name="speechssl", version_base="1.3"):
        yield


def _open_objective(schema: type) -> type:
    """Let hydra compose the section `objective`, for which a schema has several dataclasses, as a plain mapping."""
    if all(item.name != OBJECTIVE for item in fields(schema)):
        return schema
    return make_dataclass(
        schema.__name__, [(OBJECTIVE, Any, field(default_factory=dict))], bases=(schema,), kw_only=True
    )


def _choose_objective(tree: DictConfig) -> None:
    """Give the section `objective` the schema of its name, without what presets say of other objectives.

    Raises:
        ConfigError: there is no objective of that name.
    """
    section, schemas = keep_own_keys(tree[OBJECTIVE]), list_objectives()
    name = str(section.get("name", ""))
    check_choice(f"{OBJECTIVE}.name", name, tuple(schemas))
    tree[OBJECTIVE] = OmegaConf.merge(OmegaConf.structured(schemas[name]), section)


def _check_owner(key: str, tree: DictConfig) -> None:
    """Refuse a key that only objectives have which were not chosen."""
    parent, _, last = key.rpartition(".")
    if parent == OBJECTIVE and last not in tree[OBJECTIVE]:
        schemas = list_objectives().items()
        owners = [other for other, schema in schemas if any(item.name == last for item in fields(schema))]
        belongs = " and ".join(f"{OBJECTIVE}={other}" for other in owners)
        chosen = f"{OBJECTIVE}={tree[OBJECTIVE].name}"
        raise ConfigError(f"`{key}` must be a key of {chosen}, but belongs to {belongs}")


def _build_overrides(request: Request, stored_model: Mapping[str, Any] | None) -> list[str]:
    """Turn the choices into hydra overrides, in the order in which groups build on each other."""
    choices = request.choices if stored_model is None else _choose_stored_model(request, stored_model)
    defaults = _list_default_groups(request.verb)
    return [*request.hydra, *(f"{'' if group in defaults else '+'}{group}={name}" for group, name in choices.items())]


def _choose_stored_model(request: Request, stored_model: Mapping[str, Any]) -> dict[str, str]:
    """Choose the checkpoint's network, and the training preset that goes with its name."""
    name = str(stored_model["name"])
    given = request.choices.get("model", name)
    if given != name:
        raise ConfigError(f"`model` must be left out or be {name}, as in the checkpoint of `init`, but is {given!r}")
    loader = GlobalHydra.instance().config_loader()
    # What was left out on purpose is the preset's to say; what an older run does not know yet is the schema's.
    is_partial = stored_model.keys().isdisjoint(SET_ANEW)
    below = [name] if is_partial and name in loader.get_group_options("model") and name != STORED_MODEL else []
    # A checkpoint may come from a stranger, whose `${oc.env:…}` is text like any other.
    node = {"defaults": [*below, "_self_"], **escape(stored_model)}
    ConfigStore.instance().store(group="model", name=STORED_MODEL, node=node)
    preset = f"{request.verb}_{name}"
    known = preset in loader.get_group_options("training")
    return {"training": preset if known else f"{request.verb}_base", **request.choices, "model": STORED_MODEL}


def _list_default_groups(verb: str) -> set[str]:
    """List the groups that a verb's primary file already chooses from."""
    primary = OmegaConf.load(find_conf_folder() / f"{verb}.yaml")
    return {str(name) for entry in primary.defaults if not isinstance(entry, str) for name in entry}


def _tune(request: Request) -> Any:
    """Compose the fine-tuning of a bench's network: the masks, dropout and frozen convolutions of its preset."""
    given = {key: value for key, value in request.values.items() if key.startswith("model.")}
    return compose_request(Request("finetune", dict(request.choices), {"out": "unused", **given}, request.hydra))


def _convert(request: Request, tree: DictConfig) -> Any:
    """Turn the tree into dataclasses, whose own checks run here."""
    values: Any = OmegaConf.to_container(tree, resolve=True)
    _check_values(values)
    for declared in map_keys(request.verb).values():
        if declared.default == MISSING:
            check(values[declared.path] != "", declared.path, f"given ({declared.meaning})", "")
    try:
        made, schema = OmegaConf.to_object(tree), VERBS[request.verb].schema
        # Not the schema that `_open_objective` made of it, which only hydra needs.
        return schema(**{item.name: getattr(made, item.name) for item in fields(schema)})
    except MissingMandatoryValue as error:
        key = str(error.full_key)
        raise ConfigError(f"`{key}` must be given ({find_key(request.verb, key).meaning}), but is missing") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration must fit its schema, but {_first_line(error)}") from error


def _check_values(value: Any, key: str = "") -> None:
    """Refuse what no key has a use for: numbers that are not finite, and texts that no path or file can hold."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_values(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for item in value:
            check(item != "", key, "a list of texts, none of them empty", value)
            check(not isinstance(item, (list, dict)), key, "a list without lists in it", value)
            _check_values(item, key)
    elif isinstance(value, float):
        check_finite(key, value)
    elif isinstance(value, str) and value:
        check(not value.isspace(), key, "text, not only spaces", value)
        check(is_storable(value), key, "text in UTF-8 without NUL", value)


def _explain_missing_file(verb: str, error: MissingConfigException) -> str:
    """Say which file of `conf/` a choice led to, where hydra's message has three paragraphs."""
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    others = tuple(f"{other}_" for other in VERBS if other != verb)
    options = [option for option in error.options or () if option != STORED_MODEL and not option.startswith(others)]
    return f"`{group}` must be one of {', '.join(options) or 'the files in its folder'}, but {name!r} does not exist"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]

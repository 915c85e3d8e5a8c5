"""Frozen, strict settings: YAML says only what differs, and an unknown key is an error that names its path.

Every settings class of the project derives from `Config` and stands beside the code that reads it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from data_pipeline.errors import ConfigError


class Config(BaseModel):
    """Base of all settings: immutable, no unknown keys, no silent conversion, no NaN."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @classmethod
    def of(cls, tree: Mapping[str, Any], source: str = "settings") -> Self:
        """Returns the settings that `tree` describes, defaults filled in.

        Args:
            tree: Nested mappings as YAML gives them; dates may be `date` objects or ISO strings.
            source: Named in the error, for instance the file that was read.

        Raises:
            ConfigError: Naming every offending dotted path, the value found and what is wanted.
        """
        try:
            # JSON mode is strict about types, yet takes lists for tuples and ISO strings for dates.
            return cls.model_validate_json(json.dumps(tree, default=str))
        except ValidationError as error:
            raise ConfigError(f"{source}: {'; '.join(_lines(cls, error))}") from error

    def tree(self) -> dict[str, Any]:
        """Returns the whole resolved tree, JSON-ready."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """Returns the sha256 of the resolved tree: equal settings, equal digest."""
        return hashlib.sha256(canonical_json(self.tree())).hexdigest()


def canonical_json(value: Any) -> bytes:
    """Returns `value` as JSON bytes with sorted keys and no spaces: the form that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file (an empty file is an empty mapping).

    Raises:
        ConfigError: The file is absent, not YAML, or not a mapping.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give an existing YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds a {type(tree).__name__}; a mapping of settings is wanted")
    return tree


def with_overrides(tree: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Returns a copy of `tree` with `path.to.key=value` assignments applied, values read as YAML.

    Raises:
        ConfigError: An assignment without `=`, or a path that runs through a plain value.
    """
    result: dict[str, Any] = json.loads(json.dumps(tree, default=str))
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator or not path:
            raise ConfigError(f"--set {assignment!r}: write it as path.to.key=value")
        set_path(result, path, yaml.safe_load(text))
    return result


def set_path(tree: dict[str, Any], path: str, value: Any) -> None:
    """Sets the value at a dotted path of a nested mapping in place, making the mappings on the way."""
    *parents, leaf = path.split(".")
    node = tree
    for key in parents:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{path}: {key!r} is a plain value, it holds no further keys")
    node[leaf] = value


def _lines(cls: type[BaseModel], error: ValidationError) -> Iterable[str]:
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = ", ".join(_keys_at(cls, item["loc"][:-1]))
            yield f"unknown key {path!r}" + (f" (known here: {known})" if known else "")
        elif not path:  # of the tree as a whole, which is too long to show
            yield item["msg"]
        else:
            value = re.sub(r"//[^/@\s]+@", "//***@", repr(item["input"]))  # a password in a URL
            yield f"{path} = {value}: {item['msg']}"


def _keys_at(cls: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    model: Any = cls
    for part in loc:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field else None
    return sorted(getattr(model, "model_fields", {}))

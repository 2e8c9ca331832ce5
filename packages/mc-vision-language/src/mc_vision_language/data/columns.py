"""Which field of a table of captions is what. Imports no torch. What is taken for what is told in ``Pairs.columns``."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from mc_core.errors import ConfigError, DataError, closest
from mc_vision_language.data.options import ColumnOptions

_USUAL = {
    "image": "image image_path path file_name filename file filepath file_path image_file image_name img img_path picture",
    "caption": "caption captions text texts title sentence sentences description raw comment alt_text alt",
    "image_id": "image_id imageid img_id imgid cocoid picture_id id",
    "split": "split fold partition subset",
}
_NUMBERED = re.compile(r"(caption|text|sentence|description|comment)[ _-]?\d+")
_SPLITS = {
    **dict.fromkeys(("train", "training", "trn", "restval", "pretrain", "trainval"), "train"),
    **dict.fromkeys(("validation", "validate", "valid", "val", "dev", "minival"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "eval", "karpathy_test"), "test"),
}


def recognise(names: Sequence[str], options: ColumnOptions, where: str) -> dict[str, str | list[str]]:
    """The columns of a table by their role, as :func:`roles_of` finds them.

    Args:
        names: of the columns, or the fields of a record.
        options: names that the user gave; they win.
        where: the source, for messages.

    Raises:
        ConfigError: a given name is not there.
        DataError: no column of pictures, or none of captions.

    >>> recognise(["path", "title", "price"], ColumnOptions(), "t.csv")
    {'image': 'path', 'caption': 'title'}
    >>> recognise(["file", "caption_1", "caption_2"], ColumnOptions(), "t.csv")["caption"]
    ['caption_1', 'caption_2']
    """
    roles = roles_of(names, options, where)
    for role, what in (("image", "pictures"), ("caption", "captions")):
        if role not in roles:
            there = ", ".join(map(repr, names)) or "no columns"
            raise DataError(f"{where}: no column of {what} among {there}; say which it is with --column.{role}")
    return roles


def roles_of(names: Sequence[str], options: ColumnOptions, where: str) -> dict[str, str | list[str]]:
    """The columns by their role, those that there are; several captions with a number in their name are a list.

    Raises:
        ConfigError: a name that the user gave is not there.
    """
    plain = {_plain(name): name for name in reversed(names)}
    roles: dict[str, str | list[str]] = {}
    for role, usual in _USUAL.items():
        given = getattr(options, role)
        if given is not None:
            found = given if given in names else plain.get(_plain(given))
            if found is None:
                raise ConfigError(
                    f"{where}: no column {given!r} for the {role}; it has {closest(given, names) or 'none'} (--column.{role})"
                )
            roles[role] = found
            continue
        found = next(
            (plain[name] for name in usual.split() if name in plain and plain[name] not in roles.values()), None
        )
        if found is not None:
            roles[role] = found
    if "caption" not in roles:
        several = [name for name in names if _NUMBERED.fullmatch(_plain(name))]
        if several:
            roles["caption"] = several
    return roles


def told(roles: dict[str, str | list[str]], noun: str = "column") -> dict[str, str]:
    """For people: role → column."""
    return {
        role: f"{noun} {name!r}" if isinstance(name, str) else f"{noun}s {', '.join(map(repr, name))}"
        for role, name in roles.items()
    }


def caption_list(value: Any) -> list[str]:
    """The captions of a cell: a text, a list of texts, the text of a list in JSON or in Python's writing, or Karpathy's sentences.

    An empty cell is an empty caption, an empty list none.

    >>> caption_list("a dog"), caption_list(["a", "b"]), caption_list('["a", "b"]'), caption_list("['a', 'b']")
    (['a dog'], ['a', 'b'], ['a', 'b'], ['a', 'b'])
    >>> caption_list([{"raw": "A dog.", "tokens": ["a", "dog"]}])
    ['A dog.']
    """
    if value is None:
        return [""]
    if isinstance(value, str):
        text = value.strip()
        if text[:1] == "[" and text[-1:] == "]":
            for parse in (json.loads, ast.literal_eval):
                try:
                    parsed = parse(text)
                except (ValueError, SyntaxError, MemoryError, RecursionError):
                    continue
                if isinstance(parsed, list):
                    return caption_list(parsed)
        return [text]
    if isinstance(value, dict):
        return caption_list(
            next((value[name] for name in ("raw", "caption", "text", "sentence") if name in value), None)
        )
    if isinstance(value, (list, tuple)):
        return [text for one in value for text in caption_list(one)]
    return [str(value)]


def split_name(text: str) -> str | None:
    """The part that a data set's own name means, None if it is not known.

    >>> split_name("val2017"), split_name("restval"), split_name("testA"), split_name("iconic")
    ('validation', 'train', 'test', None)
    """
    plain = text.strip().lower()
    return _SPLITS.get(plain) or _SPLITS.get(re.sub(r"[-_ ]?(\d+k?|a|b)$", "", plain))


def _plain(name: str) -> str:
    return "_".join(name.strip().lower().replace("-", "_").split())

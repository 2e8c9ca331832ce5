"""Which of twelve classes, shared by all languages, a leaf of a syntax tree belongs to.

The soft augmentations of CoCoSoDa (arXiv:2204.03293, section III-C) replace tokens by their type. Its released code uses the
node types of the grammars, most of which have changed their names since; the classes here are ours and outlive that.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from mc_text_code.source.languages import grammar, with_grammar

TOKEN_CLASSES: tuple[str, ...] = (
    "keyword",
    "identifier",
    "type",
    "string",
    "number",
    "literal",
    "operator",
    "separator",
    "comment",
    "escape",
    "text",
    "other",
)
"""Their names; class ids count from 1, in this order. 0 is what has no class: padding, special tokens, white space.

``literal`` is true, false, null and the like; ``text`` lies around the code, such as the HTML of a PHP file; ``other`` holds
what the grammar could not parse."""

TYPE_TOKENS: tuple[str, ...] = tuple(f"<t:{name}>" for name in TOKEN_CLASSES)
"""The tokens that stand for the classes in an encoder's vocabulary, in the same order."""

CLASS_IDS: dict[str, int] = {name: number for number, name in enumerate(TOKEN_CLASSES, start=1)}


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ERROR_KIND = 0xFFFF  # tree-sitter's own number for what did not parse

_SEPARATORS = {*"()[]{},;:.@", "::", "...", "->", "=>", "?->", "&.", "${", "#{", "\\{", "#[", "</", "/>", "\\"}
_QUOTES = {'"', "'", "`", '"""', "'''", "<<<", ':"', "%w(", "%i("}
_NAMES = _set("""
    identifier property_identifier private_property_identifier field_identifier package_identifier label_name name
    blank_identifier statement_identifier instance_variable class_variable global_variable underscore_pattern
""")
_TYPES = _set("type_identifier boolean_type void_type constant primitive_type cast_type bottom_type")
_STRINGS = _set("simple_symbol hash_key_symbol character character_literal rune_literal regex_pattern regex_flags")
_NUMBERS = _set("number complex rational")
_LITERALS = _set("true false none nil null null_literal undefined boolean ellipsis iota line file encoding")
_KEYWORDS = _set("this self super import relative_scope var_modifier")
_SEPARATING = _set("""
    optional_chain dot import_prefix line_continuation positional_separator keyword_separator forward_parameter
    forward_argument variadic_placeholder empty_statement
""")
_OPERATORS = _set("operator operation asterisk reference_modifier by_ref type_conversion")
_TEXTS = _set("text jsx_text html_character_reference uninterpreted")
_WORD = re.compile(r"[A-Za-z_][A-Za-z_ ?!-]*")


def class_of(kind: str, *, named: bool) -> str:
    """The class of a leaf by its node type; empty for white space.

    Args:
        kind: the node type.
        named: whether the grammar names it; keywords and punctuation are unnamed, and their type is their text.

    >>> [class_of(kind, named=False) for kind in ("while", "not in", "=>", "**", '"')]
    ['keyword', 'keyword', 'separator', 'operator', 'string']
    >>> [
    ...     class_of(kind, named=True)
    ...     for kind in ("identifier", "decimal_integer_literal", "string_fragment", "nil", "php_tag")
    ... ]
    ['identifier', 'number', 'string', 'literal', 'other']
    """
    if not kind.strip("\0\r\n\t "):
        return ""
    if not named:
        return _unnamed(kind)
    for name, kinds in (
        ("identifier", _NAMES),
        ("type", _TYPES),
        ("literal", _LITERALS),
        ("keyword", _KEYWORDS),
        ("separator", _SEPARATING),
        ("operator", _OPERATORS),
        ("text", _TEXTS),
        ("number", _NUMBERS),
        ("string", _STRINGS),
    ):
        if kind in kinds:
            return name
    if "comment" in kind or kind == "hash_bang_line":
        return "comment"
    if kind.startswith("escape_"):
        return "escape"
    if "integer" in kind or "float" in kind or kind in ("int_literal", "imaginary_literal"):
        return "number"
    if "string" in kind or kind.startswith("heredoc_") or kind == "format_specifier":
        return "string"
    if kind.startswith("shorthand_"):
        return "identifier"
    return "keyword" if kind.endswith(("_modifier", "_statement")) else "other"


def _unnamed(kind: str) -> str:
    if kind in _QUOTES:
        return "string"
    if kind in _SEPARATORS:
        return "separator"
    return "keyword" if _WORD.fullmatch(kind.removeprefix("@")) else "operator"


@cache
def class_table(language: str) -> np.ndarray:
    """(65,536,) uint8, class id by the number that the grammar gives a node type; unknown numbers are ``other``."""
    parser, exceptions = grammar(language), with_grammar(language).leaf_classes
    table = np.full(_ERROR_KIND + 1, CLASS_IDS["other"], dtype=np.uint8)
    for number in range(parser.node_kind_count):
        kind, named = parser.node_kind_for_id(number), parser.node_kind_is_named(number)
        if kind is not None:
            name = (not named and exceptions.get(kind)) or class_of(kind, named=named)
            table[number] = CLASS_IDS.get(name, 0)
    table.setflags(write=False)
    return table


@cache
def whole_kinds(language: str) -> frozenset[int]:
    """Numbers of the inner node types that count as one leaf."""
    parser, wanted = grammar(language), set(with_grammar(language).whole_leaves)
    return frozenset(n for n in range(parser.node_kind_count) if parser.node_kind_for_id(n) in wanted)

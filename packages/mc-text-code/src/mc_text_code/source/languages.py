"""The table of programming languages: what their files are called, and where functions, classes and comments are in a tree.

To add a language: its grammar's wheel as an extra of this package, and one entry of :data:`LANGUAGES`. Node types are those
of the grammar; ``print(tree.root_node)`` of a small file shows them. What a type of leaf counts as is told by rules in
:mod:`mc_text_code.source.token_classes`, with exceptions in ``leaf_classes`` here. A language without a grammar is known by
name alone (:data:`TEXTS`), and its files are cut into windows of lines.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from mc_core.errors import ConfigError, MissingDependencyError, closest
from mc_core.optional import require

if TYPE_CHECKING:
    import tree_sitter

EXTRA = "mc-text-code[code]"


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


@dataclass(frozen=True)
class Language:
    """What has to be known of a language.

    Attributes:
        name: in lower case, as in CodeSearchNet.
        extensions: of its files, with the dot, in lower case.
        module: of the grammar.
        loader: function of that module that gives the grammar.
        functions: node types of functions and methods.
        classes: node types of classes and of whatever else holds methods under a name.
        comments: node types of comments.
        filenames: of files without such an extension.
        interpreters: in a first line such as ``#!/usr/bin/env python``.
        docstring_in_body: the documentation is the body's first statement, not the comment above.
        holders: node types around a function that belong to it, with the field that names it where there is one:
            ``export const name = () => …``.
        through: node types to look through for further names: the object in ``name = {key() {…}}``.
        separator: between the parts of a qualified name.
        method_separator: before the name of a method.
        wrappers: (before, after), tried in this order to parse a fragment that does not parse alone.
        tag: without it a text is a fragment, whatever the parser says (PHP takes it for HTML).
        whole_leaves: inner node types taken as one leaf, because their children do not cover them.
        leaf_classes: exceptions from the rules: node type → token class.
        standard_methods: names of constructors and of methods that every class has; no pairs are mined from them.
        standard_pattern: a regular expression for further such names.
    """

    name: str
    extensions: tuple[str, ...]
    module: str
    functions: tuple[str, ...]
    classes: tuple[str, ...]
    comments: tuple[str, ...] = ("comment",)
    loader: str = "language"
    filenames: tuple[str, ...] = ()
    interpreters: tuple[str, ...] = ()
    docstring_in_body: bool = False
    holders: Mapping[str, str] = field(default_factory=dict)
    through: tuple[str, ...] = ()
    separator: str = "."
    method_separator: str = "."
    wrappers: tuple[tuple[bytes, bytes], ...] = ()
    tag: bytes = b""
    whole_leaves: tuple[str, ...] = ()
    leaf_classes: Mapping[str, str] = field(default_factory=dict)
    standard_methods: frozenset[str] = frozenset()
    standard_pattern: str = ""


_PYTHON = Language(
    name="python",
    extensions=(".py", ".pyi", ".pyw"),
    filenames=("SConstruct", "SConscript", "wscript"),
    interpreters=("python", "pypy"),
    module="tree_sitter_python",
    functions=("function_definition",),
    classes=("class_definition",),
    docstring_in_body=True,
    holders={"decorated_definition": ""},
    # an escape inside is the only child of the text around it, so a walk over leaves alone would lose that text
    whole_leaves=("string_content", "format_specifier"),
    standard_pattern=r"__\w+__",
)
_JAVA = Language(
    name="java",
    extensions=(".java",),
    module="tree_sitter_java",
    functions=("method_declaration", "constructor_declaration", "compact_constructor_declaration"),
    classes=(
        "class_declaration",
        "interface_declaration",
        "enum_declaration",
        "record_declaration",
        "annotation_type_declaration",
    ),
    comments=("line_comment", "block_comment"),
    wrappers=((b"class _{", b"}"),),
    leaf_classes=dict.fromkeys(("byte", "short", "int", "long", "char", "float", "double"), "type"),
    standard_methods=frozenset({"toString", "hashCode", "equals", "finalize", "notify", "notifyAll", "clone"}),
)
_GO = Language(
    name="go",
    extensions=(".go",),
    module="tree_sitter_go",
    functions=("function_declaration", "method_declaration"),
    classes=("type_spec", "type_alias"),
    holders={"type_declaration": ""},
    standard_methods=frozenset({"init"}),
)
_FUNCTION_VALUES = ("function_expression", "generator_function", "arrow_function")
_JAVASCRIPT = Language(
    name="javascript",
    extensions=(".js", ".mjs", ".cjs", ".jsx"),
    filenames=("Jakefile",),
    interpreters=("node", "nodejs", "deno", "bun"),
    module="tree_sitter_javascript",
    functions=(
        "function_declaration",
        "generator_function_declaration",
        "method_definition",
        *_FUNCTION_VALUES,
    ),
    classes=("class_declaration", "class"),
    comments=("comment", "html_comment"),
    holders={
        "variable_declarator": "name",
        "lexical_declaration": "",
        "variable_declaration": "",
        "assignment_expression": "left",
        "expression_statement": "",
        "export_statement": "",
        "pair": "key",
        "field_definition": "property",
    },
    through=("object", "parenthesized_expression"),
    wrappers=((b"class _{", b"}"), (b"(", b")"), (b"({", b"})")),
    standard_methods=frozenset({"constructor", "toString", "toLocaleString", "valueOf"}),
)
_PHP = Language(
    name="php",
    extensions=(".php", ".phtml", ".php3", ".php4", ".php5", ".inc"),
    interpreters=("php",),
    module="tree_sitter_php",
    loader="language_php",
    functions=("function_definition", "method_declaration", "anonymous_function", "arrow_function"),
    classes=("class_declaration", "interface_declaration", "trait_declaration", "enum_declaration"),
    holders={"assignment_expression": "left", "expression_statement": ""},
    separator="\\",
    method_separator="::",
    wrappers=((b"<?php ", b""), (b"<?php class _{", b"}")),
    tag=b"<?",
    standard_pattern=r"__\w+",
)
_RUBY = Language(
    name="ruby",
    extensions=(".rb", ".rake", ".gemspec", ".ru", ".rbw"),
    filenames=("Rakefile", "Gemfile", "Guardfile", "Vagrantfile", "Podfile", "Fastfile"),
    interpreters=("ruby", "jruby"),
    module="tree_sitter_ruby",
    functions=("method", "singleton_method"),
    classes=("class", "module"),
    separator="::",
    method_separator="#",
    leaf_classes={"i": "number", "r": "number", "ri": "number", "nil": "literal"},
    standard_methods=_set("""
    initialize initialize_copy initialize_dup initialize_clone to_s inspect == === eql? equal? != <=> =~ !~ ! hash
    clone dup freeze frozen? method_missing respond_to? respond_to_missing? instance_of? is_a? kind_of? nil?
    object_id send public_send tap then
"""),
)

LANGUAGES: dict[str, Language] = {
    language.name: language for language in (_PYTHON, _JAVA, _GO, _JAVASCRIPT, _PHP, _RUBY)
}
"""The languages with a grammar, by name."""

TEXTS: dict[str, tuple[str, ...]] = {
    "assembly": (".s", ".asm"),
    "batch": (".bat", ".cmd"),
    "c": (".c", ".h"),
    "c#": (".cs",),
    "c++": (".cc", ".cpp", ".cxx", ".hh", ".hpp", ".hxx", ".inl", ".cu", ".cuh"),
    "clojure": (".clj", ".cljs"),
    "cmake": (".cmake",),
    "css": (".css", ".scss", ".sass", ".less"),
    "cython": (".pyx", ".pxd"),
    "dart": (".dart",),
    "docker": (".dockerfile",),
    "elixir": (".ex", ".exs"),
    "erlang": (".erl", ".hrl"),
    "f#": (".fs", ".fsx"),
    "fortran": (".f", ".f90", ".f95", ".for"),
    "graphql": (".graphql", ".gql"),
    "groovy": (".groovy", ".gradle"),
    "haskell": (".hs",),
    "html": (".html", ".htm", ".xhtml"),
    "ini": (".ini", ".cfg", ".conf", ".properties"),
    "json": (".json", ".json5", ".jsonc"),
    "julia": (".jl",),
    "kotlin": (".kt", ".kts"),
    "lua": (".lua",),
    "makefile": (".mk", ".mak"),
    "markdown": (".md", ".markdown", ".mdx"),
    "matlab": (".m",),
    "nix": (".nix",),
    "ocaml": (".ml", ".mli"),
    "perl": (".pl", ".pm", ".t"),
    "powershell": (".ps1", ".psm1"),
    "protobuf": (".proto",),
    "r": (".r",),
    "restructuredtext": (".rst",),
    "rust": (".rs",),
    "scala": (".scala", ".sc"),
    "shell": (".sh", ".bash", ".zsh", ".fish"),
    "sql": (".sql",),
    "svelte": (".svelte",),
    "swift": (".swift",),
    "tcl": (".tcl",),
    "terraform": (".tf", ".tfvars"),
    "tex": (".tex", ".sty"),
    "text": (".txt", ".text"),
    "toml": (".toml",),
    "typescript": (".ts", ".tsx", ".mts", ".cts"),
    "verilog": (".v", ".sv"),
    "vue": (".vue",),
    "xml": (".xml", ".xsd", ".xslt"),
    "yaml": (".yaml", ".yml"),
    "zig": (".zig",),
}
"""Languages known by name only, with the extensions of their files."""

_FILENAMES = {
    "BUILD": "starlark",
    "CMakeLists.txt": "cmake",
    "Dockerfile": "docker",
    "GNUmakefile": "makefile",
    "Jenkinsfile": "groovy",
    "Makefile": "makefile",
    "makefile": "makefile",
}
_BY_EXTENSION = {extension: name for name, extensions in TEXTS.items() for extension in extensions} | {
    extension: name for name, language in LANGUAGES.items() for extension in language.extensions
}
_BY_FILENAME = _FILENAMES | {file: name for name, language in LANGUAGES.items() for file in language.filenames}
_BY_INTERPRETER = {
    "bash": "shell",
    "dash": "shell",
    "ksh": "shell",
    "lua": "lua",
    "perl": "perl",
    "sh": "shell",
    "zsh": "shell",
} | {interpreter: name for name, language in LANGUAGES.items() for interpreter in language.interpreters}


def language_of(path: str, first_line: bytes = b"") -> str:
    """Name of the language of a file, ``"text"`` where nothing tells.

    Args:
        path: of the file; only its last part counts.
        first_line: its first line, for scripts without an extension.

    >>> language_of("src/app.py"), language_of("Rakefile"), language_of("bin/run", b"#!/usr/bin/env python3")
    ('python', 'ruby', 'python')
    >>> language_of("main.rs"), language_of("LICENSE")
    ('rust', 'text')
    """
    name = path.rpartition("/")[2]
    if name in _BY_FILENAME:
        return _BY_FILENAME[name]
    if found := _BY_EXTENSION.get(os.path.splitext(name)[1].lower()):
        return found
    if first_line.startswith(b"#!"):
        words = first_line[2:].decode("utf-8", "replace").split()
        programs = [word.rpartition("/")[2] for word in words if not word.startswith("-")]
        program = programs[1] if programs[:1] == ["env"] and len(programs) > 1 else (programs or [""])[0]
        return _BY_INTERPRETER.get(program.rstrip("0123456789."), "text")
    return "text"


def known_extension(path: str) -> bool:
    """Whether the name alone tells the language."""
    name = path.rpartition("/")[2]
    return name in _BY_FILENAME or os.path.splitext(name)[1].lower() in _BY_EXTENSION


def with_grammar(name: str) -> Language:
    """The entry of a language that can be parsed.

    Raises:
        ConfigError: there is no grammar for it.

    >>> with_grammar("ruby").classes
    ('class', 'module')
    """
    if name in LANGUAGES:
        return LANGUAGES[name]
    raise ConfigError(
        f"no grammar for the language {name!r}; closest of those with one: {closest(name, LANGUAGES, count=1)} "
        f"(all: {', '.join(LANGUAGES)})"
    )


@cache
def grammar(name: str) -> tree_sitter.Language:
    """The grammar of a language, loaded once.

    Raises:
        ConfigError: there is no grammar for it.
        MissingDependencyError: tree-sitter or the grammar's package is not installed.
    """
    language = with_grammar(name)
    purpose = f"parse {name}"
    binding = require("tree_sitter", extra=EXTRA, purpose=purpose)
    module = require(language.module, extra=EXTRA, purpose=purpose)
    try:
        return binding.Language(getattr(module, language.loader)())
    except (AttributeError, ValueError) as error:
        raise MissingDependencyError(
            f'{language.module} does not fit tree-sitter ({error}): pip install --upgrade "{EXTRA}"'
        ) from error


def installed(name: str) -> bool:
    """Whether the language can be parsed here."""
    if name not in LANGUAGES:
        return False
    try:
        importlib.import_module("tree_sitter")
        importlib.import_module(LANGUAGES[name].module)
    except ModuleNotFoundError:
        return False
    return True

"""The server for agents, driven by the official client over standard input and output."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

pytest.importorskip("mcp")

from mcp import Client, StdioServerParameters, stdio_client

from mc_core.errors import DataError
from mc_text_code.codesearch import CodeIndex
from mc_text_code.codesearch.serve import show

tools = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_codesearch_tools.py"))))
SERVER = Path(__file__).with_name("_codesearch_server.py")


@pytest.fixture
def project(tmp_path):
    (tmp_path / "secret.txt").write_text("the key is 1234")
    root = tools.write_project(tmp_path / "project")
    (root / "way_out.py").symlink_to(tmp_path / "secret.txt")
    return root


def talk(project: Path, work: Callable[[Client], Awaitable[Any]]) -> Any:
    async def session():
        parameters = StdioServerParameters(command=sys.executable, args=[str(SERVER), str(project)])
        with anyio.fail_after(120):
            with open(os.devnull, "w") as nowhere:
                async with Client(stdio_client(parameters, errlog=nowhere)) as client:
                    return await work(client)

    return anyio.run(session)


def text_of(result) -> str:
    return "\n".join(part.text for part in result.content)


def test_its_tools_are_described(project):
    async def work(client):
        return (await client.list_tools()).tools

    found = {tool.name: tool for tool in talk(project, work)}
    assert set(found) == {"search_code", "show_unit", "index_status"}
    assert all(tool.description for tool in found.values())
    properties = found["search_code"].input_schema["properties"]
    assert set(properties) == {"query", "k", "mode", "languages", "paths", "full"}
    assert found["search_code"].input_schema["required"] == ["query"]


def test_search_show_and_status(project):
    async def work(client):
        searched = await client.call_tool("search_code", {"query": "sum of the prices of all items", "mode": "lexical"})
        first = searched.structured_content["hits"][0]
        shown = await client.call_tool("show_unit", {"path": first["path"], "line": first["line"]})
        status = await client.call_tool("index_status", {})
        only = await client.call_tool("search_code", {"query": "sales", "languages": ["javascript"], "paths": ["web/"]})
        return searched, shown, status, only

    searched, shown, status, only = talk(project, work)
    assert not searched.is_error
    first = searched.structured_content["hits"][0]
    assert (first["path"], first["symbol"]) == ("shop/cart.py", "Cart.total_price")
    assert "sum(item.price" in first["text"]
    assert "Cart.total_price" in text_of(searched)
    assert shown.structured_content["text"] == first["text"]
    assert status.structured_content["files"] == len(tools.FILES)
    assert {hit["path"] for hit in only.structured_content["hits"]} == {"web/app.js"}


NONSENSE: list[tuple[str, dict[str, Any], str]] = [
    ("search_code", {}, "query"),
    ("search_code", {"query": ""}, "no letters"),
    ("search_code", {"query": "?!"}, "no letters"),
    ("search_code", {"query": 17}, "string"),
    ("search_code", {"query": ["a"]}, "string"),
    ("search_code", {"query": "a", "k": 0}, "greater than or equal to 1"),
    ("search_code", {"query": "a", "k": 10**9}, "less than or equal to 100"),
    ("search_code", {"query": "a", "k": "many"}, "integer"),
    ("search_code", {"query": "a", "mode": "both"}, "hybrid"),
    ("search_code", {"query": "a", "languages": ["klingon"]}, "not known"),
    ("search_code", {"query": "a", "languages": "python"}, "list"),
    ("search_code", {"query": "a", "paths": ["../secret.txt"]}, "outside"),
    ("search_code", {"query": "a", "paths": ["/etc"]}, "outside"),
    ("search_code", {"query": "x" * 100_000}, "10000"),
    ("show_unit", {"path": "../secret.txt", "line": 1}, "outside"),
    ("show_unit", {"path": "shop/../../secret.txt", "line": 1}, "outside"),
    ("show_unit", {"path": "/etc/passwd", "line": 1}, "outside"),
    ("show_unit", {"path": "C:\\Windows\\win.ini", "line": 1}, "outside"),
    ("show_unit", {"path": "way_out.py", "line": 1}, "outside"),
    ("show_unit", {"path": "shop/cart.py\u0000", "line": 1}, "outside"),
    ("show_unit", {"path": "shop/card.py", "line": 1}, "closest: shop/cart.py"),
    ("show_unit", {"path": ".mc-code/index.sqlite", "line": 1}, "not in the index"),
    ("show_unit", {"path": "shop/cart.py", "line": 100_000}, "nothing at line"),
    ("show_unit", {"path": "shop/cart.py", "line": 0}, "greater than or equal to 1"),
    ("show_unit", {"path": "", "line": 1}, "at least 1"),
]


def test_what_makes_no_sense_is_an_error_and_the_server_goes_on(project):
    async def work(client):
        results = [await client.call_tool(tool, arguments) for tool, arguments, _ in NONSENSE]
        return results, await client.call_tool("index_status", {})

    results, after = talk(project, work)
    for (tool, arguments, words), result in zip(NONSENSE, results, strict=True):
        case = f"{tool} {str(arguments)[:60]}: {text_of(result)[:300]}"
        assert result.is_error, case
        assert words in text_of(result), case
        assert "1234" not in text_of(result), case
        assert "Traceback" not in text_of(result), case
    assert not after.is_error


def test_a_tool_that_is_not_there(project):
    from mcp import MCPError

    async def work(client):
        try:
            result = await client.call_tool("delete_everything", {})
            refused = result.is_error
        except MCPError:
            refused = True
        return refused, await client.call_tool("index_status", {})

    refused, after = talk(project, work)
    assert refused
    assert not after.is_error


def test_lines_that_are_no_messages_do_not_end_it(project):
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
    }
    lines = [b"this is no message", b"\xff\xfe", b"[]", b'{"jsonrpc": "2.0", "id": 7}', json.dumps(hello).encode()]
    with subprocess.Popen(
        [sys.executable, str(SERVER), str(project)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n".join(lines) + b"\n")
        process.stdin.flush()
        message = json.loads(process.stdout.readline())
        while message.get("id") != 1:
            message = json.loads(process.stdout.readline())
    assert message["result"]["serverInfo"]["name"] == "mc-text-code"


def test_nothing_outside_the_root_is_shown(project):
    with CodeIndex.open(project) as index:
        for path in ("../secret.txt", "/etc/passwd", "way_out.py", "shop/../../secret.txt", "..", "a/../../secret.txt"):
            with pytest.raises(DataError, match="outside"):
                show(index, path, 1)
        absolute = show(index, str(project / "shop/cart.py"), 7)
        assert (absolute.path, absolute.symbol) == ("shop/cart.py", "Cart")
        assert show(index, "./shop/cart.py", 7).text == absolute.text

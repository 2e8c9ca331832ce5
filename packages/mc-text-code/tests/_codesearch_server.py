"""Run by a test: a server of the Model Context Protocol over a folder, with the encoder of the tests."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from mc_text_code.codesearch import CodeIndex
from mc_text_code.codesearch.serve import build_server

tools = runpy.run_path(str(Path(__file__).with_name("_codesearch_tools.py")))

if __name__ == "__main__":
    build_server(lambda: CodeIndex.open(sys.argv[1], encoder=tools["HashingEncoder"]()), interval=0.2).run()

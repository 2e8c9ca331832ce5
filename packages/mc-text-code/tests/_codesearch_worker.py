"""Run by tests in a process of its own: refreshes and embeds an index, and says where it is."""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path

import mc_text_code.codesearch.refresh as refreshing
from mc_text_code.codesearch import CodeIndex

refreshing._BATCH_FILES = 8  # many transactions, so that one is often cut
tools = runpy.run_path(str(Path(__file__).with_name("_codesearch_tools.py")))


class SlowEncoder(tools["HashingEncoder"]):
    """As the other, with a pause, so that there is time to be killed."""

    def __init__(self, pause: float) -> None:
        super().__init__()
        self.pause = pause

    def _encode(self, texts):
        time.sleep(self.pause)
        return super()._encode(texts)


def main(root: str, pause: str, rounds: str) -> None:
    encoder = SlowEncoder(float(pause))
    for number in range(int(rounds)):
        with CodeIndex.open(root, encoder=encoder) as index:
            index.refresh(progress=lambda done, of: print("read", done, of, flush=True))
            index.embed(batch_size=16, progress=lambda done, of: print("embedded", done, of, flush=True))
            answer = index.search("read the file number 3", 5)
            print("found", number, len(answer), flush=True)
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

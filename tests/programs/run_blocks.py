"""Runs the Python blocks of documentation pages.

Arguments: a JSON file that has, for each page, its name and blocks `[first line, code]`; a file for
what came out, for each page: `[what each block printed, the traceback of the one that failed]`.
Blocks of a page share a namespace and an empty folder.
"""

import contextlib
import io
import json
import linecache
import os
import sys
import tempfile
import traceback
from pathlib import Path

pages = json.loads(Path(sys.argv[1]).read_text())
found: dict[str, tuple[list[str], str]] = {}
for page, blocks in pages.items():
    printed: list[str] = []
    problem = ""
    names = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for line, code in blocks:
            out = io.StringIO()
            try:
                # Line numbers are those of the page.
                text = "\n" * line + code
                program = compile(text, page, "exec")
                # For what asks for the source of a function, as in a notebook.
                linecache.cache[page] = (len(text), None, text.splitlines(True), page)
                with contextlib.redirect_stdout(out):
                    exec(program, names)
            except BaseException:
                problem = f"{traceback.format_exc()}\nprinted before:\n{out.getvalue()}"
                break
            printed.append(out.getvalue())
    found[page] = printed, problem
Path(sys.argv[2]).write_text(json.dumps(found))
sys.stdout.flush()
os._exit(0)  # what the pages left running is not waited for

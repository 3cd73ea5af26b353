"""Where packages come from, as uv wants to be told: reads `pip config list` from standard input.

Prints variables for uv, NAME=VALUE, a line each.
"""

import ast
import sys

_NAMES = {  # of pip's settings, and of uv's variables
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
}


def main() -> None:
    """Translate; a later line of pip's counts more."""
    found = {}
    for line in sys.stdin:
        setting, equals, value = line.strip().partition("=")
        section, _, name = setting.rpartition(".")
        if equals and section in ("global", "install", ":env:") and name in _NAMES:
            found[_NAMES[name]] = " ".join(str(ast.literal_eval(value)).split())
    for name, value in found.items():
        # uv takes a list of pages to look at with commas between them.
        sys.stdout.write(
            f"{name}={value.replace(' ', ',') if name == 'UV_FIND_LINKS' else value}\n"
        )


if __name__ == "__main__":
    main()

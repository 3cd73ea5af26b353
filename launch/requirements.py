"""What pyproject.toml requires, a line each: `python requirements.py cpu|any [EXTRA ...]`.

With `cpu`, TensorFlow's build for CPUs stands in the place of TensorFlow: the same, with another
name and without what is for GPUs.
"""

import re
import sys
import tomllib
from pathlib import Path


def main() -> None:
    """Print them."""
    build, *extras = sys.argv[1:]
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())
    wanted = list(project["project"]["dependencies"])
    for extra in extras:
        wanted += project["project"]["optional-dependencies"][extra]
    for requirement in wanted:
        name = "tensorflow-cpu" if build == "cpu" else "tensorflow"
        sys.stdout.write(re.sub(r"^tensorflow(?=[\[><=])", name, requirement) + "\n")


if __name__ == "__main__":
    main()

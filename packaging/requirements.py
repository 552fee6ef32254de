"""Print the requirements of pyproject.toml, one a line: the program's own, what builds it, and the extras named as arguments.

Lets the Makefile install dependencies without installing the project itself: the program runs from its source tree.
"""

import sys
import tomllib
from pathlib import Path


def main() -> None:
    pyproject = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    lines = [*pyproject["build-system"]["requires"], *pyproject["project"]["dependencies"]]
    for extra in sys.argv[1:]:
        lines += pyproject["project"]["optional-dependencies"][extra]
    print("\n".join(lines))


if __name__ == "__main__":
    main()

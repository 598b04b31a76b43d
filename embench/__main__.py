"""``python -m embench`` is the command ``embench``."""

from __future__ import annotations

from embench.cli import main

if __name__ == "__main__":
    main(prog_name="embench")

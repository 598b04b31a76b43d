"""``python -m embench.cli`` is the command ``embench``, too."""

from __future__ import annotations

from embench.cli import main

if __name__ == "__main__":
    main()

"""Foreign libraries, one per file, each optional: ``pip install 'embench[peers]'``."""

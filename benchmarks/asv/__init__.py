"""Performance history: `asv run` measures commits, `asv publish` draws what became of them."""

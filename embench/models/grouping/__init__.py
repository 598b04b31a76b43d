"""Which pixels of an image belong together: what takes no network to say."""

"""Neural EM: the pixels of an image are clustered by copies of one network, one for each group."""

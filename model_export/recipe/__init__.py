"""Training recipe of the segmentation network."""

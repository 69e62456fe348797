"""Images with labels: data sets, folders, generated scenes, crops and canvases."""

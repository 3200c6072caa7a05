"""Style, scripts and vendored three.js that `train.report` puts into a page."""

"""Training: settings, the loop, averaged weights, and the files of a run."""

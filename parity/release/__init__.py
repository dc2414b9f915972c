"""What stands between a verdict and a release: the run, its bundle, and the app that was built with it."""

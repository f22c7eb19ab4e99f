"""Many runs of `fit` as child processes: studies that search, and comparisons of objectives."""

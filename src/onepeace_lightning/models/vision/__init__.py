"""Models of the published vision results, each for one kind of answer."""

"""Pages and galleries that a person looks at."""

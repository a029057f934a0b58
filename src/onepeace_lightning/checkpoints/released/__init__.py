"""Files that the authors of ONE-PEACE have released: what each is, and what it is opened as."""

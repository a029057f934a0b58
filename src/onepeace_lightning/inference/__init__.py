"""A trained model in use: embed, search, predict."""

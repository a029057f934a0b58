"""The model behind interfaces of other tools, each of which is an extra."""

"""``python -m onepeace_lightning.cli``: the ``onepeace`` command."""

from onepeace_lightning.cli import main

main()
